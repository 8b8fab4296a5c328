"""Public SSD scan: checks, custom ops for forward and backward, autograd.

Legend: B batch, L length, S segments, H heads, P head channels, N states, G groups.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from seqkit.errors import ConfigError, ShapeError
from seqkit.kernels import dispatch
from seqkit.kernels.numbers import accumulate_dtype
from seqkit.kernels.registration import autocast_off, custom_op, or_empty, or_none, refuse_double_backward
from seqkit.kernels.validate import check_boundaries, check_groups, check_packing, check_rank, check_tensor

LARGEST_CHUNK = 1024  # longer products of decays would lose digits


def ssd_scan(
    x_BLHP: Tensor,
    dt_BLH: Tensor,
    A_H: Tensor,
    B_BLGN: Tensor,
    C_BLGN: Tensor,
    *,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    dt_min: float = 0.0,
    dt_max: float = math.inf,
    initial_state: Tensor | None = None,
    return_final_state: bool = False,
    reverse: bool = False,
    cu_seqlens: Tensor | None = None,
    chunk_size: int | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Scan h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t^T per head and read y_t = h_t C_t + D x_t, gated by silu(z_t).

    Differentiable in every tensor, in the initial state and through the final one; not twice. Linear in L in time and
    memory. Activations may be float32, bfloat16 or float16 in any mix, parameters and states are float32, sums run in
    float32; float64 runs in float64. Only last dimensions must be contiguous.

    Args:
        x_BLHP: Input (B, L, H, P).
        dt_BLH: Step sizes (B, L, H); 0 (after bias, softplus and clamp) makes a position inert (padding).
        A_H: Decay rates (H,), <= 0; positive ones are taken as 0.
        B_BLGN: Input weights (B, L, G, N), G groups of H / G neighbouring heads.
        C_BLGN: Output weights (B, L, G, N).
        D: Skip weights (H,) or (H, P).
        z: Gate (B, L, H, P); y is multiplied by silu(z).
        dt_bias: Added to dt before softplus (H,).
        dt_softplus: Pass dt through softplus.
        dt_min: Lower end of dt's clamp, >= 0.
        dt_max: Upper end of dt's clamp.
        initial_state: (S, H, P, N); zero if absent. S is B, or the number of packed segments.
        return_final_state: Also return the state after the last token.
        reverse: Scan from the last token of each segment to its first.
        cu_seqlens: Packed segments: int32 boundaries (S + 1,), first 0, last L; needs B = 1. Segments may be empty.
        chunk_size: Tokens per chunk, 1 to 1024; None leaves it to the provider. Changes speed and rounding only.

    Returns:
        y (B, L, H, P) in x's dtype; with ``return_final_state`` also the final states (S, H, P, N).

    Raises:
        ShapeError: A shape, dtype, device or layout does not fit.
        ConfigError: A clamp or chunk size is out of range, or ``SEQKIT_KERNELS`` asks for a provider that cannot run
            this.

    Reference:
        Dao and Gu, Transformers are SSMs: Generalized Models and Efficient Algorithms Through Structured State Space
        Duality, 2024, section 6.
    """
    _check(x_BLHP, dt_BLH, A_H, B_BLGN, C_BLGN, D, z, dt_bias, initial_state, cu_seqlens)
    _check_settings(dt_min, dt_max, chunk_size)
    y, final, _ = torch.ops.seqkit.ssd_scan_fwd(
        x_BLHP,
        dt_BLH,
        A_H,
        B_BLGN,
        C_BLGN,
        D,
        z,
        dt_bias,
        initial_state,
        cu_seqlens,
        dt_softplus,
        float(dt_min),
        float(dt_max),
        reverse,
        chunk_size,
        dispatch.provider_for("ssd_scan", x_BLHP),
    )
    return (y, final) if return_final_state else y


def _check_settings(dt_min: float, dt_max: float, chunk_size: int | None) -> None:
    if not 0 <= dt_min <= dt_max:
        raise ConfigError("dt_min, dt_max", expected="0 <= dt_min <= dt_max", got=f"{dt_min}, {dt_max}")
    check_chunk_size(chunk_size)


def check_chunk_size(chunk_size: int | None) -> None:
    """Raise unless a scan can take that many tokens at a time."""
    if chunk_size is not None and not 1 <= chunk_size <= LARGEST_CHUNK:
        raise ConfigError("chunk_size", expected=f"1 to {LARGEST_CHUNK} tokens", got=str(chunk_size))


def _check(x, dt, A, B, C, D, z, dt_bias, initial_state, cu_seqlens) -> None:
    check_rank("x", x, 4, "(B, L, H, P)")
    check_rank("B", B, 4, "(B, L, G, N)")
    batch, length, heads, head_channels = x.shape
    groups, states = B.shape[2:]
    if heads < 1 or head_channels < 1 or states < 1:
        raise ShapeError("x, B", expected="at least one head, channel and state", got=f"{tuple(x.shape)}, N = {states}")
    check_groups("B", groups, heads, "H")
    check_tensor("x", x, (batch, length, heads, head_channels), "(B, L, H, P)", x)
    check_tensor("dt", dt, (batch, length, heads), "(B, L, H)", x)
    check_tensor("A", A, (heads,), "(H,)", x, wide=True, any_layout=True)
    check_tensor("B", B, (batch, length, groups, states), "(B, L, G, N)", x)
    check_tensor("C", C, (batch, length, groups, states), "(B, L, G, N)", x)
    segments = check_packing(cu_seqlens, x)
    if D is not None:
        shape, letters = ((heads,), "(H,)") if D.dim() == 1 else ((heads, head_channels), "(H, P)")
        check_tensor("D", D, shape, letters, x, wide=True, any_layout=True)
    if z is not None:
        check_tensor("z", z, (batch, length, heads, head_channels), "(B, L, H, P)", x)
    if dt_bias is not None:
        check_tensor("dt_bias", dt_bias, (heads,), "(H,)", x, wide=True, any_layout=True)
    if initial_state is not None:
        shape = (segments, heads, head_channels, states)
        check_tensor("initial_state", initial_state, shape, "(S, H, P, N)", x, wide=True, any_layout=True)


@custom_op("ssd_scan_fwd")
def ssd_scan_fwd(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    dt_softplus: bool,
    dt_min: float,
    dt_max: float,
    reverse: bool,
    chunk_size: int | None,
    provider: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """(y, final states, boundary states)."""
    check_boundaries(cu_seqlens, x.shape[1])
    settings = (cu_seqlens, dt_softplus, dt_min, dt_max, reverse, chunk_size)
    with autocast_off(x):
        return dispatch.implementation("ssd_scan", provider).forward(
            x, dt, A, B, C, D, z, dt_bias, initial_state, *settings
        )


@ssd_scan_fwd.register_fake
def _(
    x, dt, A, B, C, D, z, dt_bias, initial_state, cu_seqlens, softplus, dt_min, dt_max, reverse, chunk_size, provider
):
    batch, length, heads, head_channels = x.shape
    states, dtype = B.shape[3], accumulate_dtype(x)
    segments = None if cu_seqlens is None else cu_seqlens.shape[0] - 1
    shape = dispatch.implementation("ssd_scan", provider).boundary_shape(
        batch, length, heads, head_channels, states, segments, chunk_size
    )
    final_shape = (batch if segments is None else segments, heads, head_channels, states)
    return x.new_empty(x.shape), x.new_empty(final_shape, dtype=dtype), x.new_empty(shape, dtype=dtype)


@custom_op("ssd_scan_bwd")
def ssd_scan_bwd(
    dy: Tensor,
    dfinal: Tensor | None,
    boundary: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    dt_softplus: bool,
    dt_min: float,
    dt_max: float,
    reverse: bool,
    chunk_size: int | None,
    provider: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, dt, A, B, C, D, z, dt_bias, initial_state; empty where the operand is absent."""
    operands = (x, dt, A, B, C, D, z, dt_bias, initial_state)
    settings = (cu_seqlens, dt_softplus, dt_min, dt_max, reverse, chunk_size)
    with autocast_off(x):
        grads = dispatch.implementation("ssd_scan", provider).backward(dy, dfinal, boundary, *operands, *settings)
    return or_empty(grads, x)


@ssd_scan_bwd.register_fake
def _(dy, dfinal, boundary, x, dt, A, B, C, D, z, dt_bias, initial_state, *settings):
    operands = (x, dt, A, B, C, D, z, dt_bias, initial_state)
    return or_empty(tuple(None if t is None else t.new_empty(t.shape) for t in operands), x)


def _setup_context(ctx, inputs, output):
    tensors, ctx.settings = inputs[:10], inputs[10:]
    ctx.save_for_backward(output[2], *tensors)
    ctx.set_materialize_grads(False)


def _backward(ctx, dy, dfinal, dboundary):
    boundary, *tensors = ctx.saved_tensors
    x = tensors[0]
    dy = x.new_zeros(x.shape) if dy is None else dy
    grads = torch.ops.seqkit.ssd_scan_bwd(dy, dfinal, boundary, *tensors, *ctx.settings)
    return *or_none(grads, tensors[:9]), None, *(None for _ in ctx.settings)


ssd_scan_fwd.register_autograd(_backward, setup_context=_setup_context)
refuse_double_backward(ssd_scan_bwd, "ssd_scan")
