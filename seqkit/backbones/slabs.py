"""A function of a sequence in pieces: what is kept are the states between pieces.

The backward pass computes every piece again, last first, and hands the adjoint of the state on to the one before. The
function is one mixer (a slab of it at a time, :func:`run_in_slabs`) or a whole causal backbone.

Legend: B batch, L length, D channels, S sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

Run = Callable[[Tensor, Any, Tensor | None], tuple[Tensor, Any]]
RunPieces = Callable[[Sequence[Tensor], Any, Tensor | None], tuple[Tensor, Any]]


def run_in_slabs(
    run: Run,
    x_BLD: Tensor,
    state: Any,
    *,
    slab: int | None,
    cu_seqlens: Tensor | None,
    reverse: bool,
    parameters: Sequence[Tensor],
) -> tuple[Tensor, Any]:
    """Apply a mixer piece by piece, with gradients for its input, state and parameters.

    Args:
        run: From (B, l, D), a state and the bounds of the pieces of packed segments to (B, l, D) and the next state.
            Draws no random numbers.
        x_BLD: Input (B, L, D), at least one position.
        state: State that enters, a tree of tensors.
        slab: Positions of a piece; None takes all.
        cu_seqlens: (S + 1,) int32 bounds of packed segments (B = 1), or None.
        reverse: Whether ``run`` reads from the end: the last piece then comes first.
        parameters: What ``run`` uses beside its arguments.

    Returns:
        y (B, L, D) and the state that leaves.
    """
    return run_in_pieces(
        lambda inputs, before, bounds: run(inputs[0], before, bounds),
        [x_BLD],
        state,
        size=slab or x_BLD.shape[1],
        cu_seqlens=cu_seqlens,
        reverse=reverse,
        parameters=parameters,
    )


def run_in_pieces(
    run: RunPieces,
    inputs: Sequence[Tensor],
    state: Any,
    *,
    size: int,
    cu_seqlens: Tensor | None,
    parameters: Sequence[Tensor],
    reverse: bool = False,
    truncate: bool = False,
    random: bool = False,
) -> tuple[Tensor, Any]:
    """Apply any function of a sequence piece by piece, with gradients for its inputs, state and parameters.

    Args:
        run: From pieces (B, l, ...) of the inputs, a state and the bounds of the pieces of packed segments to
            (B, l, K) and the next state.
        inputs: Tensors (B, L, ...), at least one position; those without a gradient may be of any type.
        state: State that enters, a tree of floating-point tensors.
        size: Positions of a piece.
        cu_seqlens: (S + 1,) int32 bounds of packed segments (B = 1), or None.
        parameters: What ``run`` uses beside its arguments.
        reverse: Whether ``run`` reads from the end: the last piece then comes first.
        truncate: Let no gradient pass from a piece to the one before it.
        random: Whether ``run`` draws random numbers: the backward pass then draws the same.

    Returns:
        y (B, L, K) and the state that leaves.
    """
    leaves, spec = tree_flatten(state)
    used = [p for p in parameters if p.requires_grad]
    counts = len(inputs), len(leaves)
    pieces = _Pieces(run, spec, counts, inputs[0].shape[1], size, cu_seqlens, reverse, truncate, random)
    y_BLK, *after = _InPieces.apply(pieces, *inputs, *leaves, *used)
    return y_BLK, tree_unflatten(after, spec)


class _Pieces:
    """How a sequence is cut, and the function on one piece."""

    def __init__(
        self,
        run: RunPieces,
        spec: TreeSpec,
        counts: tuple[int, int],
        length: int,
        size: int,
        cu_seqlens: Tensor | None,
        reverse: bool,
        truncate: bool,
        random: bool,
    ):
        self.run, self.spec, self.cu_seqlens, self.truncate, self.random = run, spec, cu_seqlens, truncate, random
        self.inputs, self.states = counts
        cuts = [(begin, min(begin + size, length)) for begin in range(0, length, size)]
        self.bounds = cuts[::-1] if reverse else cuts

    def split(self, tensors: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]]:
        """Inputs, leaves of the state, parameters."""
        behind = self.inputs + self.states
        return tensors[: self.inputs], tensors[self.inputs : behind], tensors[behind:]

    def __call__(self, bounds: tuple[int, int], piece: Sequence[Tensor], leaves: Sequence[Tensor]) -> list[Tensor]:
        """Output and the leaves of the next state."""
        begin, end = bounds
        cu = None if self.cu_seqlens is None else (self.cu_seqlens - begin).clamp(0, end - begin)
        y, state = self.run(piece, tree_unflatten(list(leaves), self.spec), cu)
        return [y, *tree_flatten(state)[0]]


class _InPieces(torch.autograd.Function):
    """The pieces as one differentiable function of the inputs, the state's leaves and the parameters."""

    @staticmethod
    def forward(ctx, pieces: _Pieces, *tensors: Tensor):
        inputs, leaves, parameters = pieces.split(tensors)
        kind = inputs[0].device.type
        ctx.pieces, ctx.autocast = pieces, (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
        ctx.set_materialize_grads(False)
        kept, y, ctx.random_states = [], None, []
        for begin, end in pieces.bounds:
            kept += leaves
            ctx.random_states.append(_random_state(inputs[0].device) if pieces.random else None)
            part, *leaves = pieces((begin, end), [x[:, begin:end] for x in inputs], leaves)
            if y is None:
                y = part.new_empty((part.shape[0], inputs[0].shape[1], part.shape[2]))
            y[:, begin:end] = part
        ctx.save_for_backward(*inputs, *kept, *parameters)
        return y, *leaves

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor | None, *dstate: Tensor | None):
        pieces, saved, count = ctx.pieces, ctx.saved_tensors, len(ctx.pieces.bounds)
        inputs, kept = saved[: pieces.inputs], saved[pieces.inputs : pieces.inputs + count * pieces.states]
        parameters = saved[pieces.inputs + count * pieces.states :]
        totals = [torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32)) for p in parameters]
        wanted = [i for i in range(pieces.inputs) if ctx.needs_input_grad[1 + i]]
        dinputs = [torch.empty_like(x) if i in wanted else None for i, x in enumerate(inputs)]
        kind, dtype, enabled = ctx.autocast
        for number in reversed(range(count)):
            begin, end = pieces.bounds[number]
            piece = [x[:, begin:end].detach().requires_grad_(i in wanted) for i, x in enumerate(inputs)]
            entering = kept[number * pieces.states : (number + 1) * pieces.states]
            handed_on = number == 0 or not pieces.truncate
            entering = [t.detach().requires_grad_(handed_on) for t in entering]
            with (
                torch.enable_grad(),
                torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=False),
                _repeated(ctx.random_states[number], inputs[0].device),
            ):
                outputs = pieces((begin, end), piece, entering)
            grads = [None if dy is None else dy[:, begin:end], *dstate]
            through = [(out, g) for out, g in zip(outputs, grads, strict=True) if g is not None and out.requires_grad]
            sources = [piece[i] for i in wanted], entering if handed_on else [], parameters
            found = _gradients(through, [t for group in sources for t in group])
            for i in wanted:
                grad = next(found)
                dinputs[i][:, begin:end] = 0 if grad is None else grad
            dstate = [next(found) if handed_on else None for _ in entering]
            for total, grad in zip(totals, found, strict=True):
                if grad is not None:
                    total += grad
        return None, *dinputs, *dstate, *(total.to(p.dtype) for total, p in zip(totals, parameters, strict=True))


def _gradients(through: list[tuple[Tensor, Tensor]], sources: list[Tensor]) -> Iterator[Tensor | None]:
    if not through or not sources:
        return iter([None] * len(sources))
    outputs, grads = zip(*through, strict=True)
    return iter(torch.autograd.grad(outputs, sources, grads, allow_unused=True))


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


@contextmanager
def _repeated(state: tuple[Tensor, Tensor | None] | None, device: torch.device) -> Iterator[None]:
    """Random numbers as they were drawn from ``state``, and the generators as they were before."""
    if state is None:
        yield
        return
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.set_rng_state(state[0])
        if state[1] is not None:
            torch.cuda.set_rng_state(state[1], device)
        yield
