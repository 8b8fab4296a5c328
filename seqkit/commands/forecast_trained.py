"""A trained forecasting model: opened again, given further series, asked for what comes next.

Legend: S series, H horizon, Q quantile levels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from seqkit.backbones import BackboneConfig
from seqkit.commands.forecast_model import TASK, ForecastConfig, build_task, describe
from seqkit.data.covariates import CovariateEncoder
from seqkit.data.frequency import Frequency
from seqkit.data.series import Panel, load_panel
from seqkit.data.series_data import SeriesData, SeriesDataConfig
from seqkit.data.series_frames import as_polars, find_roles
from seqkit.data.series_grid import GridConfig, checked
from seqkit.data.series_splits import split_by_time
from seqkit.data.series_tail import extended
from seqkit.data.series_windows import ScaledPanel, SeriesWindows, WindowIndex
from seqkit.errors import CheckpointError, ConfigError, InputError
from seqkit.tasks.export import load_weights, read_description, save_model
from seqkit.tasks.forecast import ForecastTask
from seqkit.tasks.series_encoder import SeriesShape, TokenConfig
from seqkit.tasks.series_net import ForecastNetConfig, horizon_of, normalise
from seqkit.tokenizers.numeric import SeriesScaler, Sums

_SERIES_AT_ONCE = 1024


@dataclass(frozen=True)
class TrainedForecast:
    """A trained model and how it reads series.

    Attributes:
        task: The network with its calibration, in evaluation mode.
        config: Settings of the run, sizes filled in.
        scaler: Centre and spread of the training rows.
        encoder: Covariates.
        frequency: Step of the series; None for irregular ones.
        integer_time: Whether stamps are whole numbers.
        ids: Series it was trained on, in order; they must all be there where channels are mixed.
    """

    task: ForecastTask
    config: ForecastConfig
    scaler: SeriesScaler
    encoder: CovariateEncoder
    frequency: Frequency | None
    integer_time: bool
    ids: tuple[str, ...]

    @classmethod
    def of(cls, task: ForecastTask, config: ForecastConfig, data: SeriesData) -> TrainedForecast:
        """A model that was just trained."""
        panel = data.panel
        return cls(
            task.eval(), config, data.scaled.scaler, data.encoder, panel.frequency, panel.ds.dtype.is_integer(),
            tuple(panel.ids),
        )  # fmt: skip

    def read(self, source: Any, *, columns: Mapping[str, str] | None = None) -> Panel:
        """Series from a frame or a file, on the model's grid.

        Raises:
            InputError: Columns are missing, or stamps are of another kind or step than in training.
        """
        names = tuple(dict.fromkeys(self.encoder.columns))
        panel = load_panel(source, columns=columns or self.config.data.columns, exogenous=names, grid=self.grid)
        if panel.ds.dtype.is_integer() != self.integer_time:
            kinds = {True: "whole numbers", False: "dates or times"}
            raise InputError("ds", expected=f"{kinds[self.integer_time]}, as in training", got=str(panel.ds.dtype))
        return panel

    @property
    def grid(self) -> GridConfig:
        """How stamps of further series are read: as in training, at the step found there."""
        return replace(self.config.data.grid, freq=self.frequency)

    def data(self, source: Any = None, *, columns: Mapping[str, str] | None = None) -> SeriesData:
        """Series with labelled test rows: all rows of a table, or the test part of the run's own.

        Lookbacks of a table's first cutoffs lie in its beginning, and intervals of the simple method beside the model
        come from the rows before the test part.
        """
        settings = self.config.data
        panel = self.read(source if source is not None else settings.table, columns=columns)
        split = split_by_time(
            panel, lookback=settings.lookback, horizon=settings.horizon, validation=settings.validation,
            test=settings.test, gap=settings.gap,
        )  # fmt: skip
        scaled = ScaledPanel(panel, self.scaler, self.encoder.encode(panel), channels=self.config.net.mix)
        return SeriesData(settings, panel, split, scaled, self.encoder)

    def read_future(self, source: Any, *, columns: Mapping[str, str] | None = None) -> pl.DataFrame:
        """Known-future rows with the names ``unique_id`` and ``ds``, stamps as the model's."""
        frame, _ = as_polars(source)
        names = frame.collect_schema().names()
        roles = find_roles(names, columns or self.config.data.columns, target=False)
        wanted = [column.name for column in self.encoder.future]
        for name in wanted:
            if name not in names:
                raise InputError("future_df", expected=f"the column {name}", got=", ".join(names))
        stamps = pl.col(roles.time)
        name = pl.lit("series") if roles.id is None else pl.col(roles.id).cast(pl.String)
        rows = frame.select(name.alias("unique_id"), stamps.alias("ds"), *wanted).collect()
        zeros = rows.with_columns(y=pl.lit(0.0))
        irregular = GridConfig(irregular=True, time_zone=self.config.data.time_zone, duplicates="last")
        return checked(zeros, irregular)[0].drop("y")

    def horizon(self, wanted: int | None) -> int:
        """The steps to forecast: those asked for, the model's own by default.

        Raises:
            ConfigError: More are asked for than the model was trained for.
        """
        own = self.task.net.shape.horizon
        if wanted is not None and not 1 <= wanted <= own:
            raise ConfigError(
                "h", expected=f"1 to {own}, the horizon the model was trained for", got=str(wanted),
                remedy=f"Train with a horizon of {wanted}." if wanted > own else "",
            )  # fmt: skip
        return wanted or own

    def forecast(
        self, panel: Panel, levels: torch.Tensor, *, future: pl.DataFrame | None = None,
        before: Mapping[str, Sums] | None = None, hidden: torch.Tensor | None = None,
    ) -> tuple[Panel, NDArray]:  # fmt: skip
        """What comes behind the last row of every series.

        Args:
            panel: Series as :meth:`read` gives them; their last lookback is read.
            levels: (Q,) quantile levels.
            future: Known-future rows, where the model has such covariates.
            before: Sums of the rows before the panel's, for a running scaler.
            hidden: Hidden states behind the last rows, for a model that carries its state.

        Returns:
            The panel with H rows more per series, and quantiles (S, H, Q) in the units of the data.
        """
        horizon = self.task.net.shape.horizon
        columns = [column.name for column in self.encoder.future]
        longer = extended(panel, horizon, columns, future, self.encoder.usual_step)
        mixed = self.config.net.mix
        if mixed and tuple(panel.ids) != self.ids:
            raise InputError(
                "unique_id", expected=f"the {len(self.ids)} series that are mixed: {', '.join(self.ids)[:80]}",
                got=", ".join(panel.ids)[:80],
            )  # fmt: skip
        scaled = ScaledPanel(longer, self.scaler, self.encoder.encode(longer), channels=mixed, before=before)
        cutoff_S = longer.offsets[1:] - horizon
        series_S = np.zeros(1, dtype=np.int64) if mixed else np.arange(len(longer))
        index = WindowIndex(longer.offsets, cutoff_S, cutoff_S)
        windows = SeriesWindows(scaled, index, lookback=self.config.data.lookback, horizon=horizon)
        device = next(self.task.parameters()).device
        parts = []
        for start in range(0, len(series_S), _SERIES_AT_ONCE):
            chosen = series_S[start : start + _SERIES_AT_ONCE]
            batch = {name: value.to(device) for name, value in windows.at(chosen, cutoff_S[chosen]).items()}
            given = None if hidden is None else hidden[start : start + _SERIES_AT_ONCE]
            parts.append(self._quantiles(batch, levels.to(device), given).flatten(0, 1).cpu().numpy())
        return longer, np.concatenate(parts)

    @property
    def carries(self) -> bool:
        """Whether the state of the backbone goes on from row to row, instead of reading the lookback anew."""
        return self.config.net.context == "carried"

    @torch.no_grad()
    def _quantiles(self, batch: Mapping[str, torch.Tensor], levels: torch.Tensor, hidden: torch.Tensor | None):
        if hidden is None:
            return self.task.quantiles(batch, levels)
        net = self.task.net
        normal = normalise(batch["z"], self.config.net.norm)
        forecast = net.decode(hidden, normal, horizon_of(batch, self.config.data.lookback))
        return self.task.finish(forecast, batch, levels)

    def save(self, folder: Path) -> None:
        """Write ``model.json`` and ``model.safetensors``."""
        described = describe(self.config, self.task.net.shape) | {
            "scaler": self.scaler.to_dict(),
            "covariates": self.encoder.to_dict(),
            "frequency": str(self.frequency) if self.frequency is not None else None,
            "integer_time": self.integer_time,
            "ids": list(self.ids),
        }
        save_model(folder, self.task, described)

    @classmethod
    def load(cls, folder: str | Path) -> TrainedForecast:
        """Read what :meth:`save` wrote. No code from the folder runs.

        Raises:
            CheckpointError: No such model lies there, or it is damaged.
        """
        folder = Path(folder)
        described = read_description(folder)
        if described["task"] != TASK:
            raise CheckpointError("--ckpt", expected=f"a {TASK} run", got=f"a {described['task']} run")
        net = described["net"] | {"levels": tuple(described["net"]["levels"])}
        config = ForecastConfig(
            seed=described["seed"],
            level=tuple(described["level"]),
            nonnegative=described["nonnegative"],
            adapt=described["adapt"],
            data=SeriesDataConfig(**described["data"]),
            model=BackboneConfig.from_dict(described["model"]),
            tokens=TokenConfig(**described["tokens"]),
            net=ForecastNetConfig(**net),
        )
        task = build_task(config, SeriesShape(**described["shape"]))
        load_weights(folder, task)
        frequency = described["frequency"]
        return cls(
            task.eval(), config, SeriesScaler.from_dict(described["scaler"]),
            CovariateEncoder.from_dict(described["covariates"]),
            None if frequency is None else Frequency.parse(frequency), described["integer_time"],
            tuple(described["ids"]),
        )  # fmt: skip
