"""What every op registration shares: autocast off inside, no second derivative, None for absent gradients."""

from __future__ import annotations

import torch


def autocast_off(x: torch.Tensor) -> torch.autocast:
    """Context in which an op body runs: autocast off on ``x``'s device.

    Operands keep the dtypes they come in, parameters stay float32, sums run in float32: autocast decides what the
    projections around an op produce, never what happens inside it.
    """
    return torch.autocast(x.device.type, enabled=False)


def refuse_double_backward(op: torch.library.CustomOpDef, name: str) -> None:
    """Make a second derivative through ``op`` (the backward of ``name``) an error that says so."""

    def refuse(ctx, *grads):
        raise RuntimeError(
            f"{name}: second derivatives are not supported; its backward pass cannot itself be differentiated. "
            "Call backward() or torch.autograd.grad() without create_graph=True."
        )

    op.register_autograd(refuse)


def or_empty(grads: tuple[torch.Tensor | None, ...], like: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Replace absent gradients by empty tensors: an op's schema has no optional outputs."""
    return tuple(like.new_empty(0) if grad is None else grad for grad in grads)


def or_none(
    grads: tuple[torch.Tensor, ...], operands: tuple[torch.Tensor | None, ...]
) -> tuple[torch.Tensor | None, ...]:
    """Drop the empty tensors that stand for absent operands."""
    return tuple(None if x is None else grad for grad, x in zip(grads, operands, strict=True))
