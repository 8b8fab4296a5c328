"""Forecasts and anomaly scores without a model, on the same windows as the model: the first rows of every table.

Shape letters: B windows, L steps of history, H steps ahead, Q quantile levels, T steps of a series.

Reference: Makridakis et al. 2020, The M4 Competition (Naive2 and its test of seasonality).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from seqkit.errors import ShapeError

SEASONALITY_Z = 1.645  # of M4's test: 90 %, two-sided


def _history(history_BL: ArrayLike, needed: int, what: str) -> NDArray:
    history = np.atleast_2d(np.asarray(history_BL, np.float64))
    if history.shape[-1] < needed:
        raise ShapeError("history", expected=f"at least {needed} steps for {what}", got=str(history.shape[-1]))
    return history


def _forward_filled(history_BL: NDArray) -> NDArray:
    """Missing values take the last value before them; those at the start stay missing."""
    seen = np.where(np.isnan(history_BL), 0, np.arange(history_BL.shape[1]))
    return np.take_along_axis(history_BL, np.maximum.accumulate(seen, axis=1), axis=1)


def naive(history_BL: ArrayLike, horizon: int) -> NDArray:
    """The last known value at every step: (B, L) to (B, H)."""
    last = _forward_filled(_history(history_BL, 1, "naive"))[:, -1:]
    return np.repeat(last, horizon, axis=1)


def seasonal_naive(history_BL: ArrayLike, horizon: int, season: int) -> NDArray:
    """What was seen a season ago, again and again: (B, L) to (B, H).

    Args:
        history_BL: Known values; a missing one is replaced by the last value before it.
        horizon: Steps H.
        season: Steps of a season, at most L.

    Raises:
        ShapeError: The history is shorter than a season.
    """
    last = _forward_filled(_history(history_BL, season, "one season"))[:, -season:]
    return last[:, np.arange(horizon) % season]


def drift(history_BL: ArrayLike, horizon: int) -> NDArray:
    """The line through the first and the last value: (B, L) to (B, H)."""
    history = _forward_filled(_history(history_BL, 2, "a drift"))
    slope = (history[:, -1] - history[:, 0]) / (history.shape[1] - 1)
    return history[:, -1:] + slope[:, None] * np.arange(1, horizon + 1)


def conformal_quantiles(residuals_NH: ArrayLike, levels: ArrayLike) -> NDArray:
    """Quantiles of held-out residuals with the finite-sample rank, ceil(level (N + 1)): (N, H) to (H, Q).

    Levels below one half take the mirrored rank, so that a central interval covers at least what it says. NaN residuals
    are left out.

    Reference: Vovk et al. 2005, Algorithmic Learning in a Random World (split conformal prediction).
    """
    residuals, levels = np.sort(np.asarray(residuals_NH, np.float64), axis=0), np.asarray(levels)
    count = (~np.isnan(residuals)).sum(0)[:, None]
    upper = np.ceil(levels * (count + 1) - 1e-9)
    lower = np.floor(levels * (count + 1) + 1e-9)
    middle = np.rint(levels * (count + 1))
    rank = np.where(levels > 0.5, upper, np.where(levels < 0.5, lower, middle)) - 1
    rank = np.clip(rank, 0, np.maximum(count - 1, 0)).astype(int)
    return np.take_along_axis(residuals, rank.T, axis=0).T


def seasonal_naive_quantiles(history_BL: ArrayLike, horizon: int, season: int, levels: ArrayLike) -> NDArray:
    """Seasonal naive with the quantiles of its own errors in the history: (B, L) to (B, H, Q).

    A step k seasons ahead takes the changes over k seasons seen so far, or over as many as the history holds.

    Raises:
        ShapeError: The history is no longer than a season.
    """
    history = _history(history_BL, season + 1, "one seasonal change")
    centre = seasonal_naive(history, horizon, season)
    most = (history.shape[1] - 1) // season
    quantiles = np.empty((*centre.shape, len(np.atleast_1d(levels))))
    for ahead in range(1, -(-horizon // season) + 1):
        lag = season * min(ahead, most)
        steps = slice((ahead - 1) * season, min(ahead * season, horizon))
        spread = conformal_quantiles((history[:, lag:] - history[:, :-lag]).T, levels)
        quantiles[:, steps] = centre[:, steps, None] + spread[:, None]
    return quantiles


def is_seasonal(history_L: ArrayLike, season: int) -> bool:
    """M4's test: the autocorrelation at one season exceeds its 90 % bound; False below three seasons of history."""
    y = np.asarray(history_L, np.float64)
    if season < 2 or len(y) < 3 * season:
        return False
    centred = y - y.mean()
    power = centred @ centred
    if power == 0:
        return False
    acf = np.array([centred[k:] @ centred[:-k] for k in range(1, season + 1)]) / power
    bound = SEASONALITY_Z * np.sqrt((1 + 2 * (acf[:-1] ** 2).sum()) / len(y))
    return bool(abs(acf[-1]) > bound)


def seasonal_factors(history_L: ArrayLike, season: int) -> NDArray:
    """Multiplicative factor of each place in the season, by a centred moving average; their mean is 1.

    Returns:
        (season,) factors; the first belongs to the first step of the history.
    """
    y = np.asarray(history_L, np.float64)
    weights = np.ones(season) / season if season % 2 else np.r_[0.5, np.ones(season - 1), 0.5] / season
    half = season // 2
    ratio = np.full(len(y), np.nan)
    ratio[half : len(y) - half] = y[half : len(y) - half] / np.convolve(y, weights, mode="valid")
    factors = np.array([np.nanmean(ratio[place::season]) for place in range(season)])
    return factors / factors.mean()


def naive2(history_L: ArrayLike, horizon: int, season: int) -> NDArray:
    """M4's benchmark: naive on the seasonally adjusted series, if it is seasonal: (L,) to (H,)."""
    y = np.asarray(history_L, np.float64)
    if not is_seasonal(y, season):
        return np.repeat(y[-1], horizon)
    factors = seasonal_factors(y, season)
    places = np.arange(len(y), len(y) + horizon) % season
    return y[-1] / factors[(len(y) - 1) % season] * factors[places]


def seasonal_residual_score(y_T: ArrayLike, season: int, memory: int) -> NDArray:
    """How unusual the change over a season is: |z| of y(t) - y(t - season) against the ``memory`` changes before it.

    Causal: step t is judged by what lies before it alone. A missing value gives NaN and is left out of later spreads.

    Args:
        y_T: The series.
        season: Steps of a season, a week for most.
        memory: Changes that set mean and spread.

    Returns:
        (T,) scores; NaN before half the memory is full.
    """
    y = np.asarray(y_T, np.float64)
    change = np.full(len(y), np.nan)
    change[season:] = y[season:] - y[:-season]
    known = ~np.isnan(change)
    filled = np.where(known, change - np.nanmean(change[: season + memory]), 0)  # centred, so that squares stay exact

    def before(values: NDArray) -> NDArray:
        total = np.concatenate([[0.0], np.cumsum(values)])
        return total[:-1] - total[np.maximum(np.arange(len(values)) - memory, 0)]

    count = before(known.astype(float))
    mean = before(filled) / np.maximum(count, 1)
    spread = np.sqrt(np.maximum(before(filled**2) / np.maximum(count, 1) - mean**2, 0))
    score = np.abs(filled - mean) / np.where(spread > 0, spread, np.nan)
    return np.where(known & (count >= memory / 2), score, np.nan)
