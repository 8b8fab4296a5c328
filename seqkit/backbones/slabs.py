"""A mixer in slabs: it keeps the states between slabs and computes every slab again in the backward pass, last first.

Legend: B batch, L length, D channels, S sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

Run = Callable[[Tensor, Any, Tensor | None], tuple[Tensor, Any]]


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
    leaves, spec = tree_flatten(state)
    used = [p for p in parameters if p.requires_grad]
    length = x_BLD.shape[1]
    pieces = _Pieces(run, spec, len(leaves), length, slab or length, cu_seqlens, reverse)
    y_BLD, *after = _Slabs.apply(pieces, x_BLD, *leaves, *used)
    return y_BLD, tree_unflatten(after, spec)


class _Pieces:
    """How a sequence is cut, and the mixer on one piece."""

    def __init__(
        self, run: Run, spec: TreeSpec, states: int, length: int, slab: int, cu_seqlens: Tensor | None, reverse: bool
    ):
        self.run, self.spec, self.states, self.cu_seqlens = run, spec, states, cu_seqlens
        cuts = [(begin, min(begin + slab, length)) for begin in range(0, length, slab)]
        self.bounds = cuts[::-1] if reverse else cuts

    def __call__(self, bounds: tuple[int, int], piece: Tensor, leaves: Sequence[Tensor]) -> list[Tensor]:
        """Output and the leaves of the next state."""
        begin, end = bounds
        cu = None if self.cu_seqlens is None else (self.cu_seqlens - begin).clamp(0, end - begin)
        y, state = self.run(piece, tree_unflatten(list(leaves), self.spec), cu)
        return [y, *tree_flatten(state)[0]]


class _Slabs(torch.autograd.Function):
    """The pieces as one differentiable function of x, the state's leaves and the parameters."""

    @staticmethod
    def forward(ctx, pieces: _Pieces, x: Tensor, *rest: Tensor):
        kind = x.device.type
        ctx.pieces, ctx.autocast = pieces, (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
        ctx.set_materialize_grads(False)
        leaves, kept, y = rest[: pieces.states], [], None
        for begin, end in pieces.bounds:
            kept += leaves
            part, *leaves = pieces((begin, end), x[:, begin:end], leaves)
            if y is None:
                y = part.new_empty((*x.shape[:2], part.shape[2]))
            y[:, begin:end] = part
        ctx.save_for_backward(x, *kept, *rest[pieces.states :])
        return y, *leaves

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor | None, *dstate: Tensor | None):
        pieces, (x, *saved) = ctx.pieces, ctx.saved_tensors
        states, count = pieces.states, len(pieces.bounds)
        parameters = saved[count * states :]
        totals = [torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32)) for p in parameters]
        dx = torch.empty_like(x)
        kind, dtype, enabled = ctx.autocast
        for number in reversed(range(count)):
            begin, end = pieces.bounds[number]
            piece = x[:, begin:end].detach().requires_grad_()
            entering = [t.detach().requires_grad_() for t in saved[number * states : (number + 1) * states]]
            with torch.enable_grad(), torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=False):
                outputs = pieces((begin, end), piece, entering)
            grads = [None if dy is None else dy[:, begin:end], *dstate]
            through = [(out, grad) for out, grad in zip(outputs, grads, strict=True) if grad is not None]
            inputs = [piece, *entering, *parameters]
            found = torch.autograd.grad(
                [out for out, _ in through], inputs, [grad for _, grad in through], allow_unused=True
            )
            dx[:, begin:end] = 0 if found[0] is None else found[0]
            dstate = found[1 : 1 + states]
            for total, grad in zip(totals, found[1 + states :], strict=True):
                if grad is not None:
                    total += grad
        return None, dx, *dstate, *(total.to(p.dtype) for total, p in zip(totals, parameters, strict=True))
