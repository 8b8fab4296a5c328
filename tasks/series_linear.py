"""Linear forecasts in closed form: ridge maps from a window to the horizon, and autoregressions.

One map for all channels, fitted to every training window by :func:`seqkit.tasks.ridge.fit_ridge`. At short lookback
these are hard to beat, so they stand beside every model.

Shape letters: C channels, T steps of a series, W windows, L steps of lookback, H steps of horizon.

Reference: Zeng et al. 2023, Are Transformers Effective for Time Series Forecasting? (Linear, NLinear); Li et al. 2023,
Revisiting Long-term Time Series Forecasting (RLinear).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from seqkit.errors import ShapeError
from seqkit.tasks.ridge import PENALTIES, fit_ridge

Kind = Literal["linear", "nlinear", "rlinear"]
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
        bias: Whether to fit one.
    """
    if len(penalties) > 1 and validation_CT is None:
        raise ShapeError("validation", expected="series to choose among several penalties", got="None")
    train = _normalised(windows(train_CT, lookback, horizon, stride), kind)
    held_out = () if len(penalties) == 1 else _normalised(windows(validation_CT, lookback, horizon), kind)
    ridge = fit_ridge(train, held_out, lookback, horizon, penalties=penalties, bias=bias)
    return LinearMap(ridge.weight_HL.numpy(), ridge.bias_H.numpy(), kind, ridge.penalty)


def _normalised(blocks: Iterable[tuple[NDArray, NDArray]], kind: Kind) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Windows on their own scale, with the weight that their squared error has."""
    for x, y in blocks:
        anchored, anchor, scale = _anchored(x, kind)
        spread = np.where(scale > 0, scale, 1.0)
        yield tuple(map(torch.from_numpy, (anchored / spread, (y - anchor) / spread, scale[:, 0] ** 2)))


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
