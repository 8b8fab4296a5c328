"""Mamba-3 on Triton: what surrounds the scan with scaled keys: a token's own weight (diagonal and skip) and the gate.

Legend: B batch, L length, H heads, P head channels, T tokens per program; PP is P rounded up to a power of two.
"""

from __future__ import annotations

import triton
import triton.language as tl

from seqkit.kernels.triton_math import sigmoid

LENGTH = ["length", "blocks"]


@triton.jit
def place(length, blocks, heads, T: tl.constexpr, PP: tl.constexpr, P: tl.constexpr):
    """(batch row, head, tokens [T], channels [PP], mask [T, PP]) of a program over tokens and heads."""
    program = tl.program_id(0).to(tl.int64)
    h, block = program % heads, program // heads
    row = block // blocks
    t = (block % blocks) * T + tl.arange(0, T)
    p = tl.arange(0, PP)
    return row, h, t, p, (t < length)[:, None] & (p < P)[None, :]


@triton.jit
def channel_tile(ptr, t, stride, p, on):
    """Rows [T, PP] in float32."""
    return tl.load(ptr + t[:, None] * stride + p[None, :], mask=on, other=0.0).to(tl.float32)


@triton.jit
def direct_weight(D_ptr, gap_ptr, dot_ptr, row, h, t, p, length, heads, sgb, sgl, P: tl.constexpr):
    """What x adds to its own y beside the scan with scaled keys: D and the diagonal, [T, PP] or [T, 1]."""
    gap = tl.load(gap_ptr + row * sgb + t * sgl + h, mask=t < length, other=0.0)
    weight = (gap * tl.load(dot_ptr + (row * heads + h) * length + t, mask=t < length, other=0.0))[:, None]
    if D_ptr is not None:
        weight = weight + tl.load(D_ptr + h * P + p, mask=p < P, other=0.0)[None, :]
    return weight


@triton.jit(do_not_specialize=LENGTH)
def gate_kernel(
    scan_ptr, x_ptr, z_ptr, D_ptr, gap_ptr, dot_ptr, y_ptr, length, blocks, heads, sxb, sxl, sxh, szb, szl, szh,
    syb, syl, syh, sgb, sgl, P: tl.constexpr, PP: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """Outputs: those of the scan with scaled keys (B, L, H, P), plus the diagonal and D, gated."""
    row, h, t, p, on = place(length, blocks, heads, T, PP, P)
    y = channel_tile(scan_ptr + (row * length * heads + h) * P, t, heads * P, p, on)
    x = channel_tile(x_ptr + row * sxb + h * sxh, t, sxl, p, on)
    y += direct_weight(D_ptr, gap_ptr, dot_ptr, row, h, t, p, length, heads, sgb, sgl, P) * x
    if z_ptr is not None:
        z = channel_tile(z_ptr + row * szb + h * szh, t, szl, p, on)
        y *= z * sigmoid(z)
    at = y_ptr + row * syb + h * syh + t[:, None] * syl + p[None, :]
    tl.store(at, y.to(y_ptr.dtype.element_ty), mask=on)


@triton.jit(do_not_specialize=LENGTH)
def gate_gradient_kernel(
    scan_ptr, x_ptr, z_ptr, D_ptr, gap_ptr, dot_ptr, dy_ptr, inner_ptr, dz_ptr, ddirect_ptr, dD_ptr,
    length, blocks, heads, sxb, sxl, sxh, szb, szl, szh, syb, syl, syh, sdzb, sdzl, sdzh, sgb, sgl,
    P: tl.constexpr, PP: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """Gradients of y before the gate (B, L, H, P), of z, and of the diagonal's weight (B, H, L).

    That of D is left as one partial sum per program (B blocks, H, P).
    """
    row, h, t, p, on = place(length, blocks, heads, T, PP, P)
    x = channel_tile(x_ptr + row * sxb + h * sxh, t, sxl, p, on)
    dy = channel_tile(dy_ptr + row * syb + h * syh, t, syl, p, on)
    if z_ptr is not None:
        z = channel_tile(z_ptr + row * szb + h * szh, t, szl, p, on)
        y = channel_tile(scan_ptr + (row * length * heads + h) * P, t, heads * P, p, on)
        y += direct_weight(D_ptr, gap_ptr, dot_ptr, row, h, t, p, length, heads, sgb, sgl, P) * x
        gate = sigmoid(z)
        dz_at = dz_ptr + row * sdzb + h * sdzh + t[:, None] * sdzl + p[None, :]
        tl.store(dz_at, (dy * y * (gate + z * gate * (1.0 - gate))).to(dz_ptr.dtype.element_ty), mask=on)
        dy *= z * gate
    inner_at = inner_ptr + (row * length * heads + h) * P + t[:, None] * (heads * P) + p[None, :]
    tl.store(inner_at, dy.to(inner_ptr.dtype.element_ty), mask=on)
    tl.store(ddirect_ptr + (row * heads + h) * length + t, tl.sum(dy * x, 1), mask=t < length)
    if dD_ptr is not None:
        tl.store(dD_ptr + tl.program_id(0).to(tl.int64) * P + p, tl.sum(dy * x, 0), mask=p < P)


@triton.jit(do_not_specialize=LENGTH)
def input_kernel(
    dscan_ptr, inner_ptr, D_ptr, gap_ptr, dot_ptr, dx_ptr, length, blocks, heads, sdxb, sdxl, sdxh, sgb, sgl,
    P: tl.constexpr, PP: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """Gradient of x: through the scan (B, L, H, P), the diagonal and D."""
    row, h, t, p, on = place(length, blocks, heads, T, PP, P)
    inner = channel_tile(inner_ptr + (row * length * heads + h) * P, t, heads * P, p, on)
    dx = channel_tile(dscan_ptr + (row * length * heads + h) * P, t, heads * P, p, on)
    dx += direct_weight(D_ptr, gap_ptr, dot_ptr, row, h, t, p, length, heads, sgb, sgl, P) * inner
    at = dx_ptr + row * sdxb + h * sdxh + t[:, None] * sdxl + p[None, :]
    tl.store(at, dx.to(dx_ptr.dtype.element_ty), mask=on)
