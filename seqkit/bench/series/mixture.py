"""A mixture of closed forms for one series, weighed on the series' own last horizons: no network, one setting for all.

The candidates are lag ridges of values and of logarithms, at two lookbacks and two penalties, and two seasonal naive
forecasts. Each is fitted before the last two horizons and before the last one, and weighs by its error there. Intervals
are those of all series' errors on these horizons, each horizon forecast with the weights of the other.

Legend: T steps of a series, S series, H horizon, K held-out horizons, M candidates, Q quantile levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from seqkit.tasks import series_metrics as metrics
from seqkit.tasks.series_baselines import conformal_quantiles, seasonal_naive
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
        residual_KH: Values of each held-out horizon, less the mean by the weights of the others.
        scale: Mean seasonal change of the series, that of MASE; 1 where it does not change.
    """

    forecast_H: NDArray
    weight_M: NDArray
    residual_KH: NDArray
    scale: float


def mixture(history_T: NDArray, horizon: int, season: int, lookback: int) -> Mixture:
    """Forecast a positive series.

    Args:
        history_T: Values above zero, more than three horizons of them.
        horizon: H.
        season: Steps of the short season, in MASE's scale and the first naive forecast.
        lookback: Of the ridges, also twice it; of the second naive forecast.
    """
    scale = float(metrics.seasonal_scale(history_T, season)) or 1.0
    sizes = (horizon, season, lookback)
    ends = [len(history_T) - horizon * back for back in range(HELD_OUT, 0, -1)]
    held = [(candidates(history_T[:end], *sizes), history_T[end : end + horizon]) for end in ends]
    error_KM = np.stack([relative_errors(forecasts, truth, scale) for forecasts, truth in held])
    others_KM = error_KM.sum(0) - error_KM
    residuals = [truth - weights(error_M) @ f for (f, truth), error_M in zip(held, others_KM, strict=True)]
    weight_M = weights(error_KM.sum(0))
    return Mixture(weight_M @ candidates(history_T, *sizes), weight_M, np.stack(residuals), scale)


def weights(error_M: NDArray) -> NDArray:
    """(M,) weights of candidates with these errors; they sum to 1."""
    weight_M = np.exp(-SHARPNESS * error_M / max(error_M.min(), 1e-12))
    return weight_M / weight_M.sum()


def panel_quantiles(mixtures: Sequence[Mixture], levels: ArrayLike) -> NDArray:
    """(S, H, Q) quantiles around the forecasts of all series of a panel, conformal over its held-out horizons.

    Errors are counted in units of the geometric mean of a series' seasonal change and its mean held-out error; for a
    held-out horizon that of the others, since its own error may not tell how large it is.
    """
    size_SK = np.stack([np.abs(mixture.residual_KH).mean(1) for mixture in mixtures])
    scale_S = np.array([mixture.scale for mixture in mixtures])
    others_SK = (size_SK.sum(1, keepdims=True) - size_SK) / (HELD_OUT - 1)
    unit_SK, unit_S = _unit(scale_S[:, None], others_SK), _unit(scale_S, size_SK.mean(1))
    residual_SKH = np.stack([mixture.residual_KH for mixture in mixtures]) / unit_SK[..., None]
    quantile_HQ = conformal_quantiles(residual_SKH.reshape(-1, residual_SKH.shape[-1]), levels)
    forecast_SH = np.stack([mixture.forecast_H for mixture in mixtures])
    return forecast_SH[..., None] + unit_S[:, None, None] * quantile_HQ


def _unit(scale: NDArray, size: NDArray) -> NDArray:
    return np.sqrt(scale * np.maximum(size, 1e-6 * scale))


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
