"""Both directions of a Mamba-2 block as one op: checks, custom ops for forward and backward, autograd.

Legend: B batch, L length, S segments, D channels of the block, E = H * P inner channels, H heads, P head channels,
N states, G groups, W taps, K slabs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from seqkit.errors import ConfigError
from seqkit.kernels import dispatch
from seqkit.kernels.inner_slabs import count_slabs
from seqkit.kernels.registration import autocast_off, custom_op, or_empty, or_none, refuse_double_backward
from seqkit.kernels.ssd import bidirectional_slabs, inner_slabs
from seqkit.kernels.ssd.bidirectional_slabs import OWN, SHARED
from seqkit.kernels.ssd.function import check_chunk_size
from seqkit.kernels.ssd.inner import check_operands
from seqkit.kernels.validate import check_boundaries

OPERANDS = (*SHARED, *(f"{side}_{name}" for side in ("left", "right") for name in OWN))
OPTIONAL = ("in_bias", "out_bias", "conv_bias", "conv_state", "ssm_state")
STATES = 4  # final states of convolution and scan, left then right
_TENSORS = ", ".join(f"Tensor{'?' * name.endswith(OPTIONAL)} {name}" for name in OPERANDS)
_SETTINGS = (
    "Tensor? cu_seqlens, SymInt slab, bool reverse, ScalarType dtype, str provider, SymInt groups, float eps, "
    "SymInt? chunk_size"
)


class DirectionOperands(NamedTuple):
    """What belongs to one direction; shapes and meaning are those of :func:`seqkit.kernels.ssd_inner`."""

    conv_weight: Tensor
    conv_bias: Tensor | None
    dt_bias: Tensor
    A: Tensor
    D: Tensor
    norm_weight: Tensor
    conv_state: Tensor | None = None
    ssm_state: Tensor | None = None


def ssd_bidirectional(
    x: Tensor,
    left: DirectionOperands,
    right: DirectionOperands,
    *,
    in_weight: Tensor,
    out_weight: Tensor,
    in_bias: Tensor | None = None,
    out_bias: Tensor | None = None,
    groups: int = 1,
    eps: float = 1e-5,
    reverse: bool = False,
    cu_seqlens: Tensor | None = None,
    slab: int | None = None,
    chunk_size: int | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """A Mamba-2 block that reads both ways: two directions between shared projections, summed.

    As :func:`seqkit.kernels.ssd_inner` of ``left`` plus that of ``right`` against it, but each token is projected once.
    Kept for the backward pass are the states between slabs. Differentiable in every tensor, in the states given and
    those returned; not twice.

    Args:
        x: Input (B, L, D).
        left: Direction that reads from the first token to the last.
        right: Direction that reads from the last token to the first.
        in_weight: (2E + 2GN + H, D).
        out_weight: (D, E).
        in_bias: (2E + 2GN + H,).
        out_bias: (D,).
        groups: G, of heads that share B and C, and of channels that are normalised together.
        eps: Added to the mean square inside the norms.
        reverse: Mirror the block: ``left`` then reads from the last token.
        cu_seqlens: Packed segments: int32 boundaries (S + 1,), first 0, last L; needs B = 1.
        slab: Tokens of each row that a pass takes at a time; None takes all. Several slabs need one tensor (B, L, E)
            beside what one slab needs.
        chunk_size: Tokens per chunk of the scan, 1 to 1024; None leaves it to the provider.
        dtype: What the projections compute in; None means x's.

    Returns:
        y (B, L, D); final states of convolution and scan of ``left``, and of ``right``.

    Raises:
        ShapeError: A shape, dtype, device or layout does not fit.
        ConfigError: ``slab`` is below 1, ``chunk_size`` out of range, or ``SEQKIT_KERNELS`` asks for a provider that
            cannot run this.

    Reference:
        Schiff et al. 2024, Caduceus, section 3.1, with the block of Dao and Gu 2024, section 7.
    """
    if slab is not None and slab < 1:
        raise ConfigError("slab", expected="at least 1, or None", got=str(slab))
    check_chunk_size(chunk_size)
    shared, dtype = (x, in_weight, in_bias, out_weight, out_bias), dtype or x.dtype
    for own in (left, right):
        named = dict(zip(SHARED, shared, strict=True)) | own._asdict()
        check_operands({name: named[name] for name in inner_slabs.OPERANDS}, cu_seqlens, groups)
    provider = dispatch.provider_for("ssd_scan", left.A if dtype == torch.float64 else x, in_weight)
    slab = 0 if slab is None or slab >= x.shape[1] else slab
    settings = cu_seqlens, slab, reverse, dtype, provider, groups, float(eps), chunk_size
    y, *states = torch.ops.seqkit.ssd_bidirectional_fwd(*shared, *left, *right, *settings)[: 1 + STATES]
    return y, tuple(states[:2]), tuple(states[2:])


@custom_op(
    "ssd_bidirectional_fwd",
    schema=f"({_TENSORS}, {_SETTINGS}) -> ({', '.join(['Tensor'] * (1 + 2 * STATES))})",
)
def ssd_bidirectional_fwd(*args) -> tuple[Tensor, ...]:
    """(y, final states, states between slabs); ``slab`` 0 means one slab."""
    x = args[0]
    check_boundaries(args[len(OPERANDS)], x.shape[1])
    with autocast_off(x):
        return bidirectional_slabs.forward(*args)


@ssd_bidirectional_fwd.register_fake
def _(*args):
    named, (cu_seqlens, slab, _, dtype, _, groups, _, _) = (
        dict(zip(OPERANDS, args, strict=False)),
        args[len(OPERANDS) :],
    )
    x = named["x"]
    (batch, length, _), between = x.shape, count_slabs(x.shape[1], slab) - 1
    segments, wide = batch if cu_seqlens is None else cu_seqlens.shape[0] - 1, torch.promote_types(dtype, torch.float32)
    final, kept = [], []
    for side in ("left", "right"):
        (mixed, taps), heads = named[f"{side}_conv_weight"].shape, named[f"{side}_A"].shape[0]
        channels = named[f"{side}_norm_weight"].shape[0]
        for shape in ((taps - 1, mixed), (heads, channels // heads, (mixed - channels) // (2 * groups))):
            final.append(x.new_empty((segments, *shape), dtype=wide))
            kept.append(x.new_empty((between, batch, *shape), dtype=wide))
    return x.new_empty((batch, length, named["out_weight"].shape[0]), dtype=dtype), *final, *kept


@custom_op(
    "ssd_bidirectional_bwd",
    schema=f"(Tensor dy, {', '.join(f'Tensor? dstate{i}' for i in range(STATES))}, "
    f"{', '.join(f'Tensor start{i}' for i in range(STATES))}, {_TENSORS}, {_SETTINGS}) -> "
    f"({', '.join(['Tensor'] * len(OPERANDS))})",
)
def ssd_bidirectional_bwd(dy, *args) -> tuple[Tensor, ...]:
    """Gradients of the operands; empty where one is absent."""
    adjoints, kept, args = args[:STATES], args[STATES : 2 * STATES], args[2 * STATES :]
    with autocast_off(args[0]):
        return or_empty(bidirectional_slabs.backward(dy, adjoints, kept, *args), args[0])


@ssd_bidirectional_bwd.register_fake
def _(dy, *args):
    operands = args[2 * STATES : 2 * STATES + len(OPERANDS)]
    return or_empty(tuple(None if x is None else x.new_empty(x.shape) for x in operands), operands[0])


def _setup_context(ctx, inputs, output):
    count = len(OPERANDS) + 1  # and the boundaries of packed segments
    tensors, ctx.settings = inputs[:count], inputs[count:]
    ctx.save_for_backward(*output[1 + STATES :], *tensors)
    ctx.set_materialize_grads(False)
    ctx.shape, ctx.dtype = output[0].shape, output[0].dtype


def _backward(ctx, dy, *dstates):
    saved = ctx.saved_tensors  # once: checkpointing computes them anew at every look
    starts, tensors = saved[:STATES], saved[STATES:]
    if dy is None:
        dy = tensors[0].new_zeros(ctx.shape, dtype=ctx.dtype)
    grads = torch.ops.seqkit.ssd_bidirectional_bwd(dy, *dstates[:STATES], *starts, *tensors, *ctx.settings)
    return *or_none(grads, tensors[:-1]), None, *(None for _ in ctx.settings)


ssd_bidirectional_fwd.register_autograd(_backward, setup_context=_setup_context)
refuse_double_backward(ssd_bidirectional_bwd, "ssd_bidirectional")
