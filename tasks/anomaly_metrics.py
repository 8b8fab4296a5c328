"""Metrics of anomaly scores: events found against false events, and areas over ranges.

Nothing here adjusts points: an alarm inside a labelled window never marks the rest of the window as found. A random
score then stays at chance, which it does not under point adjustment.

Shape letters: T steps of a series, W labelled windows.

Reference: Paparrizos et al. 2022, Volume Under the Surface: A New Accuracy Evaluation Measure for Time-Series Anomaly
Detection (VUS); Kim et al. 2022, Towards a Rigorous Evaluation of Time-Series Anomaly Detection (why not to adjust).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from seqkit.errors import ShapeError

Windows = Sequence[tuple[int, int]]


class EventPoint(NamedTuple):
    """One threshold of the event curve.

    Attributes:
        threshold: Alarms are scores above it.
        recall: Share of the labelled windows with an alarm inside.
        false_events: Alarms outside all windows; those closer than the gap are one.
        false_per_month: False events per month of steps that were scored outside windows.
        false_points: Steps of false alarm.
    """

    threshold: float
    recall: float
    false_events: int
    false_per_month: float
    false_points: int


class RangeArea(NamedTuple):
    """Areas under the range curves, in [0, 1]."""

    roc: float
    pr: float


def windows_of(labels_T: ArrayLike) -> list[tuple[int, int]]:
    """Runs of true labels as half-open ranges."""
    edges = np.diff(np.concatenate([[0], np.asarray(labels_T).astype(np.int8), [0]]))
    return list(zip(np.flatnonzero(edges == 1).tolist(), np.flatnonzero(edges == -1).tolist(), strict=True))


def events_of(times: ArrayLike, gap: float) -> int:
    """Number of events among alarm times: an alarm further than ``gap`` behind the last one begins a new event."""
    times = np.asarray(times)
    return 0 if len(times) == 0 else 1 + int((np.diff(times) > gap).sum())


def event_point(
    scores_T: ArrayLike, windows: Windows, threshold: float, *, gap: int, steps_per_month: float, start: int = 0
) -> EventPoint:
    """Count what one threshold finds.

    Args:
        scores_T: Anomaly scores, higher is stranger; NaN never alarms.
        windows: Labelled half-open ranges of steps.
        threshold: Alarms are scores above it.
        gap: Steps between alarms that belong to one event at most.
        steps_per_month: Steps of 30 days.
        start: First step that may alarm; windows that end before it are not counted.
    """
    alarms = np.nan_to_num(np.asarray(scores_T, np.float64), nan=-np.inf) > threshold
    alarms[:start] = False
    outside = np.ones(len(alarms), bool)
    counted = [(begin, end) for begin, end in windows if end > start]
    for begin, end in windows:
        outside[begin:end] = False
    found = sum(bool(alarms[begin:end].any()) for begin, end in counted)
    false = np.flatnonzero(alarms & outside)
    events, months = events_of(false, gap), outside[start:].sum() / steps_per_month
    return EventPoint(
        threshold=float(threshold),
        recall=found / len(counted) if counted else float("nan"),
        false_events=events,
        false_per_month=events / months if months else float("nan"),
        false_points=len(false),
    )


def event_curve(scores_T: ArrayLike, windows: Windows, *, gap: int, steps_per_month: float, start: int = 0):
    """Recall against false events over all useful thresholds, strictest first.

    Useful are the thresholds just below each window's highest score: between two of them recall does not change and
    false events only get more.

    Returns:
        A list of :class:`EventPoint`, recall rising.
    """
    scores = np.nan_to_num(np.asarray(scores_T, np.float64), nan=-np.inf)
    peaks = sorted({float(scores[max(b, start) : e].max()) for b, e in windows if e > start}, reverse=True)
    options = {"gap": gap, "steps_per_month": steps_per_month, "start": start}
    return [event_point(scores, windows, np.nextafter(peak, -np.inf), **options) for peak in peaks if peak > -np.inf]


def recall_at(curve: Sequence[EventPoint], false_per_month: float) -> float:
    """Best recall of a curve with no more false events per month than given; 0 where there is none."""
    return max((point.recall for point in curve if point.false_per_month <= false_per_month), default=0.0)


def _soft_labels(length: int, windows: Windows, buffer: int) -> NDArray:
    """Labels that fade over half the buffer on both sides of each window: sqrt(1 - distance / buffer)."""
    labels = np.zeros(length)
    fade = np.sqrt(1 - np.arange(1, buffer // 2 + 1) / buffer) if buffer else np.zeros(0)
    for begin, end in windows:
        labels[begin:end] += 1
        right = labels[end : end + len(fade)]
        right += fade[: len(right)]
        left = labels[max(begin - len(fade), 0) : begin]
        left += fade[::-1][len(fade) - len(left) :]
    return np.minimum(labels, 1)


def range_area(scores_T: ArrayLike, windows: Windows, buffer: int = 0) -> RangeArea:
    """Areas under ROC and precision-recall with soft labels around windows and windows weighted by existence.

    Recall is the labelled mass found over the mean of hard and soft mass, times the share of buffered windows touched.
    Every distinct score is a threshold.

    Args:
        scores_T: Anomaly scores, higher is stranger; no NaN.
        windows: Labelled half-open ranges, not empty.
        buffer: Steps over which labels fade, half on each side; 0 for the plain ranges.

    Raises:
        ShapeError: There is no window, or a score is NaN.
    """
    scores = np.asarray(scores_T, np.float64)
    if not windows:
        raise ShapeError("windows", expected="at least one labelled window", got="none")
    if np.isnan(scores).any():
        raise ShapeError("scores", expected="a score at every step", got=f"{int(np.isnan(scores).sum())} NaN")
    labels = _soft_labels(len(scores), windows, buffer)
    hard = sum(end - begin for begin, end in windows)
    mass = (hard + labels.sum()) / 2
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    taken = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1) + 1  # steps at or above each threshold
    found = np.cumsum(labels[order])[taken - 1]
    touched = windows_of(labels > 0)
    peaks = np.sort([-scores[begin:end].max() for begin, end in touched])
    existence = np.searchsorted(peaks, -ranked[taken - 1], side="right") / len(peaks)
    recall = np.concatenate([[0.0], np.minimum(found / mass, 1) * existence])
    false = np.concatenate([[0.0], (taken - found) / (len(scores) - mass)])
    rising, level = np.diff(recall), (recall[1:] + recall[:-1]) / 2
    return RangeArea(roc=float((np.diff(false) * level).sum()), pr=float((rising * found / taken).sum()))


def volume_under_surface(scores_T: ArrayLike, windows: Windows, longest_buffer: int) -> RangeArea:
    """VUS-ROC and VUS-PR: range areas averaged over buffers 0, 1, ..., ``longest_buffer``."""
    areas = [range_area(scores_T, windows, buffer) for buffer in range(longest_buffer + 1)]
    return RangeArea(*(float(np.mean(column)) for column in zip(*areas, strict=True)))
