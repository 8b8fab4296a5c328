"""RMS norms in plain PyTorch, row block by row block: no float32 copy of a whole activation is ever made.

Legend: R rows, D channels, K groups of D / K channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from seqkit.kernels.numbers import accumulate_dtype, silu_and_derivative

BLOCK_ELEMENTS = 1 << 18
BLOCK_ELEMENTS_GPU = 1 << 25


def _blocks(x: torch.Tensor) -> Iterator[tuple[slice, ...]]:
    """Index tuples that cut all dimensions but the last into blocks, without flattening (views stay views)."""
    limit = BLOCK_ELEMENTS_GPU if x.is_cuda else BLOCK_ELEMENTS
    if x.numel() <= limit or x.dim() == 1:
        yield (slice(None),)
        return
    inner = x[0].numel()
    if inner > limit:
        for i in range(x.shape[0]):
            for index in _blocks(x[i]):
                yield (slice(i, i + 1), *index)
        return
    width = limit // max(inner, 1)
    for begin in range(0, x.shape[0], width):
        yield (slice(begin, begin + width),)


def rms_norm_forward(
    x: torch.Tensor, weight: torch.Tensor, residual: torch.Tensor | None, dtype: torch.dtype, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(y in ``dtype``, x + residual in float32, empty without a residual)."""
    wide = accumulate_dtype(x)
    y = x.new_empty(x.shape, dtype=dtype)
    total = x.new_empty(0 if residual is None else x.shape, dtype=wide)
    for at in _blocks(x):
        h = x[at].to(wide)
        if residual is not None:
            h = torch.add(h, residual[at], out=total[at])
        rstd = torch.rsqrt(h.square().mean(-1, keepdim=True) + eps)
        y[at] = h * rstd * weight
    return y, total


def rms_norm_backward(
    dy: torch.Tensor,
    dtotal: torch.Tensor | None,
    x: torch.Tensor,
    total: torch.Tensor,
    weight: torch.Tensor,
    with_residual: bool,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of x, weight, residual (empty without one). With a residual only x's dtype is looked at."""
    dtype = accumulate_dtype(x)
    normed = total if with_residual else x
    dx = x.new_empty(normed.shape)
    dresidual = x.new_empty(total.shape, dtype=dtype)
    dweight = torch.zeros_like(weight, dtype=torch.float64)
    for at in _blocks(normed):
        dh, dweight_part = _norm_gradient(normed[at].to(dtype), dy[at].to(dtype), weight, eps)
        dweight += dweight_part
        if dtotal is not None:
            dh = dh + dtotal[at]
        dx[at] = dh
        if with_residual:
            dresidual[at] = dh
    return dx, dweight.to(weight.dtype), dresidual


def _norm_gradient(
    h: torch.Tensor, dy: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradient of h and of the weight for y = h * rsqrt(mean(h^2) + eps) * weight over the last dimension."""
    rstd = torch.rsqrt(h.square().mean(-1, keepdim=True) + eps)
    normed = h * rstd
    dnormed = dy * weight
    dh = rstd * (dnormed - normed * (dnormed * normed).mean(-1, keepdim=True))
    return dh, (dy * normed).sum_to_size(weight.shape)


def _grouped(x: torch.Tensor, group_size: int) -> torch.Tensor:
    return x.unflatten(-1, (-1, group_size))


def gated_rms_norm_forward(
    x: torch.Tensor, z: torch.Tensor, weight: torch.Tensor, eps: float, group_size: int, norm_before_gate: bool
) -> torch.Tensor:
    """Y in x's dtype."""
    dtype = accumulate_dtype(x)
    y = x.new_empty(x.shape)
    weight_Kd = _grouped(weight, group_size)
    for at in _blocks(x):
        h, gate = x[at].to(dtype), torch.nn.functional.silu(z[at].to(dtype))
        if not norm_before_gate:
            h = h * gate
        h = _grouped(h, group_size)
        h = (h * torch.rsqrt(h.square().mean(-1, keepdim=True) + eps) * weight_Kd).flatten(-2)
        y[at] = h * gate if norm_before_gate else h
    return y


def gated_rms_norm_backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    z: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    group_size: int,
    norm_before_gate: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of x, z, weight."""
    dtype = accumulate_dtype(x)
    dx, dz = x.new_empty(x.shape), z.new_empty(z.shape)
    weight_Kd = _grouped(weight, group_size)
    dweight_Kd = torch.zeros_like(weight_Kd, dtype=torch.float64)
    for at in _blocks(x):
        x_part, dy_part = x[at].to(dtype), dy[at].to(dtype)
        gate, slope = silu_and_derivative(z[at].to(dtype))
        h = _grouped(x_part if norm_before_gate else x_part * gate, group_size)
        dh, dweight_part = _norm_gradient(
            h, _grouped(dy_part * gate if norm_before_gate else dy_part, group_size), weight_Kd, eps
        )
        dh, dweight_Kd = dh.flatten(-2), dweight_Kd + dweight_part
        if norm_before_gate:
            normed = h * torch.rsqrt(h.square().mean(-1, keepdim=True) + eps) * weight_Kd
            dx[at] = dh
            dz[at] = dy_part * normed.flatten(-2) * slope
        else:
            dx[at] = dh * gate
            dz[at] = dh * x_part * slope
    return dx, dz, dweight_Kd.flatten().to(weight.dtype)


def gated_rms_norm_sum_forward(
    xs: Sequence[torch.Tensor], z: torch.Tensor, weights: Sequence[torch.Tensor], eps: float, group_size: int
) -> torch.Tensor:
    """Sum of norm(x silu(z)) weight over one or two x, in their dtype."""
    dtype = accumulate_dtype(z)
    y = xs[0].new_empty(xs[0].shape)
    for at in _blocks(z):
        gate, total = torch.nn.functional.silu(z[at].to(dtype)), 0
        for x, weight in zip(xs, weights, strict=True):
            h = _grouped(x[at].to(dtype) * gate, group_size)
            total = total + h * torch.rsqrt(h.square().mean(-1, keepdim=True) + eps) * _grouped(weight, group_size)
        y[at] = total.flatten(-2)
    return y


def gated_rms_norm_sum_backward(
    dy: torch.Tensor,
    xs: Sequence[torch.Tensor],
    z: torch.Tensor,
    weights: Sequence[torch.Tensor],
    eps: float,
    group_size: int,
    dz: torch.Tensor,
    *,
    keep_sum: bool,
    dxs: Sequence[torch.Tensor] | None = None,
) -> list[torch.Tensor]:
    """Gradients of the weights; those of ``xs`` replace them or go to ``dxs``, that of z goes to ``dz``.

    Args:
        dy: Gradient of the sum; replaced by the sum itself with ``keep_sum``.
        xs: One or two tensors.
        z: Gate.
        weights: (D,) for each x.
        eps: Added to the mean square.
        group_size: Channels normalised together.
        dz: Tensor or slice to write to.
        keep_sum: Whether what the forward pass returned is wanted again.
        dxs: Tensors to write to where ``xs`` are to stay.
    """
    dtype = accumulate_dtype(z)
    grouped = [_grouped(weight, group_size) for weight in weights]
    dweights = [torch.zeros_like(weight, dtype=torch.float64) for weight in grouped]
    for at in _blocks(z):
        gate, slope = silu_and_derivative(z[at].to(dtype))
        dy_part, total, dgate = _grouped(dy[at].to(dtype), group_size), 0, 0
        for x, dx, weight, dweight in zip(xs, dxs or xs, grouped, dweights, strict=True):
            x_part = x[at].to(dtype)
            h = _grouped(x_part * gate, group_size)
            dh, dweight_part = _norm_gradient(h, dy_part, weight, eps)
            dweight += dweight_part
            total = total + h * torch.rsqrt(h.square().mean(-1, keepdim=True) + eps) * weight
            dgate = dgate + dh.flatten(-2) * x_part
            dx[at] = dh.flatten(-2) * gate
        dz[at] = dgate * slope
        if keep_sum:
            dy[at] = total.flatten(-2)
    return [dweight.flatten().to(weight.dtype) for dweight, weight in zip(dweights, weights, strict=True)]
