"""Sweeps over a sequence on disk, for backbones that see both sides.

A bidirectional block needs, for every piece, the state that enters from the left and the one that enters from the
right. One comes along with the sweep; the other was left at the piece's border by the sweep before, which went the
other way. So blocks sweep in turns: while block k gives its outputs from left to right, the core of block k + 1 that
reads in this direction runs over them and leaves its states at the borders; block k + 1 then goes from right to left.

Legend: B batch, L length, l length of a piece, D channels.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from seqkit.backbones import Backbone, Bidirectional, BidirectionalState, RMSNorm, Stack
from seqkit.errors import ConfigError, ShapeError

Read = Callable[[int, int], Tensor]
Guard = Callable[[], AbstractContextManager]


class Spill:
    """Rows of one dtype and width in a file; a read or write touches the rows it names and nothing else.

    Not mapped into memory: pages of a mapped file count as the process's own.

    Args:
        path: File to make.
        like: (l, ...) tensor whose dtype and trailing shape every row has.
    """

    def __init__(self, path: Path, like: Tensor):
        self.dtype, self.shape, self.device = like.dtype, like.shape[1:], like.device
        self.row_bytes = like[:1].numel() * like.element_size() if len(like) else 0
        self._path = path
        path.touch()

    def write(self, row: int, rows: Tensor) -> None:
        """Put rows at ``row`` and behind."""
        data = rows.detach().to("cpu", self.dtype).contiguous().view(-1).view(torch.uint8)
        with self._path.open("r+b") as file:
            file.seek(row * self.row_bytes)
            file.write(data.numpy().data)

    def remove(self) -> None:
        """Give the disk back."""
        self._path.unlink()

    def read(self, row: int, end: int) -> Tensor:
        """Rows ``row`` to ``end`` on the device they came from."""
        data = torch.empty((end - row) * self.row_bytes, dtype=torch.uint8)
        with self._path.open("rb") as file:
            file.seek(row * self.row_bytes)
            file.readinto(data.numpy().data)
        return data.view(self.dtype).view(end - row, *self.shape).to(self.device)


class Tape:
    """The input, position by position, on disk.

    Args:
        folder: Existing folder for this and all other files.
    """

    def __init__(self, folder: Path):
        self.folder, self.length, self.batch = folder, 0, 0
        self._spills: list[Spill | None] = []

    def append(self, ids: Tensor | None, channels: Tensor | None) -> None:
        """Add ids (B, l) and channels (B, l, C); either is None throughout."""
        parts = [None if x is None else x.transpose(0, 1) for x in (ids, channels)]
        rows = next(x for x in parts if x is not None)
        if len(rows) == 0:
            return
        if not self._spills:
            self.batch = rows.shape[1]
            names = ("ids", "channels")
            pairs = zip(names, parts, strict=True)
            self._spills = [None if x is None else Spill(self.folder / name, x.cpu()) for name, x in pairs]
        for spill, x in zip(self._spills, parts, strict=True):
            if (spill is None) != (x is None) or (x is not None and x.shape[1:] != spill.shape):
                raise ShapeError("chunk", expected="the first chunk's kind and batch", got="another")
            if x is not None:
                spill.write(self.length, x)
        self.length += len(rows)

    def read(self, begin: int, end: int) -> list[Tensor | None]:
        """Ids and channels of positions ``begin`` to ``end``, batch first."""
        return [None if spill is None else spill.read(begin, end).transpose(0, 1) for spill in self._spills]


class Borders:
    """States at the borders of pieces, on disk.

    Args:
        folder: Existing folder.
        name: First part of the files' names.
    """

    def __init__(self, folder: Path, name: str):
        self._folder, self._name = folder, name
        self._spills: list[Spill] = []
        self._spec: Any = None

    def write(self, piece: int, state: Any) -> None:
        """Keep the state that enters a piece."""
        leaves, spec = tree_flatten(state)
        if self._spec is None:
            self._spec = spec
            self._spills = [Spill(self._folder / f"{self._name}-{i}", leaf[None]) for i, leaf in enumerate(leaves)]
        for spill, leaf in zip(self._spills, leaves, strict=True):
            spill.write(piece, leaf[None])

    def remove(self) -> None:
        """Give the disk back."""
        for spill in self._spills:
            spill.remove()

    def read(self, piece: int) -> Any:
        """The state that enters a piece."""
        return tree_unflatten([spill.read(piece, piece + 1)[0] for spill in self._spills], self._spec)


def sweep(model: Backbone, tape: Tape, piece: int, guard: Guard) -> Iterator[Tensor]:
    """Hidden states of what is on the tape, piece by piece from left to right.

    Args:
        model: Bidirectional or equivariant backbone without attention.
        tape: The input.
        piece: Positions in a piece.
        guard: Context in which the model is called.

    Yields:
        (B, l, D) hidden states, (B, l, 2D) for an equivariant backbone.
    """
    if tape.length == 0:
        return
    require_disk(model, tape)
    cuts = [(begin, min(begin + piece, tape.length)) for begin in range(0, tape.length, piece)]
    if not model.config.rc_equivariant:
        for _, hidden in _strand(model, tape, cuts, guard, 0):
            yield hidden
        return
    other: Spill | None = None
    for (begin, _), hidden in _strand(model, tape, cuts, guard, 1):
        rows = hidden.transpose(0, 1)
        other = other or Spill(tape.folder / "other-strand", rows)
        other.write(begin, rows)
    for (begin, end), hidden in _strand(model, tape, cuts, guard, 0):
        yield torch.cat([hidden, other.read(begin, end).transpose(0, 1)], dim=-1)


def require_disk(model: Backbone, tape: Tape) -> None:
    """Refuse a sequence whose residual stream the disk cannot hold, before any work.

    Raises:
        ConfigError: Too little space; says how much is needed.
    """
    copies = 2 if model.config.rc_equivariant else 1
    needed = copies * 4 * tape.batch * tape.length * model.config.d_model
    free = shutil.disk_usage(tape.folder).free
    if needed > free:
        raise ConfigError(
            "folder", expected=f"{needed / 2**30:.1f} GiB of free disk for sweeps over {tape.length:,} positions",
            got=f"{free / 2**30:.1f} GiB in {tape.folder.parent}", remedy="Name a folder on a larger disk.",
        )  # fmt: skip


def _strand(
    model: Backbone, tape: Tape, cuts: list[tuple[int, int]], guard: Guard, strand: int
) -> Iterator[tuple[tuple[int, int], Tensor]]:
    """Pieces and hidden states (B, l, D) of one strand; the second strand is read from its own beginning, the right."""
    device = next(model.parameters()).device

    def embedded(begin: int, end: int) -> Tensor:
        ids, channels = (None if x is None else x.to(device) for x in tape.read(begin, end))
        hidden = model.embed(ids, channels)
        return hidden.chunk(2, dim=-1)[strand] if model.config.rc_equivariant else hidden

    reverse = strand == 1
    if model.config.bidirectional:
        yield from _alternate(model.stack, embedded, cuts, tape.folder, guard, reverse)
    else:
        state = None
        for begin, end in cuts[::-1] if reverse else cuts:
            with guard():
                hidden, state = Stack.forward(model.stack, embedded(begin, end), state, reverse=reverse)
            yield (begin, end), hidden


def _alternate(
    stack: Stack, embedded: Read, cuts: list[tuple[int, int]], folder: Path, guard: Guard, reverse: bool
) -> Iterator[tuple[tuple[int, int], Tensor]]:
    """Pieces and hidden states of a bidirectional stack, from left to right; ``reverse`` mirrors every block."""
    blocks, residual = stack.blocks, None
    rightward = len(blocks) % 2 == 0  # of the sweep that only leaves states for the first block
    borders = Borders(folder, "borders-0")
    state = None
    for number, (begin, end) in _ordered(cuts, rightward):
        with guard():
            stream = stack.norm.add(embedded(begin, end), None)
            state = _pass(blocks[0], stream, state, borders, number, rightward, reverse)
    for k, block in enumerate(blocks):
        rightward, entering, borders = not rightward, borders, Borders(folder, f"borders-{k + 1}")
        carried = after = None
        for number, (begin, end) in _ordered(cuts, rightward):
            with guard():
                if k == 0:
                    stream = stack.norm.add(embedded(begin, end), None)
                else:
                    stream = residual.read(begin, end).transpose(0, 1)
                y_BLD, carried = _finish(block, stream, carried, entering.read(number), rightward, reverse)
                if k + 1 < len(blocks):
                    stream = block.norm.add(y_BLD, stream)
                    rows = stream.transpose(0, 1)
                    residual = residual or Spill(folder / f"residual-{int(reverse)}", rows)
                    residual.write(begin, rows)
                    after = _pass(blocks[k + 1], stream, after, borders, number, rightward, reverse)
                    continue
                hidden = stack.norm(y_BLD, stream)[0]
            yield (begin, end), hidden
        entering.remove()
    if residual is not None:
        residual.remove()


def _ordered(cuts: list[tuple[int, int]], rightward: bool) -> list[tuple[int, tuple[int, int]]]:
    numbered = list(enumerate(cuts))
    return numbered if rightward else numbered[::-1]


def _reads(mixer: Bidirectional, rightward: bool, reverse: bool) -> str:
    """Name of the core that reads in this direction."""
    return "left" if rightward != reverse else "right"


def _pass(block, stream: Tensor, state: Any, borders: Borders, number: int, rightward: bool, reverse: bool) -> Any:
    """Keep the state that enters the piece in the sweep's direction; run that one core to get the next one."""
    mixer = block.mixer
    core = getattr(mixer, _reads(mixer, rightward, reverse))
    state = core.initial_state(stream.shape[0]) if state is None else state
    borders.write(number, state)
    x_BLD = RMSNorm.forward(block.norm, stream)
    return core.scan(mixer.in_proj(x_BLD), state, cu_seqlens=None, reverse=not rightward)[1]


def _finish(block, stream: Tensor, carried: Any, entering: Any, rightward: bool, reverse: bool) -> tuple[Tensor, Any]:
    """What the block adds to a piece, and the state that it carries in the sweep's direction."""
    mixer = block.mixer
    own, opposite = _reads(mixer, rightward, reverse), _reads(mixer, not rightward, reverse)
    carried = getattr(mixer, own).initial_state(stream.shape[0]) if carried is None else carried
    states = BidirectionalState(**{own: carried, opposite: entering})
    y_BLD, after = mixer(RMSNorm.forward(block.norm, stream), states, reverse=reverse)
    return y_BLD, getattr(after, own)
