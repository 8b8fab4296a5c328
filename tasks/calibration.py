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
from scipy.optimize import minimize

from seqkit.errors import ShapeError
from seqkit.tasks.intervals import undefined_reason

LEAST_SCALE = 0.01  # a model worse than chance on validation is flattened towards the prevalence, never reversed
LARGEST_SCALE = 100.0
PRIOR_ROWS = 400.0
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


def fit_platt(logits: ArrayLike, labels: ArrayLike, *, prior_rows: float = PRIOR_ROWS) -> PlattScaling:
    """Scale and shift that make validation logits most likely, held near the identity by a prior.

    A validation part is a few exons or chromosomes with a prevalence of its own, which a free shift would carry over
    to all other rows. So ``log(scale)`` and ``shift`` have a normal prior around 0 that weighs as much as some hundred
    rows: small parts move the logits little, large ones as far as they ask. The scale stays in [0.01, 100].

    Args:
        logits: (N,) of validation rows, finite where labelled.
        labels: (N,) of 0, 1 or NaN.
        prior_rows: Weight of the prior: ``prior_rows * (log(scale)^2 + shift^2)`` is added to the cross-entropy sum.

    Returns:
        The identity, with a warning, when the rows hold fewer than two classes.

    Reference: Platt 1999, section 2.2, for the form; the prior is ours.
    """
    x_N, y_N = _labelled(logits, labels, axes=1)
    reason = undefined_reason(y_N)
    if reason:
        return _identity(PlattScaling(), reason)
    weight = max(float(prior_rows), 1e-3)  # separable rows alone would ask for an infinite scale

    def objective(values: NDArray) -> tuple[float, NDArray]:
        scale, shift = np.exp(values[0]), values[1]
        p_N = _sigmoid(scale * x_N + shift)
        loss = _cross_entropy(scale * x_N + shift, y_N) + weight * (values**2).sum()
        error_N = p_N - y_N
        return loss / len(y_N), (np.array([error_N @ x_N * scale, error_N.sum()]) + 2 * weight * values) / len(y_N)

    low, high = np.log(LEAST_SCALE), np.log(LARGEST_SCALE)
    options = {"ftol": 1e-15, "gtol": 1e-10, "maxiter": 1000}
    bounds = [(low, high), (None, None)]
    # Far starts help where the curve is flat; the best end counts.
    starts = ([0.0, 0.0], [low / 2, 0.0], [-np.log(x_N.std() + 1e-9).clip(-4, 4), 0.0])
    ends = [minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options) for start in starts]
    slope, shift = min(ends, key=lambda end: end.fun).x
    if slope <= low:
        warnings.warn("validation scores rank no better than chance: calibration flattens them", stacklevel=2)
    return PlattScaling(scale=float(np.exp(slope)), shift=float(shift))


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
