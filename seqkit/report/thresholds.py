"""What calling variants at a threshold means: sensitivity, specificity, likelihood ratios.

Shape letters: N variants, V validation variants.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from seqkit.report.table import Table, cell

_Z = 1.959964  # two-sided 95 %
TARGET = 0.95


class OperatingPoint(NamedTuple):
    """Counts at one threshold; a variant whose score reaches it is called positive.

    Attributes:
        name: How the threshold was chosen.
        threshold: Smallest score that is called.
        true_positive: Positives called.
        false_negative: Positives not called.
        true_negative: Negatives not called.
        false_positive: Negatives called.
    """

    name: str
    threshold: float
    true_positive: int
    false_negative: int
    true_negative: int
    false_positive: int

    @property
    def sensitivity(self) -> float:
        """Share of positives that are called; NaN without positives."""
        return _share(self.true_positive, self.true_positive + self.false_negative)

    @property
    def specificity(self) -> float:
        """Share of negatives that are not called; NaN without negatives."""
        return _share(self.true_negative, self.true_negative + self.false_positive)

    @property
    def positive_ratio(self) -> float:
        """Likelihood ratio of a call, sensitivity / (1 - specificity); infinite without false positives."""
        return _ratio(self.sensitivity, 1 - self.specificity)

    @property
    def negative_ratio(self) -> float:
        """Likelihood ratio of no call, (1 - sensitivity) / specificity."""
        return _ratio(1 - self.sensitivity, self.specificity)


def operating_points(labels: ArrayLike, scores: ArrayLike, thresholds: Mapping[str, float]) -> list[OperatingPoint]:
    """Counts at every threshold.

    Args:
        labels: (N,) of 0, 1 or NaN, which is left out.
        scores: (N,).
        thresholds: By name.
    """
    y_N, s_N = np.asarray(labels, float), np.asarray(scores, float)
    known_N = ~np.isnan(y_N) & ~np.isnan(s_N)
    y_N, s_N = y_N[known_N] > 0, s_N[known_N]
    points = []
    for name, threshold in thresholds.items():
        called_N = s_N >= threshold
        counts = [(y_N & called_N), (y_N & ~called_N), (~y_N & ~called_N), (~y_N & called_N)]
        points.append(OperatingPoint(name, float(threshold), *(int(count.sum()) for count in counts)))
    return points


def threshold_for(labels: ArrayLike, scores: ArrayLike, *, sensitivity: float = 0, specificity: float = 0) -> float:
    """Threshold on validation rows: the highest with a sensitivity, or the lowest with a specificity, of at least that.

    Args:
        labels: (V,) of 0, 1 or NaN.
        scores: (V,).
        sensitivity: Wanted share of positives called; 0 asks for none.
        specificity: Wanted share of negatives not called; 0 asks for none.

    Returns:
        The threshold; NaN where there is no variant of the class.
    """
    y_V, s_V = np.asarray(labels, float), np.asarray(scores, float)
    if sensitivity:
        positive = np.sort(s_V[y_V == 1])
        return float(positive[int(len(positive) * (1 - sensitivity) + 1e-9)]) if len(positive) else math.nan
    negative = np.sort(s_V[y_V == 0])
    if not len(negative):
        return math.nan
    kept = math.ceil(len(negative) * specificity - 1e-9)
    return float(np.nextafter(negative[kept - 1], math.inf))


def threshold_table(points: list[OperatingPoint], *, title: str = "", note: str = "") -> Table:
    """Thresholds as rows, shares with Wilson's 95 % intervals."""
    headings = ("threshold", "score", "called", "sensitivity", "specificity", "LR+", "LR-")
    rows = []
    for p in points:
        positives, negatives = p.true_positive + p.false_negative, p.true_negative + p.false_positive
        rows.append((
            p.name, f"{p.threshold:.3f}", f"{p.true_positive + p.false_positive} of {positives + negatives}",
            cell(p.sensitivity, *wilson(p.true_positive, positives)),
            cell(p.specificity, *wilson(p.true_negative, negatives)),
            _number(p.positive_ratio), _number(p.negative_ratio),
        ))  # fmt: skip
    return Table(title, headings, tuple(rows), note)


def wilson(hits: int, total: int) -> tuple[float, float]:
    """95 % interval of a share. Reference: Wilson 1927, JASA 22:209; NaN without any."""
    if not total:
        return math.nan, math.nan
    p, z2 = hits / total, _Z**2
    centre, half = p + z2 / (2 * total), _Z * math.sqrt(p * (1 - p) / total + z2 / (4 * total**2))
    return max(0.0, (centre - half) / (1 + z2 / total)), min(1.0, (centre + half) / (1 + z2 / total))


def _share(hits: int, total: int) -> float:
    return hits / total if total else math.nan


def _ratio(top: float, bottom: float) -> float:
    if math.isnan(top) or math.isnan(bottom):
        return math.nan
    return top / bottom if bottom > 0 else math.inf if top > 0 else math.nan


def _number(value: float) -> str:
    if math.isnan(value):
        return "undefined"
    return "no false call" if math.isinf(value) else f"{value:.2f}"
