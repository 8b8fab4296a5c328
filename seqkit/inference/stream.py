"""Hidden states of a sequence that arrives in chunks and never lies in memory as a whole.

A causal backbone carries its state from chunk to chunk: :func:`stream`, from any point on and without an end.
A backbone that sees both sides needs the end before it can answer for the beginning: :func:`stream_both_sides` keeps
the sequence on disk and sweeps over it. What both give equals one pass over everything; :func:`stream_windows` only
approximates it, for a source without an end.

Legend: B batch, L length, l length of a chunk, C float channels, D channels.
"""

from __future__ import annotations

import contextlib
import itertools
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from seqkit.backbones import AttentionState, Backbone
from seqkit.errors import ConfigError, ShapeError
from seqkit.inference.stream_state import StreamState
from seqkit.inference.sweeps import Tape, sweep

PIECE = 65_536
"""Most positions that a model is given at a time; longer chunks are cut."""

SPILL_PREFIX = "seqkit-stream-"

Chunk = Tensor | np.ndarray | tuple
Batch = tuple[Tensor | None, Tensor | None]  # ids (B, l) and channels (B, l, C)


@dataclass(frozen=True)
class Streamed:
    """What a model says about one piece of the sequence.

    Attributes:
        start: Position of the piece's first element in the sequence.
        hidden: (B, l, D) hidden states on the model's device.
        state: State behind the piece; None where the model reads from both sides.
    """

    start: int
    hidden: Tensor
    state: StreamState | None = None


def stream(
    model: Backbone, chunks: Iterable[Chunk], *, state: StreamState | None = None, piece: int = PIECE
) -> Iterator[Streamed]:
    """Run a causal backbone over a sequence of any length, in memory that does not grow.

    Nothing waits for the next chunk, so the source may be a live one. With attention in the layout the state holds keys
    and values of everything read, and grows; a warning says so.

    Args:
        model: Causal backbone; it runs in evaluation mode and without gradients.
        chunks: Integer ids (B, l), or (l,) for one row; float channels (B, l, C); or a pair of both. Tensors or arrays,
            l >= 0, of any and of different lengths.
        state: Where an earlier stream stopped; None for the beginning.
        piece: Most positions in one call of the model.

    Yields:
        One result for each chunk, or for each piece of one that is longer than ``piece``. Given the state and the same
        borders, a continued stream has the bits of an unbroken one.

    Raises:
        ConfigError: The backbone sees both sides, or ``piece`` is less than one.
        ShapeError: A chunk is no batch of ids or channels.
    """
    model.require_causal("stream (use stream_both_sides)")
    _check_piece(piece)
    position, inner = (0, None) if state is None else (state.position, state.inner)
    told = False
    for chunk in chunks:
        for ids, channels in _cut(chunk, piece):
            with evaluating(model):
                hidden, inner = model(_on(model, ids), channels=_on(model, channels), state=inner)
            told = told or _warn_if_growing(inner)
            start, position = position, position + hidden.shape[1]
            yield Streamed(start, hidden, StreamState(position, inner))


def stream_both_sides(
    model: Backbone, chunks: Iterable[Chunk], *, folder: str | Path | None = None, piece: int = PIECE
) -> Iterator[Streamed]:
    """Run a bidirectional or reverse-complement equivariant backbone over a sequence that does not fit in memory.

    The chunks are read to their end and kept on disk, then every block sweeps over them once, in turns from the right
    and from the left; between sweeps the residual stream lies on disk, 4 B L D bytes (2 where the stream is bfloat16),
    and a second time for an equivariant backbone. Memory holds one piece.

    Args:
        model: Backbone without attention; it runs in evaluation mode and without gradients.
        chunks: As for :func:`stream`; all of one kind and with the same B.
        folder: Where temporary files go; the system's place by default. Removed at the end or on an error.
        piece: Positions in one call of the model.

    Yields:
        Results of ``piece`` positions each, the last one shorter, from left to right.

    Raises:
        ConfigError: A block is attention over both sides, which has no state; or the disk is too small.
        ShapeError: A chunk is no batch of ids or channels, or differs in kind from the first.
    """
    _check_piece(piece)
    if "attention" in model.config.blocks and model.config.bidirectional:
        raise ConfigError(
            "layout", expected="Mamba blocks, whose states replace what was read", got="attention over both sides",
            remedy="Run the whole sequence at once, or approximate it with stream_windows.",
        )  # fmt: skip
    if model.is_causal:
        for result in stream(model, chunks, piece=piece):
            yield Streamed(result.start, result.hidden)
        return
    with tempfile.TemporaryDirectory(prefix=SPILL_PREFIX, dir=folder) as place:
        tape = Tape(Path(place))
        for chunk in chunks:
            tape.append(*_as_batch(chunk))
        start = 0
        for hidden in sweep(model, tape, piece, lambda: evaluating(model)):
            yield Streamed(start, hidden)
            start += hidden.shape[1]


def stream_windows(model: Backbone, chunks: Iterable[Chunk], *, margin: int, piece: int = PIECE) -> Iterator[Streamed]:
    """Approximate a backbone that sees both sides by windows: a piece sees ``margin`` positions beyond either end.

    For a live source, which has no end to sweep back from, and for attention over both sides. The answer for a position
    comes when ``margin`` further ones have arrived; what lies further away has no influence, though in a full pass it
    has.

    Args:
        model: Backbone of any kind; it runs in evaluation mode and without gradients.
        chunks: As for :func:`stream`; all of one kind and with the same B.
        margin: Positions seen before and behind a piece, >= 0. As long as the sequence it gives the full pass.
        piece: Positions answered at a time; ``piece + 2 * margin`` are in memory.

    Yields:
        Results of ``piece`` positions each, the last one shorter.

    Raises:
        ConfigError: ``margin`` is negative, or ``piece`` is less than one.
        ShapeError: A chunk is no batch of ids or channels, or differs in kind from the first.
    """
    _check_piece(piece)
    if margin < 0:
        raise ConfigError("margin", expected="at least 0", got=str(margin))
    waiting, origin, start = (None, None), 0, 0
    for chunk in itertools.chain(chunks, [None]):
        if chunk is not None:
            waiting = _joined(waiting, _as_batch(chunk))
        end = origin + max(0 if x is None else x.shape[1] for x in waiting)
        while start + piece + margin <= end or (chunk is None and start < end):
            stop = min(start + piece, end)
            low = max(start - margin, 0)
            ids, channels = _part(waiting, low - origin, stop + margin - origin)
            with evaluating(model):
                hidden, _ = model(_on(model, ids), channels=_on(model, channels))
            yield Streamed(start, hidden[:, start - low : stop - low])
            start = stop
            gone = max(start - margin, 0) - origin
            waiting, origin = _part(waiting, gone, None), origin + gone


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; the model's mode comes back, even after an error."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def _check_piece(piece: int) -> None:
    if piece < 1:
        raise ConfigError("piece", expected="at least 1", got=str(piece))


def _on(model: nn.Module, x: Tensor | None) -> Tensor | None:
    return None if x is None else x.to(next(model.parameters()).device, non_blocking=True)


def _warn_if_growing(inner: Any) -> bool:
    found = tree_leaves(inner, is_leaf=lambda node: isinstance(node, AttentionState))
    if any(isinstance(node, AttentionState) for node in found):
        warnings.warn("the layout has attention: its state holds every position read, and grows", stacklevel=3)
    return True


def _cut(chunk: Chunk, piece: int) -> Iterator[Batch]:
    """Ids and channels of a chunk, at most ``piece`` positions at a time."""
    batch = _as_batch(chunk)
    length = next(x.shape[1] for x in batch if x is not None)
    for begin in range(0, max(length, 1), piece):
        yield _part(batch, begin, begin + piece)


def _part(batch: Batch, begin: int, end: int | None) -> Batch:
    """Positions ``begin`` to ``end`` of ids and channels."""
    ids, channels = (None if x is None else x[:, begin:end] for x in batch)
    return ids, channels


def _joined(before: Batch, batch: Batch) -> Batch:
    """Two batches behind each other; ``before`` may hold nothing yet."""
    if before == (None, None):
        return batch
    for own, new in zip(before, batch, strict=True):
        if (own is None) != (new is None) or (new is not None and own.shape[0] != new.shape[0]):
            raise ShapeError("chunk", expected="the first chunk's kind and batch", got="another")
    ids, channels = (None if new is None else torch.cat([own, new], 1) for own, new in zip(before, batch, strict=True))
    return ids, channels


def _as_batch(chunk: Chunk) -> Batch:
    """Ids (B, l) and channels (B, l, C) of a chunk; either may be None."""
    parts = [None if x is None else torch.as_tensor(x) for x in (chunk if isinstance(chunk, tuple) else (chunk,))]
    if len(parts) == 1:
        parts = [None, parts[0]] if parts[0].is_floating_point() else [parts[0], None]
    ids, channels = parts if len(parts) == 2 else (None, None)
    ids = ids[None] if ids is not None and ids.ndim == 1 else ids
    fits = ids is not None or channels is not None
    fits = fits and (ids is None or (ids.ndim == 2 and not ids.is_floating_point()))
    fits = fits and (channels is None or (channels.ndim == 3 and channels.is_floating_point()))
    if not fits or (ids is not None and channels is not None and ids.shape != channels.shape[:2]):
        got = ", ".join("None" if x is None else f"{x.dtype} {tuple(x.shape)}" for x in parts)
        raise ShapeError("chunk", expected="ids (B, l), channels (B, l, C), or a pair of both", got=got)
    return ids, channels
