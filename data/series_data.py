"""From a table of series to everything a forecasting model is trained and measured on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from seqkit.data import bundled
from seqkit.data.covariates import CovariateEncoder
from seqkit.data.frequency import Frequency
from seqkit.data.series import Panel, load_panel
from seqkit.data.series_chunks import ChunkReader, EvaluationChunks, TrainingChunks
from seqkit.data.series_grid import GridConfig
from seqkit.data.series_splits import TimeSplit, split_by_time
from seqkit.data.series_windows import ScaledPanel, SeriesWindows
from seqkit.errors import ConfigError, InputError
from seqkit.tokenizers.numeric import SCALINGS, SeriesScaler

TABLE_NAMES = ("id", "time", "target")


@dataclass(frozen=True, kw_only=True)
class SeriesDataConfig:
    """Series, windows, covariates and split.

    Attributes:
        table: CSV, TSV, Parquet or Arrow file in long format; none takes the bundled taxi series.
        columns: Which columns hold id, time, target, where their names are not guessed.
        freq: Step between stamps: a polars duration (30m), a pandas alias (30min) or an int; none infers it.
        irregular: Keep stamps as they are and let their distances enter the model.
        time_zone: Zone of stamps without one.
        gaps: fill or refuse missing rows.
        duplicates: refuse, first, last or mean, for rows with the same stamp.
        infinite: refuse, or missing.
        future: Columns known in advance; text is split at commas.
        past: Columns known up to the cutoff.
        static: Columns that are constant in a series.
        calendar: Whether time of day, day of week and time of year are features, where stamps are dates.
        lookback: Steps that a forecast looks back; none takes the longest season, at least twice the horizon.
        horizon: Steps ahead; none takes the shortest season.
        scaler: none, global, series or running.
        validation: Share of each series (below 1) or rows for validation and calibration, before the test part.
        test: Share or rows for the test.
        gap: Rows left out between the parts.
        train_stride: Rows between two training cutoffs.
        validation_stride: The same for validation; none takes half the horizon.
        test_stride: The same for the test; none takes the horizon, so that targets do not overlap.
        windows_per_epoch: Windows drawn per epoch, others in the next; none takes all.
        batch_size: Windows per step, or lanes of chunks.
        chunk: Steps of a chunk, where the state is carried.
        cutoffs: Cutoffs in a chunk that count for the loss, others in the next epoch.
        workers: Processes that prepare windows; 0 does it in the main one.
    """

    table: str | None = None
    columns: dict[str, str] | None = None
    freq: str | int | None = None
    irregular: bool = False
    time_zone: str | None = None
    gaps: str = "fill"
    duplicates: str = "refuse"
    infinite: str = "refuse"
    future: str | list[str] | None = None
    past: str | list[str] | None = None
    static: str | list[str] | None = None
    calendar: bool = True
    lookback: int | None = None
    horizon: int | None = None
    scaler: str = "series"
    validation: float = 0.2
    test: float = 0.2
    gap: int = 0
    train_stride: int = 1
    validation_stride: int | None = None
    test_stride: int | None = None
    windows_per_epoch: int | None = 2048
    batch_size: int = 32
    chunk: int = 512
    cutoffs: int = 16
    workers: int = 0

    def __post_init__(self):
        if self.scaler not in SCALINGS:
            raise ConfigError("data.scaler", expected=" or ".join(SCALINGS), got=repr(self.scaler))
        for name in ("lookback", "horizon", "train_stride", "validation_stride", "test_stride", "windows_per_epoch",
                     "batch_size", "chunk", "cutoffs"):  # fmt: skip
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"data.{name}", expected="1 or more", got=str(value))

    def resolved(self) -> SeriesDataConfig:
        """With the bundled series filled in where no table is named."""
        return self if self.table is not None else replace(self, table=str(bundled.nyc_taxi().table))

    @property
    def grid(self) -> GridConfig:
        """How stamps are read."""
        names = ("freq", "irregular", "time_zone", "gaps", "duplicates", "infinite")
        return GridConfig(**{name: getattr(self, name) for name in names})

    def kind(self, name: str) -> tuple[str, ...]:
        """Columns of ``future``, ``past`` or ``static``."""
        value = getattr(self, name)
        if value is None:
            return ()
        return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else tuple(value)

    def sized(self, frequency: Frequency | None) -> SeriesDataConfig:
        """With lookback, horizon and strides chosen where they were left open."""
        seasons = frequency.seasons if frequency is not None else (1,)
        horizon = self.horizon or max(seasons[0], 8)
        return replace(
            self,
            horizon=horizon,
            lookback=self.lookback or max(seasons[-1], 2 * horizon),
            validation_stride=self.validation_stride or max(1, horizon // 2),
            test_stride=self.test_stride or horizon,
        )


@dataclass(frozen=True)
class SeriesData:
    """Series with their split, scaled, with covariates as numbers.

    Attributes:
        config: Settings, sizes filled in.
        panel: The series.
        split: Rows of the parts.
        scaled: The series as the model reads them.
        encoder: Covariates, fitted on the training rows.
    """

    config: SeriesDataConfig
    panel: Panel
    split: TimeSplit
    scaled: ScaledPanel
    encoder: CovariateEncoder

    def windows(self, part: str, stride: int | None = None) -> SeriesWindows:
        """Windows of train, validation or test, with the part's stride or another."""
        stride = stride or getattr(self.config, f"{part}_stride")
        index = self.split.windows(part, stride=stride, series=0 if self.scaled.channels else None)
        return SeriesWindows(self.scaled, index, lookback=self.config.lookback, horizon=self.config.horizon)

    def training_chunks(self, seed: int) -> TrainingChunks:
        """The training rows in contiguous chunks."""
        config = self.config
        bounds = self.split.bounds["train"]
        return TrainingChunks(self._reader(), bounds, lanes=config.batch_size, cutoffs=config.cutoffs, seed=seed)

    def evaluation_chunks(self, part: str) -> EvaluationChunks:
        """Every series from its beginning, with the cutoffs of a part."""
        return EvaluationChunks(self._reader(), self.windows(part).index, lanes=self.config.batch_size)

    def _reader(self) -> ChunkReader:
        config = self.config
        return ChunkReader(self.scaled, lookback=config.lookback, horizon=config.horizon, chunk=config.chunk)

    def evaluation(self, part: str, *, carried: bool, most: int | None = None) -> Iterator[Mapping[str, Tensor]]:
        """Batches of a part in order: windows, or chunks where the state is carried.

        Args:
            part: train, validation or test.
            carried: Whether the model carries its state.
            most: Windows at even distances where there are more; chunks are always all read.
        """
        if not carried:
            yield from batches(self.windows(part), 256, most)
            return
        chunks = self.evaluation_chunks(part)
        yield from (chunks[item] for item in range(len(chunks)))


def load_series(config: SeriesDataConfig, *, mix: bool = False, source: Any = None) -> SeriesData:
    """Read, split and scale.

    Args:
        config: Settings; the bundled series where no table is named.
        mix: Whether the series are channels of one.
        source: A frame in the place of the config's table.
    """
    config = config.resolved()
    columns = tuple(name for kind in ("future", "past", "static") for name in config.kind(kind))
    panel = load_panel(
        config.table if source is None else source, columns=config.columns, exogenous=columns, grid=config.grid
    )
    return prepare(panel, config, mix=mix)


def prepare(panel: Panel, config: SeriesDataConfig, *, mix: bool = False) -> SeriesData:
    """Split a panel by time, and fit scaler and covariates on its training rows."""
    config = config.sized(panel.frequency)
    split = split_by_time(
        panel, lookback=config.lookback, horizon=config.horizon, validation=config.validation, test=config.test,
        gap=config.gap,
    )  # fmt: skip
    rows = split.rows("train")
    if np.isnan(panel.y[rows]).all():
        raise InputError("y", expected="at least one value to train on", got=f"{len(rows)} missing ones")
    bounds = np.concatenate([[0], np.cumsum(np.diff(split.bounds["train"], axis=1)[:, 0])])
    scaler = SeriesScaler(config.scaler).fit(panel.y[rows], bounds, panel.ids)
    kinds = {kind: config.kind(kind) for kind in ("future", "past", "static")}
    encoder = CovariateEncoder.fit(panel, rows, **kinds, calendar=config.calendar)
    return SeriesData(config, panel, split, ScaledPanel(panel, scaler, encoder.encode(panel), channels=mix), encoder)


def batches(windows: SeriesWindows, size: int, most: int | None = None) -> Iterator[Mapping[str, Tensor]]:
    """Windows in order, in batches; ``most`` of them at even distances where there are more."""
    count = len(windows)
    rows: NDArray = np.arange(count)
    if most is not None and count > most:
        rows = np.unique(np.linspace(0, count - 1, most).round().astype(np.int64))
    for start in range(0, len(rows), size):
        yield windows.__getitems__(rows[start : start + size])
