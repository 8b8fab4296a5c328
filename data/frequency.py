"""How far apart the stamps of a series lie: fixed durations, months, business days or whole numbers.

A frequency turns stamps into positions on the grid that starts at a series' first stamp, and positions into stamps,
for whole columns at a time, whatever the number of series.

Legend: N rows.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date

import numpy as np
import polars as pl
from numpy.typing import NDArray

from seqkit.errors import ConfigError, InputError

_NANOSECONDS = {
    "ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9, "d": 86400 * 10**9,
    "w": 7 * 86400 * 10**9,
}  # fmt: skip
_POLARS = {"mo": ("mo", 1), "q": ("mo", 3), "y": ("mo", 12), "min": ("m", 1), **{u: (u, 1) for u in _NANOSECONDS}}
_PANDAS = {
    "T": ("m", 1), "H": ("h", 1), "D": ("d", 1), "W": ("w", 1), "S": ("s", 1), "L": ("ms", 1), "U": ("us", 1),
    "N": ("ns", 1), "B": ("bd", 1), "C": ("bd", 1), "MS": ("mo", 1), "QS": ("mo", 3), "YS": ("mo", 12),
    "AS": ("mo", 12),
}  # fmt: skip
_MONTH_ENDS = {"M": 1, "ME": 1, "Q": 3, "QE": 3, "Y": 12, "YE": 12, "A": 12}
_SPELLING = re.compile(r"(\d*)([A-Za-z]+)(?:-[A-Z]{3})?")
_DAY, _WEEK = _NANOSECONDS["d"], _NANOSECONDS["w"]
_ENOUGH = 10_000
"""Rows of a series that its frequency is inferred from; the grid is checked on all of them."""
_MOST_OFTEN = 0.5
"""Least share of neighbouring stamps that must lie one step apart for a frequency to be inferred."""


@dataclass(frozen=True)
class Frequency:
    """A step of ``count`` units.

    Attributes:
        count: Units in a step, at least 1.
        unit: ns, us, ms, s, m, h, d, w, mo, bd (business days, Monday to Friday) or step (whole numbers).
        month_end: Whether stamps are the last days of months.
    """

    count: int
    unit: str
    month_end: bool = False

    def __str__(self) -> str:
        if self.unit == "step":
            return str(self.count)
        return f"{self.count}{'ME' if self.month_end else self.unit}"

    @classmethod
    def parse(cls, freq: str | int | Frequency) -> Frequency:
        """Read a polars duration ("30m", "1mo"), a pandas alias ("30min", "MS", "B") or a whole number.

        Raises:
            ConfigError: It is none of these.
        """
        if isinstance(freq, cls):
            return freq
        if isinstance(freq, int | np.integer) or str(freq).isdigit():
            if int(freq) < 1:
                raise ConfigError("freq", expected="1 or more", got=str(freq))
            return cls(int(freq), "step")
        match = _SPELLING.fullmatch(str(freq).strip())
        if match:
            count, name = int(match[1] or 1), match[2]
            if count and name in _MONTH_ENDS:
                return cls(count * _MONTH_ENDS[name], "mo", month_end=True)
            unit = _POLARS.get(name) or _PANDAS.get(name) or ({"bd": ("bd", 1)}).get(name)
            if count and unit:
                return cls(count * unit[1], unit[0])
        raise ConfigError(
            "freq", expected="a polars duration such as 30m, 1h, 1mo, a pandas alias such as 30min or MS, or an int",
            got=repr(freq),
        )  # fmt: skip

    @property
    def nanoseconds(self) -> int | None:
        """Length of a step, None where the calendar decides it."""
        return self.count * _NANOSECONDS[self.unit] if self.unit in _NANOSECONDS else None

    @property
    def seasons(self) -> tuple[int, ...]:
        """Steps in the natural cycles, shortest first: a day and a week for hours, a year for months, 1 if unknown."""
        if self.unit == "bd":
            return (5,) if self.count == 1 else (1,)
        if self.unit == "mo":
            return (12 // self.count,) if self.count < 12 and 12 % self.count == 0 else (1,)
        step = self.nanoseconds
        if step is None:
            return (1,)
        if step == _WEEK:
            return (52,)
        cycles = [cycle // step for cycle in (60 * 60 * 10**9, _DAY, _WEEK) if cycle % step == 0 and cycle > step]
        return tuple(cycles[-2:]) or (1,)

    def positions(self, ds: pl.Series, first: pl.Series) -> tuple[NDArray, NDArray]:
        """Place stamps on grids.

        Args:
            ds: (N,) stamps.
            first: (N,) first stamp of the series that each belongs to.

        Returns:
            (N,) int64 whole steps since ``first``, and (N,) bool whether the stamp lies on the grid.
        """
        if self.unit in _NANOSECONDS:
            apart = _local(ds, self.unit) - _local(first, self.unit)
            return apart // self.nanoseconds, apart % self.nanoseconds == 0
        if self.unit == "step":
            apart = ds.to_numpy().astype(np.int64) - first.to_numpy().astype(np.int64)
            return apart // self.count, apart % self.count == 0
        steps = _ordinal(ds, self.unit) - _ordinal(first, self.unit)
        position = steps // self.count
        return position, (steps % self.count == 0) & (self.stamps(first, position).to_numpy() == ds.to_numpy())

    def regular(self, ds: pl.Series, offsets: NDArray) -> bool:
        """Whether neighbouring stamps of every series lie one step apart; False where only the calendar could tell.

        Args:
            ds: (N,) stamps.
            offsets: (S + 1,) bounds of the series.
        """
        if self.unit not in _NANOSECONDS and self.unit != "step":
            return False
        place = ds.to_numpy() if self.unit == "step" else _local(ds, self.unit)
        apart = np.diff(place) == (self.count if self.unit == "step" else self.nanoseconds)
        apart[offsets[1:-1] - 1] = True
        return bool(apart.all())

    def stamps(self, first: pl.Series, position_N: NDArray) -> pl.Series:
        """Stamps at positions of the grids that start at ``first`` (N,); the type of ``first`` is kept."""
        steps = pl.Series("steps", position_N, dtype=pl.Int64) * self.count
        frame = pl.DataFrame({"first": first, "steps": steps})
        column, dtype = pl.col("first"), first.dtype
        if self.unit == "step":
            stamp = column + pl.col("steps").cast(dtype)
        elif self.unit == "bd":
            stamp = column.dt.add_business_days(pl.col("steps").cast(pl.Int32))
        elif self.month_end:
            stamp = column.dt.month_start().dt.offset_by(pl.col("steps").cast(pl.String) + "mo").dt.month_end()
        else:
            stamp = column.dt.offset_by(pl.col("steps").cast(pl.String) + self.unit)
        return frame.select(stamp.alias("ds"))["ds"]

    def after(self, last: pl.Series, horizon: int) -> pl.Series:
        """The ``horizon`` stamps behind each of ``last`` (S,), (S * horizon,) series after series."""
        count = len(last)
        repeated = last[np.repeat(np.arange(count), horizon)]
        return self.stamps(repeated, np.tile(np.arange(1, horizon + 1), count))


def infer_frequency(ds: pl.Series, offsets: NDArray, ids: list[str]) -> Frequency:
    """The step that most neighbouring stamps lie apart, in every series.

    Args:
        ds: (N,) stamps, ascending inside a series, without duplicates.
        offsets: (S + 1,) bounds of the series.
        ids: Names of the series, for messages.

    Raises:
        InputError: Too few stamps, none of the steps is common, or two series have different ones.
    """
    lengths = np.diff(offsets)
    if lengths.max(initial=0) < 3:
        raise InputError(
            "freq", expected="a series of at least 3 rows to infer it from", got="shorter ones only",
            remedy="Say freq, such as freq='h' or freq=1.",
        )  # fmt: skip
    found: dict[Frequency, str] = {}
    for series in np.flatnonzero(lengths >= 3):
        start = int(offsets[series])
        frequency = _infer_one(ds[start : min(int(offsets[series + 1]), start + _ENOUGH)], ids[series])
        found.setdefault(frequency, ids[series])
    if len(found) > 1:
        (one, first), (other, second) = list(found.items())[:2]
        raise InputError(
            "freq", expected="one frequency for all series", got=f"{one} in {first!r} and {other} in {second!r}",
            remedy="Resample them to one, or fit them apart.",
        )  # fmt: skip
    return next(iter(found))


def _infer_one(ds: pl.Series, name: str) -> Frequency:
    if ds.dtype.is_integer():
        return Frequency(_common(np.diff(ds.to_numpy()), name, ds), "step")
    calendar = _calendar(ds)
    if calendar is not None:
        return calendar
    step = _common(np.diff(_local(ds, "h")), name, ds)
    for unit in ("w", "d", "h", "m", "s", "ms", "us", "ns"):
        if step % _NANOSECONDS[unit] == 0:
            return Frequency(int(step // _NANOSECONDS[unit]), unit)
    raise AssertionError("a nanosecond divides everything")


def _common(steps: NDArray, name: str, ds: pl.Series) -> int:
    """The step that occurs most often, where it is common enough."""
    values, counts = np.unique(steps, return_counts=True)
    best = int(counts.argmax())
    if counts[best] < _MOST_OFTEN * len(steps):
        shown = ", ".join(str(step) for step in ds.diff().drop_nulls().unique().head(3).to_list())
        raise InputError(
            "freq", expected=f"stamps of {name!r} at one common distance", got=f"distances such as {shown}",
            remedy="Say freq, or irregular=true to let the distances enter the model.",
        )  # fmt: skip
    return int(values[best])


def _calendar(ds: pl.Series) -> Frequency | None:
    """Months, quarters, years or business days, where the distances in days say so."""
    local = ds.dt.replace_time_zone(None) if getattr(ds.dtype, "time_zone", None) else ds
    days = np.diff(local.cast(pl.Date).to_physical().to_numpy())
    if len({str(t) for t in local.cast(pl.Datetime("us")).dt.time().unique().to_list()}) > 1:
        return None
    frame = pl.DataFrame({"ds": local.cast(pl.Date)})
    ends = frame.select((pl.col("ds").dt.month_end() == pl.col("ds")).all()).item()
    months = np.diff(_ordinal(ds, "mo"))
    same_day = ends or local.dt.day().n_unique() == 1
    if same_day and months.min() >= 1:
        values, counts = np.unique(months, return_counts=True)
        if counts.max() >= _MOST_OFTEN * len(months):
            return Frequency(int(values[counts.argmax()]), "mo", month_end=bool(ends))
    weekdays = local.dt.weekday()
    if (days == 1).mean() > 0.6 and (days == 3).mean() > 0.05 and weekdays.max() <= 5 and set(days[days > 1]) != {2}:
        return Frequency(1, "bd")
    return None


def _local(stamps: pl.Series, unit: str) -> NDArray:
    """Nanoseconds of stamps; days and weeks count by the wall clock of the zone, shorter units by elapsed time."""
    if stamps.dtype == pl.Date:
        return stamps.to_physical().to_numpy().astype(np.int64) * _DAY
    if unit in ("d", "w") and stamps.dtype.time_zone:
        stamps = stamps.dt.replace_time_zone(None)
    return stamps.dt.timestamp("ns").to_numpy().astype(np.int64)


def _ordinal(stamps: pl.Series, unit: str) -> NDArray:
    """Number of the month, or of the business day since 1970."""
    frame = pl.DataFrame({"ds": stamps})
    if unit == "mo":
        number = pl.col("ds").dt.year().cast(pl.Int64) * 12 + pl.col("ds").dt.month()
    else:
        number = pl.business_day_count(pl.lit(date(1970, 1, 1)), pl.col("ds").cast(pl.Date))
    return frame.select(number.cast(pl.Int64)).to_series().to_numpy()
