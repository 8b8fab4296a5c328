"""Covariates as numbers: columns known in advance, columns known up to now, constants of a series, and the calendar.

Legend: N rows of all series, S series, F known-future, P past and K static covariates.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from seqkit.data.frequency import Frequency
from seqkit.data.series import Panel, pick
from seqkit.errors import ConfigError, InputError

_MOST_CATEGORIES = 256
_DAY_HARMONICS, _YEAR_HARMONICS = 3, 2
_TWO_YEARS = 730


class Encoded(NamedTuple):
    """Covariates of a panel, each None where there are none; missing values are 0, the mean.

    Attributes:
        future_NF: float32, known in advance, the calendar among them.
        past_NP: float32, known up to the cutoff.
        static_SK: float32, one row a series.
        step_N: float32, distance to the row before in units of the usual one; irregular series only.
    """

    future_NF: NDArray | None
    past_NP: NDArray | None
    static_SK: NDArray | None
    step_N: NDArray | None


@dataclass(frozen=True)
class Column:
    """How one column becomes numbers: standardised, or one number per category.

    Attributes:
        name: Column.
        mean: Mean of the training rows.
        scale: Their standard deviation.
        categories: Values met in training; empty for a numeric column. A value that was not met is the unseen one:
            all zeros, which adds nothing.
    """

    name: str
    mean: float = 0.0
    scale: float = 1.0
    categories: tuple[str, ...] = ()

    @property
    def width(self) -> int:
        """Numbers it becomes."""
        return len(self.categories) or 1

    @classmethod
    def fit(cls, values: pl.Series) -> Column:
        """Take mean and deviation, or the categories, from training rows."""
        if values.dtype.is_numeric() or values.dtype == pl.Boolean:
            known = values.cast(pl.Float64).drop_nulls().drop_nans()
            deviation = float(known.std(ddof=0) or 0.0) if len(known) else 0.0
            return cls(values.name, float(known.mean() or 0.0) if len(known) else 0.0, deviation or 1.0)
        met = tuple(sorted(values.cast(pl.String).drop_nulls().unique().to_list()))
        if len(met) > _MOST_CATEGORIES:
            raise ConfigError(
                "covariates", expected=f"at most {_MOST_CATEGORIES} categories", got=f"{len(met)} in {values.name}"
            )
        return cls(values.name, categories=met)

    def encode(self, values: pl.Series) -> NDArray:
        """(N,) values to (N, width) float32."""
        if not self.categories:
            if not values.dtype.is_numeric() and values.dtype not in (pl.Boolean, pl.Null):
                raise InputError(self.name, expected="numbers, as in training", got=str(values.dtype))
            numbers = (values.cast(pl.Float64).fill_null(np.nan).to_numpy() - self.mean) / self.scale
            return np.nan_to_num(numbers, posinf=0.0, neginf=0.0).astype(np.float32)[:, None]
        text = values.cast(pl.String)
        return np.stack([(text == name).fill_null(False).to_numpy() for name in self.categories], 1).astype(np.float32)


@dataclass(frozen=True)
class CovariateEncoder:
    """Which covariates a model reads and how, fitted on the training rows.

    Attributes:
        future: Columns known in advance.
        past: Columns known up to now.
        static: Columns that are constant in a series.
        calendar: Names of the calendar's features, see :func:`calendar_names`.
        usual_step: Median distance of irregular stamps, in units of ``ds``; None for regular series.
    """

    future: tuple[Column, ...] = ()
    past: tuple[Column, ...] = ()
    static: tuple[Column, ...] = ()
    calendar: tuple[str, ...] = ()
    usual_step: float | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of all columns the encoder reads."""
        return tuple(column.name for column in (*self.future, *self.past, *self.static))

    @property
    def widths(self) -> dict[str, int]:
        """Numbers per row of each kind."""
        kinds = {"future": self.future, "past": self.past, "static": self.static}
        widths = {kind: sum(column.width for column in columns) for kind, columns in kinds.items()}
        widths["future"] += len(self.calendar)
        return widths

    @classmethod
    def fit(
        cls, panel: Panel, rows: NDArray, *, future: tuple[str, ...] = (), past: tuple[str, ...] = (),
        static: tuple[str, ...] = (), calendar: bool = True,
    ) -> CovariateEncoder:  # fmt: skip
        """Take statistics from the training ``rows`` of a panel."""
        chosen = pick(panel.exogenous, rows)
        for name in static:
            _require_constant(panel, name)
        return cls(
            *(tuple(Column.fit(chosen[name]) for name in names) for names in (future, past, static)),
            calendar=calendar_names(panel.ds, panel.frequency) if calendar else (),
            usual_step=_usual_step(panel) if panel.frequency is None else None,
        )

    def encode(self, panel: Panel) -> Encoded:
        """Numbers for every row of a panel that has the columns."""
        table = panel.exogenous
        future = [column.encode(table[column.name]) for column in self.future]
        if self.calendar:
            future.append(calendar_features(panel.ds, self.calendar))
        past = [column.encode(table[column.name]) for column in self.past]
        static = [column.encode(table[column.name].gather(panel.offsets[:-1])) for column in self.static]
        step = _steps(panel, self.usual_step) if self.usual_step is not None else None
        return Encoded(*(np.concatenate(part, axis=1) if part else None for part in (future, past, static)), step)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> CovariateEncoder:
        """Undo :meth:`to_dict`."""
        kinds = {
            kind: tuple(Column(**{**c, "categories": tuple(c["categories"])}) for c in values[kind])
            for kind in ("future", "past", "static")
        }
        return cls(**kinds, calendar=tuple(values["calendar"]), usual_step=values["usual_step"])


def calendar_names(ds: pl.Series, frequency: Frequency | None) -> tuple[str, ...]:
    """Features of the calendar that can differ between neighbouring stamps; none for whole numbers.

    Time of day (harmonics) below days, days of the week below weeks, and time of year (harmonics) where the stamps
    cover two years: from less, a model would learn the trend as a season.
    """
    dtype = ds.dtype
    if dtype.is_integer():
        return ()
    step = None if frequency is None else frequency.nanoseconds
    day = 86400 * 10**9
    names: list[str] = []
    if dtype != pl.Date and (frequency is None or (step is not None and step < day)):
        names += [f"{wave} day {k}" for k in range(1, _DAY_HARMONICS + 1) for wave in ("sin", "cos")]
    if frequency is None or frequency.unit == "bd" or (step is not None and step <= day):
        names += [f"weekday {k}" for k in range(1, 8)]
    if (ds.max() - ds.min()).days >= _TWO_YEARS:
        names += [f"{wave} year {k}" for k in range(1, _YEAR_HARMONICS + 1) for wave in ("sin", "cos")]
    return tuple(names)


def calendar_features(ds: pl.Series, names: tuple[str, ...]) -> NDArray:
    """(N, len(names)) float32 features of stamps, by the wall clock of their zone."""
    frame = pl.DataFrame({"ds": ds})
    date = pl.col("ds").cast(pl.Date)
    midnight = pl.lit(0.0)
    if ds.dtype != pl.Date:
        clock = pl.col("ds").dt
        midnight = (
            clock.hour().cast(pl.Float64) * 3600 + clock.minute().cast(pl.Float64) * 60 + clock.second()
        ) / 86400
    if ds.dtype != pl.Date and ds.dtype.time_zone:
        date = pl.col("ds").dt.replace_time_zone(None).cast(pl.Date)
    phases = {"day": midnight, "year": (date.dt.ordinal_day() - 1 + midnight) / 365.25}
    columns = []
    for number, name in enumerate(names):
        if name.startswith("weekday"):
            feature = date.dt.weekday() == int(name.split()[1])
        else:
            wave, cycle, harmonic = name.split()
            angle = phases[cycle] * (2 * math.pi * int(harmonic))
            feature = angle.sin() if wave == "sin" else angle.cos()
        columns.append(feature.cast(pl.Float32).alias(str(number)))
    return frame.select(columns).to_numpy()


def _usual_step(panel: Panel) -> float:
    apart = np.diff(panel.ds.to_physical().to_numpy())
    inside = np.diff(panel.series_of_row) == 0
    return float(np.median(apart[inside])) if inside.any() else 1.0


def _steps(panel: Panel, usual: float) -> NDArray:
    apart = np.diff(panel.ds.to_physical().to_numpy().astype(np.float64), prepend=0.0) / usual
    apart[panel.offsets[:-1]] = 1.0
    return apart.astype(np.float32)


def _require_constant(panel: Panel, name: str) -> None:
    values = pl.DataFrame({"series": panel.series_of_row, name: panel.exogenous[name]}).drop_nulls()
    varying = values.group_by("series").agg(pl.col(name).n_unique()).filter(pl.col(name) > 1)
    if varying.height:
        bad = panel.ids[varying["series"].min()]
        raise InputError(name, expected="one value per series, for a static covariate", got=f"several in {bad!r}")
