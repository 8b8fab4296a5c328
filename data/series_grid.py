"""Rows of series checked, sorted and put on their grid: what is missing, doubled, infinite or in the wrong order.

Legend: N rows as given, M rows of the grid, S series.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from seqkit.data.frequency import Frequency, infer_frequency
from seqkit.errors import ConfigError, InputError

_CHOICES = {
    "gaps": ("fill", "refuse"),
    "duplicates": ("refuse", "first", "last", "mean"),
    "infinite": ("refuse", "missing"),
}
_SAME_NAME = pl.col("unique_id") == pl.col("unique_id").shift()
_LATER_NAME = pl.col("unique_id") > pl.col("unique_id").shift()
_MOST_FILLED = 20
"""A grid with more rows than this many times those given comes from a wrong frequency or a wrong stamp."""


@dataclass(frozen=True, kw_only=True)
class GridConfig:
    """How stamps are read.

    Attributes:
        freq: Step: a polars duration, a pandas alias or an int; None infers it.
        irregular: Keep the stamps as they are; their distances enter the model.
        time_zone: Zone of stamps without one; a doubled hour in autumn is read in the order of the rows.
        gaps: fill (missing rows become missing values) or refuse.
        duplicates: refuse, or keep the first, the last or the mean of rows with the same stamp.
        infinite: refuse, or read infinities as missing.
    """

    freq: str | int | Frequency | None = None
    irregular: bool = False
    time_zone: str | None = None
    gaps: str = "fill"
    duplicates: str = "refuse"
    infinite: str = "refuse"

    def __post_init__(self):
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ConfigError(name, expected=" or ".join(choices), got=repr(getattr(self, name)))
        if self.irregular and self.freq is not None:
            raise ConfigError("irregular", expected="no freq beside it", got=f"freq {self.freq}", remedy="Drop one.")


class Gridded(NamedTuple):
    """Rows on their grid.

    Attributes:
        rows: M rows with ``unique_id``, ``ds``, ``y`` and covariates.
        offsets: (S + 1,) bounds of the series.
        frequency: Step of the grid; None for irregular series.
        notes: What was filled in, in words.
    """

    rows: pl.DataFrame
    offsets: NDArray
    frequency: Frequency | None
    notes: tuple[str, ...]


def checked(rows: pl.DataFrame, config: GridConfig) -> tuple[pl.DataFrame, list[str]]:
    """Rows sorted by series and stamp, with readable stamps, finite or missing values and no doubles.

    Returns:
        The rows (``unique_id`` as text, ``y`` float64 with NaN where missing), and what was done, in words.

    Raises:
        InputError: Something is refused; names the series and the stamp.
    """
    if not rows.height:
        raise InputError("table", expected="at least one row", got="none")
    rows = rows.with_columns(pl.col("unique_id").cast(pl.String), _stamps(rows["ds"], config), _values(rows["y"]))
    for name in ("unique_id", "ds"):
        if rows[name].null_count():
            at = int(rows[name].is_null().arg_max())
            raise InputError(name, expected="a value in every row", got=f"none in row {at + 1}")
    infinite = rows.filter(pl.col("y").is_infinite())
    if infinite.height and config.infinite == "refuse":
        remedy = "infinite=missing reads them as missing."
        raise InputError("y", expected="finite numbers or NaN", got=f"{infinite.height} infinite: {_where(infinite)}",
                         remedy=remedy)  # fmt: skip
    if infinite.height:
        rows = rows.with_columns(pl.when(pl.col("y").is_infinite()).then(np.nan).otherwise(pl.col("y")).alias("y"))
    notes = [f"{infinite.height} infinite values read as missing"] if infinite.height else []
    if not rows.select((_LATER_NAME | (_SAME_NAME & (pl.col("ds") >= pl.col("ds").shift()))).all()).item():
        backward = rows.select((_SAME_NAME & (pl.col("ds") < pl.col("ds").shift())).sum()).item()
        notes.append(f"rows sorted ({backward} steps backward)" if backward else "rows sorted")
        rows = rows.sort("unique_id", "ds", maintain_order=True)
    return _without_doubles(rows, config, notes), notes


def _stamps(ds: pl.Series, config: GridConfig) -> pl.Series:
    """Stamps as Datetime, Date or Int64, with the zone that was asked for."""
    if ds.dtype == pl.String:
        try:
            ds = ds.str.to_datetime()
        except pl.exceptions.PolarsError as error:
            bad = str(error).splitlines()[0]
            raise InputError("ds", expected="dates, times or whole numbers", got=f"text ({bad[:120]})") from error
    if ds.dtype.is_float() and ds.drop_nulls().is_finite().all() and (ds.drop_nulls() % 1 == 0).all():
        ds = ds.cast(pl.Int64)
    if ds.dtype.is_integer():
        return ds.cast(pl.Int64).alias("ds")
    if not ds.dtype.is_temporal() or ds.dtype in (pl.Time, pl.Duration):
        raise InputError("ds", expected="dates, times or whole numbers", got=str(ds.dtype))
    if config.time_zone is not None:
        if ds.dtype == pl.Date:
            ds = ds.cast(pl.Datetime("us"))
        if ds.dtype.time_zone:
            ds = ds.dt.convert_time_zone(config.time_zone)
        else:
            ds = _localised(ds, config.time_zone)
    return ds.alias("ds")


def _localised(ds: pl.Series, zone: str) -> pl.Series:
    """Wall-clock stamps in a zone: of a doubled hour the first reading is summer time, the second winter time."""
    frame = pl.DataFrame({"ds": ds}).with_columns(second=pl.col("ds").cum_count().over("ds") > 1)
    fold = pl.when("second").then(pl.lit("latest")).otherwise(pl.lit("earliest"))
    try:
        return frame.select(pl.col("ds").dt.replace_time_zone(zone, ambiguous=fold)).to_series()
    except pl.exceptions.PolarsError as error:
        got = str(error).splitlines()[0]
        raise InputError("ds", expected=f"wall-clock times that exist in {zone}", got=got[:160]) from error


def _values(y: pl.Series) -> pl.Series:
    if not y.dtype.is_numeric() and y.dtype not in (pl.Boolean, pl.Null):
        raise InputError("y", expected="numbers", got=str(y.dtype))
    return y.cast(pl.Float64).fill_null(np.nan).alias("y")


def _without_doubles(rows: pl.DataFrame, config: GridConfig, notes: list[str]) -> pl.DataFrame:
    keys = ["unique_id", "ds"]
    again = rows.select((_SAME_NAME & (pl.col("ds") == pl.col("ds").shift())).fill_null(False)).to_series()
    extra = int(again.sum())
    if not extra:
        return rows
    if config.duplicates == "refuse":
        raise InputError(
            "ds", expected="one row per series and stamp", got=f"{extra} more: {_where(rows.filter(again))}",
            remedy="duplicates=first, last or mean keeps one of each.",
        )  # fmt: skip
    notes.append(f"{extra} rows with a stamp seen before: {config.duplicates} kept")
    if config.duplicates == "mean":
        others = [name for name in rows.columns if name not in (*keys, "y")]
        mean = pl.col("y").filter(pl.col("y").is_not_nan()).mean().fill_null(np.nan)
        return rows.group_by(keys, maintain_order=True).agg(mean, *(pl.col(name).first() for name in others))
    return rows.unique(keys, keep=config.duplicates, maintain_order=True)


def gridded(rows: pl.DataFrame, offsets: NDArray, ids: list[str], config: GridConfig) -> Gridded:
    """Put sorted rows on the grid of their frequency; the stamps between two rows become missing values.

    Raises:
        InputError: A stamp lies off the grid, rows are missing and gaps are refused, or the grid would be absurd.
    """
    if config.irregular:
        return Gridded(rows, offsets, None, ())
    frequency = Frequency.parse(config.freq) if config.freq is not None else infer_frequency(rows["ds"], offsets, ids)
    _require_kind(frequency, rows["ds"])
    if frequency.regular(rows["ds"], offsets):
        return Gridded(rows, offsets, frequency, ())
    lengths = np.diff(offsets)
    first_N = rows["ds"][np.repeat(offsets[:-1], lengths)]
    position_N, on_grid_N = frequency.positions(rows["ds"], first_N)
    if not on_grid_N.all():
        off = rows.filter(pl.Series(~on_grid_N))
        raise InputError(
            "ds", expected=f"stamps {frequency} apart in every series", got=f"{off.height} off the grid: {_where(off)}",
            remedy="Say another freq, or irregular=true to let the distances enter the model.",
        )  # fmt: skip
    size_S = position_N[offsets[1:] - 1] + 1
    missing = int(size_S.sum()) - rows.height
    if not missing:
        return Gridded(rows, offsets, frequency, ())
    step_N = np.diff(position_N, prepend=-1)
    gap = rows[int(np.flatnonzero((step_N != 1) & (position_N > 0))[0])]
    if config.gaps == "refuse" or size_S.sum() > _MOST_FILLED * rows.height + 1000:
        raise InputError(
            "ds", expected=f"a row every {frequency}", got=f"{missing:,} missing, the first before {_where(gap)}",
            remedy="gaps=fill makes them missing values." if config.gaps == "refuse" else "Say another freq.",
        )  # fmt: skip
    bounds = np.concatenate([[0], np.cumsum(size_S)]).astype(np.int64)
    filled = _filled(rows, offsets, bounds, position_N, frequency)
    return Gridded(filled, bounds, frequency, (f"{missing:,} missing rows filled in as missing values",))


def _filled(
    rows: pl.DataFrame, offsets: NDArray, bounds: NDArray, position_N: NDArray, frequency: Frequency
) -> pl.DataFrame:
    """Rows at their places in a grid of M rows, the others null (``y`` NaN)."""
    size_S = np.diff(bounds)
    source_M = np.full(bounds[-1], -1, dtype=np.int64)
    source_M[np.repeat(bounds[:-1], np.diff(offsets)) + position_N] = np.arange(rows.height)
    index = pl.Series(source_M)
    grid = rows.select(pl.all().gather(pl.Series(np.maximum(source_M, 0))))
    missing = index < 0
    within_M = np.arange(bounds[-1]) - np.repeat(bounds[:-1], size_S)
    first_M = rows["ds"][np.repeat(offsets[:-1], size_S)]
    return grid.with_columns(
        rows["unique_id"][np.repeat(offsets[:-1], size_S)],
        frequency.stamps(first_M, within_M).alias("ds"),
        pl.when(missing).then(np.nan).otherwise(pl.col("y")).alias("y"),
        *(
            pl.when(missing).then(None).otherwise(pl.col(name)).alias(name)
            for name in rows.columns
            if name not in ("unique_id", "ds", "y")
        ),
    )


def _require_kind(frequency: Frequency, ds: pl.Series) -> None:
    if (frequency.unit == "step") != ds.dtype.is_integer():
        kind = "whole numbers" if ds.dtype.is_integer() else "dates or times"
        raise InputError("freq", expected=f"a frequency of {kind}, as the stamps are", got=str(frequency))
    if ds.dtype == pl.Date and frequency.nanoseconds is not None and frequency.unit not in ("d", "w"):
        raise InputError("freq", expected="days or longer for dates without a time", got=str(frequency))


def _where(rows: pl.DataFrame) -> str:
    return f"{rows['unique_id'][0]} at {rows['ds'][0]}"
