"""Settings of a forecasting run, and the model they describe."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch

from seqkit.backbones import BackboneConfig
from seqkit.commands.trainer import TrainerConfig
from seqkit.data.series_data import SeriesData, SeriesDataConfig
from seqkit.errors import ConfigError
from seqkit.tasks.base import OptimConfig
from seqkit.tasks.forecast import ForecastTask
from seqkit.tasks.series_encoder import SeriesShape, TokenConfig
from seqkit.tasks.series_net import ForecastNetConfig, SeriesNet

TASK = "forecast"


@dataclass(frozen=True, kw_only=True)
class ForecastConfig:
    """Everything that decides a forecasting run.

    Attributes:
        task: forecast.
        seed: Seed of weights, order and dropout.
        level: Percentages of the intervals in tables and plots.
        nonnegative: Whether forecasts below zero become zero.
        adapt: How fast intervals follow their own misses (:mod:`seqkit.tasks.adaptive`); 0 leaves them as
            calibrated, 0.5 is a good rate.
        data: Series, windows, covariates and split.
        model: Architecture of the backbone.
        tokens: How numbers become tokens.
        net: Head, normalisation, linear path.
        optim: Optimiser and schedule.
        trainer: Epochs, device, precision.
    """

    task: str = TASK
    seed: int = 0
    level: tuple[float, ...] = (80.0, 95.0)
    nonnegative: bool = False
    adapt: float = 0.0
    data: SeriesDataConfig = field(default_factory=SeriesDataConfig)
    model: BackboneConfig = field(default_factory=lambda: BackboneConfig(d_model=32, layout="mamba2*2"))
    tokens: TokenConfig = field(default_factory=TokenConfig)
    net: ForecastNetConfig = field(default_factory=ForecastNetConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)

    def __post_init__(self):
        if not 0 <= self.adapt < math.inf:
            raise ConfigError("adapt", expected="a rate of 0 or more", got=f"{self.adapt:g}")
        if self.adapt and (self.data.future or self.data.irregular):
            raise ConfigError(
                "adapt", expected="regular series without known-future covariates", got=f"adapt {self.adapt:g}",
                remedy="Forecasts to compare new rows with are made when their known-future rows are not there yet.",
            )  # fmt: skip

    @property
    def floor(self) -> float:
        """Least value of a forecast."""
        return 0.0 if self.nonnegative else -math.inf


def shape_of(data: SeriesData) -> SeriesShape:
    """Sizes of a data set's windows."""
    return SeriesShape(
        lookback=data.config.lookback,
        horizon=data.config.horizon,
        channels=len(data.panel) if data.scaled.channels else 1,
        irregular=data.panel.frequency is None,
        **data.encoder.widths,
    )


def build_task(config: ForecastConfig, shape: SeriesShape) -> ForecastTask:
    """The task of a run with its network; the same weights for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        net = SeriesNet(config.model, config.tokens, config.net, shape)
        return ForecastTask(net, optim=config.optim, seed=config.seed, nonnegative=config.nonnegative)


def describe(config: ForecastConfig, shape: SeriesShape) -> dict[str, Any]:
    """Settings from which the network can be built again."""
    return {
        "task": TASK,
        "seed": config.seed,
        "level": config.level,
        "nonnegative": config.nonnegative,
        "adapt": config.adapt,
        "shape": shape,
        "data": config.data,
        "model": config.model,
        "tokens": config.tokens,
        "net": config.net,
    }
