"""``seqkit predict --follow``: rows on stdin, forecasts as they come, and a state that outlives the process.

Rows are CSV lines behind a header. Every row moves its series on by one step, in time and memory that do not depend on
how many rows came before, and the series' next forecast is written and flushed. A bad row is reported and left out.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import polars as pl

from seqkit.cli import Stopped
from seqkit.commands.forecast_frames import forecast_rows, interval_levels
from seqkit.commands.forecast_memory import Memory, forecast_from, merged, only, remember
from seqkit.commands.forecast_memory_file import load_memory, save_memory
from seqkit.commands.forecast_report import OURS
from seqkit.commands.forecast_trained import TrainedForecast
from seqkit.data.series_frames import find_roles
from seqkit.errors import ConfigError, InputError, SeqkitError

if TYPE_CHECKING:
    from seqkit.commands.forecast_predict import PredictConfig

SAVED_EVERY = 1000
"""Rows between two copies of the state on disk."""


def follow(trained: TrainedForecast, config: PredictConfig, source: TextIO, out: TextIO) -> int:
    """Read rows until they end or the process is told to stop; the state is saved either way.

    Args:
        trained: The model.
        config: Horizon, levels, known-future rows, the state's file, and a table to begin with.
        source: CSV with a header.
        out: Gets CSV with a header; each row's forecasts are flushed.

    Returns:
        Exit code: 0 at the end of the rows, 130 or 143 when stopped.
    """
    if trained.config.net.mix:
        raise ConfigError("--follow", expected="a model of separate series", got="mixed channels, which move together")
    state = None if config.state is None else Path(config.state)
    memories = beginning(trained, config, state)
    future = None if config.future is None else trained.read_future(config.future, columns=config.columns)
    horizon, level = trained.horizon(config.horizon), config.level or trained.config.level
    levels, header, rows, skipped = interval_levels(level), True, 0, 0
    try:
        for number, row in numbered_rows(source):
            try:
                panel = trained.read(frame_of(trained, row, config.columns), columns=config.columns)
                memory = remember(trained, panel, memories.get(panel.ids[0]))
                longer, quantiles = forecast_from(trained, memory, levels, future)
            except (SeqkitError, pl.exceptions.PolarsError) as error:
                skipped += 1
                reason = " ".join(str(error).split())
                print(f"seqkit predict: line {number} left out: {reason}", file=sys.stderr, flush=True)
                continue
            memories[panel.ids[0]], rows = memory, rows + 1  # before its forecast is seen: a stop may follow at once
            frame = forecast_rows(longer, quantiles, levels, level, name=OURS, horizon=horizon)
            behind = frame.columns.index(memory.panel.roles.time) + 1
            frame.insert_column(behind, pl.Series("cutoff", [memory.panel.ds[-1]] * frame.height))
            out.write(frame.write_csv(include_header=header))
            out.flush()
            header = False
            if rows % SAVED_EVERY == 0:
                keep(state, memories, trained)
    except Stopped as stop:
        return stop.exit_code
    finally:
        keep(state, memories, trained)
        saved = f"; state in {state}" if state is not None and memories else ""
        print(f"seqkit predict: {rows} rows read, {skipped} left out{saved}", file=sys.stderr, flush=True)
    return 0


def beginning(trained: TrainedForecast, config: PredictConfig, state: Path | None) -> dict[str, Memory]:
    """Memories by series: of the state's file where there is one, else of the table, else none."""
    if state is not None and state.exists():
        memory, _ = load_memory(state, trained)
        if config.table is not None:
            raise ConfigError("--table", expected="no table beside a state that exists", got=config.table,
                              remedy=f"Drop it, or remove {state}.")  # fmt: skip
    elif config.table is not None:
        memory = remember(trained, trained.read(config.table, columns=config.columns))
    else:
        return {}
    return {name: only(memory, place) for place, name in enumerate(memory.panel.ids)}


def keep(state: Path | None, memories: Mapping[str, Memory], trained: TrainedForecast) -> None:
    """Write the state, whole or not at all, where one was asked for and something was read."""
    if state is not None and memories:
        save_memory(state, merged(list(memories.values())), trained)


def numbered_rows(source: TextIO) -> Iterator[tuple[int, dict[str, str | None]]]:
    """Rows under the names of the header, with their line numbers; a line is taken as soon as it is there."""
    names: list[str] | None = None
    for number, fields in enumerate(csv.reader(iter(source.readline, "")), 1):
        if not fields:
            continue
        if names is None:
            names = fields
            continue
        # Too few fields leave None, too many a key None: both are found with the row.
        row: dict[Any, Any] = dict(zip(names, [*fields, *[None] * (len(names) - len(fields))], strict=False))
        if len(fields) > len(names):
            row[None] = fields[len(names) :]
        yield number, row


def frame_of(trained: TrainedForecast, row: Mapping[Any, Any], columns: Mapping[str, str] | None) -> pl.DataFrame:
    """One row as a frame with the types that the model reads.

    Raises:
        InputError: A field is missing, too much, or no number.
    """
    if None in row or None in row.values():
        raise InputError("row", expected="as many fields as the header has", got="fewer" if None not in row else "more")
    names = [str(name) for name in row]
    roles = find_roles(names, columns or trained.config.data.columns)
    values: dict[str, Any] = {}
    for name in filter(None, roles):
        values[name] = row[name]
    values[roles.target] = _number(row, roles.target)
    if trained.integer_time:
        stamp = _number(row, roles.time)
        if stamp is None or stamp != int(stamp):
            raise InputError(roles.time, expected="a whole number", got=repr(row[roles.time]))
        values[roles.time] = int(stamp)
    for column in (*trained.encoder.future, *trained.encoder.past, *trained.encoder.static):
        if column.name not in row:
            raise InputError(column.name, expected="a column of the header", got=", ".join(names))
        values[column.name] = row[column.name] if column.categories else _number(row, column.name)
    types = {roles.target: pl.Float64}
    return pl.DataFrame({name: [value] for name, value in values.items()}, schema_overrides=types)


def _number(row: Mapping[str, str], name: str) -> float | None:
    """A field as a number, None where it is empty or says so."""
    text = row[name].strip()
    if text.lower() in ("", "nan", "na", "null"):
        return None
    try:
        return float(text)
    except ValueError:
        raise InputError(name, expected="a number, or nothing", got=repr(text)) from None
