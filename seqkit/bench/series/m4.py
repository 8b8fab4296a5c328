"""M4 Hourly and Weekly: one forecast a series by the organizers' rules, OWA against Naive2.

Distributions are scored in units of each series' seasonal scale (that of MASE).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from seqkit.bench.series import files
from seqkit.bench.series.rows import LEVELS, Row, distribution_metrics, timed
from seqkit.tasks import series_metrics as metrics
from seqkit.tasks.series_baselines import (
    conformal_quantiles,
    naive2,
    seasonal_naive,
    seasonal_naive_quantiles,
)
from seqkit.tasks.series_linear import fit_linear, windows

FILES = ("Hourly-train.csv", "Hourly-test.csv", "Weekly-train.csv", "Weekly-test.csv")
RIDGE_PENALTY = 0.01


class Group(NamedTuple):
    """What the competition fixes for a frequency, and the lookback of the lag ridge."""

    season: int
    horizon: int
    lookback: int


GROUPS = {"Hourly": Group(24, 48, 168), "Weekly": Group(1, 13, 26)}


class Panel(NamedTuple):
    """Histories of unequal length, what followed them (S, H), and the scale of MASE (S,)."""

    histories: list[NDArray]
    future: NDArray
    scale: NDArray
    naive2: NDArray


def load(folder: Path, name: str) -> Panel:
    """A group with its Naive2 forecasts."""
    histories, future = files.m4(folder, name)
    group = GROUPS[name]
    scale = np.array([metrics.seasonal_scale(history, group.season) for history in histories])
    benchmark = np.stack([naive2(history, group.horizon, group.season) for history in histories])
    return Panel(histories, future, scale, benchmark)


def point_metrics(panel: Panel, forecast: NDArray) -> dict[str, float]:
    """Mean over series of sMAPE and MASE, and OWA."""

    def both(f: NDArray) -> tuple[float, float]:
        return metrics.smape(panel.future, f), metrics.mase(panel.future, f, panel.scale)

    found = both(forecast)
    return {"smape": found[0], "mase": found[1], "owa": metrics.owa(*found, *both(panel.naive2))}


def all_metrics(panel: Panel, forecast: NDArray, quantiles: NDArray) -> dict[str, float]:
    """Point metrics, and distribution metrics in units of MASE's scale."""
    return point_metrics(panel, forecast) | distribution_metrics(panel.future, quantiles, panel.scale[:, None])


def lag_ridge(history: NDArray, group: Group) -> tuple[NDArray, NDArray]:
    """Ridge on the series' own windows, with conformal quantiles of windows that a first fit did not see.

    Returns:
        Forecast (H,) and quantiles (H, Q). A series too short for a lookback uses half of it, and so on.
    """
    lookback = group.lookback
    while len(history) < 2 * (lookback + group.horizon) and lookback > 1:
        lookback //= 2
    options = {"penalties": [RIDGE_PENALTY], "kind": "nlinear", "bias": False}
    model = fit_linear(history, lookback, group.horizon, **options)
    forecast = model.predict(history[None])[0]
    held = max(len(history) // 5, group.horizon)
    if len(history) - held < lookback + group.horizon:
        held = len(history) - lookback - group.horizon
    first = fit_linear(history[:-held], lookback, group.horizon, **options)
    blocks = list(windows(history[-held - lookback :], lookback, group.horizon))
    residuals = np.concatenate([y - first.predict(x) for x, y in blocks])
    return forecast, forecast[:, None] + conformal_quantiles(residuals, LEVELS)


def seasonal(history: NDArray, group: Group) -> tuple[NDArray, NDArray]:
    """Seasonal naive (H,) with the quantiles (H, Q) of its own errors."""
    options = (history[None], group.horizon, group.season)
    return seasonal_naive(*options)[0], seasonal_naive_quantiles(*options, LEVELS)[0]


def each_series(
    panel: Panel, group: Group, method: Callable[[NDArray, Group], tuple[NDArray, NDArray]]
) -> dict[str, float]:
    """All metrics of a method that sees one series at a time."""
    forecasts, quantiles = zip(*(method(history, group) for history in panel.histories), strict=True)
    return all_metrics(panel, np.stack(forecasts), np.stack(quantiles))


def baselines(folder: Path) -> Iterator[Row]:
    """Seasonal naive with its residual quantiles, Naive2, and the lag ridge with conformal quantiles."""
    for name, group in GROUPS.items():
        panel = load(folder, name)
        yield timed(f"M4 {name}", "Naive2", point_metrics, panel, panel.naive2)
        yield timed(f"M4 {name}", "seasonal naive", each_series, panel, group, seasonal)
        yield timed(f"M4 {name}", "lag ridge", each_series, panel, group, lag_ridge)
