"""NAB's seven series with known causes: labelled windows found against false events a month, nothing adjusted.

The first 15 % of each series never alarm; they set a method's threshold where it needs one. Alarms less than a day
apart are one event. One taxi window (2 November 2014) holds the end of daylight saving time beside the marathon.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from seqkit.bench.series import files
from seqkit.bench.series.rows import Row, timed
from seqkit.tasks.anomaly_metrics import event_curve, event_point, recall_at, volume_under_surface
from seqkit.tasks.detector import detector_config, fit_detector
from seqkit.tasks.series_baselines import seasonal_residual_score

FILES = (*(f"{name}.csv" for name in files.NAB_SERIES), files.WINDOWS)
QUIET = 0.15
THRESHOLDS = (3, 4, 5)
BUDGETS = (1.0, 2.0, 4.0)
DAY = 86_400


class Labelled(NamedTuple):
    """A series with its labels.

    Attributes:
        times: Seconds (T,), ascending; gaps and repeats as they are.
        values: (T,).
        windows: Labelled half-open row ranges.
        day: Rows of a day at the usual step.
        start: First row that may alarm.
    """

    times: NDArray
    values: NDArray
    windows: list[tuple[int, int]]
    day: int
    start: int

    @property
    def counting(self) -> dict[str, float]:
        """How events are counted."""
        return {"gap": self.day, "steps_per_month": 30 * self.day, "start": self.start}

    @property
    def season(self) -> int:
        """A week where three of them fit, else a day."""
        return 7 * self.day if len(self.values) >= 21 * self.day else self.day


def load(folder: Path, name: str) -> Labelled:
    """One of the seven."""
    times, values, windows = files.nab(folder, name)
    day = round(DAY / np.median(np.diff(times)))
    return Labelled(times, values, windows, day, round(QUIET * len(values)))


def scored(series: Labelled, score: NDArray, thresholds: dict[str, float]) -> dict[str, float]:
    """Recall and false events at given thresholds, best recall within false-event budgets, and the areas."""
    found: dict[str, float] = {}
    for name, threshold in thresholds.items():
        point = event_point(score, series.windows, threshold, **series.counting)
        found |= {f"recall {name}": point.recall, f"false a month {name}": point.false_per_month}
        found |= {f"false events {name}": point.false_events, f"false points {name}": point.false_points}
    curve = event_curve(score, series.windows, **series.counting)
    found |= {f"recall at {budget:g}": recall_at(curve, budget) for budget in BUDGETS}
    begin = series.start
    inside = [(max(b - begin, 0), e - begin) for b, e in series.windows if e > begin]
    area = volume_under_surface(score[begin:], inside, min(series.day, 100))
    return found | {"vus_roc": area.roc, "vus_pr": area.pr, "windows": len(inside)}


def residual_metrics(series: Labelled) -> dict[str, float]:
    """Causal z of the change over a season against the changes of four seasons before."""
    score = seasonal_residual_score(series.values, series.season, 4 * series.season)
    return scored(series, np.nan_to_num(score), {f"z > {z}": z for z in THRESHOLDS})


def baselines(folder: Path) -> Iterator[Row]:
    """The change over a week, or over a day where the series is short."""
    for name in files.NAB_SERIES:
        series = load(folder, name)
        method = "weekly residual" if series.season > series.day else "daily residual"
        yield timed(f"NAB {name}", method, residual_metrics, series)


def model_metrics(series: Labelled, seed: int, device: str, score: str = "likelihood") -> dict[str, float]:
    """Surprise of a one-step model fitted to the quiet part, or errors of a day's reconstruction, over half a day."""
    detector = fit_detector(
        series.values[: series.start], seasons=(0, series.day, 7 * series.day), smooth=series.day // 2,
        settings=replace(detector_config(series.day), score=score), seed=seed, device=device,
    )  # fmt: skip
    found = scored(series, detector.score(series.values), {"quiet maximum": detector.threshold})
    return found | {"season": detector.season}


def models(folder: Path, device: str, seeds: Sequence[int]) -> Iterator[Row]:
    """The detector on each series: by reconstruction, which knows no chance, and by likelihood."""
    for name in files.NAB_SERIES:
        series = load(folder, name)
        yield timed(f"NAB {name}", "seqkit, reconstruction", model_metrics, series, 0, device, "reconstruction")
        for seed in seeds:
            yield timed(f"NAB {name}", "seqkit", model_metrics, series, seed, device, seed=seed)
