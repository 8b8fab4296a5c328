"""What a forecaster remembers of the series it follows: their last rows, and sums over the rows before.

The size depends on the number of series and the lookback, never on how many rows have been read; so does the time that
a new row takes.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from seqkit.commands.forecast_trained import TrainedForecast
from seqkit.data.series import Panel
from seqkit.data.series_tail import appended, tail
from seqkit.errors import InputError
from seqkit.tokenizers.numeric import NOTHING, Sums


@dataclass(frozen=True)
class Memory:
    """Series up to now.

    Attributes:
        panel: Their last rows, at most a lookback each.
        before: By series, the sums of the rows before the panel's, for a running scaler.
        rows: By series, rows read since the beginning, those of the panel among them.
    """

    panel: Panel
    before: dict[str, Sums] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)


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
    rows = dict(memory.rows) if memory else {}
    before = dict(memory.before) if memory else {}
    if memory is not None:
        if trained.config.net.mix and set(panel.ids) != set(memory.panel.ids):
            raise InputError(
                "unique_id", expected=f"new rows of all {len(memory.panel)} mixed series", got=f"of {len(panel)}"
            )
        kept = dict(zip(memory.panel.ids, memory.panel.lengths.tolist(), strict=True))
        panel = appended(memory.panel, panel, gaps=trained.config.data.gaps)
    else:
        kept = {}
    for name, length in zip(panel.ids, panel.lengths.tolist(), strict=True):
        rows[name] = rows.get(name, 0) + length - kept.get(name, 0)
    short = tail(panel, trained.config.data.lookback)
    for name, start, length, left in zip(panel.ids, panel.offsets[:-1], panel.lengths, short.lengths, strict=True):
        dropped = panel.y[start : start + length - left]
        if len(dropped):
            before[name] = tuple(float(part[-1]) for part in trained.scaler.sums(dropped, before.get(name, NOTHING)))
    if trained.scaler.kind == "series":
        # A series that joins later is scaled by the first rows it came with, from then on.
        new = [place for place, name in enumerate(panel.ids) if name not in trained.scaler.by_series]
        if new:
            joined = panel.take(np.array(new))
            trained.scaler.fit(joined.y, joined.offsets, joined.ids)
    return Memory(replace(short, notes=panel.notes), before, rows)
