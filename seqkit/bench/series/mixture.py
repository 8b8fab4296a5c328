"""A mixture of closed forms for one series, weighed on the series' own last horizons: no network, one setting for all.

The candidates are lag ridges of values and of logarithms, at two lookbacks and two penalties, and two seasonal naive
forecasts. Each is fitted before the last two horizons and before the last one, and weighs by its error there.

Legend: T steps of a series, H horizon, M candidates.
"""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from seqkit.tasks import series_metrics as metrics
from seqkit.tasks.series_baselines import seasonal_naive
from seqkit.tasks.series_linear import fit_linear

PENALTIES = (0.01, 0.1)
HELD_OUT = 2
"""Horizons at the end of a series that weigh the candidates."""
SHARPNESS = 3.0
"""A candidate with twice the least error weighs exp(-3) of the best."""


class Mixture(NamedTuple):
    """Forecast of one series.

    Attributes:
        forecast_H: Weighted mean of the candidates.
        weight_M: Weights.
    """

    forecast_H: NDArray
    weight_M: NDArray


def mixture(history_T: NDArray, horizon: int, season: int, lookback: int) -> Mixture:
    """Forecast a positive series.

    Args:
        history_T: Values above zero, more than three horizons of them.
        horizon: H.
        season: Steps of the short season, in MASE's scale and the first naive forecast.
        lookback: Of the ridges, also twice it; of the second naive forecast.
    """
    scale = metrics.seasonal_scale(history_T, season) or 1.0
    sizes = (horizon, season, lookback)
    ends = [len(history_T) - horizon * back for back in range(HELD_OUT, 0, -1)]
    held = [(candidates(history_T[:end], *sizes), history_T[end : end + horizon]) for end in ends]
    error_M = sum(relative_errors(forecasts, truth, scale) for forecasts, truth in held)
    weight_M = np.exp(-SHARPNESS * error_M / max(error_M.min(), 1e-12))
    weight_M /= weight_M.sum()
    return Mixture(weight_M @ candidates(history_T, *sizes), weight_M)


def candidates(history_T: NDArray, horizon: int, season: int, lookback: int) -> NDArray:
    """(M, H) forecasts, all above zero."""
    logarithm = np.log(history_T)
    ridges = [
        lag_ridge(series, horizon, steps, penalty)
        for steps, penalty, series in product((lookback, 2 * lookback), PENALTIES, (history_T, logarithm))
    ]
    ridges[1::2] = [np.exp(forecast) for forecast in ridges[1::2]]
    naive = [seasonal_naive(history_T[None], horizon, min(s, len(history_T)))[0] for s in (season, lookback)]
    # A line below a series that stays above zero is no forecast of it.
    return np.maximum(np.stack(ridges + naive), history_T.min() / 2)


def lag_ridge(series_T: NDArray, horizon: int, lookback: int, penalty: float) -> NDArray:
    """(H,) forecast by a ridge on the series' own windows; a short series takes half the lookback, and so on."""
    while len(series_T) < 2 * (lookback + horizon) and lookback > 1:
        lookback //= 2
    return fit_linear(series_T, lookback, horizon, penalties=[penalty], bias=False).predict(series_T[None])[0]


def relative_errors(forecast_MH: NDArray, y_H: NDArray, scale: float) -> NDArray:
    """(M,) errors as the competition weighs them: sMAPE and MASE, each over the mean of the candidates."""
    smape = np.array([metrics.smape(y_H, forecast) for forecast in forecast_MH])
    mase = np.abs(y_H - forecast_MH).mean(1) / scale
    return smape / max(smape.mean(), 1e-12) + mase / max(mase.mean(), 1e-12)
