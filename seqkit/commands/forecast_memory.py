"""What a forecaster remembers of the series it follows.

Their last rows, sums over the rows before, and, where the state is carried, the state of the backbone. The size depends
on the number of series and the lookback, never on how many rows have been read; so does the time that a new row takes.

Legend: S series, D hidden width.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._pytree import tree_map

from seqkit.backbones.series_heads import LEVELS
from seqkit.commands.forecast_trained import TrainedForecast
from seqkit.data.series import Panel
from seqkit.data.series_chunks import ChunkReader
from seqkit.data.series_tail import appended, joined, tail
from seqkit.data.series_windows import ScaledPanel
from seqkit.errors import InputError
from seqkit.tasks.adaptive import Watch, watch_rows, widened
from seqkit.tokenizers.numeric import NOTHING, Sums

WATCHED = np.array(LEVELS)
"""Levels at which the width of intervals is learnt; others take theirs in between."""


class Carried(NamedTuple):
    """Where the backbone stands behind the last row of every series, or of all mixed ones together.

    Attributes:
        hidden_SD: Hidden state of the last row.
        state: State of the backbone, S rows.
    """

    hidden_SD: Tensor
    state: Any


@dataclass(frozen=True)
class Memory:
    """Series up to now.

    Attributes:
        panel: Their last rows, at most a lookback each.
        before: By series, the sums of the rows before the panel's, for a running scaler.
        rows: By series, rows read since the beginning, those of the panel among them.
        carried: Where the backbone stands; None for a model that reads the lookback alone.
        watch: Forecasts that intervals are compared by, where they adapt; at :data:`WATCHED`.
    """

    panel: Panel
    before: dict[str, Sums] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    carried: Carried | None = None
    watch: Watch | None = None


def remember(trained: TrainedForecast, panel: Panel, memory: Memory | None = None) -> Memory:
    """Read new rows.

    Args:
        trained: The model whose lookback is kept.
        panel: New rows, as ``trained.read`` gives them.
        memory: What is remembered so far; None for nothing.

    Returns:
        The memory behind the new rows; the one given stays as it is.

    Raises:
        InputError: A row is not later than the last one of its series, or mixed channels lack some of theirs.
    """
    known: dict[str, int] = {}
    if memory is not None:
        known = dict(zip(memory.panel.ids, memory.panel.lengths.tolist(), strict=True))
        _require_all_channels(trained, panel, memory.panel)
        panel = appended(memory.panel, panel, gaps=trained.config.data.gaps)
    memory = memory or Memory(panel)
    kept_S = np.array([known.get(name, 0) for name in panel.ids], dtype=np.int64)
    rows = memory.rows | {
        name: memory.rows.get(name, 0) + int(new) for name, new in zip(panel.ids, panel.lengths - kept_S, strict=True)
    }
    if trained.scaler.kind == "series":
        # A series that joins later is scaled by the first rows it came with, from then on.
        new = [place for place, name in enumerate(panel.ids) if name not in trained.scaler.by_series]
        if new:
            joined = panel.take(np.array(new))
            trained.scaler.fit(joined.y, joined.offsets, joined.ids)
    carried = memory.carried
    if trained.carries:
        carried = advance(trained, panel, kept_S, carried, memory.before)
    short = tail(panel, trained.config.data.lookback)
    before = dict(memory.before)
    for name, start, length, left in zip(panel.ids, panel.offsets[:-1], panel.lengths, short.lengths, strict=True):
        dropped = panel.y[start : start + length - left]
        if len(dropped):
            before[name] = tuple(float(part[-1]) for part in trained.scaler.sums(dropped, before.get(name, NOTHING)))
    behind = Memory(replace(short, notes=panel.notes), before, rows, carried)
    if not trained.config.adapt:
        return behind
    new = [y[kept:] for y, kept in zip(np.split(panel.y, panel.offsets[1:-1]), kept_S, strict=True)]
    return replace(behind, watch=watched(trained, behind, new, memory.watch))


def watched(trained: TrainedForecast, memory: Memory, new: list[NDArray], watch: Watch | None) -> Watch:
    """Compare new rows with the forecasts under way; where a horizon is over, the next forecast is from here.

    Rows that come in one update behind the horizon under way are not compared: the cost stays that of one forecast.
    """
    count, horizon = len(memory.panel), trained.task.net.shape.horizon
    width_SQ = np.zeros((count, len(WATCHED)))
    pending_SHQ = np.full((count, horizon, len(WATCHED)), np.nan)
    over_S = np.ones(count, dtype=bool)
    seen_S = np.zeros(count, dtype=np.int64)
    if watch is not None:
        old = len(watch.seen_S)
        watch = watch_rows(watch, new[:old], WATCHED, trained.config.adapt)
        width_SQ[:old], pending_SHQ[:old], seen_S[:old] = watch
        over_S[:old] = watch.seen_S >= horizon
    if over_S.any():
        fresh_SHQ = forecast_from(trained, replace(memory, watch=Watch(width_SQ, pending_SHQ, seen_S)), WATCHED)[1]
        pending_SHQ[over_S], seen_S[over_S] = fresh_SHQ[over_S], 0
    return Watch(width_SQ, pending_SHQ, seen_S)


def only(memory: Memory, place: int) -> Memory:
    """The memory of one of several separate series."""
    name = memory.panel.ids[place]
    carried = memory.carried
    if carried is not None:
        carried = Carried(carried.hidden_SD[place : place + 1], tree_map(lambda x: x[place : place + 1], carried.state))
    before = {name: memory.before[name]} if name in memory.before else {}
    watch = None if memory.watch is None else Watch(*(part[place : place + 1] for part in memory.watch))
    return Memory(memory.panel.take(np.array([place])), before, {name: memory.rows[name]}, carried, watch)


def merged(memories: list[Memory]) -> Memory:
    """One memory of several that share no series."""
    panel = joined([memory.panel for memory in memories])
    carried = None
    if memories[0].carried is not None:
        hidden = torch.cat([memory.carried.hidden_SD for memory in memories])
        states = [memory.carried.state for memory in memories]
        carried = Carried(hidden, tree_map(lambda *leaves: torch.cat(leaves), *states))
    before = {name: sums for memory in memories for name, sums in memory.before.items()}
    watch = None
    if memories[0].watch is not None:
        watch = Watch(*map(np.concatenate, zip(*(memory.watch for memory in memories), strict=True)))
    return Memory(panel, before, {name: n for memory in memories for name, n in memory.rows.items()}, carried, watch)


@torch.no_grad()
def advance(
    trained: TrainedForecast, panel: Panel, read_S: NDArray, carried: Carried | None, before: dict[str, Sums]
) -> Carried:
    """Move the backbone over the rows it has not read.

    Args:
        trained: The model.
        panel: Rows of the series: some that were read, then the new ones.
        read_S: (S,) rows of each series that were read.
        carried: Where the backbone stands, for the first series of the panel; None for no series.
        before: Sums of the rows before the panel's.

    Returns:
        Where it stands behind the last rows.
    """
    task, config = trained.task.eval(), trained.config
    scaled = ScaledPanel(panel, trained.scaler, trained.encoder.encode(panel), channels=config.net.mix, before=before)
    reader = ChunkReader(scaled, lookback=0, horizon=0, chunk=config.data.chunk)
    count = 1 if config.net.mix else len(panel)
    device = next(task.parameters()).device
    hidden_SD = torch.zeros(count, task.net.encoder.width, device=device)
    state = task.net.encoder.backbone.initial_state(count)
    if carried is not None:
        old = len(carried.hidden_SD)
        hidden_SD[:old] = carried.hidden_SD
        state = tree_map(lambda new, known: torch.cat([known, new[old:]]), state, carried.state)
    start_S = panel.offsets[:-1] + read_S
    while (left := np.flatnonzero(start_S[:count] < panel.offsets[1 : count + 1])).size:
        # Series with as many rows to go take their chunk together.
        sizes = np.minimum(panel.offsets[left + 1] - start_S[left], config.data.chunk)
        members = left[sizes == sizes[0]]
        stop = start_S[members] + sizes[0]
        none = np.zeros((len(members), 1), dtype=np.int64)
        fresh = np.zeros(len(members), dtype=bool)
        batch = reader.batch(members, start_S[members], stop, stop, fresh, none, none)
        batch = {name: value.to(device) for name, value in batch.items()}
        rows = torch.from_numpy(members).to(device)
        hidden, after = task.net.read_chunk(batch, tree_map(lambda leaf, at=rows: leaf[at], state), int(sizes[0]))
        hidden_SD[rows] = hidden[:, -1].float()
        state = tree_map(lambda leaf, new, at=rows: leaf.index_copy(0, at, new), state, after)
        start_S[members] = stop
    return Carried(hidden_SD, state)


def forecast_from(
    trained: TrainedForecast, memory: Memory, levels: NDArray, future: pl.DataFrame | None = None
) -> tuple[Panel, NDArray]:
    """What comes behind everything remembered: the panel with the rows to come, and quantiles (S, H, Q)."""
    hidden = None if memory.carried is None else memory.carried.hidden_SD
    wanted = torch.from_numpy(levels)
    longer, values = trained.forecast(memory.panel, wanted, future=future, before=memory.before, hidden=hidden)
    if memory.watch is not None:
        width_SQ = np.stack([np.interp(levels, WATCHED, width_Q) for width_Q in memory.watch.width_SQ])
        values = widened(values, levels, width_SQ, trained.config.floor)
    return longer, values


def _require_all_channels(trained: TrainedForecast, new: Panel, known: Panel) -> None:
    if trained.config.net.mix and set(new.ids) != set(known.ids):
        raise InputError("unique_id", expected=f"new rows of all {len(known)} mixed series", got=f"of {len(new)}")
