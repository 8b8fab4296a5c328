"""Mamba-3 on Triton: angles of short chunks of tokens, rotated keys and queries, and their gradients.

An angle is a 32-bit integer that wraps by itself (:mod:`seqkit.kernels.mamba3.phase`). A program takes T tokens: sums
inside them are exact in any order, and those over chunks are chained on the host.

Legend: B batch, L length, S segments, H heads, N states, G groups, M rotated pairs, T tokens per chunk, K chunks; MP
and NP are M and N rounded up to powers of two.
"""

from __future__ import annotations

import triton
import triton.language as tl

from seqkit.kernels.triton_chunks import locate_chunk

GEOMETRY = ["length", "per_row", "segments"]
TURN = tl.constexpr(4294967296.0)
QUARTER = tl.constexpr(1 << 30)
ROUND = tl.constexpr(6755399441055744.0)  # 1.5 * 2^52: a sum with it has the nearest integer in its low bits
RADIANS = tl.constexpr(1.4629180792671596e-09)  # 2 pi / 2^32
PI = tl.constexpr(3.141592653589793)


@triton.jit
def increments(delta_ptr, tanh_ptr, at, t, count, m, heads, h, M: tl.constexpr):
    """Phases that T tokens add [T, MP], 0 past the end of the segment; delta and half tanh are float64."""
    delta = tl.load(delta_ptr + at * heads + h, mask=t < count, other=0.0)
    half = tl.load(tanh_ptr + at[:, None] * M + m[None, :], mask=(t < count)[:, None] & (m < M)[None, :], other=0.0)
    whole = (delta * TURN)[:, None] * half + ROUND
    return whole.to(tl.int64, bitcast=True).to(tl.int32)


@triton.jit
def sum_turns(phase, axis: tl.constexpr):
    """Wrapping sum of phases."""
    return tl.sum(phase.to(tl.int64), axis).to(tl.int32)


@triton.jit
def cosine_and_sine(phase):
    """Of phases, to a few units of 1e-8: the top bits name the quarter turn exactly, series do the rest."""
    quarter = (phase + QUARTER // 2) >> 30
    r = (phase - (quarter << 30)).to(tl.float32) * RADIANS  # within pi / 4
    s = r * r
    cos = 1.0 + s * (-0.5 + s * (4.1666667e-2 + s * (-1.3888889e-3 + s * (2.4801587e-5 - s * 2.7557319e-7))))
    sin = r * (1.0 + s * (-1.6666667e-1 + s * (8.3333333e-3 + s * (-1.9841270e-4 + s * 2.7557319e-6))))
    odd = (quarter & 1) != 0
    a, b = tl.where(odd, sin, cos), tl.where(odd, cos, sin)
    return tl.where(((quarter + 1) & 2) != 0, -a, a), tl.where((quarter & 2) != 0, -b, b)


@triton.jit
def rotations(start_ptr, delta_ptr, tanh_ptr, at, t, count, m, k, heads, h, M: tl.constexpr):
    """Cosines and sines of the angles of T tokens [T, MP]."""
    turns = increments(delta_ptr, tanh_ptr, at, t, count, m, heads, h, M)
    until = (t[:, None] >= t[None, :])[:, :, None]
    phase = sum_turns(tl.where(until, turns[None, :, :], 0), 1)
    phase += tl.load(start_ptr + (k * heads + h) * M + m, mask=m < M, other=0)[None, :]
    return cosine_and_sine(phase)


@triton.jit
def pair_tiles(ptr, at, t, count, m, M: tl.constexpr, STEP: tl.constexpr, OFFSET: tl.constexpr):
    """First and second members of the rotated pairs of T rows [T, MP] in float32; ``at`` says where rows begin."""
    on = (t < count)[:, None] & (m < M)[None, :]
    a_at = ptr + at[:, None] + m[None, :] * STEP
    return (
        tl.load(a_at, mask=on, other=0.0).to(tl.float32),
        tl.load(a_at + OFFSET, mask=on, other=0.0).to(tl.float32),
    )


@triton.jit
def put_pair_tiles(ptr, at, t, count, m, a, b, M: tl.constexpr, STEP: tl.constexpr, OFFSET: tl.constexpr):
    """Write what :func:`pair_tiles` reads."""
    on = (t < count)[:, None] & (m < M)[None, :]
    a_at = ptr + at[:, None] + m[None, :] * STEP
    tl.store(a_at, a.to(ptr.dtype.element_ty), mask=on)
    tl.store(a_at + OFFSET, b.to(ptr.dtype.element_ty), mask=on)


@triton.jit
def is_still(n, M: tl.constexpr, N: tl.constexpr, OFFSET: tl.constexpr):
    """Which states are members of no pair."""
    if OFFSET == 1:
        return (n >= 2 * M) & (n < N)
    else:
        return ((n >= M) & (n < OFFSET)) | ((n >= OFFSET + M) & (n < N))


@triton.jit
def still_tile(ptr, at, t, count, n, still):
    """States that do not rotate of T rows [T, NP] in float32, 0 elsewhere."""
    on = (t < count)[:, None] & still[None, :]
    return tl.load(ptr + at[:, None] + n[None, :], mask=on, other=0.0).to(tl.float32)


@triton.jit
def put_still_tile(ptr, at, t, count, n, still, value):
    """Write what :func:`still_tile` reads."""
    on = (t < count)[:, None] & still[None, :]
    tl.store(ptr + at[:, None] + n[None, :], value.to(ptr.dtype.element_ty), mask=on)


@triton.jit(do_not_specialize=GEOMETRY)
def turn_kernel(
    delta_ptr, tanh_ptr, totals_ptr, segment_ptr, table_ptr, length, per_row, segments, heads,
    M: tl.constexpr, MP: tl.constexpr, T: tl.constexpr, PACKED: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """Phase that every chunk adds (K, H, M)."""
    k, h = tl.program_id(0).to(tl.int64) // heads, tl.program_id(0).to(tl.int64) % heads
    row, first, count = locate_chunk(k, segment_ptr, table_ptr, segments, length, per_row, T, PACKED, REVERSE)
    t, m = tl.arange(0, T), tl.arange(0, MP)
    origin = row * length + first
    at = -t if REVERSE else t
    turns = increments(delta_ptr + origin * heads, tanh_ptr + origin * M, at, t, count, m, heads, h, M)
    tl.store(totals_ptr + (k * heads + h) * M + m, sum_turns(turns, 0), mask=m < M)


@triton.jit
def rotate_pairs(
    weight_ptr, bias_ptr, out_ptr, at, out_at, t, count, m, n, still, h, cos, sin,
    M: tl.constexpr, N: tl.constexpr, STEP: tl.constexpr, OFFSET: tl.constexpr,
):  # fmt: skip
    """Add the bias, rotate and write T rows of one head; returns the rotated pairs and the states that stay."""
    a, b = pair_tiles(weight_ptr, at, t, count, m, M, STEP, OFFSET)
    rest = still_tile(weight_ptr, at, t, count, n, still)
    if bias_ptr is not None:
        bias_at = bias_ptr + h * N
        a += tl.load(bias_at + m * STEP, mask=m < M, other=0.0)[None, :]
        b += tl.load(bias_at + m * STEP + OFFSET, mask=m < M, other=0.0)[None, :]
        rest += tl.load(bias_at + n, mask=still, other=0.0)[None, :]
    # rounded here, so that the diagonal takes back exactly what the scan adds
    kind = out_ptr.dtype.element_ty
    turned_a, turned_b = (a * cos - b * sin).to(kind), (a * sin + b * cos).to(kind)
    rest = rest.to(kind)
    put_pair_tiles(out_ptr, out_at, t, count, m, turned_a, turned_b, M, STEP, OFFSET)
    put_still_tile(out_ptr, out_at, t, count, n, still, rest)
    return turned_a.to(tl.float32), turned_b.to(tl.float32), rest.to(tl.float32)


@triton.jit(do_not_specialize=GEOMETRY)
def rotate_kernel(
    B_ptr, C_ptr, B_bias_ptr, C_bias_ptr, delta_ptr, tanh_ptr, start_ptr, k_ptr, q_ptr, dot_ptr,
    segment_ptr, table_ptr, length, per_row, segments, heads, group, sBb, sBl, sBg, sCb, sCl, sCg,
    M: tl.constexpr, MP: tl.constexpr, N: tl.constexpr, NP: tl.constexpr, T: tl.constexpr, STEP: tl.constexpr,
    OFFSET: tl.constexpr, PACKED: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """Rotated keys and queries (B, L, H, N) and their products k q (B, H, L)."""
    k, h = tl.program_id(0).to(tl.int64) // heads, tl.program_id(0).to(tl.int64) % heads
    row, first, count = locate_chunk(k, segment_ptr, table_ptr, segments, length, per_row, T, PACKED, REVERSE)
    t, m, n = tl.arange(0, T), tl.arange(0, MP), tl.arange(0, NP)
    origin = row * length + first  # offsets from here on are small: 32 bits hold them
    at = -t if REVERSE else t
    cos, sin = rotations(
        start_ptr, delta_ptr + origin * heads, tanh_ptr + origin * M, at, t, count, m, k, heads, h, M
    )  # fmt: skip
    still = is_still(n, M, N, OFFSET)
    out_at = at * (heads * N)
    k_ptr += (origin * heads + h) * N
    q_ptr += (origin * heads + h) * N
    B_ptr += row * sBb + first * sBl + (h // group) * sBg
    C_ptr += row * sCb + first * sCl + (h // group) * sCg
    ka, kb, kr = rotate_pairs(
        B_ptr, B_bias_ptr, k_ptr, at * sBl, out_at, t, count, m, n, still, h,
        cos, sin, M, N, STEP, OFFSET,
    )  # fmt: skip
    qa, qb, qr = rotate_pairs(
        C_ptr, C_bias_ptr, q_ptr, at * sCl, out_at, t, count, m, n, still, h,
        cos, sin, M, N, STEP, OFFSET,
    )  # fmt: skip
    dot = tl.sum(ka * qa + kb * qb, 1) + tl.sum(kr * qr, 1)
    tl.store(dot_ptr + (row * heads + h) * length + first + at, dot, mask=t < count)


@triton.jit
def turn_back(
    grad_ptr, other_ptr, own_ptr, at, t, count, m, n, still, extra, cos, sin,
    M: tl.constexpr, N: tl.constexpr, STEP: tl.constexpr, OFFSET: tl.constexpr,
):  # fmt: skip
    """Gradients before rotation of T rows of one head (pairs, states that stay), and that of their angles.

    ``extra`` times the rotated ``other`` joins the gradient of the rotated ``own``: what the diagonal adds.
    """
    a, b = pair_tiles(grad_ptr, at, t, count, m, M, STEP, OFFSET)
    other_a, other_b = pair_tiles(other_ptr, at, t, count, m, M, STEP, OFFSET)
    own_a, own_b = pair_tiles(own_ptr, at, t, count, m, M, STEP, OFFSET)
    a += extra[:, None] * other_a
    b += extra[:, None] * other_b
    rest = still_tile(grad_ptr, at, t, count, n, still)
    rest += extra[:, None] * still_tile(other_ptr, at, t, count, n, still)
    return a * cos + b * sin, b * cos - a * sin, rest, b * own_a - a * own_b


@triton.jit(do_not_specialize=GEOMETRY)
def unrotate_kernel(
    k_ptr, q_ptr, dk_ptr, dq_ptr, ddot_ptr, delta_ptr, tanh_ptr, start_ptr, dtheta_ptr, totals_ptr,
    segment_ptr, table_ptr, length, per_row, segments, heads,
    M: tl.constexpr, MP: tl.constexpr, N: tl.constexpr, NP: tl.constexpr, T: tl.constexpr, STEP: tl.constexpr,
    OFFSET: tl.constexpr, PACKED: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """Gradients of keys and queries before rotation, in their place, of the angles (B, L, H, M), and (K, H, M) sums."""
    k, h = tl.program_id(0).to(tl.int64) // heads, tl.program_id(0).to(tl.int64) % heads
    row, first, count = locate_chunk(k, segment_ptr, table_ptr, segments, length, per_row, T, PACKED, REVERSE)
    if count <= 0:
        return
    t, m, n = tl.arange(0, T), tl.arange(0, MP), tl.arange(0, NP)
    origin = row * length + first
    token = -t if REVERSE else t
    still = is_still(n, M, N, OFFSET)
    at, of_head = token * (heads * N), (origin * heads + h) * N
    cos, sin = rotations(
        start_ptr, delta_ptr + origin * heads, tanh_ptr + origin * M, token, t, count, m, k, heads, h, M
    )  # fmt: skip
    extra = tl.load(ddot_ptr + (row * heads + h) * length + first + token, mask=t < count, other=0.0)
    k_ptr += of_head
    q_ptr += of_head
    ka, kb, kr, turned = turn_back(
        dk_ptr + of_head, q_ptr, k_ptr, at, t, count, m, n, still, extra, cos, sin, M, N, STEP, OFFSET
    )  # fmt: skip
    qa, qb, qr, turned_q = turn_back(
        dq_ptr + of_head, k_ptr, q_ptr, at, t, count, m, n, still, extra, cos, sin, M, N, STEP, OFFSET
    )  # fmt: skip
    turned += turned_q
    on = (t < count)[:, None] & (m < M)[None, :]
    dtheta_ptr += (origin * heads + h) * M
    tl.store(dtheta_ptr + (token * heads * M)[:, None] + m[None, :], turned, mask=on)
    tl.store(totals_ptr + (k * heads + h) * M + m, tl.sum(turned, 0), mask=m < M)
    tl.debug_barrier()  # every thread has read what is now overwritten
    put_pair_tiles(k_ptr, at, t, count, m, ka, kb, M, STEP, OFFSET)
    put_still_tile(k_ptr, at, t, count, n, still, kr)
    put_pair_tiles(q_ptr, at, t, count, m, qa, qb, M, STEP, OFFSET)
    put_still_tile(q_ptr, at, t, count, n, still, qr)


@triton.jit(do_not_specialize=GEOMETRY)
def angle_kernel(
    dtheta_ptr, later_ptr, delta_ptr, tanh_ptr, dangles_ptr, ddelta_ptr, segment_ptr, table_ptr,
    length, per_row, segments, heads, sab, sal,
    M: tl.constexpr, MP: tl.constexpr, T: tl.constexpr, PACKED: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """Gradients of angles, and of step sizes through them (B, H, L), from those of all later angles (K, H, M)."""
    k = tl.program_id(0).to(tl.int64)
    row, first, count = locate_chunk(k, segment_ptr, table_ptr, segments, length, per_row, T, PACKED, REVERSE)
    if count <= 0:
        return
    t, m = tl.arange(0, T), tl.arange(0, MP)
    token = first + (-t if REVERSE else t)
    at, on = row * length + token, (t < count)[:, None] & (m < M)[None, :]
    tanh = tl.load(tanh_ptr + at[:, None] * M + m[None, :], mask=on, other=0.0).to(tl.float32) * 2.0
    from_here = (t[:, None] <= t[None, :])[:, :, None]
    dangles = tl.zeros((T, MP), tl.float32)
    for h in range(heads):
        dtheta = tl.load(dtheta_ptr + (at * heads + h)[:, None] * M + m[None, :], mask=on, other=0.0)
        later = tl.sum(tl.where(from_here, dtheta[None, :, :], 0.0), 1)
        later += tl.load(later_ptr + (k * heads + h) * M + m, mask=m < M, other=0.0)[None, :]
        later *= PI
        delta = tl.load(delta_ptr + at * heads + h, mask=t < count, other=0.0).to(tl.float32)
        dangles += later * delta[:, None]
        tl.store(ddelta_ptr + (row * heads + h) * length + token, tl.sum(later * tanh, 1), mask=t < count)
    dangles *= 1.0 - tanh * tanh
    at_out = dangles_ptr + row * sab + token[:, None] * sal + m[None, :]
    tl.store(at_out, dangles.to(dangles_ptr.dtype.element_ty), mask=on)
