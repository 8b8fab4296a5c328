"""The inner path of the Mamba-2 block as one op: checks, custom ops for forward and backward, autograd.

Legend: B batch, L length, S segments, D channels of the block, E = H * P inner channels, H heads, P head channels,
N states, G groups, W taps, K slabs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seqkit.errors import ConfigError, ShapeError
from seqkit.kernels import dispatch
from seqkit.kernels.inner_slabs import count_slabs
from seqkit.kernels.registration import autocast_off, custom_op, or_empty, or_none, refuse_double_backward
from seqkit.kernels.ssd import inner_slabs
from seqkit.kernels.ssd.function import check_chunk_size
from seqkit.kernels.validate import check_boundaries, check_groups, check_packing, check_rank, check_tensor


def ssd_inner(
    x: Tensor,
    *,
    conv_weight: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    norm_weight: Tensor,
    conv_bias: Tensor | None = None,
    in_weight: Tensor | None = None,
    in_bias: Tensor | None = None,
    out_weight: Tensor | None = None,
    out_bias: Tensor | None = None,
    conv_state: Tensor | None = None,
    ssm_state: Tensor | None = None,
    groups: int = 1,
    eps: float = 1e-5,
    reverse: bool = False,
    cu_seqlens: Tensor | None = None,
    slab: int | None = None,
    chunk_size: int | None = None,
    dtype: torch.dtype | None = None,
    keep: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Convolution, SSD scan, gated norm: what lies inside a Mamba-2 block.

    With ``in_weight`` and ``out_weight`` the whole block. Nothing between x and y is kept for the backward pass but the
    states between slabs: the rest is computed again, slab by slab, unless ``keep`` says otherwise. Differentiable in
    every tensor, in the states given and those returned; not twice.

    Args:
        x: Gate, input of the convolution (x, B and C) and time step (B, L, 2E + 2GN + H), or with ``in_weight`` the
            block's input (B, L, D).
        conv_weight: Taps (E + 2GN, W), oldest input first; silu follows.
        dt_bias: Added to the time step before softplus (H,).
        A: Decay rates (H,), <= 0.
        D: Skip weights (H,).
        norm_weight: Of the RMS norm of y * silu(gate) (E,).
        conv_bias: (E + 2GN,).
        in_weight: (2E + 2GN + H, D).
        in_bias: (2E + 2GN + H,).
        out_weight: (D, E).
        out_bias: (D,).
        conv_state: The W - 1 inputs of the convolution before the first (S, W - 1, E + 2GN); zero if absent.
        ssm_state: (S, H, P, N); zero if absent. S is B, or the number of packed segments.
        groups: G, of heads that share B and C, and of channels that are normalised together.
        eps: Added to the mean square inside the norm.
        reverse: Scan from the last token of each segment to its first.
        cu_seqlens: Packed segments: int32 boundaries (S + 1,), first 0, last L; needs B = 1. A slab may end anywhere.
        slab: Tokens of each row that a pass takes at a time; None takes all. The states between slabs are kept: B times
            E N + (W - 1) (E + 2GN) numbers a slab.
        chunk_size: Tokens per chunk of the scan, 1 to 1024; None leaves it to the provider.
        dtype: What the projections compute in; None means x's, the only choice without ``in_weight``.
        keep: Keep what lies between for the backward pass, which then computes nothing again; takes both projections
            and one slab.

    Returns:
        y (B, L, E), or (B, L, D) with ``out_weight``; final states of the convolution and of the scan.

    Raises:
        ShapeError: A shape, dtype, device or layout does not fit.
        ConfigError: ``slab`` is below 1, ``chunk_size`` out of range, ``keep`` asked of several slabs or without
            projections, or ``SEQKIT_KERNELS`` asks for a provider that cannot run this.

    Reference:
        Dao and Gu, Transformers are SSMs: Generalized Models and Efficient Algorithms Through Structured State Space
        Duality, 2024, section 7, figure 6.
    """
    if slab is not None and slab < 1:
        raise ConfigError("slab", expected="at least 1, or None", got=str(slab))
    check_chunk_size(chunk_size)
    operands = (
        x, in_weight, in_bias, conv_weight, conv_bias, dt_bias, A, D, norm_weight, out_weight, out_bias, conv_state,
        ssm_state,
    )  # fmt: skip
    dtype = dtype or x.dtype
    if in_weight is None and dtype != x.dtype:
        raise ShapeError("dtype", expected=f"x's, {x.dtype}, without in_weight", got=str(dtype))
    check_operands(dict(zip(inner_slabs.OPERANDS, operands, strict=True)), cu_seqlens, groups)
    provider = dispatch.provider_for("ssd_scan", A if dtype == torch.float64 else x, in_weight)
    slab = 0 if slab is None or slab >= x.shape[1] else slab
    if keep and (slab or in_weight is None or out_weight is None):
        raise ConfigError("keep", expected="False, or one slab and both projections", got="True")
    settings = slab, reverse, dtype, provider, groups, float(eps), chunk_size, keep and torch.is_grad_enabled()
    return torch.ops.seqkit.ssd_inner_fwd(*operands, cu_seqlens, *settings)[:3]


def check_operands(operands: dict[str, Tensor | None], cu_seqlens: Tensor | None, groups: int) -> None:
    """Refuse operands, by name, that do not fit together.

    Raises:
        ShapeError: A shape, dtype, device or layout does not fit.
    """
    x = operands["x"]
    check_rank("x", x, 3, "(B, L, 2E + 2GN + H), or (B, L, D) with in_weight")
    check_rank("conv_weight", operands["conv_weight"], 2, "(E + 2GN, W)")
    for name in ("A", "norm_weight"):
        check_rank(name, operands[name], 1, "(a vector)")
    (mixed, W), H, E = operands["conv_weight"].shape, operands["A"].shape[0], operands["norm_weight"].shape[0]
    if min(W, H, E) < 1 or E % H:
        raise ShapeError("norm_weight, A", expected="E a multiple of H, nothing empty", got=f"E, H, W = {E, H, W}")
    check_groups("groups", groups, H, "H")
    if mixed - E < 2 * groups or (mixed - E) % (2 * groups):
        raise ShapeError("conv_weight", expected=f"E + 2GN channels with E, G = {E, groups}", got=str(mixed))
    S, width, N = check_packing(cu_seqlens, x), x.shape[2], (mixed - E) // (2 * groups)
    D = width if operands["out_weight"] is None else operands["out_weight"].shape[0]
    inner = E + mixed + H
    check_tensor("x", x, (*x.shape[:2], width if operands["in_weight"] is not None else inner), "(B, L, ...)", x)
    projections = {
        "in_weight": ((inner, width), "(2E + 2GN + H, D)"), "in_bias": ((inner,), "(2E + 2GN + H,)"),
        "conv_weight": ((mixed, W), "(E + 2GN, W)"), "conv_bias": ((mixed,), "(E + 2GN,)"),
        "out_weight": ((D, E), "(D, E)"), "out_bias": ((D,), "(D,)"),
    }  # fmt: skip
    wide = {
        "dt_bias": ((H,), "(H,)"), "A": ((H,), "(H,)"), "D": ((H,), "(H,)"), "norm_weight": ((E,), "(E,)"),
        "conv_state": ((S, W - 1, mixed), "(S, W - 1, E + 2GN)"), "ssm_state": ((S, H, E // H, N), "(S, H, P, N)"),
    }  # fmt: skip
    for name, (shape, letters) in (projections | wide).items():
        if operands[name] is not None:
            check_tensor(name, operands[name], shape, letters, x, wide=name in wide, any_layout=True)


@custom_op("ssd_inner_fwd")
def ssd_inner_fwd(
    x: Tensor,
    in_weight: Tensor | None,
    in_bias: Tensor | None,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    norm_weight: Tensor,
    out_weight: Tensor | None,
    out_bias: Tensor | None,
    conv_state: Tensor | None,
    ssm_state: Tensor | None,
    cu_seqlens: Tensor | None,
    slab: int,
    reverse: bool,
    dtype: torch.dtype,
    provider: str,
    groups: int,
    eps: float,
    chunk_size: int | None,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(y, final states, states between slabs, what ``keep`` keeps); ``slab`` 0 means one slab."""
    check_boundaries(cu_seqlens, x.shape[1])
    with autocast_off(x):
        return inner_slabs.forward(
            x, in_weight, in_bias, conv_weight, conv_bias, dt_bias, A, D, norm_weight, out_weight, out_bias,
            conv_state, ssm_state, cu_seqlens, slab, reverse, dtype, provider, groups, eps, chunk_size, keep,
        )  # fmt: skip


@ssd_inner_fwd.register_fake
def _(
    x, in_weight, in_bias, conv_weight, conv_bias, dt_bias, A, D, norm_weight, out_weight, out_bias, conv_state,
    ssm_state, cu_seqlens, slab, reverse, dtype, provider, groups, eps, chunk_size, keep,
):  # fmt: skip
    (batch, length, _), (mixed, taps), channels, heads = x.shape, conv_weight.shape, norm_weight.shape[0], A.shape[0]
    segments, wide = batch if cu_seqlens is None else cu_seqlens.shape[0] - 1, torch.promote_types(dtype, torch.float32)
    between = count_slabs(length, slab) - 1
    width = channels if out_weight is None else out_weight.shape[0]
    conv, ssm = (taps - 1, mixed), (heads, channels // heads, (mixed - channels) // (2 * groups))
    rest = (segments, *conv), (segments, *ssm), (between, batch, *conv), (between, batch, *ssm)
    rest = (x.new_empty((batch, length, width), dtype=dtype), *(x.new_empty(shape, dtype=wide) for shape in rest))
    if not keep:
        return *rest, *(x.new_empty(0) for _ in range(inner_slabs.KEPT))
    packed = None if cu_seqlens is None else segments
    boundary = dispatch.implementation("ssd_scan", provider).boundary_shape(batch, length, *ssm, packed, chunk_size)
    wider = channels + mixed + heads, mixed
    inside = (x.new_empty((batch, length, n), dtype=dtype) for n in wider)
    scanned = x.new_empty((batch, length, *ssm[:2]), dtype=dtype)
    return *rest, *inside, scanned, x.new_empty(boundary, dtype=wide)


@custom_op("ssd_inner_bwd")
def ssd_inner_bwd(
    dy: Tensor,
    dconv: Tensor | None,
    dssm: Tensor | None,
    conv_starts: Tensor,
    ssm_starts: Tensor,
    projected: Tensor,
    xbc: Tensor,
    scanned: Tensor,
    boundary: Tensor,
    x: Tensor,
    in_weight: Tensor | None,
    in_bias: Tensor | None,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    norm_weight: Tensor,
    out_weight: Tensor | None,
    out_bias: Tensor | None,
    conv_state: Tensor | None,
    ssm_state: Tensor | None,
    cu_seqlens: Tensor | None,
    slab: int,
    reverse: bool,
    dtype: torch.dtype,
    provider: str,
    groups: int,
    eps: float,
    chunk_size: int | None,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the thirteen operands; empty where one is absent."""
    with autocast_off(x):
        grads = inner_slabs.backward(
            dy, dconv, dssm, conv_starts, ssm_starts, (projected, xbc, scanned, boundary), x, in_weight, in_bias,
            conv_weight, conv_bias, dt_bias, A, D, norm_weight, out_weight, out_bias, conv_state, ssm_state,
            cu_seqlens, slab, reverse, dtype, provider, groups, eps, chunk_size, keep,
        )  # fmt: skip
    return or_empty(grads, x)


@ssd_inner_bwd.register_fake
def _(dy, dconv, dssm, conv_starts, ssm_starts, *args):
    operands = args[inner_slabs.KEPT :][: len(inner_slabs.OPERANDS)]
    return or_empty(tuple(None if x is None else x.new_empty(x.shape) for x in operands), operands[0])


def _setup_context(ctx, inputs, output):
    count = len(inner_slabs.OPERANDS) + 1  # and the boundaries of packed segments
    tensors, ctx.settings = inputs[:count], inputs[count:]
    ctx.save_for_backward(*output[3:], *tensors)
    ctx.set_materialize_grads(False)
    ctx.shape, ctx.dtype = output[0].shape, output[0].dtype


def _backward(ctx, dy, dconv, dssm, *_):
    saved = ctx.saved_tensors  # once: checkpointing computes them anew at every look
    kept, tensors = saved[: 2 + inner_slabs.KEPT], saved[2 + inner_slabs.KEPT :]
    if dy is None:
        dy = tensors[0].new_zeros(ctx.shape, dtype=ctx.dtype)
    grads = torch.ops.seqkit.ssd_inner_bwd(dy, dconv, dssm, *kept, *tensors, *ctx.settings)
    return *or_none(grads, tensors[:-1]), None, *(None for _ in ctx.settings)


ssd_inner_fwd.register_autograd(_backward, setup_context=_setup_context)
refuse_double_backward(ssd_inner_bwd, "ssd_inner")
