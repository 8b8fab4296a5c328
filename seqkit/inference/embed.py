"""Hidden states averaged over bins of positions. Legend: B batch, n bins, D channels per strand."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from seqkit.backbones.heads import split_strands
from seqkit.errors import ConfigError
from seqkit.inference.stream import Streamed
from seqkit.inference.stream_state import StreamState


@dataclass(frozen=True)
class Bins:
    """Bins that follow each other.

    Attributes:
        start: First position of the first bin.
        means: (B, n, D) float32 mean hidden states, the mean of both strands for an equivariant backbone.
        state: State of the stream behind the last bin; None where a bin is open there, or the stream has no state.
    """

    start: int
    means: Tensor
    state: StreamState | None


def bin_means(results: Iterable[Streamed], width: int, d_model: int) -> Iterator[Bins]:
    """Average a stream over bins.

    Args:
        results: What a stream gives, from a border of bins on.
        width: Positions in a bin, >= 1; the last one may hold fewer.
        d_model: Channels per strand.

    Yields:
        The bins that each piece of the stream closes, if it closes any; at the end the one left open.

    Raises:
        ConfigError: ``width`` is less than one.
    """
    if width < 1:
        raise ConfigError("bin", expected="at least 1 position", got=str(width))
    total, held, start = torch.zeros(()), 0, None
    for result in results:
        hidden = torch.stack(split_strands(result.hidden, d_model)).float().mean(0)
        start = result.start if start is None else start
        closed = []
        if held:
            head = hidden[:, : width - held]
            total, held, hidden = total + head.sum(1), held + head.shape[1], hidden[:, width - held :]
            if held == width:
                closed, held = [total[:, None] / width], 0
        whole = hidden.shape[1] - hidden.shape[1] % width
        if whole:
            closed.append(hidden[:, :whole].unflatten(1, (-1, width)).mean(2))
        if whole < hidden.shape[1]:
            total, held = hidden[:, whole:].sum(1), hidden.shape[1] - whole
        if closed:
            means = torch.cat(closed, dim=1)
            yield Bins(start, means, None if held else result.state)
            start += means.shape[1] * width
    if held:
        yield Bins(start, total[:, None] / held, None)
