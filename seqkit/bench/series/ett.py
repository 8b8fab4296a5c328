"""ETTh1 and ETTh2 at lookback 336: rows 8,640 / 11,520 / 14,400, every test window, none dropped.

Z-scores by mean and population deviation of the training rows; windows reach back into the part before; all seven
channels weigh the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from seqkit.backbones import BackboneConfig
from seqkit.bench.series import files
from seqkit.bench.series.rows import Row, point_metrics, timed
from seqkit.bench.series.train import Settings, WindowSet, points, train
from seqkit.tasks.base import OptimConfig
from seqkit.tasks.series_baselines import naive, seasonal_naive
from seqkit.tasks.series_encoder import TokenConfig
from seqkit.tasks.series_linear import Kind, fit_linear, windows
from seqkit.tasks.series_net import ForecastNetConfig

NAMES = ("ETTh1", "ETTh2")
FILES = tuple(f"{name}.csv" for name in NAMES)
LOOKBACK = 336
HORIZONS = (96, 192, 336, 720)
TRAIN, VALIDATION, TEST = 8_640, 11_520, 14_400


class Parts(NamedTuple):
    """Z-scored channels (7, T) of each part; validation and test begin with one lookback of context."""

    train: NDArray
    validation: NDArray
    test: NDArray


def load(folder: Path, name: str) -> Parts:
    """The three parts of ETTh1 or ETTh2."""
    series = files.ett(folder, name)
    known = series[:, :TRAIN]
    z = (series - known.mean(1, keepdims=True)) / known.std(1, keepdims=True)
    return Parts(z[:, :TRAIN], z[:, TRAIN - LOOKBACK : VALIDATION], z[:, VALIDATION - LOOKBACK : TEST])


def held_out(parts: Parts, horizon: int) -> tuple[NDArray, NDArray]:
    """All test windows of all channels: (7 W, L) and (7 W, H)."""
    blocks = list(windows(parts.test, LOOKBACK, horizon))
    return np.concatenate([x for x, _ in blocks]), np.concatenate([y for _, y in blocks])


def ridge_metrics(parts: Parts, horizon: int, kind: Kind, x: NDArray, y: NDArray) -> dict[str, float]:
    """Errors of a ridge map, and the penalty that validation chose."""
    model = fit_linear(parts.train, LOOKBACK, horizon, kind=kind, validation_CT=parts.validation)
    return point_metrics(y, model.predict(x)) | {"penalty": model.penalty}


def baselines(folder: Path) -> Iterator[Row]:
    """Naive, seasonal naive, and the three ridge maps."""
    for name, horizon in product(NAMES, HORIZONS):
        parts = load(folder, name)
        x, y = held_out(parts, horizon)
        protocol = f"{name} {horizon}"
        yield timed(protocol, "naive", lambda x, y: point_metrics(y, naive(x, y.shape[1])), x, y)
        for season in (24, 168):
            yield timed(
                protocol,
                f"seasonal naive {season}",
                lambda x, y, season: point_metrics(y, seasonal_naive(x, y.shape[1], season)),
                x, y, season,
            )  # fmt: skip
        for kind in ("linear", "nlinear", "rlinear"):
            yield timed(protocol, f"{kind} ridge", ridge_metrics, parts, horizon, kind, x, y)


SETTINGS = Settings(
    model=BackboneConfig(d_model=32, layout="s4d", d_state=16, dropout=0.2, vocab_size=0, n_channels=1),
    tokens=TokenConfig(kind="patch", patch=24),
    net=ForecastNetConfig(head="point", norm="last", dropout=0.2),
    optim=OptimConfig(lr=2e-4),
    epochs=6,
    patience=2,
    windows=4_000,
    blocks=8,
)
"""One block on daily patches of each channel, over the NLinear ridge; small steps, since little is to be corrected."""


def model_metrics(parts: Parts, horizon: int, seed: int, device: str) -> dict[str, float]:
    """Errors on every test window; the correction is there only where all stretches of the validation part gain."""
    training, validation, test = (WindowSet(list(part), LOOKBACK, horizon) for part in parts)
    task = train(SETTINGS, training, validation, seed, device)
    truth = np.concatenate([y for _, y in windows(parts.test, LOOKBACK, horizon)])
    return point_metrics(truth, points(task, test))


def models(folder: Path, device: str, seeds: Sequence[int]) -> Iterator[Row]:
    """One model for all channels at each horizon."""
    for name, horizon in product(NAMES, HORIZONS):
        parts = load(folder, name)
        for seed in seeds:
            yield timed(f"{name} {horizon}", "seqkit", model_metrics, parts, horizon, seed, device, seed=seed)
