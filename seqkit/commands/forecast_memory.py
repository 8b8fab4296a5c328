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

from seqkit.commands.forecast_trained import TrainedForecast
from seqkit.data.series import Panel
from seqkit.data.series_chunks import ChunkReader
from seqkit.data.series_tail import appended, joined, tail
from seqkit.data.series_windows import ScaledPanel
from seqkit.errors import InputError
from seqkit.tokenizers.numeric import NOTHING, Sums


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
    """

    panel: Panel
    before: dict[str, Sums] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    carried: Carried | None = None


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
    return Memory(replace(short, notes=panel.notes), before, rows, carried)


def only(memory: Memory, place: int) -> Memory:
    """The memory of one of several separate series."""
    name = memory.panel.ids[place]
    carried = memory.carried
    if carried is not None:
        carried = Carried(carried.hidden_SD[place : place + 1], tree_map(lambda x: x[place : place + 1], carried.state))
    before = {name: memory.before[name]} if name in memory.before else {}
    return Memory(memory.panel.take(np.array([place])), before, {name: memory.rows[name]}, carried)


def merged(memories: list[Memory]) -> Memory:
    """One memory of several that share no series."""
    panel = joined([memory.panel for memory in memories])
    carried = None
    if memories[0].carried is not None:
        hidden = torch.cat([memory.carried.hidden_SD for memory in memories])
        states = [memory.carried.state for memory in memories]
        carried = Carried(hidden, tree_map(lambda *leaves: torch.cat(leaves), *states))
    before = {name: sums for memory in memories for name, sums in memory.before.items()}
    return Memory(panel, before, {name: n for memory in memories for name, n in memory.rows.items()}, carried)


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
    return trained.forecast(memory.panel, wanted, future=future, before=memory.before, hidden=hidden)


def _require_all_channels(trained: TrainedForecast, new: Panel, known: Panel) -> None:
    if trained.config.net.mix and set(new.ids) != set(known.ids):
        raise InputError("unique_id", expected=f"new rows of all {len(known)} mixed series", got=f"of {len(new)}")
