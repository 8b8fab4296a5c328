"""Linear forecasts in closed form: ridge maps from a window to the horizon, and autoregressions.

One map for all channels, fitted to every training window. At short lookback these are hard to beat, so they stand
beside every model and may start its linear path.

Shape letters: C channels, T steps of a series, W windows, L steps of lookback, H steps of horizon.

Reference: Zeng et al. 2023, Are Transformers Effective for Time Series Forecasting? (Linear, NLinear); Li et al. 2023,
Revisiting Long-term Time Series Forecasting (RLinear).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike, NDArray

from seqkit.errors import ShapeError
from seqkit.tasks.series_metrics import mse

Kind = Literal["linear", "nlinear", "rlinear"]
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
BLOCK = 4096  # windows at a time: 33 MB for a lookback of 1,000


@dataclass(frozen=True)
class LinearMap:
    """A map from the last L steps to the next H.

    Attributes:
        weight_HL: Weights on the window minus its anchor.
        bias_H: Added once per step (for ``rlinear`` times the window's standard deviation).
        kind: What is subtracted first: nothing, the last value (``nlinear``) or the mean (``rlinear``).
        penalty: Ridge penalty in units of the mean diagonal of the Gram matrix.
    """

    weight_HL: NDArray
    bias_H: NDArray
    kind: Kind
    penalty: float

    def predict(self, history_WL: ArrayLike) -> NDArray:
        """Forecast (W, H) from windows (W, L); longer windows are cut to their last L steps."""
        history = np.asarray(history_WL, np.float64)
        lookback = self.weight_HL.shape[1]
        if history.shape[-1] < lookback:
            raise ShapeError("history", expected=f"at least {lookback} steps", got=str(history.shape[-1]))
        anchored, anchor, scale = _anchored(history[..., -lookback:], self.kind)
        return anchored @ self.weight_HL.T + scale * self.bias_H + anchor


def _anchored(x_WL: NDArray, kind: Kind) -> tuple[NDArray, NDArray, NDArray]:
    """Windows minus their anchor, the anchor, and what multiplies the bias."""
    if kind == "linear":
        anchor = np.zeros((*x_WL.shape[:-1], 1))
    else:
        anchor = x_WL[..., -1:] if kind == "nlinear" else x_WL.mean(-1, keepdims=True)
    scale = x_WL.std(-1, keepdims=True) if kind == "rlinear" else np.ones_like(anchor)
    return x_WL - anchor, anchor, scale


def windows(series_CT: ArrayLike, lookback: int, horizon: int, stride: int = 1) -> Iterator[tuple[NDArray, NDArray]]:
    """All windows of each channel in blocks: histories (W, L) and futures (W, H); windows with a gap are left out.

    Raises:
        ShapeError: No window fits.
    """
    series = np.atleast_2d(np.asarray(series_CT, np.float64))
    if series.shape[1] < lookback + horizon:
        expected = f"at least lookback + horizon = {lookback + horizon} steps"
        raise ShapeError("series", expected=expected, got=str(series.shape[1]))
    for channel in series:
        views = sliding_window_view(channel, lookback + horizon)[::stride]
        for begin in range(0, len(views), BLOCK):
            block = views[begin : begin + BLOCK]
            if np.isnan(block).any():
                block = block[~np.isnan(block).any(1)]
            yield block[:, :lookback], block[:, lookback:]


def fit_linear(
    train_CT: ArrayLike,
    lookback: int,
    horizon: int,
    *,
    kind: Kind = "nlinear",
    penalties: Sequence[float] = PENALTIES,
    validation_CT: ArrayLike | None = None,
    stride: int = 1,
    bias: bool = True,
) -> LinearMap:
    """Ridge regression over all training windows, the penalty chosen on validation windows.

    Args:
        train_CT: Series (C, T) or (T,); windows with NaN are left out.
        lookback: Steps L of history.
        horizon: Steps H ahead.
        kind: See :class:`LinearMap`. ``rlinear`` windows weigh by their variance: errors count in the series' units.
        penalties: Candidates; with one there is nothing to choose.
        validation_CT: Series whose windows choose, with L steps of context in front; needed for several penalties.
        stride: Steps between training windows.
        bias: Whether to fit one; on a short series of its own it is a drift, and rarely a good one.
    """
    gram, cross = np.zeros((lookback + 1, lookback + 1)), np.zeros((lookback + 1, horizon))
    for x, y in windows(train_CT, lookback, horizon, stride):
        anchored, anchor, scale = _anchored(x, kind)
        design = np.concatenate([anchored, scale * bias], axis=1)
        gram += design.T @ design
        cross += design.T @ (y - anchor)
    unit = gram.diagonal()[:-1].mean() or 1.0
    maps = []
    for penalty in penalties:
        ridge = np.append(np.full(lookback, penalty * unit), 1e-12 * unit)  # the bias is free
        solution = np.linalg.solve(gram + np.diag(ridge), cross).T
        maps.append(LinearMap(solution[:, :-1], solution[:, -1], kind, penalty))
    if len(maps) == 1:
        return maps[0]
    if validation_CT is None:
        raise ShapeError("validation", expected="series to choose among several penalties", got="None")
    return min(maps, key=lambda candidate: windowed_mse(candidate, validation_CT, lookback, horizon))


def windowed_mse(model: LinearMap, series_CT: ArrayLike, lookback: int, horizon: int) -> float:
    """Mean squared error over all windows, steps and channels."""
    total, count = 0.0, 0
    for x, y in windows(series_CT, lookback, horizon):
        total += float(mse(y, model.predict(x))) * y.size if y.size else 0.0
        count += y.size
    return total / count if count else float("nan")


@dataclass(frozen=True)
class Autoregression:
    """y(t) = bias + sum of weights times the last p values, with normal noise.

    Attributes:
        weight_P: Weights, oldest value first.
        bias: Constant.
        noise: Standard deviation of the training residuals.
    """

    weight_P: NDArray
    bias: float
    noise: float

    def one_step(self, y_T: ArrayLike) -> NDArray:
        """Prediction of each step from the true steps before it: (T,) with NaN at the first p."""
        y, order = np.asarray(y_T, np.float64), len(self.weight_P)
        predicted = np.full(len(y), np.nan)
        predicted[order:] = np.convolve(y, self.weight_P[::-1], mode="valid")[:-1] + self.bias
        return predicted

    def forecast(self, history_WL: ArrayLike, horizon: int) -> NDArray:
        """Recursive forecast (W, H) from windows (W, L), L >= p."""
        history, order = np.atleast_2d(np.asarray(history_WL, np.float64)), len(self.weight_P)
        path = np.concatenate([history[:, -order:], np.empty((len(history), horizon))], axis=1)
        for step in range(order, order + horizon):
            path[:, step] = path[:, step - order : step] @ self.weight_P + self.bias
        return path[:, order:]

    def log_likelihood(self, y_T: ArrayLike, start: int = 0) -> float:
        """Mean log density of the steps from ``start`` on, each given the true steps before it."""
        error = (np.asarray(y_T, np.float64) - self.one_step(y_T))[start:] / self.noise
        return float(np.nanmean(-0.5 * error**2)) - np.log(self.noise) - 0.5 * np.log(2 * np.pi)


def fit_autoregression(y_T: ArrayLike, order: int) -> Autoregression:
    """Least squares over every step of one series; steps with a gap in their window are left out."""
    gram, cross, power, count = np.zeros((order + 1, order + 1)), np.zeros(order + 1), 0.0, 0
    for x, y in windows(y_T, order, 1):
        design = np.concatenate([x, np.ones_like(x[:, :1])], axis=1)
        gram += design.T @ design
        cross += design.T @ y[:, 0]
        power, count = power + float((y**2).sum()), count + len(y)
    solution = np.linalg.solve(gram + 1e-12 * gram.trace() * np.eye(order + 1) / (order + 1), cross)
    residual = max(power - 2 * solution @ cross + solution @ gram @ solution, 0.0)
    return Autoregression(solution[:-1], float(solution[-1]), float(np.sqrt(residual / max(count, 1))))
