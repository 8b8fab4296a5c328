"""Series with one label each: read from a long frame or the UCR layout, split by series, handed out in packed batches.

Legend: S series, N rows of all series, C channels, B series of a batch, L rows of a batch.
"""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from seqkit.data.series import Panel, load_panel
from seqkit.data.series_frames import as_polars, find_roles
from seqkit.data.series_grid import GridConfig
from seqkit.data.synthetic_series import bursts
from seqkit.errors import ConfigError, InputError
from seqkit.tokenizers.numeric import SeriesScaler

PARTS = ("train", "validation", "test")


@dataclass(frozen=True, kw_only=True)
class LabelledSeriesConfig:
    """Series, their labels, and which of them are held out.

    Attributes:
        table: Long table (CSV, TSV, Parquet, Arrow), or a headless .tsv of the UCR layout: class first, one series a
            row. None generates a set from the seed of the run.
        test_table: A second table whose series are the test part.
        labels: Table with the id column and the label; None where the label stands in every row of ``table``.
        label: Column of the label.
        channels: Columns of values; none takes the target column alone.
        columns: Which columns hold id, time, target, where their names are not guessed.
        split: Column that says train, validation or test; None draws the parts from the seed.
        test: Share of the series drawn for the test.
        validation: Share of the remaining series that chooses the epoch.
        scaler: series (each channel of a series by its own mean and spread), global (by those of the training
            series, so that level and size tell something) or none.
        freq: Step between stamps; none infers it.
        gaps: fill or refuse missing rows.
        duplicates: refuse, first, last or mean.
        infinite: refuse or missing.
        batch_size: Series in a batch.
    """

    table: str | None = None
    test_table: str | None = None
    labels: str | None = None
    label: str = "label"
    channels: tuple[str, ...] | None = None
    columns: dict[str, str] | None = None
    split: str | None = None
    test: float = 0.25
    validation: float = 0.2
    scaler: str = "series"
    freq: str | int | None = None
    gaps: str = "fill"
    duplicates: str = "refuse"
    infinite: str = "refuse"
    batch_size: int = 16

    def __post_init__(self):
        for name in ("test", "validation"):
            if not 0 < getattr(self, name) < 1:
                raise ConfigError(f"data.{name}", expected="a share above 0 and below 1", got=str(getattr(self, name)))
        if self.scaler not in ("series", "global", "none"):
            raise ConfigError("data.scaler", expected="series, global or none", got=repr(self.scaler))
        if self.batch_size < 1:
            raise ConfigError("data.batch_size", expected="1 or more", got=str(self.batch_size))
        if self.split and self.test_table:
            raise ConfigError("data.split", expected="no data.test_table beside it", got="both", remedy="Drop one.")
        if self.test_table and not self.table:
            raise ConfigError("--test-table", expected="--table beside it", got="no --table")
        if len(set(self.channels or ())) < len(self.channels or ()):
            raise ConfigError("data.channels", expected="different columns", got=", ".join(self.channels))

    @property
    def grid(self) -> GridConfig:
        """How stamps are read."""
        names = ("freq", "gaps", "duplicates", "infinite")
        return GridConfig(**{name: getattr(self, name) for name in names})


class LabelledSeries(NamedTuple):
    """Series end to end with a label each.

    Attributes:
        ids: (S,) names.
        offsets: (S + 1,) int64 bounds of the series.
        values_NC: float64, NaN where missing.
        labels: (S,) text, numbers or nulls; None where none were asked for.
        part_S: What a split column says of each series; None without one.
        notes: What was done to the rows, in words.
    """

    ids: list[str]
    offsets: NDArray
    values_NC: NDArray
    labels: pl.Series | None
    part_S: pl.Series | None = None
    notes: tuple[str, ...] = ()

    def series(self, number: int) -> NDArray:
        """(T, C) values of a series."""
        return self.values_NC[self.offsets[number] : self.offsets[number + 1]]

    def all_series(self) -> list[NDArray]:
        """The values of every series."""
        return [self.series(number) for number in range(len(self.ids))]

    @property
    def lengths(self) -> NDArray:
        """(S,) rows of each series."""
        return np.diff(self.offsets)


def read_labelled(config: LabelledSeriesConfig, source: Any, *, seed: int = 0, labelled: bool = True) -> LabelledSeries:
    """Read a table of series.

    Args:
        config: How to read it.
        source: Path or frame; None generates :func:`seqkit.data.synthetic_series.bursts`.
        seed: Of the generated set.
        labelled: Whether there must be labels.

    Raises:
        InputError: A column is missing, or a series has several labels or parts.
    """
    frame = bursts(seed) if source is None else source
    if isinstance(frame, str | Path) and is_ucr(frame):
        frame = ucr_frame(frame)
    names = as_polars(frame)[0].collect_schema().names()
    roles = find_roles(names, config.columns, target=config.channels is None)
    if roles.id is None:
        raise InputError("columns", expected="an id column, one label a series", got=", ".join(names))
    channels = config.channels or (roles.target,)
    columns = {"id": roles.id, "time": roles.time, "target": channels[0]}
    for name in channels:
        if name not in names:
            raise InputError("data.channels", expected=f"columns among {', '.join(names)}", got=name)
    in_rows = (config.label,) if labelled and config.labels is None else ()
    parts = (config.split,) if labelled and config.split else ()
    used = [*columns.values(), *channels[1:], *in_rows, *parts]
    twice = next((name for name in used if used.count(name) > 1), None)
    if twice:
        raise InputError("columns", expected="another column for id, time, each channel, label and split", got=twice)
    panel = load_panel(frame, columns=columns, exogenous=(*channels[1:], *in_rows, *parts), grid=config.grid)
    values = [panel.y, *(_channel(panel, name, config.infinite) for name in channels[1:])]
    labels = None
    if labelled:
        labels = _one_each(panel, config.label) if config.labels is None else _second_table(panel, config, roles.id)
    part = _one_each(panel, config.split) if parts else None
    return LabelledSeries(panel.ids, panel.offsets, np.stack(values, axis=1), labels, part, panel.notes)


def joined(train: LabelledSeries, test: LabelledSeries) -> LabelledSeries:
    """Two tables as one, the parts said by which table a series came from.

    Raises:
        InputError: A series is in both, or they have different numbers of channels.
    """
    both = sorted(set(train.ids) & set(test.ids))
    if both:
        raise InputError("--test-table", expected="series that are not in --table", got=both[0])
    offsets = np.concatenate([train.offsets, train.offsets[-1] + test.offsets[1:]])
    parts = pl.Series(["train"] * len(train.ids) + ["test"] * len(test.ids))
    labels = [pl.DataFrame({"label": one.labels}) for one in (train, test)]
    return LabelledSeries(
        train.ids + test.ids, offsets, np.concatenate([train.values_NC, test.values_NC]),
        pl.concat(labels, how="vertical_relaxed")["label"], parts, (*train.notes, *test.notes),
    )  # fmt: skip


def with_labels(data: LabelledSeries) -> LabelledSeries:
    """The series that have a label; a note says how many have none."""
    kept = np.flatnonzero(data.labels.is_not_null().to_numpy())
    if len(kept) == len(data.ids):
        return data
    if not len(kept):
        raise InputError("label", expected="a label for some series", got="none")
    rows = np.concatenate([np.arange(data.offsets[s], data.offsets[s + 1]) for s in kept])
    offsets = np.concatenate([[0], np.cumsum(data.lengths[kept])])
    part_S = None if data.part_S is None else data.part_S[kept]
    note = f"{len(data.ids) - len(kept)} series without a label left out"
    ids = [data.ids[s] for s in kept]
    return LabelledSeries(ids, offsets, data.values_NC[rows], data.labels[kept], part_S, (*data.notes, note))


def is_ucr(source: str | Path) -> bool:
    """Whether a .tsv or .txt (gzipped too) begins with a row of numbers, and so has no header."""
    path = Path(source)
    suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if suffix not in (".tsv", ".txt") or not path.is_file():
        return False
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", errors="replace") as handle:
        cells = handle.readline().split()
    try:
        return len(cells) > 1 and bool([float(cell) for cell in cells])
    except ValueError:
        return False


def ucr_frame(source: str | Path) -> pl.DataFrame:
    """Long frame of a UCR file: series ``NAME-00000``, stamps from 0, classes as text; NaN at the end is no row.

    Raises:
        InputError: Rows of different widths or with text.
    """
    path = Path(source)
    try:
        table = np.loadtxt(path, ndmin=2)
    except ValueError as error:
        raise InputError(str(path), expected="rows of equally many numbers", got=str(error)[:120]) from error
    known = ~np.isnan(table[:, 1:])
    lengths = np.where(known.any(axis=1), known.shape[1] - known[:, ::-1].argmax(axis=1), 1)
    inside = np.arange(known.shape[1]) < lengths[:, None]
    stem = path.name.split(".")[0]
    names = np.array([f"{stem}-{row:05d}" for row in range(len(table))])
    return pl.DataFrame({
        "unique_id": np.repeat(names, lengths),
        "ds": np.nonzero(inside)[1],
        "y": table[:, 1:][inside],
        "label": np.repeat([f"{value:g}" for value in table[:, 0]], lengths),
    })  # fmt: skip


def _channel(panel: Panel, name: str, infinite: str) -> NDArray:
    column = panel.exogenous[name]
    if not column.dtype.is_numeric() and column.dtype not in (pl.Boolean, pl.Null):
        raise InputError(name, expected="numbers", got=str(column.dtype))
    values = column.cast(pl.Float64).fill_null(np.nan).to_numpy().copy()
    if np.isinf(values).any() and infinite == "refuse":
        raise InputError(
            name, expected="finite numbers or NaN", got=f"{np.isinf(values).sum()} infinite",
            remedy="infinite=missing reads them as missing.",
        )  # fmt: skip
    values[np.isinf(values)] = np.nan
    return values


def _one_each(panel: Panel, name: str) -> pl.Series:
    """(S,) value of a column that does not change within a series; null where it is missing."""
    rows = pl.DataFrame({"series": panel.series_of_row, "value": panel.exogenous[name]})
    found = rows.drop_nulls().group_by("series").agg(pl.col("value").unique()).sort("series")
    several = found.filter(pl.col("value").list.len() > 1)
    if several.height:
        series, values = several.row(0)
        got = f"{', '.join(map(str, sorted(values)[:3]))} in {panel.ids[series]}"
        raise InputError(name, expected="one value a series", got=got)
    every = pl.DataFrame({"series": np.arange(len(panel))}).join(found, on="series", how="left", maintain_order="left")
    return every["value"].list.first().alias(name)


def _second_table(panel: Panel, config: LabelledSeriesConfig, id_name: str) -> pl.Series:
    frame, _ = as_polars(config.labels)
    names = frame.collect_schema().names()
    for name in (id_name, config.label):
        if name not in names:
            raise InputError("--labels", expected=f"column {name}", got=", ".join(names))
    table = frame.select(pl.col(id_name).cast(pl.String), config.label).collect()
    doubled = table.filter(pl.col(id_name).is_duplicated())
    if doubled.height:
        raise InputError("--labels", expected="one row a series", got=f"several for {doubled[id_name][0]}")
    joined = pl.DataFrame({id_name: panel.ids}).join(table, on=id_name, how="left", maintain_order="left")
    return joined[config.label]


def split_series(data: LabelledSeries, config: LabelledSeriesConfig, seed: int, classes: NDArray | None) -> NDArray:
    """(S,) part of every series: 0 train, 1 validation, 2 test.

    Args:
        data: Series; a split column decides where there is one. Without validation series in it, they are drawn
            from the training series.
        config: Shares.
        seed: Of the draw.
        classes: (S,) class numbers, drawn from in proportion; None for labels that are numbers.

    Raises:
        InputError: The split column says something else, or a part would be empty.
    """
    rng = np.random.default_rng([seed, 7])
    part_S = np.zeros(len(data.ids), np.int64)
    if data.part_S is not None:
        words = data.part_S.cast(pl.String)
        odd = words.filter(~words.is_in(PARTS) | words.is_null())
        if len(odd):
            raise InputError(config.split, expected="train, validation or test", got=str(odd[0]))
        part_S = words.replace_strict(list(PARTS), [0, 1, 2], return_dtype=pl.Int64).to_numpy().copy()
    else:
        part_S[_drawn(np.arange(len(part_S)), config.test, classes, rng)] = 2
    if not (part_S == 1).any():
        part_S[_drawn(np.flatnonzero(part_S == 0), config.validation, classes, rng)] = 1
    for number, name in enumerate(PARTS):
        if not (part_S == number).any():
            raise InputError(
                "series", expected="at least one in every part", got=f"none for {name} of {len(part_S)} series"
            )
    return part_S


def _drawn(series: NDArray, share: float, classes: NDArray | None, rng: np.random.Generator) -> NDArray:
    """A share of the series, of every class alike; a class with two series or more keeps one on each side."""
    groups = [series] if classes is None else [series[classes[series] == c] for c in np.unique(classes[series])]
    chosen = []
    for group in groups:
        count = min(max(round(share * len(group)), 1), len(group) - 1)
        chosen.append(rng.permutation(group)[: max(count, 0)])
    return np.sort(np.concatenate(chosen))


def fit_scaler(data: LabelledSeries, train: NDArray, kind: str) -> list[SeriesScaler]:
    """One scaler a channel, from the training series."""
    rows = np.concatenate([np.arange(data.offsets[s], data.offsets[s + 1]) for s in train])
    whole = np.array([0, len(rows)])
    # Series to come give their own centre, so "series" has nothing to remember.
    fitted = [SeriesScaler(kind) for _ in range(data.values_NC.shape[1])]
    if kind == "global":
        for channel, scaler in enumerate(fitted):
            scaler.fit(data.values_NC[rows, channel], whole, ["all"])
    return fitted


def scaled(data: LabelledSeries, scalers: Sequence[SeriesScaler]) -> NDArray:
    """(N, C) float32 values around zero, NaN where missing."""
    lengths, columns = data.lengths, []
    for channel, scaler in enumerate(scalers):
        values_N = data.values_NC[:, channel]
        loc_S, scale_S = scaler.tables(values_N, data.offsets, data.ids)
        columns.append((values_N - np.repeat(loc_S, lengths)) / np.repeat(scale_S, lengths))
    return np.stack(columns, axis=1).astype(np.float32)


class PackedSeries(Dataset):
    """Series as packed batches: rows of all of them end to end, with the bounds between them.

    A batch holds ``z`` (L, C) scaled values, ``cu_seqlens`` (B + 1,) int32, ``target`` (B,) float32, ``index`` (B,), -1
    for a filler, and ``start`` (B, K) where there is one.

    Args:
        z_NC: Scaled values of all series.
        offsets: (S + 1,) bounds.
        target_S: Labels as numbers, NaN where there is none.
        members: Series of this set.
        start_SK: Answers that a model starts from; None for none.
    """

    def __init__(
        self, z_NC: NDArray, offsets: NDArray, target_S: NDArray, members: NDArray, start_SK: NDArray | None = None
    ):
        self.z_NC, self.offsets, self.target_S, self.members = z_NC, offsets, target_S, members
        self.start_SK = start_SK

    def __len__(self) -> int:
        return len(self.members)

    def __getitems__(self, places: Sequence[int]) -> dict[str, torch.Tensor]:
        """One batch; a negative place is a filler, whose label is missing."""
        places_B = np.asarray(places, np.int64)
        filler_B = places_B < 0
        series_B = self.members[np.where(filler_B, -1 - places_B, places_B)]
        pieces = [self.z_NC[self.offsets[s] : self.offsets[s + 1]] for s in series_B]
        bounds = np.concatenate([[0], np.cumsum([len(piece) for piece in pieces])])
        target_B = np.where(filler_B, np.nan, self.target_S[series_B])
        start = {} if self.start_SK is None else {"start": torch.from_numpy(self.start_SK[series_B].astype(np.float32))}
        return start | {
            "z": torch.from_numpy(np.concatenate(pieces)),
            "cu_seqlens": torch.from_numpy(bounds.astype(np.int32)),
            "target": torch.from_numpy(target_B.astype(np.float32)),
            "index": torch.from_numpy(np.where(filler_B, -1, series_B)),
        }
