"""Public causal convolution: checks, custom ops for forward and backward, autograd.

Legend: B batch, L length, S segments, D channels, W taps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seqkit.errors import ConfigError, ShapeError
from seqkit.kernels import dispatch
from seqkit.kernels.numbers import accumulate_dtype
from seqkit.kernels.registration import autocast_off, custom_op, or_empty, or_none, refuse_double_backward
from seqkit.kernels.validate import check_boundaries, check_packing, check_rank, check_tensor

ACTIVATIONS = (None, "silu")


def causal_conv(
    x_BLD: Tensor,
    weight_DW: Tensor,
    *,
    bias: Tensor | None = None,
    activation: str | None = None,
    initial_state: Tensor | None = None,
    return_final_state: bool = False,
    reverse: bool = False,
    cu_seqlens: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Depthwise causal convolution y_t = f(bias + sum_w weight[:, w] x_{t - W + 1 + w}).

    Args:
        x_BLD: Input (B, L, D), float32, bfloat16 or float16 (float64 runs in float64).
        weight_DW: Taps (D, W), oldest input first.
        bias: (D,).
        activation: None or ``"silu"``.
        initial_state: The W - 1 inputs before the first, in scan order, oldest first (S, W - 1, D); zero if absent.
            S is B, or the number of packed segments.
        return_final_state: Also return the last W - 1 inputs.
        reverse: Scan from the last token of each segment to its first: y_t then depends on x_t, x_{t+1}, ...
        cu_seqlens: Packed segments: int32 boundaries (S + 1,), first 0, last L; needs B = 1. Segments may be empty.

    Returns:
        y (B, L, D) in x's dtype; with ``return_final_state`` also the final states (S, W - 1, D).

    Raises:
        ShapeError: A shape, dtype, device or layout does not fit.
        ConfigError: The activation is unknown, or ``SEQKIT_KERNELS`` asks for a provider that cannot run this.

    Reference:
        Gu and Dao, Mamba: Linear-Time Sequence Modeling with Selective State Spaces, 2023, section 3.4, figure 3.
    """
    check_activation(activation)
    _check(x_BLD, weight_DW, bias, initial_state, cu_seqlens)
    y, final = torch.ops.seqkit.causal_conv_fwd(
        x_BLD,
        weight_DW,
        bias,
        initial_state,
        cu_seqlens,
        activation or "none",
        reverse,
        dispatch.provider_for("causal_conv", x_BLD, weight_DW),
    )
    return (y, final) if return_final_state else y


def check_activation(activation: str | None) -> None:
    """Raise unless the activation is known."""
    if activation not in ACTIVATIONS:
        raise ConfigError("activation", expected="None or 'silu'", got=repr(activation))


def _check(x, weight, bias, initial_state, cu_seqlens) -> None:
    check_rank("x", x, 3, "(B, L, D)")
    check_rank("weight", weight, 2, "(D, W)")
    channels, taps = x.shape[2], weight.shape[1]
    if taps < 1 or channels < 1:
        raise ShapeError("weight", expected="at least one channel and one tap", got=str(tuple(weight.shape)))
    check_tensor("x", x, tuple(x.shape), "(B, L, D)", x)
    check_tensor("weight", weight, (channels, taps), "(D, W)", x, any_layout=True)
    segments = check_packing(cu_seqlens, x)
    if bias is not None:
        check_tensor("bias", bias, (channels,), "(D,)", x, any_layout=True)
    if initial_state is not None:
        shape = (segments, taps - 1, channels)
        check_tensor("initial_state", initial_state, shape, "(S, W - 1, D)", x, wide=True, any_layout=True)


@custom_op("causal_conv_fwd")
def causal_conv_fwd(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    activation: str,
    reverse: bool,
    provider: str,
) -> tuple[Tensor, Tensor]:
    """(y, final states); the backward pass needs the inputs only, there is no boundary state to keep."""
    check_boundaries(cu_seqlens, x.shape[1])
    with autocast_off(x):
        return dispatch.implementation("causal_conv", provider).forward(
            x, weight, bias, initial_state, cu_seqlens, activation, reverse
        )


@causal_conv_fwd.register_fake
def _(x, weight, bias, initial_state, cu_seqlens, activation, reverse, provider):
    segments = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    final_shape = (segments, weight.shape[1] - 1, weight.shape[0])
    return x.new_empty(x.shape), x.new_empty(final_shape, dtype=accumulate_dtype(x))


@custom_op("causal_conv_bwd")
def causal_conv_bwd(
    dy: Tensor,
    dfinal: Tensor | None,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    activation: str,
    reverse: bool,
    provider: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, weight, bias, initial_state; empty where the operand is absent."""
    with autocast_off(x):
        grads = dispatch.implementation("causal_conv", provider).backward(
            dy, dfinal, x, weight, bias, initial_state, cu_seqlens, activation, reverse
        )
    return or_empty(grads, x)


@causal_conv_bwd.register_fake
def _(dy, dfinal, x, weight, bias, initial_state, cu_seqlens, activation, reverse, provider):
    operands = (x, weight, bias, initial_state)
    return or_empty(tuple(None if t is None else t.new_empty(t.shape) for t in operands), x)


def _setup_context(ctx, inputs, output):
    *tensors, ctx.activation, ctx.reverse, ctx.provider = inputs
    ctx.save_for_backward(*tensors)
    ctx.set_materialize_grads(False)


def _backward(ctx, dy, dfinal):
    tensors = ctx.saved_tensors
    x = tensors[0]
    grads = torch.ops.seqkit.causal_conv_bwd(
        x.new_zeros(x.shape) if dy is None else dy, dfinal, *tensors, ctx.activation, ctx.reverse, ctx.provider
    )
    return *or_none(grads, tensors[:4]), None, None, None, None


causal_conv_fwd.register_autograd(_backward, setup_context=_setup_context)
refuse_double_backward(causal_conv_bwd, "causal_conv")
