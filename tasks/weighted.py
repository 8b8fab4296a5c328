"""What the metrics share: labelled rows, weights as (R, N), and sums over tied scores.

Shape letters: N rows, C classes, R weight rows, K tied runs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from seqkit.errors import ShapeError


def prepare(labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None) -> tuple[NDArray, NDArray, NDArray]:
    """Labelled rows as float64, and weights as (R, N)."""
    y_N, s = np.asarray(labels, dtype=float), np.asarray(scores, dtype=float)
    if y_N.ndim != 1 or len(s) != len(y_N):
        raise ShapeError("labels", expected=f"({len(s)},) like the scores", got=f"shape {y_N.shape}")
    known = ~np.isnan(y_N)
    missing = int(np.isnan(s[known]).sum())
    if missing:
        remedy = "Impute them, or leave the rows out for every method alike."
        raise ShapeError("scores", expected="a number for every labelled row", got=f"{missing} NaN", remedy=remedy)
    w_RN = np.ones((1, len(y_N))) if weights is None else np.atleast_2d(np.asarray(weights, dtype=float))
    if w_RN.shape[1] != len(y_N):
        raise ShapeError("weights", expected=f"({len(y_N)},) or (R, {len(y_N)})", got=f"shape {w_RN.shape}")
    if known.all():
        return y_N, s, w_RN
    return y_N[known], s[known], w_RN[:, known]


def prepare_binary(labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None) -> tuple[NDArray, NDArray, NDArray]:
    """As :func:`prepare`; labels must be 0 or 1 and scores one per row."""
    y_N, s_N, w_RN = prepare(labels, scores, weights)
    if s_N.ndim != 1:
        raise ShapeError("scores", expected="one score per row", got=f"shape {s_N.shape}")
    if not np.isin(y_N, (0, 1)).all():
        raise ShapeError("labels", expected="0, 1 or NaN", got=f"values such as {y_N[~np.isin(y_N, (0, 1))][0]:g}")
    return y_N, s_N, w_RN


def prepare_classes(
    labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None
) -> tuple[NDArray, NDArray, NDArray]:
    """As :func:`prepare`; labels must be column numbers of the scores (N, C)."""
    y_N, s_NC, w_RN = prepare(labels, scores, weights)
    if not np.isin(y_N, np.arange(s_NC.shape[1])).all():
        raise ShapeError("labels", expected=f"class numbers 0 to {s_NC.shape[1] - 1} or NaN", got="other values")
    return y_N, s_NC, w_RN


def tied_runs(y_N: NDArray, s_N: NDArray, w_RN: NDArray) -> tuple[NDArray, NDArray]:
    """Positive and negative weight (R, K) at each distinct score, in ascending order."""
    if len(s_N) == 0:
        return np.zeros((len(w_RN), 0)), np.zeros((len(w_RN), 0))
    order = np.argsort(s_N, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(s_N[order]) > 0])
    sorted_RN, y_N = w_RN[:, order], y_N[order]
    positive_RK = np.add.reduceat(sorted_RN * y_N, starts, axis=1)
    return positive_RK, np.add.reduceat(sorted_RN, starts, axis=1) - positive_RK


def ranks(x_N: NDArray, w_RN: NDArray) -> NDArray:
    """Mid-ranks (R, N) of x when row i is repeated weight[i] times."""
    level_N = np.unique(x_N, return_inverse=True)[1].reshape(-1)
    if len(level_N) == 0:
        return np.zeros_like(w_RN)
    order = np.argsort(level_N, kind="stable")
    mass_RK = np.add.reduceat(w_RN[:, order], np.searchsorted(level_N[order], np.arange(level_N.max() + 1)), axis=1)
    return (np.cumsum(mass_RK, axis=1) - 0.5 * mass_RK)[:, level_N]


def correlation(a_RN: NDArray, b_RN: NDArray, w_RN: NDArray) -> NDArray:
    """Weighted Pearson correlation (R,) of each pair of vectors; NaN where one is constant."""
    (a_RN, spread_a_R), (b_RN, spread_b_R) = _centred(a_RN, w_RN), _centred(b_RN, w_RN)
    return divide((w_RN * a_RN * b_RN).sum(axis=1), spread_a_R * spread_b_R)


def _centred(x_RN: NDArray, w_RN: NDArray) -> tuple[NDArray, NDArray]:
    """Deviations from the mean and their norm, exactly 0 when only rounding is left."""
    size_R = (w_RN * x_RN**2).sum(axis=1)
    x_RN = x_RN - divide((w_RN * x_RN).sum(axis=1), w_RN.sum(axis=1))[:, None]
    square_R = (w_RN * x_RN**2).sum(axis=1)
    return x_RN, np.sqrt(np.where(square_R > 1e-28 * size_R, square_R, 0.0))


def mean(x_N: NDArray, w_RN: NDArray) -> NDArray:
    """Mean of x under each weight vector, (R,)."""
    return divide(w_RN @ x_N, w_RN.sum(axis=1))


def divide(a: NDArray, b: NDArray) -> NDArray:
    """Quotient with NaN where b is 0."""
    return np.divide(a, b, out=np.full(np.shape(b), np.nan), where=np.asarray(b) != 0)


def nan_mean(values: list) -> float | NDArray:
    """Mean over the list of what is defined, NaN where nothing is."""
    stacked = np.stack([np.asarray(v, dtype=float) for v in values])
    average = divide(np.nansum(stacked, axis=0), np.isfinite(stacked).sum(axis=0))
    return average if average.ndim else float(average)


def unpack(value_R: NDArray, weights: ArrayLike | None) -> float | NDArray:
    """All R values when a weight matrix was given, else the only one as a float."""
    return value_R if weights is not None and np.ndim(weights) == 2 else float(value_R[0])
