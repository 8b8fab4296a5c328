"""What every op registration shares: autocast off inside, no second derivative, None for absent gradients."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

LIBRARY = torch.library.Library("seqkit", "FRAGMENT")


class CustomOp:
    """A custom op: what ``torch.library.custom_op`` makes of a function, for a quarter of its time per call.

    That one walks through the schema anew whenever a gradient is wanted, quadratic in the number of arguments, and
    looks for outputs that alias inputs; with fifteen arguments it takes longer than a short sequence does on a GPU.
    Here no argument has a default and ``opcheck`` looks for aliases, once, in the tests.
    """

    def __init__(self, name: str, body: Callable, schema: str | None = None):
        self.name = name
        schema = schema or torch.library.infer_schema(body, mutates_args=())
        LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
        LIBRARY.impl(name, _untraced(body), "CompositeExplicitAutograd")
        self.overload = getattr(torch.ops.seqkit, name).default

    def register_fake(self, fake: Callable) -> Callable:
        """Use ``fake`` where tensors have shapes, and no data."""
        torch.library.register_fake(self.overload, fake, lib=LIBRARY)
        return fake

    def register_autograd(self, backward: Callable, *, setup_context: Callable | None = None) -> None:
        """Differentiate by ``backward(ctx, *gradients)``; ``setup_context(ctx, inputs, output)`` keeps operands."""
        overload = self.overload

        def below(keyset, args):
            with torch._C._AutoDispatchBelowAutograd():
                return overload.redispatch(keyset & torch._C._after_autograd_keyset, *args)

        class Differentiable(torch.autograd.Function):
            @staticmethod
            def forward(ctx, keyset, *args):
                output = below(keyset, args)
                if setup_context is not None:
                    setup_context(ctx, args, output)
                return tuple(output) if isinstance(output, list) else output

            @staticmethod
            def backward(ctx, *gradients):
                return None, *backward(ctx, *gradients)

        def differentiable(keyset, *args):
            if torch.is_grad_enabled() and any(isinstance(x, torch.Tensor) and x.requires_grad for x in args):
                return Differentiable.apply(keyset, *args)
            return below(keyset, args)

        Differentiable.__name__ = f"Differentiable_{self.name}"
        LIBRARY.impl(self.name, differentiable, "Autograd", with_keyset=True)


def custom_op(name: str, schema: str | None = None) -> Callable[[Callable], CustomOp]:
    """Decorator that registers a function as ``torch.ops.seqkit.NAME``; annotations give the schema, unless it does."""
    return functools.partial(CustomOp, name, schema=schema)


def _untraced(body: Callable) -> Callable:
    """``body``, never looked into by torch.compile; nothing of the compiler is imported for it."""
    hidden = None

    def call(*args):
        nonlocal hidden
        if "torch._dynamo" not in sys.modules:
            return body(*args)
        if hidden is None:
            hidden = torch.compiler.disable(body)
        return hidden(*args)

    return call


@contextmanager
def autocast_off(x: torch.Tensor) -> Iterator[None]:
    """Context in which an op body runs: autocast off on ``x``'s device.

    Operands keep the dtypes they come in, parameters stay float32, sums run in float32: autocast decides what the
    projections around an op produce, never what happens inside it.
    """
    device = x.device.type
    on = torch.is_autocast_enabled(device)
    if on:
        torch.set_autocast_enabled(device, False)
    try:
        yield
    finally:
        if on:
            torch.set_autocast_enabled(device, True)


def refuse_double_backward(op: CustomOp, name: str) -> None:
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
