"""A trained model of gaps: saved, opened again, asked to fill.

Legend: N rows of all series, S series, Q quantile levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from seqkit.backbones import BackboneConfig
from seqkit.commands.anomaly_trained import AnomalyDataConfig
from seqkit.commands.forecast_frames import at_level, sides
from seqkit.commands.trainer import TrainerConfig
from seqkit.data.masked_series import MaskConfig
from seqkit.data.series import Panel
from seqkit.errors import CheckpointError, ConfigError, InputError
from seqkit.tasks.base import OptimConfig
from seqkit.tasks.export import load_weights, read_description, save_model
from seqkit.tasks.impute import LEVELS, ImputeNet, ImputeTask, read_in_windows
from seqkit.tokenizers.gaps import gap_channels, simple_fills
from seqkit.tokenizers.numeric import SeriesScaler

TASK = "impute"
INTERVALS = (50.0, 80.0, 90.0, 95.0)


@dataclass(frozen=True, kw_only=True)
class ImputeDataConfig(AnomalyDataConfig):
    """Series, how their stamps are read, and how they are split by time.

    Attributes:
        validation: Share of each series, before the test, that chooses the epoch and calibrates the intervals.
        test: Share at the end of each series that is measured on.
        batch_size: Windows in a batch.
        windows_per_epoch: Windows drawn for an epoch.
    """

    validation: float = 0.2
    test: float = 0.2
    batch_size: int = 16
    windows_per_epoch: int = 512

    def __post_init__(self):
        for name in ("validation", "test"):
            if not 0 < getattr(self, name) < 0.5:
                raise ConfigError(f"data.{name}", expected="a share in (0, 0.5)", got=str(getattr(self, name)))
        for name in ("batch_size", "windows_per_epoch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"data.{name}", expected="1 or more", got=str(getattr(self, name)))


@dataclass(frozen=True, kw_only=True)
class ImputeConfig:
    """Everything that decides a run that learns to fill gaps.

    Attributes:
        task: impute.
        seed: Seed of weights, windows, masks and dropout.
        level: Percentages of the intervals, among 50, 80, 90 and 95.
        nonnegative: Whether values below zero become zero.
        data: Series and split.
        mask: What is hidden.
        model: Architecture of the backbone.
        optim: Optimiser and schedule.
        trainer: Epochs, device, precision.
    """

    task: str = TASK
    seed: int = 0
    level: tuple[float, ...] = (80.0, 95.0)
    nonnegative: bool = False
    data: ImputeDataConfig = field(default_factory=ImputeDataConfig)
    mask: MaskConfig = field(default_factory=MaskConfig)
    model: BackboneConfig = field(default_factory=lambda: BackboneConfig(d_model=32, layout="mamba2"))
    optim: OptimConfig = field(default_factory=OptimConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)

    def __post_init__(self):
        check_level(self.level)


def check_level(level: Sequence[float]) -> None:
    """Refuse percentages whose quantiles the model does not have."""
    odd = [percent for percent in level if percent not in INTERVALS]
    if odd:
        raise ConfigError("level", expected="any of 50, 80, 90, 95", got=f"{odd[0]:g}")


@dataclass(frozen=True)
class TrainedImputer:
    """A trained model and how it reads series.

    Attributes:
        config: Settings of the run, sizes filled in.
        task: In evaluation mode.
        seasons: Seasons whose neighbours it reads.
        scaler: Centre and spread of the training rows; series it has not met give their own.
        shift_Q: Calibration of the quantiles, in units of the spread.
    """

    config: ImputeConfig
    task: ImputeTask
    seasons: tuple[int, ...]
    scaler: SeriesScaler
    shift_Q: NDArray

    def quantiles(self, panel: Panel, y_N: NDArray | None = None) -> NDArray:
        """(N, Q) quantiles of every row, whether it is missing or not, in the units of the data.

        Args:
            panel: The series.
            y_N: Their values in the place of the panel's, such as with more of them hidden.

        Raises:
            InputError: A series has no known value.
        """
        y_N = panel.y if y_N is None else y_N
        loc_S, scale_S = self.scaler.tables(y_N, panel.offsets, panel.ids)
        device = next(self.task.parameters()).device
        parts = []
        for number, (begin, end) in enumerate(pairwise(panel.offsets)):
            z_T = (y_N[begin:end] - loc_S[number]) / scale_S[number]
            if np.isnan(z_T).all():
                raise InputError("y", expected="a known value in every series", got=f"none in {panel.ids[number]}")
            channels = torch.from_numpy(gap_channels(z_T, self.seasons)).to(device)
            z_TQ = read_in_windows(self.task.net, channels, self.config.mask.window)
            z_TQ = z_TQ.double().cpu().numpy() + self.shift_Q
            parts.append(np.sort(z_TQ, axis=1) * scale_S[number] + loc_S[number])
        found = np.concatenate(parts)
        return np.maximum(found, 0.0) if self.config.nonnegative else found

    def fill(self, panel: Panel, level: Sequence[float]) -> pl.DataFrame:
        """Rows of the panel with every gap filled; known values are those that came.

        Returns:
            Id, stamp and value under the names they came with, ``imputed``, and interval columns that are null where
            the value was known.
        """
        missing = np.isnan(panel.y)
        quantile_NQ = self.quantiles(panel)
        roles, levels = panel.roles, np.array(LEVELS)
        columns = {} if roles.id is None else {roles.id: pl.Series(panel.ids, dtype=pl.String)[panel.series_of_row]}
        columns[roles.time] = panel.ds
        columns[roles.target] = np.where(missing, at_level(quantile_NQ, levels, 0.5), panel.y)
        columns["imputed"] = missing
        bounds = [(percent, "lo", 0) for percent in sorted(level, reverse=True)]
        bounds += [(percent, "hi", 1) for percent in sorted(level)]
        for percent, name, side in bounds:
            value_N = at_level(quantile_NQ, levels, sides(percent)[side])
            column = pl.Series(np.where(missing, value_N, np.nan), nan_to_null=True)
            columns[f"{roles.target}-{name}-{percent:g}"] = column
        return pl.DataFrame(columns)

    def save(self, folder: Path) -> None:
        """Write ``model.json`` and ``model.safetensors``."""
        config = self.config
        save_model(folder, self.task, {
            "task": TASK, "seed": config.seed, "level": list(config.level), "nonnegative": config.nonnegative,
            "data": config.data, "mask": config.mask, "model": config.model, "seasons": list(self.seasons),
            "scaler": self.scaler.to_dict(), "shift": self.shift_Q.tolist(),
        })  # fmt: skip

    @classmethod
    def load(cls, folder: str | Path) -> TrainedImputer:
        """Read what :meth:`save` wrote. No code from the folder runs.

        Raises:
            CheckpointError: No such model lies there, or it is damaged.
        """
        described = read_description(Path(folder))
        if described["task"] != TASK:
            raise CheckpointError("--ckpt", expected=f"an {TASK} run", got=f"a {described['task']} run")
        config = ImputeConfig(
            seed=described["seed"], level=tuple(described["level"]), nonnegative=described["nonnegative"],
            data=ImputeDataConfig(**described["data"]), mask=MaskConfig(**described["mask"]),
            model=BackboneConfig.from_dict(described["model"]),
        )  # fmt: skip
        seasons = tuple(described["seasons"])
        task = build_task(config, seasons)
        load_weights(Path(folder), task)
        scaler = SeriesScaler.from_dict(described["scaler"])
        return cls(config, task.eval(), seasons, scaler, np.array(described["shift"]))


def build_task(config: ImputeConfig, seasons: Sequence[int]) -> ImputeTask:
    """The task of a run before training; the same weights for the same seed."""
    channels = gap_channels(np.zeros(1), seasons).shape[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return ImputeTask(ImputeNet(config.model, channels, simple_fills(len(seasons))), config.optim, config.seed)


def sized(config: ImputeConfig, panel: Panel) -> tuple[ImputeConfig, tuple[int, ...]]:
    """The settings with lengths of runs filled in, and the seasons of the series."""
    cycles = (1,) if panel.frequency is None else panel.frequency.seasons
    seasons = tuple(season for season in cycles if season > 1)
    run = config.mask.run or (seasons[0] if seasons else 24)
    mask = replace(config.mask, run=run, longest=config.mask.longest or 2 * run)
    return replace(config, mask=mask), seasons
