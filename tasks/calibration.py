"""Calibration of probabilities on validation rows.

Binary outputs get a scale and a shift on the logit, several classes one temperature. Both keep the order of the
scores, so ranking metrics do not change; both are a few plain numbers that a config or a checkpoint can hold.

Shape letters: N rows, C classes.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from seqkit.errors import ShapeError
from seqkit.tasks.intervals import undefined_reason

LEAST_SCALE = 0.01  # a model worse than chance on validation is flattened towards the prevalence, never reversed
LARGEST_SCALE = 100.0
_STEPS = 100
_PRECISION = 1e-10


@dataclass(frozen=True, kw_only=True)
class PlattScaling:
    """Probability = sigmoid(scale * logit + shift).

    Attributes:
        scale: Above 0; below 1 the model was too sure of itself.
        shift: Corrects the prevalence, such as after training with class weights.
    """

    scale: float = 1.0
    shift: float = 0.0

    def logits(self, logits):
        """Calibrated logits of an array or tensor of any shape."""
        return self.scale * logits + self.shift

    def probabilities(self, logits: ArrayLike) -> NDArray:
        """Calibrated probabilities of an array of any shape, float64 in [0, 1]."""
        return _sigmoid(self.logits(np.asarray(logits, dtype=float)))


@dataclass(frozen=True, kw_only=True)
class TemperatureScaling:
    """Probabilities = softmax(logits / temperature).

    Attributes:
        temperature: Above 0; above 1 the model was too sure of itself.
    """

    temperature: float = 1.0

    def logits(self, logits):
        """Calibrated logits of an array or tensor of any shape."""
        return logits / self.temperature

    def probabilities(self, logits: ArrayLike) -> NDArray:
        """Calibrated probabilities of logits (..., C), float64 with a last axis that sums to 1."""
        return np.exp(_log_softmax(self.logits(np.asarray(logits, dtype=float))))


def fit_platt(logits: ArrayLike, labels: ArrayLike) -> PlattScaling:
    """Scale and shift that make validation logits most likely.

    Targets are drawn in from 0 and 1 by one pseudo-count per class, so that separable rows do not ask for an
    infinite scale. The scale stays in [0.01, 100].

    Args:
        logits: (N,) of validation rows, finite where labelled.
        labels: (N,) of 0, 1 or NaN.

    Returns:
        The identity, with a warning, when the rows hold fewer than two classes.

    Reference: Platt 1999, section 2.2; Lin, Lin and Weng 2007 for the Newton step with backtracking.
    """
    x_N, y_N = _labelled(logits, labels, axes=1)
    reason = undefined_reason(y_N)
    if reason:
        return _identity(PlattScaling(), reason)
    positives, negatives = y_N.sum(), (1 - y_N).sum()
    target_N = np.where(y_N == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    spread = x_N.std()
    if spread < 1e-12:
        shift = _logit(target_N.mean()) - x_N.mean()
        return PlattScaling(scale=1.0, shift=float(shift))
    centre = x_N.mean()
    design_N2 = np.stack([(x_N - centre) / spread, np.ones_like(x_N)], axis=1)
    slope, offset = _newton(design_N2, target_N, np.array([0.0, _logit(target_N.mean())]))
    scale = float(np.clip(slope / spread, LEAST_SCALE, LARGEST_SCALE))
    if scale != slope / spread:
        if slope <= 0:
            warnings.warn("validation scores rank no better than chance: calibration flattens them", stacklevel=2)
        offset = _match_mean(scale * (x_N - centre), target_N)
    return PlattScaling(scale=scale, shift=float(offset - scale * centre))


def fit_temperature(logits: ArrayLike, labels: ArrayLike) -> TemperatureScaling:
    """Temperature that makes validation labels most likely, in [0.01, 100].

    Args:
        logits: (N, C) of validation rows, finite where labelled.
        labels: (N,) of class numbers or NaN.

    Returns:
        The identity, with a warning, when the rows hold fewer than two classes.

    Reference: Guo et al. 2017, section 4.2.
    """
    x_NC, y_N = _labelled(logits, labels, axes=2)
    reason = undefined_reason(y_N)
    if reason:
        return _identity(TemperatureScaling(), reason)
    own_N = x_NC[np.arange(len(y_N)), y_N.astype(int)]
    low, high = np.log(1 / LARGEST_SCALE), np.log(1 / LEAST_SCALE)
    # The likelihood is concave in the inverse temperature, so its slope changes sign once: bisection cannot miss.
    while high - low > _PRECISION:
        middle = 0.5 * (low + high)
        p_NC = np.exp(_log_softmax(x_NC * np.exp(middle)))
        gains = (own_N - (p_NC * x_NC).sum(axis=1)).mean() > 0
        low, high = (middle, high) if gains else (low, middle)
    return TemperatureScaling(temperature=float(np.exp(-0.5 * (low + high))))


def _newton(design_N2: NDArray, target_N: NDArray, start: NDArray) -> NDArray:
    """Slope and offset of a logistic regression on soft targets."""
    beta = start
    loss = _cross_entropy(design_N2 @ beta, target_N)
    for _ in range(_STEPS):
        p_N = _sigmoid(design_N2 @ beta)
        gradient = design_N2.T @ (p_N - target_N)
        if np.abs(gradient).max() < _PRECISION * len(target_N):
            break
        hessian = (design_N2 * (p_N * (1 - p_N))[:, None]).T @ design_N2 + 1e-12 * np.eye(2)
        step, size = np.linalg.solve(hessian, gradient), 1.0
        while size > 1e-6 and _cross_entropy(design_N2 @ (beta - size * step), target_N) > loss:
            size *= 0.5
        beta = beta - size * step
        loss = _cross_entropy(design_N2 @ beta, target_N)
    return beta


def _match_mean(x_N: NDArray, target_N: NDArray) -> float:
    """Shift with which the mean probability equals the mean target."""
    low, high = -x_N.max() - 40.0, -x_N.min() + 40.0
    while high - low > _PRECISION * (1 + abs(low)):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if _sigmoid(x_N + middle).mean() < target_N.mean() else (low, middle)
    return 0.5 * (low + high)


def _labelled(logits: ArrayLike, labels: ArrayLike, axes: int) -> tuple[NDArray, NDArray]:
    x, y_N = np.asarray(logits, dtype=float), np.asarray(labels, dtype=float)
    if x.ndim != axes or y_N.shape != x.shape[:1]:
        expected = "(N,) with labels (N,)" if axes == 1 else "(N, C) with labels (N,)"
        raise ShapeError("logits", expected=expected, got=f"{x.shape} with labels {y_N.shape}")
    known = ~np.isnan(y_N)
    x, y_N = x[known], y_N[known]
    if not np.isin(y_N, np.arange(2 if axes == 1 else x.shape[1])).all():
        raise ShapeError("labels", expected="class numbers from 0, or NaN", got="other values")
    if not np.isfinite(x).all():
        raise ShapeError("logits", expected="finite numbers at labelled rows", got="NaN or infinity")
    return x, y_N


def _identity(calibration, reason: str):
    warnings.warn(f"probabilities are left uncalibrated: {reason}", stacklevel=3)
    return calibration


def _cross_entropy(logit_N: NDArray, target_N: NDArray) -> float:
    return float((np.logaddexp(0, logit_N) - target_N * logit_N).sum())


def _sigmoid(x: NDArray) -> NDArray:
    # Through logaddexp: exp of a large positive number would overflow.
    return np.exp(-np.logaddexp(0, -x))


def _log_softmax(x: NDArray) -> NDArray:
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def _logit(p: float) -> float:
    return float(np.log(p / (1 - p)))
