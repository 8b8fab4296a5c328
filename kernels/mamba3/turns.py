"""Mamba-3 on Triton: phases of tokens and chunks, and what leaves a segment with its last token.

A phase is a 32-bit integer that wraps by itself (:mod:`seqkit.kernels.mamba3.phase`): sums are exact in any order.

Legend: B batch, L length, S segments, H heads, P head channels, N states, G groups, M rotated pairs, Q tokens per
chunk, K spans; MP, NP and PP are M, N and P rounded up to powers of two.
"""

from __future__ import annotations

import triton
import triton.language as tl

from seqkit.kernels.ssd.rotation import HALVES, RADIANS
from seqkit.kernels.ssd.tiles import GEOMETRY
from seqkit.kernels.triton_chunks import locate_chunk, locate_segment
from seqkit.kernels.triton_launch import INTERPRETED
from seqkit.kernels.triton_math import cosine, sine, tanh_float64

TURN = tl.constexpr(4294967296.0)
ROUND = tl.constexpr(6755399441055744.0)  # 1.5 * 2^52: a sum with it has the nearest integer in its low bits
CHAIN_CHUNKS = 4 if INTERPRETED else 128  # whose phases are added up together
CHAIN_PAIRS = 32  # of a program


@triton.jit
def running_sums(phase):
    """Wrapping sums along the first axis."""
    return tl.cumsum(phase, 0).to(tl.int32)


@triton.jit(do_not_specialize=GEOMETRY)
def phase_kernel(
    angles_ptr, delta_ptr, phase_ptr, totals_ptr, segment_ptr, table_ptr, base, length, per_row, segments, heads,
    sab, sal, M: tl.constexpr, MP: tl.constexpr, SPAN: tl.constexpr, Q: tl.constexpr, PARTS: tl.constexpr,
    PACKED: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """Phases from every chunk's start to its tokens (chunk slots, H, Q, M), and over the chunk (chunk slots, H, M)."""
    chunk = tl.program_id(0).to(tl.int64)
    k, c = chunk // (SPAN // Q), chunk % (SPAN // Q)
    row, first, count = locate_chunk(k, segment_ptr, table_ptr, segments, length, per_row, SPAN, PACKED, REVERSE)
    q, m = tl.arange(0, Q), tl.arange(0, MP)
    t, on = first + (-(c * Q + q) if REVERSE else c * Q + q), (m < M)[None, :]
    angles_at = angles_ptr + row * sab + t[:, None] * sal + m[None, :]
    half = tanh_float64(tl.load(angles_at, mask=(q < count - c * Q)[:, None] & on, other=0.0).to(tl.float64)) * 0.5
    for h in range(heads // PARTS):
        at = (chunk * (heads // PARTS) + h) * Q + q
        turns = (tl.load(delta_ptr + at) * TURN)[:, None] * half + ROUND
        turns = turns.to(tl.int64, bitcast=True).to(tl.int32)
        phase = running_sums(turns)
        total = tl.sum(tl.where((q == Q - 1)[:, None], phase, 0), 0)
        tl.store(totals_ptr + (chunk * (heads // PARTS) + h) * M + m, total, mask=m < M)
        if phase_ptr.dtype.element_ty == tl.int16:
            phase = ((phase + 32768) >> 16).to(tl.int16)
        tl.store(phase_ptr + at[:, None] * M + m[None, :], phase, mask=on)


@triton.jit(do_not_specialize=["per_row", "segments"])
def turn_chain_kernel(
    totals_ptr, entry_ptr, starts_ptr, leaving_ptr, table_ptr, per_row, segments, heads, blocks,
    M: tl.constexpr, BLOCK: tl.constexpr, CHUNKS: tl.constexpr, SPAN: tl.constexpr, Q: tl.constexpr,
    PACKED: tl.constexpr,
):  # fmt: skip
    """Phases in front of all chunks (chunk slots, H, M), and those that leave segments (S, H, M)."""
    program = tl.program_id(0).to(tl.int64)
    segment, h = program // (blocks * heads), (program // blocks) % heads
    first, spans = locate_segment(segment, table_ptr, segments, per_row, SPAN, PACKED)
    first, chunks = first * (SPAN // Q), spans * (SPAN // Q)
    i, m = tl.arange(0, CHUNKS), (program % blocks) * BLOCK + tl.arange(0, BLOCK)
    phase = tl.zeros((BLOCK,), tl.int32)
    if entry_ptr is not None:
        phase += tl.load(entry_ptr + (segment * heads + h) * M + m, mask=m < M, other=0).to(tl.int32)
    for part in range(tl.cdiv(chunks, CHUNKS).to(tl.int32)):
        c = part * CHUNKS + i
        at = ((first + c) * heads + h)[:, None] * M + m[None, :]
        on = (c < chunks)[:, None] & (m < M)[None, :]
        totals = tl.load(totals_ptr + at, mask=on, other=0)
        sums = running_sums(totals)
        tl.store(starts_ptr + at, phase[None, :] + sums - totals, mask=on)
        phase += tl.sum(tl.where((i == CHUNKS - 1)[:, None], sums, 0), 0)
    tl.store(leaving_ptr + (segment * heads + h) * M + m, phase, mask=m < M)


@triton.jit(do_not_specialize=["length", "segments"])
def leave_kernel(
    phase_ptr, states_ptr, B_ptr, bias_ptr, x_ptr, k_ptr, v_ptr, theta_ptr, ssm_ptr, last_k_ptr, last_v_ptr,
    table_ptr, length, segments, heads, group, sBb, sBl, sBg, sxb, sxl, sxh,
    M: tl.constexpr, PAIRING: tl.constexpr, PARTIAL: tl.constexpr, N: tl.constexpr, NP: tl.constexpr, P: tl.constexpr,
    PP: tl.constexpr, PACKED: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """Angles in radians (S, H, M), rotated keys (S, H, N) and inputs (S, H, P) of the last tokens in scan order.

    Keys and inputs of an empty segment are those that enter it. States leave the order of tiles (S, H, P, NP) for their
    own (S, H, P, N).
    """
    program = tl.program_id(0).to(tl.int64)
    segment, h = program // heads, program % heads
    row, begin, tokens = segment, segment * 0, segment * 0 + length
    if PACKED:
        row, begin, tokens = row * 0, tl.load(table_ptr + segment), tl.load(table_ptr + segments + segment)
    last = begin if REVERSE else begin + tl.maximum(tokens, 1) - 1
    n, p = tl.arange(0, NP), tl.arange(0, PP)
    some, none = n * 0 < tokens, n * 0 >= tokens
    if PAIRING == HALVES:
        second = (n >= N // 2).to(tl.int32)
        pair, partner = n - second * (N // 2), n + (1 - 2 * second) * (N // 2)
    else:
        second, pair, partner = n % 2, n // 2, n ^ 1
    turned = (n < N) & (partner < N) & (pair < M)
    phase = tl.load(phase_ptr + program * M + pair, mask=turned, other=0)
    B_ptr += row * sBb + last * sBl + (h // group) * sBg
    here = tl.load(B_ptr + n, mask=some & (n < N), other=0.0).to(tl.float32)
    there = tl.load(B_ptr + partner, mask=some & turned, other=0.0).to(tl.float32)
    if bias_ptr is not None:
        here += tl.load(bias_ptr + h * N + n, mask=n < N, other=0.0)
        there += tl.load(bias_ptr + h * N + partner, mask=turned, other=0.0)
    radians = phase.to(tl.float32) * RADIANS
    k = here * cosine(radians) + tl.where(second == 1, there, -there) * sine(radians)
    x = tl.load(x_ptr + row * sxb + last * sxl + h * sxh + p, mask=(p < P) & (p * 0 < tokens), other=0.0)
    if k_ptr is not None:
        k = tl.where(none, tl.load(k_ptr + program * N + n, mask=none & (n < N), other=0.0), k)
        entering = tl.load(v_ptr + program * P + p, mask=(p < P) & (p * 0 >= tokens), other=0.0)
        x = tl.where(p * 0 < tokens, x.to(tl.float32), entering)
    else:
        k = tl.where(none, 0.0, k)
    tl.store(last_k_ptr + program * N + n, k, mask=n < N)
    tl.store(last_v_ptr + program * P + p, x.to(tl.float32), mask=p < P)
    m = tl.arange(0, NP)
    phase = tl.load(phase_ptr + program * M + m, mask=m < M, other=0)
    tl.store(theta_ptr + program * M + m, phase.to(tl.float64) * RADIANS, mask=m < M)
    column = 4 * (pair % (NP // 4)) + 2 * second + pair // (NP // 4) if PARTIAL else 2 * pair + second
    for i in range(P):
        at = program * P + i
        tl.store(ssm_ptr + at * N + n, tl.load(states_ptr + at * NP + column, mask=n < N), mask=n < N)
