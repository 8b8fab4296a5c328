"""Scalar functions that all Triton kernels share.

Inline assembly stands here and in ``triton_lanes.py``: the interpreter rejects it, so exact functions stand in for it.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra import libdevice

from seqkit.kernels.triton_launch import INTERPRETED

APPROXIMATE = tl.constexpr(not INTERPRETED)
LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
SMALLEST = tl.constexpr(-87.3)  # exp of less is below the normal range


@triton.jit
def exp2(x):
    """2^x to 2 units in the last place; results below the normal range are 0."""
    if APPROXIMATE:
        return tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        return tl.exp2(x)


@triton.jit
def reciprocal(x):
    """1 / x to 1 unit in the last place; 0 for an infinite x."""
    if APPROXIMATE:
        return tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        return 1.0 / x


@triton.jit
def widen(x):
    """``x`` in float32. A pair of bfloat16 numbers takes two instructions: it is one register's two halves."""
    if APPROXIMATE and x.dtype == tl.bfloat16:
        return tl.inline_asm_elementwise(
            "{ shl.b32 $0, $2, 16; and.b32 $1, $2, 0xffff0000; }", "=r,=r,r", [x],
            dtype=tl.float32, is_pure=True, pack=2,
        )  # fmt: skip
    else:
        return x.to(tl.float32)


@triton.jit
def exp_of_negative(x):
    """exp(x) for x <= 0, to a few units in the last place however far from 0."""
    x = tl.maximum(x, SMALLEST)
    high = x * LOG2_E
    e = exp2(high)
    return tl.fma(e, tl.fma(x, LOG2_E, -high) * LN_2, e)


@triton.jit
def softplus(x):
    """log(1 + exp(x)) to a relative 1e-6 over [-20, 50].

    log1p(e) / e on [0, 1] is a polynomial of degree 8, fitted to a relative 3e-8: a small e keeps its bits.
    """
    e = exp_of_negative(-tl.abs(x))
    p = tl.fma(e, 0.005232688, -0.029505214)
    p = tl.fma(p, e, 0.07822591)
    p = tl.fma(p, e, -0.13663243)
    p = tl.fma(p, e, 0.19106005)
    p = tl.fma(p, e, -0.24842982)
    p = tl.fma(p, e, 0.33319098)
    p = tl.fma(p, e, -0.49999493)
    p = tl.fma(p, e, 0.99999994)
    return tl.fma(p, e, tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL))


@triton.jit
def softplus_float64(x):
    """log(1 + exp(x)) of float64 numbers; on a device the bits of PyTorch's."""
    e = tl.minimum(x, 50.0)
    if APPROXIMATE:
        e = libdevice.log1p(libdevice.exp(e))
    else:
        e = tl.log(1.0 + tl.exp(e))
    return tl.where(x > 50.0, x, e)


@triton.jit
def tanh_float64(x):
    """Hyperbolic tangent of float64 numbers; on a device the bits of PyTorch's."""
    if APPROXIMATE:
        return libdevice.tanh(x)
    else:
        return 1.0 - 2.0 / (tl.exp(2.0 * x) + 1.0)


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x)); 0 where exp(-x) overflows."""
    return reciprocal(1.0 + exp2(x * -LOG2_E))


@triton.jit
def cosine(x):
    """cos(x) to an absolute 6e-7 for x in [-pi, pi]."""
    if APPROXIMATE:
        return tl.inline_asm_elementwise(
            "cos.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        return tl.cos(x)


@triton.jit
def sine(x):
    """sin(x) to an absolute 6e-7 for x in [-pi, pi]."""
    if APPROXIMATE:
        return tl.inline_asm_elementwise(
            "sin.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        return tl.sin(x)


@triton.jit
def prefetch(address):
    """Have the lines at these addresses (int64) brought near; nothing waits for them and no register holds them."""
    if APPROXIMATE:
        tl.inline_asm_elementwise(
            "{ prefetch.global.L1 [$1]; mov.b32 $0, 0; }", "=r,l", [address], dtype=tl.int32, is_pure=False, pack=1
        )
