"""The ends of series: their last rows, new rows behind them, and the rows to come.

Legend: S series, H horizon.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import polars as pl
from numpy.typing import NDArray

from seqkit.data.frequency import Frequency
from seqkit.data.series import Panel, panel_of_frame, pick
from seqkit.data.series_grid import GridConfig
from seqkit.errors import InputError

KEYS = ["unique_id", "ds"]


def rows_of(panel: Panel) -> pl.DataFrame:
    """The panel as a long frame: ``unique_id``, ``ds``, ``y`` and its further columns."""
    names = pl.Series("unique_id", panel.ids, dtype=pl.String)[panel.series_of_row]
    return pl.DataFrame([names, panel.ds.alias("ds"), pl.Series("y", panel.y), *panel.exogenous.iter_columns()])


def tail(panel: Panel, rows: int) -> Panel:
    """The last rows of every series."""
    start_S = np.maximum(panel.offsets[1:] - rows, panel.offsets[:-1])
    kept = np.concatenate([np.arange(a, b) for a, b in zip(start_S, panel.offsets[1:], strict=True)])
    offsets = np.concatenate([[0], np.cumsum(panel.offsets[1:] - start_S)]).astype(np.int64)
    return replace(
        panel, offsets=offsets, ds=panel.ds[kept], y=panel.y[kept], exogenous=pick(panel.exogenous, kept), notes=()
    )


def joined(panels: Sequence[Panel]) -> Panel:
    """Panels of different series as one."""
    lengths = np.concatenate([panel.lengths for panel in panels])
    return replace(
        panels[0],
        ids=[name for panel in panels for name in panel.ids],
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        ds=pl.concat([panel.ds.alias("ds") for panel in panels]),
        y=np.concatenate([panel.y for panel in panels]),
        exogenous=pl.concat([panel.exogenous for panel in panels])
        if panels[0].exogenous.width
        else panels[0].exogenous,
    )


def appended(panel: Panel, new: Panel, *, gaps: str = "fill") -> Panel:
    """A panel with the rows of another behind its own, series by series; new series join at the end.

    Missing rows in between become missing values.

    Raises:
        InputError: A new row is not later than the last one of its series, lies off its grid, or leaves a gap and gaps
            are refused; the first one is named.
    """
    new = replace(new, ds=_as_known(new.ds, panel.ds))
    last = pl.DataFrame({"unique_id": panel.ids, "last": panel.last()})
    late = rows_of(new).join(last, on="unique_id").filter(pl.col("ds") <= pl.col("last"))
    if late.height:
        row = late.row(0, named=True)
        raise InputError(
            "ds", expected=f"rows of {row['unique_id']!r} after {row['last']}, the last one known",
            got=f"{late.height} at or before it, the first at {row['ds']}", remedy="Leave them out: the past is read.",
        )  # fmt: skip
    order = {name: place for place, name in enumerate([*panel.ids, *(n for n in new.ids if n not in set(panel.ids))])}
    rows = pl.concat([rows_of(panel), rows_of(new)], how="diagonal_relaxed")
    grid = GridConfig(irregular=True) if panel.frequency is None else GridConfig(freq=panel.frequency, gaps=gaps)
    whole = panel_of_frame(rows.sort(KEYS, maintain_order=True), panel.roles, grid)
    return whole.take(np.array(sorted(range(len(whole)), key=lambda s: order[whole.ids[s]])))


def _as_known(new: pl.Series, known: pl.Series) -> pl.Series:
    """New stamps in the type of those known."""
    zones = [getattr(ds.dtype, "time_zone", None) for ds in (new, known)]
    if (zones[0] is None) != (zones[1] is None):
        said = {True: "without a zone", False: f"in a zone, such as {zones[0] or zones[1]}"}
        raise InputError("ds", expected=f"stamps {said[zones[1] is None]}", got=f"stamps {said[zones[0] is None]}")
    return new.cast(known.dtype)


def extended(
    panel: Panel, horizon: int, columns: Sequence[str], given: pl.DataFrame | None, usual_step: float | None
) -> Panel:
    """A panel with the rows to come behind those known, their values missing.

    Args:
        panel: What is known.
        horizon: Rows to add to each series, H.
        columns: Known-future columns that the rows must have; static ones are repeated.
        given: Known-future rows: ``unique_id``, ``ds`` and the columns; may hold other rows too.
        usual_step: Distance between stamps of irregular series, in units of ``ds``; their stamps come from ``given``
            where there is one.

    Raises:
        InputError: A row to come is missing or lacks a value; its id and stamp are named.
    """
    ahead = stamps_ahead(panel, horizon, given, usual_step)
    if columns and given is None:
        raise InputError(
            "future_df", expected=f"known-future rows with {', '.join(columns)}", got="none",
            remedy=f"Give {horizon} rows per series, from {ahead['ds'][0]} on.",
        )  # fmt: skip
    if columns:
        found = ahead.join(given.select(*KEYS, *columns).unique(KEYS), on=KEYS, how="left", maintain_order="left")
        lacking = found.filter(pl.any_horizontal(pl.col(name).is_null() for name in columns))
        if lacking.height:
            row = lacking.row(0, named=True)
            missing = [name for name in columns if row[name] is None]
            raise InputError(
                "future_df", expected=f"{', '.join(missing)} for {row['unique_id']!r} at {row['ds']}",
                got="no such row or value", remedy=f"{lacking.height} of {found.height} are missing.",
            )  # fmt: skip
        ahead = found
    return _joined(panel, ahead, horizon)


def stamps_ahead(panel: Panel, horizon: int, given: pl.DataFrame | None, usual_step: float | None) -> pl.DataFrame:
    """``unique_id`` and ``ds`` of the rows to come, (S * H) in order."""
    if panel.frequency is not None:
        ds = panel.frequency.after(panel.last(), horizon)
    elif given is not None:
        return _given_stamps(panel, horizon, given)
    else:
        if panel.ds.dtype.is_integer():
            frequency = Frequency(max(1, round(usual_step)), "step")
        else:
            unit = getattr(panel.ds.dtype, "time_unit", None)
            frequency = Frequency(max(1, round(usual_step)), unit or "d")
        ds = frequency.after(panel.last(), horizon)
    names = pl.Series("unique_id", panel.ids, dtype=pl.String)[np.repeat(np.arange(len(panel)), horizon)]
    return pl.DataFrame([names, ds.alias("ds")])


def _given_stamps(panel: Panel, horizon: int, given: pl.DataFrame) -> pl.DataFrame:
    """The first stamps behind the last known one of each irregular series, out of those given."""
    last = pl.DataFrame({"unique_id": panel.ids, "last": panel.last(), "place": np.arange(len(panel))})
    later = given.join(last, on="unique_id").filter(pl.col("ds") > pl.col("last")).sort("place", "ds")
    later = later.group_by("unique_id", maintain_order=True).head(horizon)
    counts = dict(later.group_by("unique_id").len().iter_rows())
    for name in panel.ids:
        if counts.get(name, 0) < horizon:
            raise InputError(
                "future_df", expected=f"{horizon} stamps of {name!r} after {last.filter(unique_id=name)['last'][0]}",
                got=str(counts.get(name, 0)),
            )  # fmt: skip
    return later.select(KEYS)


def _joined(panel: Panel, ahead: pl.DataFrame, horizon: int) -> Panel:
    """Rows to come behind the known ones, in flat order; columns not known in advance keep their last value."""
    order: NDArray = np.concatenate(
        [
            np.concatenate([np.arange(a, b), len(panel.y) + np.arange(s * horizon, (s + 1) * horizon)])
            for s, (a, b) in enumerate(zip(panel.offsets[:-1], panel.offsets[1:], strict=True))
        ]
    ).astype(np.int64)
    repeated = pick(panel.exogenous, np.repeat(panel.offsets[1:] - 1, horizon))
    columns = [
        pl.concat(
            [
                panel.exogenous[name],
                (ahead if name in ahead.columns else repeated)[name].cast(panel.exogenous[name].dtype),
            ]
        )[order]
        for name in panel.exogenous.columns
    ]
    return replace(
        panel,
        offsets=panel.offsets + horizon * np.arange(len(panel) + 1),
        ds=pl.concat([panel.ds, ahead["ds"].cast(panel.ds.dtype)])[order],
        y=np.concatenate([panel.y, np.full(ahead.height, np.nan)])[order],
        exogenous=pl.DataFrame(columns),
    )
