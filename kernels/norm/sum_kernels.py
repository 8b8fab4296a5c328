"""Gated RMS norms of one scan, or of two that share a gate, added up: what stands behind the scans of a Mamba-2 block.

A row is read once, normalised and added up in registers. Backward works in place: gradients take the place of what they
belong to unless that is to stay, the sum that of its own gradient. A fixed number of programs, each over its share of
the rows, leaves one partial sum of the weights' gradients each, added up in the same order every time.

Legend: B batch, T tokens, D channels, K groups of D / K channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from seqkit.kernels.devices import launch_row
from seqkit.kernels.triton_compiled import launch
from seqkit.kernels.triton_launch import (
    CompileCase,
    ceil_div,
    guard,
    next_power,
    resident_programs,
    rows_contiguous,
    token_strides,
)
from seqkit.kernels.triton_math import sigmoid

TILE, GRADIENT_TILE = 1024, 512  # elements of a warp's tile: sums of whole rows then need no barrier
REGISTERS = 255  # of a thread of the gradient kernel
VARYING = ["length", "items", "per_program"]


@triton.jit
def rows_at(item, groups, blocks, size, length, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """(batch row, tokens [ROWS], channels [BLOCK], which elements exist) of a work item."""
    block, group = item // groups, item % groups
    t = (block % blocks) * ROWS + tl.arange(0, ROWS)
    local = tl.arange(0, BLOCK)
    return block // blocks, t, group * size + local, (t < length)[:, None] & (local < size)[None, :]


@triton.jit
def fetch(ptr, row, stride_row, t, stride, d, on):
    """Elements [ROWS, BLOCK] as they lie in memory."""
    return tl.load(ptr + row * stride_row + t[:, None] * stride + d[None, :], mask=on, other=0.0)


@triton.jit
def tile_of(ptr, row, stride_row, t, stride, d, on):
    """The same in float32."""
    return fetch(ptr, row, stride_row, t, stride, d, on).to(tl.float32)


@triton.jit
def put_tile(ptr, row, stride_row, t, stride, d, on, value):
    """Write what :func:`fetch` reads."""
    tl.store(ptr + row * stride_row + t[:, None] * stride + d[None, :], value.to(ptr.dtype.element_ty), mask=on)


@triton.jit
def weights_of(ptr, t, d, on):
    """Weights as a tile [ROWS, BLOCK], which lies in registers as the rows do."""
    return tl.load(ptr + t[:, None] * 0 + d[None, :], mask=on, other=0.0)


@triton.jit
def scale_of(h, size, eps):
    """1 / sqrt(mean(h^2) + eps) of every row [ROWS, 1]."""
    return 1.0 / tl.sqrt(tl.sum(h * h, 1) / size + eps)[:, None]


@triton.jit(do_not_specialize=VARYING)
def norm_sum_kernel(
    x_ptr, other_ptr, z_ptr, weight_ptr, other_weight_ptr, y_ptr,
    length, items, size, groups, blocks, sxb, sxl: tl.constexpr, sob, sol: tl.constexpr,
    szb, szl: tl.constexpr, syb, syl: tl.constexpr, eps,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Y of a block of rows of one group."""
    item = tl.program_id(0).to(tl.int64)
    row, t, d, on = rows_at(item, groups, blocks, size, length, ROWS, BLOCK)
    z = tile_of(z_ptr, row, szb, t, szl, d, on)
    gate = z * sigmoid(z)
    h = tile_of(x_ptr, row, sxb, t, sxl, d, on) * gate
    y = h * scale_of(h, size, eps) * weights_of(weight_ptr, t, d, on)
    if other_ptr is not None:
        h = tile_of(other_ptr, row, sob, t, sol, d, on) * gate
        y += h * scale_of(h, size, eps) * weights_of(other_weight_ptr, t, d, on)
    put_tile(y_ptr, row, syb, t, syl, d, on, y)


@triton.jit
def through_norm(x, dy, gate, weight, size, eps):
    """(gradient of x gate, what x adds to y, term of the weight's gradient) for y = norm(x gate) weight."""
    h = x * gate
    scale = scale_of(h, size, eps)
    normed = h * scale
    dnormed = dy * weight
    dh = scale * (dnormed - normed * (tl.sum(dnormed * normed, 1) / size)[:, None])
    return dh, normed * weight, dy * normed


@triton.jit(do_not_specialize=VARYING)
def norm_sum_gradient_kernel(
    dy_ptr, x_ptr, other_ptr, z_ptr, weight_ptr, other_weight_ptr, y_ptr, dx_ptr, dother_ptr, dz_ptr, dweight_ptr,
    dother_weight_ptr, length, items, channels, size, groups, blocks, per_program,
    sgb, sgl: tl.constexpr, sxb, sxl: tl.constexpr, sob, sol: tl.constexpr, szb, szl: tl.constexpr,
    sdb, sdl: tl.constexpr, eps,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradients of a run of row blocks in one group, and y; those of the weights as one partial sum per program."""
    program = tl.program_id(0).to(tl.int64)
    group = program % groups
    d, on_d = group * size + tl.arange(0, BLOCK), tl.arange(0, BLOCK) < size
    dweight = tl.zeros((ROWS, BLOCK), tl.float32)
    if other_ptr is not None:
        dother_weight = tl.zeros((ROWS, BLOCK), tl.float32)
    begin = (program // groups) * per_program
    row, t, _d, on = rows_at(begin * groups + group, groups, blocks, size, length, ROWS, BLOCK)
    dys, zs = fetch(dy_ptr, row, sgb, t, sgl, d, on), fetch(z_ptr, row, szb, t, szl, d, on)
    xs = fetch(x_ptr, row, sxb, t, sxl, d, on)
    if other_ptr is not None:
        others = fetch(other_ptr, row, sob, t, sol, d, on)
    for i in range(begin, tl.minimum(begin + per_program, items)):
        row, t, _d, on = rows_at(i * groups + group, groups, blocks, size, length, ROWS, BLOCK)
        dy, z, x = dys.to(tl.float32), zs.to(tl.float32), xs.to(tl.float32)
        if other_ptr is not None:
            x2 = others.to(tl.float32)
        # the next rows are on their way while these are worked on: too few warps are resident to hide the wait
        coming = (i + 1) * groups + group
        row2, t2, _d, on2 = rows_at(coming, groups, blocks, size, length, ROWS, BLOCK)
        on2 = on2 & (t2 * 0 + i + 1 < items)[:, None]
        dys, zs = fetch(dy_ptr, row2, sgb, t2, sgl, d, on2), fetch(z_ptr, row2, szb, t2, szl, d, on2)
        xs = fetch(x_ptr, row2, sxb, t2, sxl, d, on2)
        if other_ptr is not None:
            others = fetch(other_ptr, row2, sob, t2, sol, d, on2)
        s = sigmoid(z)
        gate = z * s
        weight = weights_of(weight_ptr, t, d, on)  # from a cache each time: registers are short
        dh, y, term = through_norm(x, dy, gate, weight, size, eps)
        dweight += term
        dgate = dh * x
        put_tile(dx_ptr, row, sxb, t, sxl, d, on, dh * gate)
        if other_ptr is not None:
            weight = weights_of(other_weight_ptr, t, d, on)
            dh, more, term = through_norm(x2, dy, gate, weight, size, eps)
            y += more
            dother_weight += term
            dgate += dh * x2
            put_tile(dother_ptr, row, sob, t, sol, d, on, dh * gate)
        put_tile(dz_ptr, row, sdb, t, sdl, d, on, dgate * (s + gate * (1.0 - s)))
        if y_ptr is not None:
            put_tile(y_ptr, row, sgb, t, sgl, d, on, y)
    at = (program // groups) * channels + d
    tl.store(dweight_ptr + at, tl.sum(dweight, 0), mask=on_d)
    if other_ptr is not None:
        tl.store(dother_weight_ptr + at, tl.sum(dother_weight, 0), mask=on_d)


def _shape(size: int, tile: int) -> dict[str, int]:
    block = next_power(size)
    rows = max(1, tile // block)
    return {"ROWS": rows, "BLOCK": block, "num_warps": max(1, min(16, block * rows // tile))}


def _strides(*tensors: torch.Tensor | None) -> list[int]:
    return [stride for x in tensors for stride in ((0, 0) if x is None else token_strides(x))]


def gated_rms_norm_sum_forward(
    xs: Sequence[torch.Tensor], z: torch.Tensor, weights: Sequence[torch.Tensor], eps: float, group_size: int
) -> torch.Tensor:
    """Sum of norm(x silu(z)) weight over one or two x (B, T, D), in their dtype."""
    (B, T, D), (x, other), (weight, other_weight) = z.shape, (*xs, None)[:2], (*weights, None)[:2]
    y, shape = torch.empty(x.shape, dtype=x.dtype, device=x.device), _shape(group_size, TILE)
    blocks, groups = ceil_div(T, shape["ROWS"]), D // group_size
    if y.numel():
        with guard(x):
            launch(
                norm_sum_kernel, B * blocks * groups,
                x, other, z, weight, other_weight, y, T, B * blocks, group_size, groups, blocks,
                *_strides(x, other, z, y), eps, **shape,
            )  # fmt: skip
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
        dy: Gradient of the sum (B, T, D); replaced by the sum itself with ``keep_sum``.
        xs: One or two (B, T, D).
        z: Gate (B, T, D).
        weights: (D,) float32 for each x.
        eps: Added to the mean square.
        group_size: Channels normalised together.
        dz: Tensor or slice to write to, (B, T, D).
        keep_sum: Whether what the forward pass returned is wanted again.
        dxs: Tensors that lie in memory as ``xs`` do, where these are to stay.
    """
    (B, T, D), (x, other), (weight, other_weight) = z.shape, (*xs, None)[:2], (*weights, None)[:2]
    dy = dy if keep_sum else rows_contiguous(dy)
    if not z.numel():
        return [torch.zeros_like(w) for w in weights]
    shape, groups = _shape(group_size, GRADIENT_TILE), D // group_size
    blocks, (dx, dother) = ceil_div(T, shape["ROWS"]), (*(dxs or xs), None)[:2]
    at_once = launch_row(x).programs_per_multiprocessor(shape["num_warps"], REGISTERS)
    per_program = ceil_div(B * blocks, max(1, resident_programs(x, at_once) // groups))
    runs = ceil_div(B * blocks, per_program)
    partial = torch.empty((len(xs), runs, D), dtype=torch.float32, device=x.device)
    with guard(x):
        launch(
            norm_sum_gradient_kernel, runs * groups,
            dy, x, other, z, weight, other_weight, dy if keep_sum else None, dx, dother, dz, partial[0], partial[-1],
            T, B * blocks, D, group_size, groups, blocks, per_program, *_strides(dy, x, other, z, dz), eps, **shape,
        )  # fmt: skip
    return [part.sum(0).to(w.dtype) for part, w in zip(partial, weights, strict=True)]


def compile_cases() -> dict[str, CompileCase]:
    """Both kernels with two scans of 512 bfloat16 channels, the gate a slice of a wider tensor."""
    types = dict.fromkeys(
        ("x_ptr", "other_ptr", "z_ptr", "y_ptr", "dy_ptr", "dx_ptr", "dother_ptr", "dz_ptr"), "*bf16"
    ) | {"eps": "fp32"}
    rows = {"BLOCK": 512, "sxl": 512, "sol": 512, "szl": 1160}
    forward, backward = {**rows, "syl": 512, "ROWS": 2}, {**rows, "sgl": 512, "sdl": 1160, "ROWS": 1}
    return {
        "norm_sum_kernel": CompileCase(norm_sum_kernel, forward, 1, types),
        "norm_sum_gradient_kernel": CompileCase(norm_sum_gradient_kernel, backward, 1, types),
    }
