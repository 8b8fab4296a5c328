"""Bootstrap intervals of a metric, and whether two methods differ.

Shape letters: N rows, C classes, R resamples, G groups.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from seqkit.errors import ShapeError

Metric = Callable[..., "float | NDArray"]

_CELLS_AT_ONCE = 4_000_000  # weights of one block of resamples: 32 MB


class Estimate(NamedTuple):
    """A metric with its 95 % percentile bootstrap interval.

    Attributes:
        value: The metric on all rows.
        low: 2.5 % quantile over resamples.
        high: 97.5 % quantile over resamples.
        groups: Independent units that were resampled; below about ten the interval is too narrow.
        resamples: Resamples in which the metric was defined.
        reason: Why the value is NaN, else empty.
    """

    value: float
    low: float
    high: float
    groups: int
    resamples: int
    reason: str = ""


class Comparison(NamedTuple):
    """Difference ``a - b`` of a metric on the same rows and resamples.

    Attributes:
        difference: ``metric(a) - metric(b)`` on all rows.
        low: 2.5 % quantile of the difference over resamples.
        high: 97.5 % quantile.
        verdict: ``"level"`` when the interval holds zero, else ``"higher"`` or ``"lower"``, as a stands to b;
            ``"undefined"`` when the metric is.
    """

    difference: float
    low: float
    high: float
    verdict: str


def bootstrap_interval(
    metric: Metric,
    labels: ArrayLike,
    scores: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    n: int = 1000,
    seed: int = 0,
) -> Estimate:
    """Metric with its 95 % percentile interval.

    Args:
        metric: One of this module's, or any ``metric(labels, scores, weights)`` that takes (R, N) weights.
        labels: (N,) or what the metric takes; NaN is missing.
        scores: (N,) or (N, C).
        groups: (N,) names of the units that are independent of each other, such as exons or positions: whole
            groups are resampled. Without it, rows are.
        n: Resamples.
        seed: The same seed, groups and n give the same resamples for every method.

    Reference: Efron and Tibshirani 1993, chapter 13; Field and Welsh 2007 for clusters.
    """
    value = float(metric(labels, scores))
    member_N, count = _units(groups, len(np.asarray(labels)))
    drawn_R = np.concatenate([metric(labels, scores, w_RN) for w_RN in _resamples(member_N, count, n, seed)])
    low, high, defined = _percentiles(drawn_R)
    reason = "" if np.isfinite(value) else undefined_reason(labels) or "undefined for these scores"
    return Estimate(value, low, high, count, defined, reason)


def paired_bootstrap(
    metric: Metric,
    labels: ArrayLike,
    scores_a: ArrayLike,
    scores_b: ArrayLike,
    groups: ArrayLike | None = None,
    *,
    n: int = 1000,
    seed: int = 0,
) -> Comparison:
    """Whether two methods differ: the metric's difference ``a - b`` with both scored on the same resamples.

    Args:
        metric: As for :func:`bootstrap_interval`.
        labels: (N,); NaN is missing.
        scores_a: (N,) or (N, C).
        scores_b: As ``scores_a``, of the same rows.
        groups: (N,) units to resample.
        n: Resamples.
        seed: Of the resamples.
    """
    difference = float(metric(labels, scores_a)) - float(metric(labels, scores_b))
    member_N, count = _units(groups, len(np.asarray(labels)))
    blocks = _resamples(member_N, count, n, seed)
    drawn_R = np.concatenate([metric(labels, scores_a, w) - metric(labels, scores_b, w) for w in blocks])
    low, high, _ = _percentiles(drawn_R)
    if not np.isfinite(difference) or not np.isfinite(low):
        return Comparison(difference, low, high, "undefined")
    verdict = "level" if low <= 0 <= high else "higher" if low > 0 else "lower"
    return Comparison(difference, low, high, verdict)


def estimate_all(
    metrics: Mapping[str, Metric],
    labels: ArrayLike,
    scores: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    n: int = 1000,
    seed: int = 0,
) -> dict[str, Estimate]:
    """:func:`bootstrap_interval` of several metrics on the same resamples."""
    return {
        name: bootstrap_interval(metric, labels, scores, groups=groups, n=n, seed=seed)
        for name, metric in metrics.items()
    }


def undefined_reason(labels: ArrayLike) -> str:
    """Why ranking metrics are undefined for these labels; empty when at least two values occur."""
    y_N = np.asarray(labels, dtype=float)
    known = y_N[~np.isnan(y_N)]
    if known.size == 0:
        return "no row has a label"
    if np.all(known == known[0]):
        return f"all {known.size} labels are {known[0]:g}"
    return ""


def _units(groups: ArrayLike | None, rows: int) -> tuple[NDArray, int]:
    if groups is None:
        return np.arange(rows), rows
    member_N = np.unique(np.asarray(groups), return_inverse=True)[1].reshape(-1)
    if len(member_N) != rows:
        raise ShapeError("groups", expected=f"({rows},) like the labels", got=f"{len(member_N)} entries")
    return member_N, int(member_N.max(initial=-1)) + 1


def _resamples(member_N: NDArray, count: int, n: int, seed: int) -> Iterator[NDArray]:
    """Blocks of row weights (R, N), n rows in all: how often each row's group was drawn."""
    rng = np.random.default_rng(seed)
    block = max(1, _CELLS_AT_ONCE // max(1, len(member_N)))
    for first in range(0, n, block):
        rows = min(block, n - first)
        if count == 0:
            yield np.zeros((rows, 0))
            continue
        drawn_RG = rng.integers(count, size=(rows, count)) + count * np.arange(rows)[:, None]
        times_RG = np.bincount(drawn_RG.reshape(-1), minlength=rows * count).reshape(rows, count)
        yield times_RG[:, member_N].astype(float)


def _percentiles(drawn_R: NDArray) -> tuple[float, float, int]:
    defined = drawn_R[np.isfinite(drawn_R)]
    if len(defined) == 0:
        return float("nan"), float("nan"), 0
    low, high = np.quantile(defined, (0.025, 0.975))
    return float(low), float(high), len(defined)
