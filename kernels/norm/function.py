"""Public RMS norms: checks, custom ops for forward and backward, autograd.

Legend: D channels, K groups of D / K channels; leading dimensions are free.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seqkit.errors import ShapeError
from seqkit.kernels import dispatch
from seqkit.kernels.numbers import accumulate_dtype
from seqkit.kernels.registration import autocast_off, custom_op, refuse_double_backward
from seqkit.kernels.validate import check_groups, check_rank, check_tensor


def rms_norm(
    x: Tensor,
    weight: Tensor,
    *,
    residual: Tensor | None = None,
    eps: float = 1e-5,
    dtype: torch.dtype | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Normalise by the root mean square over the last dimension, after adding to a float32 residual stream.

    Args:
        x: (..., D), float32, bfloat16 or float16 (float64 runs in float64).
        weight: (D,), float32.
        residual: Residual stream (..., D), float32; it never drops to x's precision.
        eps: Added to the mean square.
        dtype: Of y; None means x's.

    Returns:
        y (..., D) in ``dtype``; with a residual ``(y, x + residual)``, the latter in float32.

    Raises:
        ShapeError: A shape, dtype, device or layout does not fit.

    Reference:
        Zhang and Sennrich, Root Mean Square Layer Normalization, 2019, section 4.
    """
    _check_rows(x, weight)
    provider = dispatch.provider_for("rms_norm", x)
    if residual is None:
        return torch.ops.seqkit.rms_norm_fwd(x, weight, None, dtype or x.dtype, eps, provider)[0]
    letters = "(..., D)"
    check_tensor("residual", residual, tuple(x.shape), letters, x, wide=True)
    y, total = torch.ops.seqkit.rms_norm_fwd(x, weight, residual, dtype or x.dtype, eps, provider)
    return y, total


def gated_rms_norm(
    x: Tensor,
    z: Tensor,
    weight: Tensor,
    *,
    eps: float = 1e-5,
    group_size: int | None = None,
    norm_before_gate: bool = False,
) -> Tensor:
    """RMS norm with a silu gate: norm(x * silu(z)), or norm(x) * silu(z) with ``norm_before_gate``.

    Args:
        x: (..., D).
        z: Gate (..., D).
        weight: (D,), float32.
        eps: Added to the mean square.
        group_size: Channels normalised together; divides D. None: all.
        norm_before_gate: Gate after the norm instead of before.

    Returns:
        y (..., D) in x's dtype.

    Raises:
        ShapeError: A shape, dtype, device or layout does not fit.

    Reference:
        Dao and Gu, Transformers are SSMs, 2024, section 7.2.
    """
    _check_rows(x, weight)
    check_tensor("z", z, tuple(x.shape), "(..., D)", x)
    size = x.shape[-1] if group_size is None else group_size
    check_groups("group_size", size, x.shape[-1], "D")
    provider = dispatch.provider_for("gated_rms_norm", x, z)
    return torch.ops.seqkit.gated_rms_norm_fwd(x, z, weight, eps, size, norm_before_gate, provider)


def _check_rows(x: Tensor, weight: Tensor) -> None:
    if x.dim() < 1 or x.shape[-1] < 1:
        raise ShapeError("x", expected="at least one dimension of at least one channel", got=str(tuple(x.shape)))
    check_tensor("x", x, tuple(x.shape), "(..., D)", x)
    check_rank("weight", weight, 1, "(D,)")
    check_tensor("weight", weight, (x.shape[-1],), "(D,)", x, wide=True)


@custom_op("rms_norm_fwd")
def rms_norm_fwd(
    x: Tensor, weight: Tensor, residual: Tensor | None, dtype: torch.dtype, eps: float, provider: str
) -> tuple[Tensor, Tensor]:
    """(y, x + residual); the second is empty without a residual."""
    with autocast_off(x):
        return dispatch.implementation("rms_norm", provider).rms_norm_forward(x, weight, residual, dtype, eps)


@rms_norm_fwd.register_fake
def _(x, weight, residual, dtype, eps, provider):
    return x.new_empty(x.shape, dtype=dtype), x.new_empty(0 if residual is None else x.shape, dtype=accumulate_dtype(x))


@custom_op("rms_norm_bwd")
def rms_norm_bwd(
    dy: Tensor,
    dtotal: Tensor | None,
    x: Tensor,
    total: Tensor,
    weight: Tensor,
    with_residual: bool,
    eps: float,
    provider: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight, residual; with a residual x is empty, without one total and the last gradient are."""
    implementation = dispatch.implementation("rms_norm", provider)
    with autocast_off(dy):
        return implementation.rms_norm_backward(dy, dtotal, x, total, weight, with_residual, eps)


@rms_norm_bwd.register_fake
def _(dy, dtotal, x, total, weight, with_residual, eps, provider):
    return x.new_empty(dy.shape), weight.new_empty(weight.shape), total.new_empty(total.shape)


def _setup_rms_norm(ctx, inputs, output):
    x, weight, residual, ctx.dtype, ctx.eps, ctx.provider = inputs
    ctx.residual_dtype = None if residual is None else residual.dtype
    # with a residual the sum alone is needed: x is freed, an empty tensor remembers its dtype
    ctx.save_for_backward(x if residual is None else x.new_empty(0), output[1], weight)
    ctx.set_materialize_grads(False)


def _backward_rms_norm(ctx, dy, dtotal):
    x, total, weight = ctx.saved_tensors
    with_residual = ctx.residual_dtype is not None
    dy = x.new_zeros(total.shape if with_residual else x.shape, dtype=ctx.dtype) if dy is None else dy
    dx, dweight, dresidual = torch.ops.seqkit.rms_norm_bwd(
        dy, dtotal if with_residual else None, x, total, weight, with_residual, ctx.eps, ctx.provider
    )
    dresidual = None if ctx.residual_dtype is None else dresidual.to(ctx.residual_dtype)
    return dx, dweight, dresidual, None, None, None


rms_norm_fwd.register_autograd(_backward_rms_norm, setup_context=_setup_rms_norm)
refuse_double_backward(rms_norm_bwd, "rms_norm")


@custom_op("gated_rms_norm_fwd")
def gated_rms_norm_fwd(
    x: Tensor, z: Tensor, weight: Tensor, eps: float, group_size: int, norm_before_gate: bool, provider: str
) -> Tensor:
    """Y in x's dtype."""
    with autocast_off(x):
        return dispatch.implementation("gated_rms_norm", provider).gated_rms_norm_forward(
            x, z, weight, eps, group_size, norm_before_gate
        )


@gated_rms_norm_fwd.register_fake
def _(x, z, weight, eps, group_size, norm_before_gate, provider):
    return x.new_empty(x.shape)


@custom_op("gated_rms_norm_bwd")
def gated_rms_norm_bwd(
    dy: Tensor,
    x: Tensor,
    z: Tensor,
    weight: Tensor,
    eps: float,
    group_size: int,
    norm_before_gate: bool,
    provider: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, z, weight."""
    with autocast_off(x):
        return dispatch.implementation("gated_rms_norm", provider).gated_rms_norm_backward(
            dy, x, z, weight, eps, group_size, norm_before_gate
        )


@gated_rms_norm_bwd.register_fake
def _(dy, x, z, weight, eps, group_size, norm_before_gate, provider):
    return x.new_empty(x.shape), z.new_empty(z.shape), weight.new_empty(weight.shape)


def _setup_gated(ctx, inputs, output):
    x, z, weight, ctx.eps, ctx.group_size, ctx.norm_before_gate, ctx.provider = inputs
    ctx.save_for_backward(x, z, weight)


def _backward_gated(ctx, dy):
    x, z, weight = ctx.saved_tensors
    grads = torch.ops.seqkit.gated_rms_norm_bwd(
        dy, x, z, weight, ctx.eps, ctx.group_size, ctx.norm_before_gate, ctx.provider
    )
    return *grads, None, None, None, None


gated_rms_norm_fwd.register_autograd(_backward_gated, setup_context=_setup_gated)
refuse_double_backward(gated_rms_norm_bwd, "gated_rms_norm")
