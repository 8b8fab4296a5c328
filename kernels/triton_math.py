"""Scalar functions that all Triton kernels share.

The one file with inline assembly: the interpreter rejects it, so there the exact functions stand in for it.
"""

from __future__ import annotations

import triton
import triton.language as tl

from seqkit.kernels.triton_launch import INTERPRETED

APPROXIMATE = tl.constexpr(not INTERPRETED)
LOG2_E = tl.constexpr(1.4426950408889634)
LOG2_E_LOW = tl.constexpr(1.9259629911266175e-8)  # what float32 drops of LOG2_E
LN_2 = tl.constexpr(0.6931471805599453)


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
def exp_of_negative(x):
    """exp(x) for x <= 0, to a few units in the last place however far from 0."""
    high = x * LOG2_E
    low = tl.fma(x, LOG2_E, -high) + x * LOG2_E_LOW
    return tl.where(high < -126.0, 0.0, exp2(high) * (1.0 + low * LN_2))


@triton.jit
def softplus(x):
    """log(1 + exp(x)) to a relative 1e-6 over [-20, 50].

    log1p(e) = 2 artanh(e / (2 + e)) by its series: e <= 1 keeps the argument below 1/3, and a small e keeps its bits.
    """
    e = exp_of_negative(-tl.abs(x))
    s = e / (2.0 + e)
    q = s * s
    series = 1.0 + q * (
        0.3333333333 + q * (0.2 + q * (0.1428571429 + q * (0.1111111111 + q * (0.0909090909 + q * 0.0769230769))))
    )
    return tl.maximum(x, 0.0) + 2.0 * s * series


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x)), without overflow."""
    e = exp2(-tl.abs(x) * LOG2_E)
    return tl.where(x >= 0, 1.0, e) / (1.0 + e)
