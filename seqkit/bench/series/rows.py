"""What every protocol yields: one row a method, and the levels at which distributions are scored."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from seqkit.tasks import series_metrics
from seqkit.tasks.adaptive import adapted

LEVELS = (0.025, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.975)
"""Quantile levels; the outer pairs are the 95 % and the 80 % interval."""
RATES = {"": 0.0, ", adaptive": 0.5}
"""How fast intervals follow their misses, by what is added to a method's name."""


class Row(NamedTuple):
    """One line of the results.

    Attributes:
        protocol: For example ``ETTh1 96``.
        method: For example ``nlinear ridge``.
        metrics: Name to value.
        seconds: Wall time of fit and prediction.
        seed: None for methods without chance.
    """

    protocol: str
    method: str
    metrics: Mapping[str, float]
    seconds: float
    seed: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a JSON line."""
        metrics = {name: float(f"{value:.6g}") for name, value in self.metrics.items()}
        return {
            "protocol": self.protocol, "method": self.method, "seed": self.seed, **metrics,
            "seconds": round(self.seconds, 2),
        }  # fmt: skip


def timed(
    protocol: str, method: str, measure: Callable[..., Mapping[str, float]], *arguments: Any, seed: int | None = None
) -> Row:
    """Run ``measure(*arguments)`` and note how long it took."""
    begun = time.perf_counter()
    metrics = measure(*arguments)
    return Row(protocol, method, metrics, time.perf_counter() - begun, seed)


def point_metrics(y: NDArray, forecast: NDArray) -> dict[str, float]:
    """Mean squared and absolute error."""
    return {"mse": series_metrics.mse(y, forecast), "mae": series_metrics.mae(y, forecast)}


def distribution_metrics(y: NDArray, quantiles: NDArray, scale: NDArray | float = 1.0) -> dict[str, float]:
    """Pinball, CRPS and coverage of quantiles (W, H, Q) at :data:`LEVELS`; losses in units of ``scale`` (W, 1)."""
    scale = np.broadcast_to(np.asarray(scale, np.float64), y.shape)
    pinball = series_metrics.pinball(y / scale, quantiles / scale[..., None], LEVELS)
    return {
        "pinball": pinball,
        "crps": 2 * pinball,
        "coverage80": series_metrics.coverage(y, quantiles[..., 1], quantiles[..., -2]),
        "coverage95": series_metrics.coverage(y, quantiles[..., 0], quantiles[..., -1]),
    }


def adaptive(y: NDArray, quantiles: NDArray, rate: float) -> NDArray:
    """Quantiles (W, H, Q) of one series, origins a horizon apart, that follow their misses from origin to origin.

    Args:
        y: What came, (W, H).
        quantiles: At :data:`LEVELS`.
        rate: 0 leaves them.
    """
    number = np.arange(len(y))
    return adapted(quantiles, y, np.array(LEVELS), 0 * number, y.shape[1] * number, rate)
