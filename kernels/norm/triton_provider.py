"""RMS norms on Triton: rows in registers, one read and one write of every activation.

A program owns ROWS rows of one group at a time. Backward runs a fixed number of programs per device, each over its
share of the rows; their partial sums of the weight's gradient are added up in the same order every time.

Legend: R rows, D channels, K groups of D / K channels, P programs.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from seqkit.kernels.devices import launch_row
from seqkit.kernels.norm import sum_kernels
from seqkit.kernels.norm.sum_kernels import gated_rms_norm_sum_backward, gated_rms_norm_sum_forward
from seqkit.kernels.triton_compiled import launch_settled
from seqkit.kernels.triton_launch import CompileCase, ceil_div, guard, next_power, resident_programs
from seqkit.kernels.triton_math import sigmoid

__all__ = [
    "compile_cases", "gated_rms_norm_backward", "gated_rms_norm_forward", "gated_rms_norm_sum_backward",
    "gated_rms_norm_sum_forward", "rms_norm_backward", "rms_norm_forward",
]  # fmt: skip

TILE = 4096  # elements of a program's tile, where a row is shorter
REGISTERS, TURNS = 255, 4  # of a thread of the gradient kernel; programs that a multiprocessor runs one after the other
VARYING = ["rows", "per_program"]  # widths are specialised, strides known: rows load 16 bytes at once


@triton.jit
def tile_at(item, groups, size, rows, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """(rows [ROWS], channels [BLOCK], which elements exist) of a work item: all groups of a row block in turn."""
    r = (item // groups) * ROWS + tl.arange(0, ROWS)
    local = tl.arange(0, BLOCK)
    return r, (item % groups) * size + local, (r < rows)[:, None] & (local < size)[None, :]


@triton.jit
def root_mean_square(h, size, eps):
    """1 / sqrt(mean(h^2) + eps) of every row [ROWS, 1]."""
    return 1.0 / tl.sqrt(tl.sum(h * h, 1) / size + eps)[:, None]


@triton.jit(do_not_specialize=VARYING)
def norm_kernel(
    x_ptr, z_ptr, residual_ptr, weight_ptr, y_ptr, total_ptr, rows, channels, size, groups,
    sx: tl.constexpr, sz: tl.constexpr, sr: tl.constexpr, eps,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, GATE_LAST: tl.constexpr,
):  # fmt: skip
    """Y, and x + residual where there is one."""
    r, d, on = tile_at(tl.program_id(0).to(tl.int64), groups, size, rows, ROWS, BLOCK)
    weight = tl.load(weight_ptr + d, mask=d < channels, other=0.0).to(tl.float32)[None, :]
    out = r[:, None] * channels + d[None, :]
    h = tl.load(x_ptr + r[:, None] * sx + d[None, :], mask=on, other=0.0).to(tl.float32)
    if residual_ptr is not None:
        h += tl.load(residual_ptr + r[:, None] * sr + d[None, :], mask=on, other=0.0).to(tl.float32)
        tl.store(total_ptr + out, h, mask=on)
    if z_ptr is not None:
        z = tl.load(z_ptr + r[:, None] * sz + d[None, :], mask=on, other=0.0).to(tl.float32)
        gate = z * sigmoid(z)
        if not GATE_LAST:
            h *= gate
    y = h * root_mean_square(h, size, eps) * weight
    if GATE_LAST:
        y *= gate
    tl.store(y_ptr + out, y.to(y_ptr.dtype.element_ty), mask=on)


@triton.jit(do_not_specialize=VARYING)
def norm_gradient_kernel(
    dy_ptr, dtotal_ptr, x_ptr, z_ptr, weight_ptr, dx_ptr, dz_ptr, dresidual_ptr, dweight_ptr,
    rows, channels, size, groups, per_program, sg: tl.constexpr, st: tl.constexpr, sx: tl.constexpr,
    sz: tl.constexpr, eps,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, GATE_LAST: tl.constexpr,
):  # fmt: skip
    """Gradients of a run of row blocks in one group; the weight's as one partial sum per program."""
    program = tl.program_id(0).to(tl.int64)
    group = program % groups
    dweight = tl.zeros((BLOCK,), tl.float32)
    d = group * size + tl.arange(0, BLOCK)
    weight = tl.load(weight_ptr + d, mask=d < channels, other=0.0).to(tl.float32)[None, :]
    for i in range(per_program):
        item = ((program // groups) * per_program + i) * groups + group
        r, d, on = tile_at(item, groups, size, rows, ROWS, BLOCK)
        x = tl.load(x_ptr + r[:, None] * sx + d[None, :], mask=on, other=0.0).to(tl.float32)
        dy = tl.load(dy_ptr + r[:, None] * sg + d[None, :], mask=on, other=0.0).to(tl.float32)
        out = r[:, None] * channels + d[None, :]
        h, dout = x, dy
        if z_ptr is not None:
            z = tl.load(z_ptr + r[:, None] * sz + d[None, :], mask=on, other=0.0).to(tl.float32)
            s = sigmoid(z)
            gate, slope = z * s, s + z * s * (1.0 - s)
            if GATE_LAST:
                dy *= gate
            else:
                h *= gate
        scale = root_mean_square(h, size, eps)
        normed = h * scale
        dweight += tl.sum(dy * normed, 0)
        dnormed = dy * weight
        dh = scale * (dnormed - normed * (tl.sum(dnormed * normed, 1) / size)[:, None])
        if dtotal_ptr is not None:
            dh += tl.load(dtotal_ptr + r[:, None] * st + d[None, :], mask=on, other=0.0).to(tl.float32)
        if z_ptr is not None:
            if GATE_LAST:
                dz = dout * normed * weight * slope
            else:
                dz = dh * x * slope
                dh *= gate
            tl.store(dz_ptr + out, dz.to(dz_ptr.dtype.element_ty), mask=on)
        if dresidual_ptr is not None:
            tl.store(dresidual_ptr + out, dh, mask=on)
        tl.store(dx_ptr + out, dh.to(dx_ptr.dtype.element_ty), mask=on)
    tl.store(dweight_ptr + (program // groups) * channels + d, dweight, mask=tl.arange(0, BLOCK) < size)


def _rows(x: torch.Tensor | None) -> tuple[torch.Tensor | None, int]:
    """(..., D) as rows, and their stride; a copy only where the leading dimensions do not collapse into one."""
    if x is None:
        return None, 0
    if x.is_contiguous():
        return x, x.shape[-1]
    flat = x.reshape(-1, x.shape[-1])
    flat = flat if flat.stride(-1) == 1 or flat.shape[-1] == 1 else flat.contiguous()
    return flat, flat.stride(0)


def _shape(rows: int, size: int) -> dict[str, int]:
    block = next_power(size)
    rows = max(1, min(TILE // block, next_power(rows)))
    return {"ROWS": rows, "BLOCK": block, "num_warps": min(16, max(4, block * rows // 1024))}


def _normalise(x, z, residual, weight, eps, size, gate_last, dtype=None) -> tuple[torch.Tensor, torch.Tensor]:
    y = torch.empty(x.shape, dtype=dtype or x.dtype, device=x.device)
    total = torch.empty(0 if residual is None else x.shape, dtype=torch.float32, device=x.device)
    if not x.numel():
        return y, total
    D, operands, strides = x.shape[-1], *zip(*map(_rows, (x, z, residual)), strict=True)
    R = x.numel() // D

    def settle():
        shape = _shape(R, size)
        scalars = R, D, size, D // size, *strides, eps
        return ceil_div(R, shape["ROWS"]) * (D // size), scalars, {**shape, "GATE_LAST": gate_last}

    with guard(x):
        launch_settled(norm_kernel, (R, D, size, strides, eps, gate_last), settle, *operands, weight, y, total)
    return y, total


def _differentiate(dy, dtotal, x, z, weight, out_dtype, with_residual, eps, size, gate_last):
    dx = torch.empty(x.shape, dtype=out_dtype, device=x.device)
    dz = None if z is None else torch.empty(z.shape, dtype=z.dtype, device=x.device)
    dresidual = torch.empty(x.shape if with_residual else 0, dtype=torch.float32, device=x.device)
    if not x.numel():
        return dx, dz, dresidual, torch.zeros_like(weight)
    D, operands, strides = x.shape[-1], *zip(*map(_rows, (dy, dtotal, x, z)), strict=True)
    R = x.numel() // D
    shape, groups = _shape(R, size), D // size
    row_blocks = ceil_div(R, shape["ROWS"])
    at_once = launch_row(x).programs_per_multiprocessor(shape["num_warps"], REGISTERS)
    per_program = ceil_div(row_blocks, max(1, resident_programs(x, TURNS * at_once) // groups))
    runs = ceil_div(row_blocks, per_program)
    dweight = torch.empty((runs, D), dtype=torch.float32, device=x.device)

    def settle():
        return runs * groups, (R, D, size, groups, per_program, *strides, eps), {**shape, "GATE_LAST": gate_last}

    results = dx, dz, dresidual if with_residual else None, dweight
    with guard(x):
        key = R, D, size, per_program, strides, eps, gate_last
        launch_settled(norm_gradient_kernel, key, settle, *operands, weight, *results)
    return dx, dz, dresidual, dweight.sum(0).to(weight.dtype, copy=True)


def rms_norm_forward(
    x: torch.Tensor, weight: torch.Tensor, residual: torch.Tensor | None, dtype: torch.dtype, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(y in ``dtype``, x + residual in float32, empty without a residual)."""
    return _normalise(x, None, residual, weight, eps, x.shape[-1], False, dtype)


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
    normed = total if with_residual else x
    dx, _, dresidual, dweight = _differentiate(
        dy, dtotal, normed, None, weight, x.dtype, with_residual, eps, normed.shape[-1], False
    )
    return dx, dweight, dresidual


def gated_rms_norm_forward(
    x: torch.Tensor, z: torch.Tensor, weight: torch.Tensor, eps: float, group_size: int, norm_before_gate: bool
) -> torch.Tensor:
    """Y in x's dtype."""
    return _normalise(x, z, None, weight, eps, group_size, norm_before_gate)[0]


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
    dx, dz, _, dweight = _differentiate(dy, None, x, z, weight, x.dtype, False, eps, group_size, norm_before_gate)
    return dx, dz, dweight


def compile_cases() -> dict[str, CompileCase]:
    """Both kernels with a residual stream, and with a gate, on bfloat16 rows of 1,024 channels; those of sums."""
    types = dict.fromkeys(("x_ptr", "z_ptr", "y_ptr", "dy_ptr", "dx_ptr", "dz_ptr"), "*bf16") | {"eps": "fp32"}
    shape = {"ROWS": 4, "BLOCK": 1024}
    forward = {**shape, "sx": 1024, "sz": 2192, "sr": 1024}
    backward = {**shape, "sx": 1024, "sz": 2192, "sg": 1024, "st": 1024}
    residual = {"GATE_LAST": False, "z_ptr": None}
    gated = {"GATE_LAST": True, "residual_ptr": None, "total_ptr": None}
    return {
        "norm_kernel": CompileCase(norm_kernel, {**forward, **residual}, 4, types),
        "norm_kernel, gated": CompileCase(norm_kernel, {**forward, **gated}, 4, types),
        "norm_gradient_kernel": CompileCase(
            norm_gradient_kernel, {**backward, **residual, "dz_ptr": None}, 4, types | {"x_ptr": "*fp32"}
        ),
        "norm_gradient_kernel, gated": CompileCase(
            norm_gradient_kernel,
            {**backward, "GATE_LAST": True, "dtotal_ptr": None, "dresidual_ptr": None},
            4,
            types,
        ),
        **sum_kernels.compile_cases(),
    }
