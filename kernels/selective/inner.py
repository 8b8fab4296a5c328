"""The inner path of the Mamba-1 block as one op: checks, custom ops for forward and backward, autograd.

Legend: B batch, L length, S segments, D channels of the block, E inner channels, N states, R rank of the time step,
W taps, K slabs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seqkit.errors import ConfigError, ShapeError
from seqkit.kernels import dispatch
from seqkit.kernels.inner_slabs import count_slabs
from seqkit.kernels.registration import autocast_off, custom_op, or_empty, or_none, refuse_double_backward
from seqkit.kernels.selective import inner_slabs
from seqkit.kernels.validate import check_boundaries, check_packing, check_rank, check_tensor


def selective_inner(
    x: Tensor,
    *,
    conv_weight: Tensor,
    x_weight: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    conv_bias: Tensor | None = None,
    in_weight: Tensor | None = None,
    in_bias: Tensor | None = None,
    out_weight: Tensor | None = None,
    out_bias: Tensor | None = None,
    conv_state: Tensor | None = None,
    ssm_state: Tensor | None = None,
    reverse: bool = False,
    cu_seqlens: Tensor | None = None,
    slab: int | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Convolution, projection to time step, B and C, gated scan: what lies inside a Mamba-1 block.

    With ``in_weight`` and ``out_weight`` the whole block. Nothing between x and y is kept for the backward pass but the
    scan's boundary states and the states between slabs: the rest is computed again, slab by slab. Differentiable in
    every tensor, in the states given and those returned; not twice.

    Args:
        x: [u, z] (B, L, 2E), or with ``in_weight`` the block's input (B, L, D).
        conv_weight: Taps (E, W), oldest input first; silu follows.
        x_weight: (R + 2N, E) from the convolved input to low-rank time step, B and C.
        dt_weight: (E, R).
        dt_bias: Added to the time step before softplus (E,).
        A: Decay rates (E, N), <= 0.
        D: Skip weights (E,).
        conv_bias: (E,).
        in_weight: (2E, D).
        in_bias: (2E,).
        out_weight: (D, E).
        out_bias: (D,).
        conv_state: The W - 1 inputs of the convolution before the first (S, W - 1, E); zero if absent.
        ssm_state: (S, E, N); zero if absent. S is B, or the number of packed segments.
        reverse: Scan from the last token of each segment to its first.
        cu_seqlens: Packed segments: int32 boundaries (S + 1,), first 0, last L; needs B = 1. A slab may end anywhere.
        slab: Tokens of each row that a pass takes at a time; None takes all. The states between slabs are kept: B times
            E (N + W - 1) numbers a slab.
        dtype: What the projections compute in; None means x's, the only choice without ``in_weight``.

    Returns:
        y (B, L, E), or (B, L, D) with ``out_weight``; final states of the convolution and of the scan.

    Raises:
        ShapeError: A shape, dtype, device or layout does not fit.
        ConfigError: ``slab`` is below 1, or ``SEQKIT_KERNELS`` asks for a provider that cannot run this.

    Reference:
        Gu and Dao, Mamba: Linear-Time Sequence Modeling with Selective State Spaces, 2023, figure 3 and section 3.3.2.
    """
    if slab is not None and slab < 1:
        raise ConfigError("slab", expected="at least 1, or None", got=str(slab))
    operands = (
        x, in_weight, in_bias, conv_weight, conv_bias, x_weight, dt_weight, dt_bias, A, D, out_weight, out_bias,
        conv_state, ssm_state,
    )  # fmt: skip
    dtype = dtype or x.dtype
    if in_weight is None and dtype != x.dtype:
        raise ShapeError("dtype", expected=f"x's, {x.dtype}, without in_weight", got=str(dtype))
    _check(dict(zip(inner_slabs.OPERANDS, operands, strict=True)), cu_seqlens)
    provider = dispatch.provider_for("selective_scan", A if dtype == torch.float64 else x, in_weight, x_weight)
    slab = 0 if slab is None or slab >= x.shape[1] else slab
    return torch.ops.seqkit.selective_inner_fwd(*operands, cu_seqlens, slab, reverse, dtype, provider)[:3]


def _check(operands: dict[str, Tensor | None], cu_seqlens: Tensor | None) -> None:
    x = operands["x"]
    check_rank("x", x, 3, "(B, L, 2E), or (B, L, D) with in_weight")
    for name in ("conv_weight", "x_weight", "dt_weight", "A"):
        check_rank(name, operands[name], 2, "(a matrix)")
    (E, W), N, R = operands["conv_weight"].shape, operands["A"].shape[1], operands["dt_weight"].shape[1]
    if min(E, W, N, R) < 1:
        raise ShapeError("conv_weight, A, dt_weight", expected="no empty dimension", got=f"E, W, N, R = {E, W, N, R}")
    S, width = check_packing(cu_seqlens, x), x.shape[2]
    D = width if operands["out_weight"] is None else operands["out_weight"].shape[0]
    inner = width if operands["in_weight"] is not None else 2 * E
    check_tensor("x", x, (*x.shape[:2], inner), "(B, L, 2E)", x)
    projections = {
        "in_weight": ((2 * E, width), "(2E, D)"), "in_bias": ((2 * E,), "(2E,)"),
        "conv_weight": ((E, W), "(E, W)"), "conv_bias": ((E,), "(E,)"),
        "x_weight": ((R + 2 * N, E), "(R + 2N, E)"), "dt_weight": ((E, R), "(E, R)"),
        "out_weight": ((D, E), "(D, E)"), "out_bias": ((D,), "(D,)"),
    }  # fmt: skip
    wide = {
        "dt_bias": ((E,), "(E,)"), "A": ((E, N), "(E, N)"), "D": ((E,), "(E,)"),
        "conv_state": ((S, W - 1, E), "(S, W - 1, E)"), "ssm_state": ((S, E, N), "(S, E, N)"),
    }  # fmt: skip
    for name, (shape, letters) in (projections | wide).items():
        if operands[name] is not None:
            check_tensor(name, operands[name], shape, letters, x, wide=name in wide, any_layout=True)


@custom_op("selective_inner_fwd")
def selective_inner_fwd(
    x: Tensor,
    in_weight: Tensor | None,
    in_bias: Tensor | None,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    x_weight: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    out_weight: Tensor | None,
    out_bias: Tensor | None,
    conv_state: Tensor | None,
    ssm_state: Tensor | None,
    cu_seqlens: Tensor | None,
    slab: int,
    reverse: bool,
    dtype: torch.dtype,
    provider: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(y, final states, states between slabs, boundary states of the scan); ``slab`` 0 means one slab."""
    check_boundaries(cu_seqlens, x.shape[1])
    with autocast_off(x):
        return inner_slabs.forward(
            x, in_weight, in_bias, conv_weight, conv_bias, x_weight, dt_weight, dt_bias, A, D, out_weight, out_bias,
            conv_state, ssm_state, cu_seqlens, slab, reverse, dtype, provider,
        )  # fmt: skip


@selective_inner_fwd.register_fake
def _(
    x, in_weight, in_bias, conv_weight, conv_bias, x_weight, dt_weight, dt_bias, A, D, out_weight, out_bias,
    conv_state, ssm_state, cu_seqlens, slab, reverse, dtype, provider,
):  # fmt: skip
    (batch, length, _), (channels, taps), states = x.shape, conv_weight.shape, A.shape[1]
    packed = None if cu_seqlens is None else cu_seqlens.shape[0] - 1
    segments, wide = batch if packed is None else packed, torch.promote_types(dtype, torch.float32)
    kept = inner_slabs.boundary_elements(provider, (batch, length, channels, states), packed, slab)
    between = count_slabs(length, slab) - 1
    width = channels if out_weight is None else out_weight.shape[0]
    conv, ssm = (taps - 1, channels), (channels, states)
    rest = (segments, *conv), (segments, *ssm), (between, batch, *conv), (between, batch, *ssm), (kept,)
    return x.new_empty((batch, length, width), dtype=dtype), *(x.new_empty(shape, dtype=wide) for shape in rest)


@custom_op("selective_inner_bwd")
def selective_inner_bwd(
    dy: Tensor,
    dconv: Tensor | None,
    dssm: Tensor | None,
    conv_starts: Tensor,
    ssm_starts: Tensor,
    boundary: Tensor,
    x: Tensor,
    in_weight: Tensor | None,
    in_bias: Tensor | None,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    x_weight: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    out_weight: Tensor | None,
    out_bias: Tensor | None,
    conv_state: Tensor | None,
    ssm_state: Tensor | None,
    cu_seqlens: Tensor | None,
    slab: int,
    reverse: bool,
    dtype: torch.dtype,
    provider: str,
) -> tuple[
    Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor
]:
    """Gradients of the fourteen operands; empty where one is absent."""
    with autocast_off(x):
        grads = inner_slabs.backward(
            dy, dconv, dssm, conv_starts, ssm_starts, boundary, x, in_weight, in_bias, conv_weight, conv_bias,
            x_weight, dt_weight, dt_bias, A, D, out_weight, out_bias, conv_state, ssm_state, cu_seqlens, slab,
            reverse, dtype, provider,
        )  # fmt: skip
    return or_empty(grads, x)


@selective_inner_bwd.register_fake
def _(dy, dconv, dssm, conv_starts, ssm_starts, boundary, *args):
    operands = args[: len(inner_slabs.OPERANDS)]
    return or_empty(tuple(None if x is None else x.new_empty(x.shape) for x in operands), args[0])


def _setup_context(ctx, inputs, output):
    *tensors, ctx.slab, ctx.reverse, ctx.dtype, ctx.provider = inputs
    ctx.save_for_backward(*output[3:], *tensors)
    ctx.set_materialize_grads(False)
    ctx.shape = output[0].shape


def _backward(ctx, dy, dconv, dssm, *_):
    saved = ctx.saved_tensors  # once: checkpointing computes them anew at every look
    kept, tensors = saved[:3], saved[3:]
    if dy is None:
        dy = tensors[0].new_zeros(ctx.shape, dtype=ctx.dtype)
    grads = torch.ops.seqkit.selective_inner_bwd(
        dy, dconv, dssm, *kept, *tensors, ctx.slab, ctx.reverse, ctx.dtype, ctx.provider
    )
    return *or_none(grads, tensors[:-1]), None, None, None, None, None


selective_inner_fwd.register_autograd(_backward, setup_context=_setup_context)
refuse_double_backward(selective_inner_bwd, "selective_inner")
