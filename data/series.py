"""Many series as one flat table: read, checked, sorted and put on a regular grid.

A :class:`Panel` holds the values of all series end to end in one array, series i in rows ``offsets[i]`` to
``offsets[i + 1]``. Windows are index arithmetic into it: nothing is as large as series length times window.

Legend: N rows of all series, S series.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from seqkit.data.frequency import Frequency
from seqkit.data.series_frames import Roles, as_polars, find_roles
from seqkit.data.series_grid import GridConfig, checked, gridded
from seqkit.errors import InputError

ONE = "series"
"""Name of the only series of a frame without an id column."""


@dataclass(frozen=True)
class Panel:
    """Series on a regular grid, or with the stamps they came with.

    Attributes:
        ids: Names of the series.
        offsets: (S + 1,) int64 bounds of the series in the flat arrays.
        ds: (N,) stamps: Datetime, Date or integers.
        y: (N,) float64 values, NaN where missing.
        frequency: Step of the grid; None for irregular series.
        exogenous: Further columns (N rows), as they came; null where a row was filled in.
        roles: Names the frame gave its columns.
        notes: What was done to the rows, in words, such as how many were filled in.
    """

    ids: list[str]
    offsets: NDArray
    ds: pl.Series
    y: NDArray
    frequency: Frequency | None
    exogenous: pl.DataFrame
    roles: Roles
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> NDArray:
        """(S,) rows of each series."""
        return np.diff(self.offsets)

    @cached_property
    def aligned(self) -> bool:
        """Whether all series have the same stamps, as mixing channels asks for."""
        if len(set(self.lengths.tolist())) > 1:
            return False
        stamps = self.ds.to_numpy().reshape(len(self), -1)
        return bool((stamps == stamps[0]).all())

    @cached_property
    def series_of_row(self) -> NDArray:
        """(N,) number of the series of each row."""
        return np.repeat(np.arange(len(self)), self.lengths)

    def first(self) -> pl.Series:
        """(S,) first stamps."""
        return self.ds[self.offsets[:-1]]

    def last(self) -> pl.Series:
        """(S,) last stamps."""
        return self.ds[self.offsets[1:] - 1]

    def take(self, series: NDArray) -> Panel:
        """A panel of some of the series."""
        rows = np.concatenate([np.arange(self.offsets[s], self.offsets[s + 1]) for s in series])
        offsets = np.concatenate([[0], np.cumsum(self.lengths[series])]).astype(np.int64)
        return replace(
            self,
            ids=[self.ids[s] for s in series],
            offsets=offsets,
            ds=self.ds[rows],
            y=self.y[rows],
            exogenous=pick(self.exogenous, rows),
        )


def pick(table: pl.DataFrame, rows: NDArray) -> pl.DataFrame:
    """Rows of a table by number; one without columns has none to pick from."""
    return table[rows] if table.width else table


def load_panel(
    source: Any, *, columns: Mapping[str, str] | None = None, exogenous: tuple[str, ...] = (),
    grid: GridConfig | None = None,
) -> Panel:  # fmt: skip
    """Read series from a frame or a file.

    Args:
        source: What :func:`seqkit.data.series_frames.as_polars` takes; in long format, a row per series and stamp.
        columns: Names of the id, time and target columns where they are not the usual ones.
        exogenous: Further columns to keep.
        grid: How stamps are read and what happens to missing, doubled and infinite rows.

    Raises:
        InputError: The rows cannot be read as series; the first offending one is named.
    """
    frame, _ = as_polars(source)
    names = frame.collect_schema().names()
    roles = find_roles(names, columns)
    for name in exogenous:
        if name not in names:
            raise InputError("covariates", expected=f"columns among {', '.join(names)}", got=name)
    kept = [pl.lit(ONE).alias("unique_id") if roles.id is None else pl.col(roles.id).alias("unique_id")]
    kept += [pl.col(roles.time).alias("ds"), pl.col(roles.target).alias("y"), *(pl.col(name) for name in exogenous)]
    return panel_of_frame(frame.select(kept).collect(), roles, grid or GridConfig())


def panel_of_frame(rows: pl.DataFrame, roles: Roles, grid: GridConfig) -> Panel:
    """A panel from rows with the columns ``unique_id``, ``ds``, ``y`` and covariates."""
    rows, notes = checked(rows, grid)
    ids = rows["unique_id"].unique(maintain_order=True)
    counts = rows["unique_id"].rle().struct.field("len").to_numpy()
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    placed = gridded(rows, offsets, ids.to_list(), grid)
    return Panel(
        ids.to_list(), placed.offsets, placed.rows["ds"], placed.rows["y"].to_numpy(), placed.frequency,
        placed.rows.drop("unique_id", "ds", "y"), roles, (*notes, *placed.notes),
    )  # fmt: skip


def panel_of_array(
    values: NDArray, *, ds: pl.Series | None = None, names: list[str] | None = None, freq: str | int = 1
) -> Panel:
    """A panel from a wide array (T,) or (T, C), one series per column.

    Args:
        values: Numbers, NaN where missing.
        ds: (T,) stamps; 0 to T - 1 by default.
        names: Names of the columns; ``series`` for one, else ``0``, ``1``, ...
        freq: Step between stamps.
    """
    wide = np.asarray(values, dtype=np.float64)
    if wide.ndim not in (1, 2) or not len(wide):
        raise InputError("values", expected="shape (T,) or (T, C) with T of 1 or more", got=f"shape {wide.shape}")
    wide = wide.reshape(len(wide), -1)
    names = names or ([ONE] if wide.shape[1] == 1 else [str(c) for c in range(wide.shape[1])])
    stamps = pl.Series("ds", np.arange(len(wide))) if ds is None else ds.alias("ds")
    long = pl.DataFrame({
        "unique_id": np.repeat(np.array(names), len(wide)),
        "ds": pl.concat([stamps] * wide.shape[1]),
        "y": wide.T.reshape(-1),
    })  # fmt: skip
    return panel_of_frame(long, Roles("unique_id", "ds", "y"), GridConfig(freq=freq))
