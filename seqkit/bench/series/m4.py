"""M4 Hourly and Weekly: one forecast a series by the organizers' rules, OWA against Naive2.

Distributions are scored in units of each series' seasonal scale (that of MASE).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from seqkit.backbones import BackboneConfig
from seqkit.bench.series import files
from seqkit.bench.series.mixture import mixture, panel_quantiles
from seqkit.bench.series.rows import LEVELS, Row, distribution_metrics, timed
from seqkit.bench.series.train import Settings, WindowSet, forecast, train
from seqkit.tasks import series_metrics as metrics
from seqkit.tasks.base import OptimConfig
from seqkit.tasks.series_baselines import (
    conformal_quantiles,
    naive2,
    seasonal_naive,
    seasonal_naive_quantiles,
)
from seqkit.tasks.series_encoder import TokenConfig
from seqkit.tasks.series_linear import fit_linear, windows
from seqkit.tasks.series_net import ForecastNetConfig

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


def mixed(panel: Panel, group: Group) -> dict[str, float]:
    """All metrics of the mixture of closed forms; its intervals come from the errors of the whole panel."""
    sizes = (group.horizon, group.season, group.lookback)
    mixtures = [mixture(history, *sizes) for history in panel.histories]
    return all_metrics(panel, np.stack([m.forecast_H for m in mixtures]), panel_quantiles(mixtures, LEVELS))


def baselines(folder: Path) -> Iterator[Row]:
    """Seasonal naive with its residual quantiles, Naive2, the lag ridge with conformal quantiles, and the mixture."""
    for name, group in GROUPS.items():
        panel = load(folder, name)
        yield timed(f"M4 {name}", "Naive2", point_metrics, panel, panel.naive2)
        yield timed(f"M4 {name}", "seasonal naive", each_series, panel, group, seasonal)
        yield timed(f"M4 {name}", "lag ridge", each_series, panel, group, lag_ridge)
        yield timed(f"M4 {name}", "mixture of closed forms", mixed, panel, group)


def settings(name: str) -> Settings:
    """Patches of half a day, or of four weeks, of windows on their own mean and spread."""
    return Settings(
        model=BackboneConfig(d_model=32, layout="s4d*2", d_state=16, dropout=0.1, vocab_size=0, n_channels=1),
        tokens=TokenConfig(kind="patch", patch=12 if name == "Hourly" else 4),
        net=ForecastNetConfig(head="quantile", norm="mean", dropout=0.1),
        optim=OptimConfig(lr=1e-3),
        epochs=8,
        patience=4,
        windows=16_000,
    )


LOOKBACKS = {"Hourly": 336, "Weekly": 104}


def model_metrics(panel: Panel, name: str, seed: int, device: str) -> dict[str, float]:
    """One model for all series, of their logarithms; the last horizon of every history chooses the epoch."""
    horizon, lookback = GROUPS[name].horizon, LOOKBACKS[name]
    logs = [_padded(np.log(history), lookback + horizon) for history in panel.histories]
    future = [np.concatenate([log[horizon:], np.full(horizon, np.nan)]) for log in logs]
    training = WindowSet([_padded(log[:-horizon], lookback + horizon) for log in logs], lookback, horizon)
    validation, test = (WindowSet(part, lookback, horizon, only_last=True) for part in (logs, future))
    task = train(settings(name), training, validation, seed, device)
    _, median, quantiles = forecast([task], test, LEVELS)
    return all_metrics(panel, np.exp(median), np.exp(quantiles))


def _padded(values: NDArray, length: int) -> NDArray:
    """Short series begin with missing values."""
    return np.concatenate([np.full(max(0, length - len(values)), np.nan), values])


def models(folder: Path, device: str, seeds: Sequence[int]) -> Iterator[Row]:
    """One model a group."""
    for name in GROUPS:
        panel = load(folder, name)
        for seed in seeds:
            yield timed(f"M4 {name}", "seqkit", model_metrics, panel, name, seed, device, seed=seed)
