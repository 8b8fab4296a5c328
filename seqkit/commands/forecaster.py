"""Forecasts from Python: frames in, frames of the same kind out."""

from __future__ import annotations

import contextlib
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from seqkit import configs
from seqkit.commands.arguments import parse
from seqkit.commands.forecast import train
from seqkit.commands.forecast_frames import forecast_rows, interval_columns, interval_levels, named
from seqkit.commands.forecast_memory import Memory, forecast_from, remember
from seqkit.commands.forecast_memory_file import load_memory, save_memory
from seqkit.commands.forecast_model import TASK, ForecastConfig
from seqkit.commands.forecast_report import forecast_windows, places, targets
from seqkit.commands.forecast_trained import TrainedForecast
from seqkit.commands.trainer import torch_device
from seqkit.data.series import load_panel
from seqkit.data.series_data import SeriesData, prepare
from seqkit.data.series_frames import as_polars
from seqkit.data.series_tail import rows_of
from seqkit.errors import ConfigError
from seqkit.tasks.adaptive import adapted

MEMORY = "memory.safetensors"
_LOUD = ("lightning", "lightning.pytorch", "lightning.fabric")


class Forecaster:
    """Trains on a frame of series and forecasts what comes next.

    Frames are long, with columns ``unique_id``, ``ds``, ``y`` and covariates: polars, pandas or Arrow, or a path.
    Missing values are NaN or null; a missing row becomes one. Nothing is printed, no file is written and no global
    random state changes; the same seed gives the same forecasts.

    Args:
        h: Horizon: steps ahead.
        freq: Step between stamps, such as "30m", "h", "MS" or 1; None infers it.
        lookback: Steps that a forecast looks back; None takes the longest season, at least twice ``h``.
        id_col: Name of the id column; a frame without one holds one series.
        time_col: Name of the time column.
        target_col: Name of the target column.
        future: Columns whose values are known in advance.
        past: Columns known up to the cutoff.
        static: Columns that are constant in a series.
        nonnegative: Whether forecasts below zero become zero.
        adapt: How fast intervals follow their own misses: with every ``update``, and over the cutoffs of a cross
            validation without refits; 0 leaves them as calibrated, 0.5 is a good rate.
        alias: Name of the forecast's columns.
        seed: Seed of weights, order and dropout.
        device: auto, cpu, cuda or cuda:N.
        verbose: Whether a progress bar is shown on a terminal.
        settings: Sections of the task's configuration by name, such as ``model={"layout": "s4d*2"}``,
            ``net={"head": "student-t"}``, ``trainer={"max_epochs": 20}``; ``seqkit configs task/forecast`` shows them.

    Example:
        >>> from seqkit import Forecaster
        >>> model = Forecaster(h=24, freq="h").fit(df)                     # doctest: +SKIP
        >>> model.predict(level=[80, 95])                                  # doctest: +SKIP
    """

    def __init__(
        self, h: int, freq: str | int | None = None, *, lookback: int | None = None, id_col: str | None = None,
        time_col: str | None = None, target_col: str | None = None, future: Sequence[str] = (),
        past: Sequence[str] = (), static: Sequence[str] = (), nonnegative: bool = False, adapt: float = 0.0,
        alias: str = "seqkit", seed: int = 0, device: str = "auto", verbose: bool = False,
        **settings: Mapping[str, Any],
    ):  # fmt: skip
        named = {"id": id_col, "time": time_col, "target": target_col}
        data = {
            "horizon": h, "freq": freq, "lookback": lookback, "future": list(future) or None,
            "past": list(past) or None, "static": list(static) or None, "test": 0,
            "columns": {role: name for role, name in named.items() if name} or None,
        }  # fmt: skip
        settings = dict(settings)
        settings["data"] = data | dict(settings.get("data", {}))
        # Threads belong to the caller's process.
        settings["trainer"] = {"threads": 0, "device": device} | dict(settings.get("trainer", {}))
        self.config = _config(settings | {"seed": seed, "nonnegative": nonnegative, "adapt": adapt})
        self.alias, self.verbose = alias, verbose
        self.trained: TrainedForecast | None = None
        self.memory: Memory | None = None
        self._restore = _same

    def fit(self, df: Any, *, val_size: float | None = None) -> Forecaster:
        """Train on the series of a frame, and remember where they end.

        Args:
            df: The series with their covariates.
            val_size: Share of each series (below 1) or rows at its end that choose the epoch and calibrate the
                intervals instead of being trained on; 0 trains on everything, without calibration.

        Raises:
            InputError: The frame cannot be read as series; names the first offending row.
        """
        frame, self._restore = as_polars(df)
        config = self.config
        if val_size is not None:
            config = replace(config, data=replace(config.data, validation=val_size))
        data = self._data(frame, config)
        self.trained = self._train(config, data)
        self.memory = remember(self.trained, data.panel)
        return self

    def predict(
        self, df: Any = None, h: int | None = None, *, level: Sequence[float] = (80, 95),
        quantiles: Sequence[float] = (), future_df: Any = None,
    ) -> Any:  # fmt: skip
        """Forecast what comes behind the last row of every series.

        Args:
            df: Series to go on from; None goes on from what was fitted and updated.
            h: Steps ahead, at most those of the constructor.
            level: Percentages of central intervals: columns ``seqkit-lo-80``, ``seqkit-hi-80``.
            quantiles: Quantile levels: columns ``seqkit_ql0.1``.
            future_df: Known-future rows, where the model has such covariates.

        Returns:
            ``unique_id`` where the frame had one, ``ds`` (under the names that came in), ``seqkit`` (the median) and
            its intervals, as a frame of the kind that was fitted, or that ``df`` is.
        """
        trained = self._trained()
        restore = self._restore
        if df is None:
            memory = self.memory
        else:
            source, restore = as_polars(df)
            memory = remember(trained, trained.read(source))
        horizon = trained.horizon(h)
        future = None if future_df is None else trained.read_future(future_df)
        levels = interval_levels(level, quantiles)
        longer, values = forecast_from(trained, memory, levels, future)
        frame = forecast_rows(longer, values, levels, level, name=self.alias, horizon=horizon)
        for wanted in quantiles:
            place = int(np.argmin(np.abs(levels - wanted)))
            frame = frame.with_columns(pl.Series(f"{self.alias}_ql{wanted:g}", values[:, :horizon, place].reshape(-1)))
        return restore(frame)

    def cross_validation(
        self, df: Any, *, n_windows: int = 1, step_size: int | None = None, level: Sequence[float] = (80, 95),
        refit: bool = False, val_size: float | None = None,
    ) -> Any:  # fmt: skip
        """Forecasts at rolling cutoffs, by a model that was trained on the rows before them.

        A forecaster that was fitted stays as it is; one that was not keeps the last model, and goes on from the end of
        the frame.

        Args:
            df: The series with their covariates.
            n_windows: Cutoffs per series; the last one leaves ``h`` rows.
            step_size: Rows between two cutoffs; None takes ``h``, so that no row is forecast twice.
            level: Percentages of central intervals.
            refit: Whether a new model is trained at every cutoff; else one, before the first.
            val_size: As for :meth:`fit`.

        Returns:
            ``unique_id`` where the frame had one, ``ds``, ``cutoff`` (the last row known), ``y`` and the forecasts.
        """
        frame, restore = as_polars(df)
        config = self.config
        if val_size is not None:
            config = replace(config, data=replace(config.data, validation=val_size))
        h = config.data.horizon
        step = step_size or h
        if n_windows < 1 or step < 1:
            raise ConfigError("n_windows", expected="n_windows and step_size of 1 or more", got=f"{n_windows}, {step}")
        parts = []
        for number in range(n_windows if refit else 1):
            held = h + step * (n_windows - 1 - number)
            settings = replace(config, data=replace(config.data, test=held, test_stride=step))
            data = self._data(frame, settings)
            trained = self._train(settings, data)
            rows = backtest_rows(trained, data, level, name=self.alias)
            roles = data.panel.roles
            series = [roles.id] if roles.id else []
            if refit:  # of every series the first cutoff
                rows = rows.group_by(series, maintain_order=True).head(h) if series else rows.head(h)
            parts.append(rows)
        if self.trained is None:
            self.trained, self.memory, self._restore = trained, remember(trained, data.panel), restore
        return restore(pl.concat(parts).sort(*series, "cutoff", roles.time, maintain_order=True))

    def update(self, df: Any) -> Forecaster:
        """Read new rows behind those known; the model stays as it is.

        The time this takes depends on the rows given and the lookback, not on how many rows came before. Missing rows
        in between become missing values; a series that is not in ``df`` stays where it is; a new one joins.

        Raises:
            InputError: A row is not later than the last one known of its series.
        """
        trained = self._trained()
        frame, _ = as_polars(df)
        self.memory = remember(trained, trained.read(frame), self.memory)
        return self

    def save(self, path: str | Path) -> None:
        """Write settings, weights and memory into a folder: JSON and safetensors, nothing that runs when read."""
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        trained = self._trained()
        save_memory(folder / MEMORY, self.memory, trained, alias=self.alias)
        trained.save(folder)

    @classmethod
    def load(cls, path: str | Path, *, device: str = "auto") -> Forecaster:
        """Read what :meth:`save` wrote; the forecaster goes on where that one stood.

        Raises:
            CheckpointError: No forecaster lies there, or it is damaged.
        """
        trained = TrainedForecast.load(path)
        forecaster = cls(h=trained.task.net.shape.horizon)
        forecaster.config = replace(trained.config, trainer=forecaster.config.trainer, optim=forecaster.config.optim)
        trained.task.to(torch_device(device))
        forecaster.trained = trained
        forecaster.memory, header = load_memory(Path(path) / MEMORY, trained)
        forecaster.alias = header["alias"]
        return forecaster

    @property
    def notes(self) -> tuple[str, ...]:
        """What was done to the rows last read, such as how many missing ones were filled in."""
        return self.memory.panel.notes if self.memory is not None else ()

    def _trained(self) -> TrainedForecast:
        if self.trained is None:
            raise ConfigError("Forecaster", expected="a fitted forecaster", got="one that is not", remedy="Call fit.")
        return self.trained

    def _data(self, frame: pl.LazyFrame, config: ForecastConfig) -> SeriesData:
        kinds = [name for kind in ("future", "past", "static") for name in config.data.kind(kind)]
        columns = tuple(dict.fromkeys(kinds))
        panel = load_panel(frame, columns=config.data.columns, exogenous=columns, grid=config.data.grid)
        return prepare(panel, config.data, mix=config.net.mix)

    def _train(self, config: ForecastConfig, data: SeriesData) -> TrainedForecast:
        config = replace(config, data=data.config)
        with undisturbed(), tempfile.TemporaryDirectory(prefix="seqkit-forecaster-") as folder:
            trained = train(config, data, Path(folder), progress=self.verbose)
        return TrainedForecast.of(trained.task, config, data)


def backtest_rows(trained: TrainedForecast, data: SeriesData, level: Sequence[float], *, name: str) -> pl.DataFrame:
    """Long frame of the forecasts at the test cutoffs, under the names of the frame that came in."""
    levels = interval_levels(level)
    windows = data.windows("test")
    quantiles = forecast_windows(trained.task, data, levels)
    series_W, cutoff_W = places(data, windows)
    panel, horizon = data.panel, data.config.horizon
    if trained.config.adapt:
        at = (targets(data, windows), levels, series_W, cutoff_W)
        quantiles = adapted(quantiles, *at, trained.config.adapt, trained.config.floor)
    rows = (cutoff_W[:, None] + np.arange(horizon)).reshape(-1)
    columns = named(panel, np.repeat(series_W, horizon)) | {
        panel.roles.time: panel.ds[rows],
        "cutoff": panel.ds[np.repeat(np.maximum(cutoff_W - 1, panel.offsets[series_W]), horizon)],
        panel.roles.target: rows_of(panel)["y"][rows],
    }
    return pl.DataFrame(columns | interval_columns(name, quantiles.reshape(-1, len(levels)), levels, level))


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Train without a trace: random state, determinism, loggers and warnings of the process come back."""
    loggers = {name: logging.getLogger(name).level for name in _LOUD}
    deterministic = torch.are_deterministic_algorithms_enabled()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in _LOUD:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(deterministic)
            for name, set_level in loggers.items():
                logging.getLogger(name).setLevel(set_level)


def _config(settings: Mapping[str, Any]) -> ForecastConfig:
    """The task's configuration with these settings in it, checked as those of the command line are."""
    flat = _flat(settings).items()
    argv = [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in flat]
    config, _, _ = parse("Forecaster", ForecastConfig, argv, defaults=configs.path("task", TASK))
    return config


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        nested = isinstance(value, Mapping) and key != "columns"
        flat |= _flat(value, f"{prefix}{key}.") if nested else {prefix + key: value}
    return flat


def _same(frame: pl.DataFrame) -> pl.DataFrame:
    return frame
