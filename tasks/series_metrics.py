"""Metrics of forecasts, points and distributions.

Truth that is NaN is missing and counts nowhere; a metric without any valid value is NaN. Every function takes an
``axis``: None gives one number over everything, ``-1`` one per window. Units are those of the series; sMAPE is in per
cent from 0 to 200, as in the M4 competition.

Shape letters: W windows or series, H steps of the horizon, Q quantile levels, T steps of a history.

Reference: Makridakis et al. 2020, The M4 Competition (sMAPE, MASE, OWA); Gneiting and Raftery 2007, Strictly Proper
Scoring Rules (pinball loss, CRPS, interval score).
"""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import ArrayLike, NDArray

from seqkit.errors import ShapeError

Axis = int | tuple[int, ...] | None


def _mean(values: NDArray, axis: Axis) -> NDArray | float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the mean of nothing is NaN, which is what we want
        return np.nanmean(values, axis=axis)


def _pair(y: ArrayLike, forecast: ArrayLike) -> tuple[NDArray, NDArray]:
    y, forecast = np.asarray(y, np.float64), np.asarray(forecast, np.float64)
    if y.shape != forecast.shape:
        raise ShapeError("forecast", expected=f"the shape of y, {y.shape}", got=str(forecast.shape))
    return y, forecast


def mae(y: ArrayLike, forecast: ArrayLike, axis: Axis = None) -> NDArray | float:
    """Mean absolute error."""
    y, forecast = _pair(y, forecast)
    return _mean(np.abs(y - forecast), axis)


def mse(y: ArrayLike, forecast: ArrayLike, axis: Axis = None) -> NDArray | float:
    """Mean squared error."""
    y, forecast = _pair(y, forecast)
    return _mean((y - forecast) ** 2, axis)


def smape(y: ArrayLike, forecast: ArrayLike, axis: Axis = None) -> NDArray | float:
    """Mean of 200 |y - f| / (|y| + |f|); a step where both are 0 counts as 0."""
    y, forecast = _pair(y, forecast)
    size = np.abs(y) + np.abs(forecast)
    return _mean(200 * np.abs(y - forecast) / np.where(size == 0, 1, size), axis)


def seasonal_scale(history: ArrayLike, season: int) -> NDArray | float:
    """Mean absolute change over one season, the unit of MASE: (..., T) to (...).

    Args:
        history: What was known when the forecast was made; NaN where missing.
        season: Steps of a season; 1 where there is none.

    Raises:
        ShapeError: The history is no longer than a season.
    """
    history = np.asarray(history, np.float64)
    if not 1 <= season < history.shape[-1]:
        raise ShapeError("season", expected=f"at least 1 and below the history's {history.shape[-1]}", got=str(season))
    return _mean(np.abs(history[..., season:] - history[..., :-season]), -1)


def mase(y: ArrayLike, forecast: ArrayLike, scale: ArrayLike, axis: Axis = None) -> NDArray | float:
    """Mean absolute error over ``scale`` (W,) of each window; a constant history (scale 0) leaves its window out."""
    y, forecast = _pair(y, forecast)
    scale = np.asarray(scale, np.float64)
    unit = np.where(scale > 0, scale, np.nan)
    return _mean(np.abs(y - forecast) / unit[..., None], axis)


def owa(smape_: float, mase_: float, naive2_smape: float, naive2_mase: float) -> float:
    """Overall weighted average of M4: mean of both metrics, each over that of Naive2."""
    return (smape_ / naive2_smape + mase_ / naive2_mase) / 2


def pinball(y: ArrayLike, quantiles: ArrayLike, levels: ArrayLike, axis: Axis = None) -> NDArray | float:
    """Mean pinball loss, max(q (y - f), (q - 1)(y - f)), over the levels as well.

    Args:
        y: Truth (..., H).
        quantiles: Predicted quantiles (..., H, Q).
        levels: Their levels (Q,) in (0, 1).
        axis: Of (..., H) to average over.

    Raises:
        ShapeError: The shapes do not fit.
    """
    y, quantiles, levels = (np.asarray(a, np.float64) for a in (y, quantiles, levels))
    if quantiles.shape != (*y.shape, *levels.shape):
        raise ShapeError("quantiles", expected=str((*y.shape, *levels.shape)), got=str(quantiles.shape))
    error = y[..., None] - quantiles
    return _mean(np.maximum(levels * error, (levels - 1) * error).mean(-1), axis)


def crps(y: ArrayLike, quantiles: ArrayLike, levels: ArrayLike, axis: Axis = None) -> NDArray | float:
    """Continuous ranked probability score from quantiles: twice the mean pinball loss of evenly spread levels."""
    return 2 * pinball(y, quantiles, levels, axis)


def coverage(y: ArrayLike, low: ArrayLike, high: ArrayLike, axis: Axis = None) -> NDArray | float:
    """Share of the truth inside [low, high]."""
    y, low = _pair(y, low)
    inside = (low <= y) & (y <= np.asarray(high, np.float64))
    return _mean(np.where(np.isnan(y), np.nan, inside), axis)


def interval_score(y: ArrayLike, low: ArrayLike, high: ArrayLike, level: float, axis: Axis = None) -> NDArray | float:
    """Width of the interval plus 2 / alpha times how far the truth lies outside (Winkler).

    Args:
        y: Truth.
        low: Lower ends.
        high: Upper ends.
        level: Nominal coverage in (0, 1); alpha = 1 - level.
        axis: To average over.
    """
    y, low = _pair(y, low)
    high = np.asarray(high, np.float64)
    outside = np.maximum(low - y, 0) + np.maximum(y - high, 0)
    return _mean(high - low + 2 / (1 - level) * outside, axis)
