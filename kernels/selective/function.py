"""Public selective scan: checks, custom ops for forward and backward, autograd.

Legend: B batch, L length, S segments, D channels, N states, G groups.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seqkit.errors import ShapeError
from seqkit.kernels import dispatch
from seqkit.kernels.numbers import accumulate_dtype
from seqkit.kernels.registration import autocast_off, custom_op, or_empty, or_none, refuse_double_backward
from seqkit.kernels.validate import check_boundaries, check_groups, check_packing, check_rank, check_tensor


def selective_scan(
    u_BLD: Tensor,
    delta_BLD: Tensor,
    A_DN: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    initial_state: Tensor | None = None,
    return_final_state: bool = False,
    reverse: bool = False,
    cu_seqlens: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Scan h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t and read y_t = C_t h_t + D u_t, gated by silu(z_t).

    Differentiable in every tensor, in the initial state and through the final one; not twice. Linear in L in time and
    memory. Activations may be float32, bfloat16 or float16 in any mix, parameters and states are float32, sums run in
    float32; float64 runs in float64. Only last dimensions must be contiguous.

    Args:
        u_BLD: Input (B, L, D).
        delta_BLD: Step sizes (B, L, D), >= 0 after bias and softplus; 0 makes a position inert (padding). Negative ones
            do not grow the state: the exponent is clamped to 0.
        A_DN: Decay rates (D, N), <= 0; positive ones are taken as 0.
        B: Input weights (B, L, N), or (B, L, G, N) with G groups of D / G neighbouring channels.
        C: Output weights, shaped like ``B``.
        D: Skip weights (D,).
        z: Gate (B, L, D); y is multiplied by silu(z).
        delta_bias: Added to delta before softplus (D,).
        delta_softplus: Pass delta through softplus.
        initial_state: (S, D, N); zero if absent. S is B, or the number of packed segments.
        return_final_state: Also return the state after the last token.
        reverse: Scan from the last token of each segment to its first.
        cu_seqlens: Packed segments: int32 boundaries (S + 1,), first 0, last L; needs B = 1. Segments may be empty.

    Returns:
        y (B, L, D) in u's dtype; with ``return_final_state`` also the final states (S, D, N).

    Raises:
        ShapeError: A shape, dtype, device or layout does not fit.
        ConfigError: ``SEQKIT_KERNELS`` asks for a provider that cannot run this.

    Reference:
        Gu and Dao, Mamba: Linear-Time Sequence Modeling with Selective State Spaces, 2023, section 3, algorithm 2.
    """
    _check(u_BLD, delta_BLD, A_DN, B, C, D, z, delta_bias, initial_state, cu_seqlens)
    y, final, _ = torch.ops.seqkit.selective_scan_fwd(
        u_BLD,
        delta_BLD,
        A_DN,
        B if B.dim() == 4 else B.unsqueeze(2),
        C if C.dim() == 4 else C.unsqueeze(2),
        D,
        z,
        delta_bias,
        initial_state,
        cu_seqlens,
        delta_softplus,
        reverse,
        dispatch.provider_for("selective_scan", u_BLD, delta_BLD, B, C, z),
    )
    return (y, final) if return_final_state else y


def _check(u, delta, A, B, C, D, z, delta_bias, initial_state, cu_seqlens) -> None:
    check_rank("u", u, 3, "(B, L, D)")
    check_rank("A", A, 2, "(D, N)")
    batch, length, channels = u.shape
    states = A.shape[1]
    if states < 1 or channels < 1:
        raise ShapeError("A", expected="at least one channel and one state", got=str(tuple(A.shape)))
    check_tensor("u", u, (batch, length, channels), "(B, L, D)", u)
    check_tensor("delta", delta, (batch, length, channels), "(B, L, D)", u)
    check_tensor("A", A, (channels, states), "(D, N)", u, wide=True, any_layout=True)
    for name, x in (("B", B), ("C", C)):
        if x.dim() == 3:
            check_tensor(name, x, (batch, length, states), "(B, L, N)", u)
        else:
            check_rank(name, x, 4, "(B, L, G, N)")
            check_groups(name, x.shape[2], channels, "D")
            check_tensor(name, x, (batch, length, x.shape[2], states), "(B, L, G, N)", u)
    if B.shape != C.shape:
        raise ShapeError("C", expected=f"the shape of B, {tuple(B.shape)}", got=str(tuple(C.shape)))
    segments = check_packing(cu_seqlens, u)
    if D is not None:
        check_tensor("D", D, (channels,), "(D,)", u, wide=True, any_layout=True)
    if z is not None:
        check_tensor("z", z, (batch, length, channels), "(B, L, D)", u)
    if delta_bias is not None:
        check_tensor("delta_bias", delta_bias, (channels,), "(D,)", u, wide=True, any_layout=True)
    if initial_state is not None:
        shape = (segments, channels, states)
        check_tensor("initial_state", initial_state, shape, "(S, D, N)", u, wide=True, any_layout=True)


@custom_op("selective_scan_fwd")
def selective_scan_fwd(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    delta_softplus: bool,
    reverse: bool,
    provider: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """(y, final states, boundary states); B and C are (B, L, G, N)."""
    check_boundaries(cu_seqlens, u.shape[1])
    with autocast_off(u):
        return dispatch.implementation("selective_scan", provider).forward(
            u, delta, A, B, C, D, z, delta_bias, initial_state, cu_seqlens, delta_softplus, reverse
        )


@selective_scan_fwd.register_fake
def _(u, delta, A, B, C, D, z, delta_bias, initial_state, cu_seqlens, delta_softplus, reverse, provider):
    batch, length, channels = u.shape
    states, dtype = A.shape[1], accumulate_dtype(u)
    segments = None if cu_seqlens is None else cu_seqlens.shape[0] - 1
    shape = dispatch.implementation("selective_scan", provider).boundary_shape(
        batch, length, channels, states, segments
    )
    final_shape = (batch if segments is None else segments, channels, states)
    return u.new_empty(u.shape), u.new_empty(final_shape, dtype=dtype), u.new_empty(shape, dtype=dtype)


@custom_op("selective_scan_bwd")
def selective_scan_bwd(
    dy: Tensor,
    dfinal: Tensor | None,
    boundary: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    delta_softplus: bool,
    reverse: bool,
    provider: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of u, delta, A, B, C, D, z, delta_bias, initial_state; empty where the operand is absent."""
    operands = (u, delta, A, B, C, D, z, delta_bias, initial_state)
    with autocast_off(u):
        grads = dispatch.implementation("selective_scan", provider).backward(
            dy, dfinal, boundary, *operands, cu_seqlens, delta_softplus, reverse
        )
    return or_empty(grads, u)


@selective_scan_bwd.register_fake
def _(
    dy, dfinal, boundary, u, delta, A, B, C, D, z, delta_bias, initial_state, cu_seqlens, softplus, reverse, provider
):
    operands = (u, delta, A, B, C, D, z, delta_bias, initial_state)
    return or_empty(tuple(None if x is None else x.new_empty(x.shape) for x in operands), u)


def _setup_context(ctx, inputs, output):
    *tensors, ctx.delta_softplus, ctx.reverse, ctx.provider = inputs
    ctx.save_for_backward(output[2], *tensors)
    ctx.set_materialize_grads(False)


def _backward(ctx, dy, dfinal, dboundary):
    boundary, *tensors = ctx.saved_tensors
    u = tensors[0]
    grads = torch.ops.seqkit.selective_scan_bwd(
        u.new_zeros(u.shape) if dy is None else dy,
        dfinal,
        boundary,
        *tensors,
        ctx.delta_softplus,
        ctx.reverse,
        ctx.provider,
    )
    return *or_none(grads, tensors[:9]), None, None, None, None


selective_scan_fwd.register_autograd(_backward, setup_context=_setup_context)
refuse_double_backward(selective_scan_bwd, "selective_scan")
