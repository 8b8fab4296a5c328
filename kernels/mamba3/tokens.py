"""Mamba-3 on Triton: numbers per token and head, forward and backward (:mod:`seqkit.kernels.mamba3.steps` says which).

They lie chunk by chunk, (chunk slots, H, Q), in whole chunks: beyond a segment's end there are zeros.

Legend: B batch, L length, S segments, H heads, Q tokens per chunk, K spans.
"""

from __future__ import annotations

import triton
import triton.language as tl

from seqkit.kernels.ssd.tiles import GEOMETRY, NO_DECAY_LEFT, chunk_and_heads
from seqkit.kernels.triton_chunks import locate_positions
from seqkit.kernels.triton_math import LOG2_E, reciprocal, sigmoid, softplus, softplus_float64


@triton.jit
def locate_tokens(
    chunk, q, segment_ptr, table_ptr, length, per_row, segments, SPAN: tl.constexpr, Q: tl.constexpr,
    PACKED: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """(batch row, tokens [Q] of a chunk, how many of the segment are left from its first on, how many came before)."""
    k, c = chunk // (SPAN // Q), chunk % (SPAN // Q)
    _segment, row, begin, tokens, position = locate_positions(
        k, segment_ptr, table_ptr, segments, length, per_row, SPAN, PACKED
    )
    position += c * Q
    t = begin + (tokens - 1 - position - q if REVERSE else position + q)
    return row, t, tokens - position, position


@triton.jit
def decay_rate(A, floor, HEAVY_TAIL: tl.constexpr):
    """Rate and its derivative by A."""
    if HEAVY_TAIL:
        below = reciprocal(1.0 - tl.minimum(A, 0.0))
        rate, slope = tl.where(A >= 0, 1.0 + A, below), tl.where(A >= 0, 1.0, below * below)
    else:
        rate, slope = softplus(A), sigmoid(A)
    return tl.maximum(rate, floor), tl.where(rate > floor, slope, 0.0)


@triton.jit
def raw_steps(ptr, bias, t, stride, on):
    """Step sizes before softplus, float64."""
    return tl.load(ptr + t * stride, mask=on, other=0.0).to(tl.float64) + bias


@triton.jit(do_not_specialize=GEOMETRY)
def step_kernel(
    raw_ptr, A_ptr, trap_ptr, bias_ptr, delta_ptr, scale_ptr, gamma_ptr, sums_ptr, segment_ptr, table_ptr,
    base, length, per_row, segments, heads, srb, srl, sAb, sAl, stb, stl, floor,
    SPAN: tl.constexpr, Q: tl.constexpr, PARTS: tl.constexpr, HEAVY_TAIL: tl.constexpr, PACKED: tl.constexpr,
    REVERSE: tl.constexpr,
):  # fmt: skip
    """Step sizes (float64), weights in the state, in a token's own output, and running sums of log2 decays."""
    chunk, begin, end = chunk_and_heads(heads // PARTS)
    q = tl.arange(0, Q)
    row, t, left, _position = locate_tokens(
        chunk, q, segment_ptr, table_ptr, length, per_row, segments, SPAN, Q, PACKED, REVERSE
    )
    on, followed = q < left, q + 1 < left
    behind = t + (-1 if REVERSE else 1)
    until = q[:, None] >= q[None, :]
    raw_ptr += row * srb
    A_ptr += row * sAb
    trap_ptr += row * stb
    for h in range(begin, end):
        bias = tl.load(bias_ptr + h).to(tl.float64) if bias_ptr is not None else 0.0
        wide = tl.where(on, softplus_float64(raw_steps(raw_ptr + h, bias, t, srl, on)), 0.0)
        delta = wide.to(tl.float32)
        gamma = delta * sigmoid(tl.load(trap_ptr + t * stl + h, mask=on, other=0.0).to(tl.float32))
        following = softplus((raw_steps(raw_ptr + h, bias, behind, srl, followed)).to(tl.float32))
        carried = following * sigmoid(-tl.load(trap_ptr + behind * stl + h, mask=followed, other=0.0).to(tl.float32))
        rate, _slope = decay_rate(tl.load(A_ptr + t * sAl + h, mask=on, other=0.0).to(tl.float32), floor, HEAVY_TAIL)
        kind = sums_ptr.dtype.element_ty
        decay = tl.maximum(delta.to(kind) * rate.to(kind) * -LOG2_E, NO_DECAY_LEFT)
        at = (chunk * (heads // PARTS) + h) * Q + q
        tl.store(delta_ptr + at, wide)
        tl.store(gamma_ptr + at, gamma)
        tl.store(scale_ptr + at, gamma + tl.where(followed, carried, 0.0))
        tl.store(sums_ptr + at, tl.sum(tl.where(until, decay[None, :], 0.0), 1))


@triton.jit(do_not_specialize=GEOMETRY)
def step_gradient_kernel(
    raw_ptr, A_ptr, trap_ptr, bias_ptr, dlog_ptr, through_ptr, dscale_ptr, dgamma_ptr, dangle_ptr, draw_ptr, dA_ptr,
    dtrap_ptr, dbias_ptr, segment_ptr, table_ptr, base, length, per_row, segments, heads, srb, srl, sAb, sAl, stb, stl,
    sdrb, sdrl, sdAb, sdAl, sdtb, sdtl, per_half, floor,
    PARTIAL: tl.constexpr, SPAN: tl.constexpr, Q: tl.constexpr, PARTS: tl.constexpr, HEAVY_TAIL: tl.constexpr,
    PACKED: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """Gradients of dt, A and trap; that of dt's bias as one partial sum per chunk (chunk slots, H).

    Reads, per part of a head, those of the decays' logarithms (to be summed over the later tokens of a chunk), of the
    weights and of step sizes through the angles: what passes the chunk's start in two parts, for halves of the states,
    the last in four, for halves of keys and of queries; if PARTIAL only first halves have angles.
    """
    chunk, begin, end = chunk_and_heads(heads // PARTS)
    q = tl.arange(0, Q)
    row, t, left, position = locate_tokens(
        chunk, q, segment_ptr, table_ptr, length, per_row, segments, SPAN, Q, PACKED, REVERSE
    )
    on, written, later = q < left, q * 0 < left, q[None, :] >= q[:, None]
    follows = written & (q + position > 0)
    for h in range(begin, end):
        bias = tl.load(bias_ptr + h).to(tl.float64) if bias_ptr is not None else 0.0
        dlog = tl.zeros((Q,), dlog_ptr.dtype.element_ty)
        dscale, before, dgamma, dangle = (tl.zeros((Q,), tl.float32),) * 4
        for part in tl.static_range(PARTS):
            head = (chunk * heads + h * PARTS + part) * Q
            dlog += tl.load(dlog_ptr + head + q, mask=written, other=0.0)
            dlog += tl.load(through_ptr + head + q, mask=written, other=0.0)
            dlog += tl.load(through_ptr + per_half + head + q, mask=written, other=0.0)
            dscale += tl.load(dscale_ptr + head + q, mask=written, other=0.0)
            behind = tl.where(q == 0, head - heads * Q + Q - 1, head + q - 1)
            before += tl.load(dscale_ptr + behind, mask=follows, other=0.0)
            dgamma += tl.load(dgamma_ptr + head + q, mask=written, other=0.0)
            for half in tl.static_range(0, 4, 2 if PARTIAL else 1):
                dangle += tl.load(dangle_ptr + half * per_half + head + q, mask=written, other=0.0)
        ddecay = -tl.sum(tl.where(later, dlog[None, :], 0.0), 1).to(tl.float32)
        raw = raw_steps(raw_ptr + row * srb + h, bias, t, srl, on).to(tl.float32)
        delta = softplus(raw)
        trap = tl.load(trap_ptr + row * stb + t * stl + h, mask=on, other=0.0).to(tl.float32)
        share, rest = sigmoid(trap), sigmoid(-trap)
        A = tl.load(A_ptr + row * sAb + t * sAl + h, mask=on, other=0.0).to(tl.float32)
        rate, slope = decay_rate(A, floor, HEAVY_TAIL)
        own = dgamma + dscale
        ddelta = dangle + own * share + before * rest + ddecay * rate
        draw = tl.where(on, ddelta * sigmoid(raw), 0.0)
        dtrap, dA = (own - before) * delta * share * rest, ddecay * delta * slope
        tl.store(draw_ptr + row * sdrb + t * sdrl + h, draw.to(draw_ptr.dtype.element_ty), mask=on)
        tl.store(dA_ptr + row * sdAb + t * sdAl + h, dA.to(dA_ptr.dtype.element_ty), mask=on)
        tl.store(dtrap_ptr + row * sdtb + t * sdtl + h, dtrap.to(dtrap_ptr.dtype.element_ty), mask=on)
        tl.store(dbias_ptr + chunk * (heads // PARTS) + h, tl.sum(draw, 0))
