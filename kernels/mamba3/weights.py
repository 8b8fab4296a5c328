"""Mamba-3 on Triton: gradients of keys and queries before their rotation, of their biases, and of the angles.

To turn all tokens from a place on is to turn the state there back: the gradient of all those angles is, but for a
constant of the segment, the sum over channels of e_a h_b - e_b h_a, for a pair (a, b) of the state h and its gradient e.
It is taken at every chunk's start; sums over tokens never leave a chunk.

Legend: B batch, L length, H heads, P head channels, N states, G groups, M rotated pairs, Q tokens per chunk; see
:mod:`seqkit.kernels.ssd.rotation` for the order of columns.
"""

from __future__ import annotations

import triton
import triton.language as tl

from seqkit.kernels.mamba3.tokens import locate_tokens
from seqkit.kernels.ssd.forward import gated
from seqkit.kernels.ssd.rotation import apart, bias_row, pair_tile, put_pair_tile, together, turns_of
from seqkit.kernels.ssd.tiles import GEOMETRY, decay_of, head_at, matmul, scratch_tile, token_tile
from seqkit.kernels.triton_math import sigmoid

PI = tl.constexpr(3.141592653589793)


@triton.jit
def turn_back(x, cos, sin, PARTIAL: tl.constexpr):
    """Pairs (a, b) of a tile of gradients before rotation, and its columns that stay (if PARTIAL)."""
    rest = x
    if PARTIAL:
        x, rest = apart(x)
    a, b = apart(x)
    return a * cos + b * sin, b * cos - a * sin, rest


@triton.jit
def sums_before(x, earlier, DOT: tl.constexpr):
    """Sums over the tokens before each; of two parts in bfloat16 that add up to 16 bits."""
    high = x.to(DOT)
    sums = matmul(earlier, high, None, DOT)
    if DOT != tl.float32:
        sums = matmul(earlier, x - high.to(tl.float32), sums, DOT)
    return sums


@triton.jit
def turned(state_ptr, adjoint, at, on):
    """Products of an adjoint's rows with those of the state that are their partners, summed over channels."""
    return tl.sum(adjoint.to(tl.float32) * tl.load(state_ptr + at, mask=on, other=0.0).to(tl.float32), 1)


@triton.jit(do_not_specialize=GEOMETRY)
def weight_kernel(
    dy_ptr, x_ptr, B_ptr, C_ptr, z_ptr, B_bias_ptr, C_bias_ptr, angles_ptr, phase_ptr, turn_ptr, direct_ptr, delta_ptr,
    scale_ptr, sums_ptr, behind_ptr, states_ptr, adjoints_ptr, dB_ptr, dC_ptr, dangles_ptr, dbias_ptr, dlog_ptr,
    ddelta_ptr, segment_ptr, table_ptr, base, length, per_row, segments, heads, group, blocks, width,
    sgb, sgl: tl.constexpr, sgh, sxb, sxl: tl.constexpr, sxh, sBb, sBl: tl.constexpr, sBg, sCb, sCl: tl.constexpr, sCg,
    szb, szl: tl.constexpr, szh, sab, sal, sdBk, sdBb, sdBl, sdBg, sdCk, sdCb, sdCl, sdCg, sdak, sdab, sdal,
    M: tl.constexpr, PAIRING: tl.constexpr, PARTIAL: tl.constexpr, P: tl.constexpr, PP: tl.constexpr, N: tl.constexpr,
    NP: tl.constexpr, SPAN: tl.constexpr, Q: tl.constexpr, PARTS: tl.constexpr, DOT: tl.constexpr,
    PACKED: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """Gradients of B, C and the angles of every chunk, summed over a block of heads.

    Leaves those of the biases per chunk and head (chunk slots, H, 2, NP), those of step sizes through the angles, and
    adds to ``dlog`` what passes the chunk's start.
    """
    MP: tl.constexpr = NP // 4 if PARTIAL else NP // 2
    program = tl.program_id(0).to(tl.int64)
    block, g = program % blocks, (program // blocks) % (heads // group)
    slot = program // (blocks * (heads // group))
    chunk = base * (SPAN // Q) + slot
    q, p, n, m = tl.arange(0, Q), tl.arange(0, PP), tl.arange(0, NP), tl.arange(0, MP)
    row, t, left, _position = locate_tokens(
        chunk, q, segment_ptr, table_ptr, length, per_row, segments, SPAN, Q, PACKED, REVERSE
    )
    left = tl.minimum(left, Q).to(tl.int32)
    if left <= 0:
        return
    first = tl.sum(tl.where(q == 0, t, 0), 0)
    segment = tl.load(segment_ptr + chunk // (SPAN // Q)) if PACKED else row
    B_ptr += row * sBb + first * sBl + g * sBg
    C_ptr += row * sCb + first * sCl + g * sCg
    keys = pair_tile(B_ptr, sBl, q, left, 0, MP, N, PAIRING, REVERSE)
    queries = pair_tile(C_ptr, sCl, q, left, 0, MP, N, PAIRING, REVERSE)
    tanh_on = (q < left)[:, None] & (m < M)[None, :]
    tanh = tl.load(angles_ptr + row * sab + t[:, None] * sal + m[None, :], mask=tanh_on, other=0.0).to(tl.float32)
    tanh = 2.0 * sigmoid(2.0 * tanh) - 1.0
    dangles, dBa, dBb = tl.zeros((Q, MP), tl.float32), tl.zeros((Q, MP), tl.float32), tl.zeros((Q, MP), tl.float32)
    dCa, dCb = tl.zeros((Q, MP), tl.float32), tl.zeros((Q, MP), tl.float32)
    if PARTIAL:
        key_rest = pair_tile(B_ptr, sBl, q, left, MP, MP, N, PAIRING, REVERSE)
        query_rest = pair_tile(C_ptr, sCl, q, left, MP, MP, N, PAIRING, REVERSE)
        dB_rest, dC_rest = tl.zeros((Q, 2 * MP), tl.float32), tl.zeros((Q, 2 * MP), tl.float32)
    earlier = (q[:, None] > q[None, :]).to(DOT)
    at, on = scratch_tile(n, p, P, NP)
    partner, _on = scratch_tile(n ^ (2 if PARTIAL else 1), p, P, NP)
    for j in range(tl.minimum(width, group - block * width).to(tl.int32)):
        h = g * group + block * width + j
        x = token_tile(x_ptr + row * sxb + first * sxl + head_at(h, sxh, P, PARTS), sxl, q, left, p, P, REVERSE)
        dy = token_tile(dy_ptr + row * sgb + first * sgl + head_at(h, sgh, P, PARTS), sgl, q, left, p, P, REVERSE)
        if z_ptr is not None:
            z_at = z_ptr + row * szb + first * szl + head_at(h, szh, P, PARTS)
            dy = gated(dy, z_at, szl, q, left, p, P, REVERSE).to(DOT)
        state = tl.load(states_ptr + (slot * heads + h) * (P * NP) + at, mask=on, other=0.0)
        adjoint = tl.load(adjoints_ptr + (slot * heads + h) * (P * NP) + at, mask=on, other=0.0)
        here = chunk * (heads // PARTS) + h // PARTS
        sums, scale = tl.load(sums_ptr + here * Q + q), tl.load(scale_ptr + here * Q + q)
        direct, whole = tl.load(direct_ptr + here * Q + q), tl.load(sums_ptr + here * Q + Q - 1)
        cos, sin = turns_of(phase_ptr, turn_ptr, here, q, m, M)
        B_bias = B_bias_ptr + (h // PARTS) * N if B_bias_ptr is not None else None
        C_bias = C_bias_ptr + (h // PARTS) * N if C_bias_ptr is not None else None
        Ba, Bb = apart(keys.to(tl.float32) + bias_row(B_bias, 0, MP, N, PAIRING)[None, :])
        Ca, Cb = apart(queries.to(tl.float32) + bias_row(C_bias, 0, MP, N, PAIRING)[None, :])
        k = together((Ba * cos - Bb * sin).to(DOT), (Ba * sin + Bb * cos).to(DOT))
        r = together((Ca * cos - Cb * sin).to(DOT), (Ca * sin + Cb * cos).to(DOT))
        if PARTIAL:
            Bs = key_rest.to(tl.float32) + bias_row(B_bias, MP, MP, N, PAIRING)[None, :]
            Cs = query_rest.to(tl.float32) + bias_row(C_bias, MP, MP, N, PAIRING)[None, :]
            k, r = together(k, Bs.to(DOT)), together(r, Cs.to(DOT))
        at_token = (chunk * heads + h) * Q + q
        dlog = tl.load(dlog_ptr + at_token)
        decay = decay_of(whole)
        passing = tl.sum(tl.sum(state.to(tl.float32) * adjoint.to(tl.float32), 1), 0) * decay
        exponent = tl.where(q[None, :] >= q[:, None], sums[None, :] - sums[:, None], float("-inf"))
        weights = tl.where(q[None, :] == q[:, None], direct[:, None], scale[:, None]) * decay_of(exponent)
        dscores = matmul(x, tl.trans(dy), None, DOT) * weights  # rows: earlier tokens
        read = matmul(dy, tl.trans(state), None, DOT) * decay_of(sums)[:, None]
        ra, rb, rest = turn_back(read, cos, sin, PARTIAL)
        through_start = tl.sum(Ca * ra + Cb * rb, 1)
        if PARTIAL:
            through_start += tl.sum(Cs * rest, 1)
        tl.store(dlog_ptr + at_token, dlog + through_start + tl.where(q == Q - 1, passing, 0.0))
        from_here = tl.sum(rb * Ca - ra * Cb, 0)
        pairs = tl.reshape(turned(states_ptr + (slot * heads + h) * (P * NP), adjoint, partner, on), (NP // 2, 2))
        first_rows, second_rows = tl.split(pairs)
        if PARTIAL:
            first_rows, second_rows = tl.split(tl.reshape(first_rows, (MP, 2)))
        from_here += (first_rows - second_rows) * decay
        if behind_ptr is not None:
            behind = (segment * (heads // PARTS) + h // PARTS) * M
            from_here += tl.load(behind_ptr + behind + m, mask=(m < M) & (m * 0 + h % PARTS == 0), other=0.0)
        da, db, rest_C = turn_back(matmul(tl.trans(dscores), k, None, DOT), cos, sin, PARTIAL)
        da, db = da + ra, db + rb
        dCa += da
        dCb += db
        dtheta = db * Ca - da * Cb
        bias_at = dbias_ptr + (chunk * heads + h) * (2 * NP)
        tl.store(bias_at + NP + m, tl.sum(da, 0))
        tl.store(bias_at + NP + MP + m, tl.sum(db, 0))
        if PARTIAL:
            rest_C += rest
            dC_rest += rest_C
            tl.store(bias_at + NP + 2 * MP + tl.arange(0, 2 * MP), tl.sum(rest_C, 0))
        write = matmul(x, tl.trans(adjoint), None, DOT) * (decay_of(whole - sums) * scale)[:, None]
        da, db, rest_B = turn_back(matmul(dscores, r, write, DOT), cos, sin, PARTIAL)
        dBa += da
        dBb += db
        dtheta += db * Ba - da * Bb
        tl.store(bias_at + m, tl.sum(da, 0))
        tl.store(bias_at + MP + m, tl.sum(db, 0))
        if PARTIAL:
            dB_rest += rest_B
            tl.store(bias_at + 2 * MP + tl.arange(0, 2 * MP), tl.sum(rest_B, 0))
        later = (from_here[None, :] - sums_before(dtheta, earlier, DOT)) * PI
        dangles += later * tl.load(delta_ptr + here * Q + q).to(tl.float32)[:, None]
        tl.store(ddelta_ptr + at_token, tl.sum(later * tanh, 1))
    dB_ptr += block * sdBk + row * sdBb + first * sdBl + g * sdBg
    dC_ptr += block * sdCk + row * sdCb + first * sdCl + g * sdCg
    put_pair_tile(dB_ptr, sdBl, q, left, together(dBa, dBb), 0, MP, N, PAIRING, REVERSE)
    put_pair_tile(dC_ptr, sdCl, q, left, together(dCa, dCb), 0, MP, N, PAIRING, REVERSE)
    if PARTIAL:
        put_pair_tile(dB_ptr, sdBl, q, left, dB_rest, MP, MP, N, PAIRING, REVERSE)
        put_pair_tile(dC_ptr, sdCl, q, left, dC_rest, MP, MP, N, PAIRING, REVERSE)
    dangles *= 1.0 - tanh * tanh
    dangles_at = dangles_ptr + (g * blocks + block) * sdak + row * sdab + t[:, None] * sdal + m[None, :]
    tl.store(dangles_at, dangles.to(dangles_ptr.dtype.element_ty), mask=tanh_on)
