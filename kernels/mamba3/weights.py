"""Mamba-3 on Triton: gradients of keys and queries before their rotation, of their biases, and of the angles.

Keys take D Q + w x e^T, queries D^T K + w dy h^T: D is what scores of a chunk's tokens get, h the state at its start, e
the adjoint at its end. Both are linear in all they read, so that a program takes one of them, and half of its columns:
that is what registers hold.

To turn all tokens from a place on is to turn the state there back: the gradient of all those angles is, but for a
constant of the segment, the sum over channels of e_a h_b - e_b h_a, for a pair (a, b) of the state h and its gradient
e. It is taken at every chunk's start; sums over tokens never leave a chunk.

Legend: B batch, L length, H heads, P head channels, N states, G groups, M rotated pairs, Q tokens per chunk; see
:mod:`seqkit.kernels.ssd.rotation` for the order of columns.
"""

from __future__ import annotations

import triton
import triton.language as tl

from seqkit.kernels.mamba3.tokens import locate_tokens
from seqkit.kernels.ssd.rotation import apart, bias_row, pair_tile, put_pair_tile, together, turns_of
from seqkit.kernels.ssd.tiles import GEOMETRY, decay_of, head_at, matmul, near_rows, token_tile
from seqkit.kernels.triton_math import sigmoid

PI = tl.constexpr(3.141592653589793)


@triton.jit
def half_of_state(j, p, half: tl.constexpr, P: tl.constexpr, NP: tl.constexpr, PARTIAL: tl.constexpr):
    """Offsets and mask [NP / 2, PP] of the rows of a state (NP, P) in the order of tiles that a half's columns meet."""
    rows = 2 * j + half if PARTIAL else half * (NP // 2) + j
    return rows[:, None] * P + p[None, :], (p < P)[None, :] & (j >= 0)[:, None]


@triton.jit
def half_gradients(
    v_ptr, own_ptr, other_ptr, own_bias_ptr, other_bias_ptr, angles_ptr, phase_ptr, turn_ptr, delta_ptr,
    scale_ptr, sums_ptr, behind_ptr, states_ptr, adjoints_ptr, dscores_ptr, dout_ptr, dangles_ptr, dbias_ptr,
    through_ptr, ddelta_ptr, chunk, slot, t, left, segment, first_head, last_head, heads,
    svl: tl.constexpr, svh, swl: tl.constexpr, sol: tl.constexpr, sal, sdl, sdal,
    M: tl.constexpr, PAIRING: tl.constexpr, PARTIAL: tl.constexpr, P: tl.constexpr, PP: tl.constexpr, N: tl.constexpr,
    NP: tl.constexpr, Q: tl.constexpr, PARTS: tl.constexpr, DOT: tl.constexpr, REVERSE: tl.constexpr,
    KEYS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """Work of one program on half of the columns; pointers stand at the chunk."""
    PAIRS: tl.constexpr = NP // 4
    FROM: tl.constexpr = HALF * PAIRS
    TURNS: tl.constexpr = HALF == 0 or not PARTIAL
    q, p, j, m = tl.arange(0, Q), tl.arange(0, PP), tl.arange(0, NP // 2), FROM + tl.arange(0, PAIRS)
    at, on = half_of_state(j, p, HALF, P, NP, PARTIAL)
    partner, _on = half_of_state(j ^ 1, p, HALF, P, NP, PARTIAL)
    near_q, near_states = tl.minimum(q, left - 1), 2 * j + HALF if PARTIAL else HALF * (NP // 2) + j
    total = tl.zeros((Q, NP // 2), tl.float32)
    if TURNS:
        angle_on = (q < left)[:, None] & (m < M)[None, :]
        tanh = tl.load(angles_ptr + t[:, None] * sal + m[None, :], mask=angle_on, other=0.0).to(tl.float32)
        tanh = 2.0 * sigmoid(2.0 * tanh) - 1.0
        dangles = tl.zeros((Q, PAIRS), tl.float32)
    for h in range(first_head, last_head):
        here = chunk * (heads // PARTS) + h // PARTS
        next_h = tl.minimum(h + 1, last_head - 1)
        near_rows(v_ptr + head_at(next_h, svh, P, PARTS), svl, -near_q if REVERSE else near_q, PP)
        near_rows(dscores_ptr + (slot * heads + next_h) * (Q * Q), Q, q, Q)
        near_rows((adjoints_ptr if KEYS else states_ptr) + (slot * heads + next_h) * (P * NP), P, near_states, PP)
        if not KEYS:
            near_rows(adjoints_ptr + (slot * heads + next_h) * (P * NP), P, near_states, PP)
        v = token_tile(v_ptr + head_at(h, svh, P, PARTS), svl, q, left, p, P, REVERSE)
        sums, whole = tl.load(sums_ptr + here * Q + q), tl.load(sums_ptr + here * Q + Q - 1)
        dscores = tl.load(dscores_ptr + (slot * heads + h) * (Q * Q) + q[:, None] * Q + q[None, :])
        other = pair_tile(other_ptr, sol, q, left, FROM, PAIRS, N, PAIRING, REVERSE).to(tl.float32)
        if other_bias_ptr is not None:
            other += bias_row(other_bias_ptr + (h // PARTS) * N, FROM, PAIRS, N, PAIRING)[None, :]
        if TURNS:
            cos, sin = turns_of(phase_ptr, turn_ptr, here, q, m, M)
            a, b = apart(other)
            other = together((a * cos - b * sin).to(DOT), (a * sin + b * cos).to(DOT))
        border = tl.load(
            (adjoints_ptr if KEYS else states_ptr) + (slot * heads + h) * (P * NP) + at, mask=on, other=0.0
        )
        if KEYS:
            weight = decay_of(whole - sums) * tl.load(scale_ptr + here * Q + q)
        else:
            dscores, weight = tl.trans(dscores), decay_of(sums)
        if TURNS or not KEYS:
            own = pair_tile(own_ptr, swl, q, left, FROM, PAIRS, N, PAIRING, REVERSE).to(tl.float32)
            if own_bias_ptr is not None:
                own += bias_row(own_bias_ptr + (h // PARTS) * N, FROM, PAIRS, N, PAIRING)[None, :]
        if TURNS:
            own_a, own_b = apart(own)
        at_token = (chunk * heads + h) * Q + q
        if not KEYS:
            adjoint_at = adjoints_ptr + (slot * heads + h) * (P * NP)
            passing = tl.load(adjoint_at + at, mask=on, other=0.0).to(tl.float32) * border.to(tl.float32)
            passing = tl.sum(tl.sum(passing, 1), 0) * decay_of(whole)
            if TURNS:
                turned = tl.load(adjoint_at + partner, mask=on, other=0.0).to(tl.float32) * border.to(tl.float32)
                first, second = tl.split(tl.reshape(tl.sum(turned, 1), (PAIRS, 2)))
                from_here = (second - first) * decay_of(whole)
        d = matmul(v, tl.trans(border), None, DOT) * weight[:, None]
        if not KEYS:
            if TURNS:
                a, b = apart(d)
                a, b = a * cos + b * sin, b * cos - a * sin
                from_here += tl.sum(b * own_a - a * own_b, 0)
                through = tl.sum(a * own_a + b * own_b, 1)
            else:
                through = tl.sum(own * d, 1)
            tl.store(through_ptr + at_token, through + tl.where(q == Q - 1, passing, 0.0))
        d = matmul(dscores, other, d, DOT)
        if TURNS:
            a, b = apart(d)
            d = together(a * cos + b * sin, b * cos - a * sin)
        total += d
        tl.store(dbias_ptr + (chunk * heads + h) * NP + HALF * (NP // 2) + j, tl.sum(d, 0))
        if TURNS:
            a, b = apart(d)
            later = b * own_a - a * own_b
            later -= tl.cumsum(later, 0)  # as a product see the log
            if not KEYS:
                if behind_ptr is not None:
                    behind = behind_ptr + (segment * (heads // PARTS) + h // PARTS) * M + m
                    from_here += tl.load(behind, mask=(m < M) & (m * 0 + h % PARTS == 0), other=0.0)
                later += from_here[None, :]
            later *= PI
            dangles += later * tl.load(delta_ptr + here * Q + q).to(tl.float32)[:, None]
            tl.store(ddelta_ptr + at_token, tl.sum(later * tanh, 1))
    put_pair_tile(dout_ptr, sdl, q, left, total, FROM, PAIRS, N, PAIRING, REVERSE)
    if TURNS:
        dangles *= 1.0 - tanh * tanh
        tl.store(dangles_ptr + t[:, None] * sdal + m[None, :], dangles, mask=angle_on)


@triton.jit(do_not_specialize=GEOMETRY)
def weight_kernel(
    v_ptr, own_ptr, other_ptr, own_bias_ptr, other_bias_ptr, angles_ptr, phase_ptr, turn_ptr, delta_ptr,
    scale_ptr, sums_ptr, behind_ptr, states_ptr, adjoints_ptr, dscores_ptr, dout_ptr, dangles_ptr, dbias_ptr,
    through_ptr, ddelta_ptr, segment_ptr, table_ptr, base, length, per_row, segments, heads, group, blocks, width,
    svb, svl: tl.constexpr, svh, swb, swl: tl.constexpr, swg, sob, sol: tl.constexpr, sog,
    sab, sal, sdk, sdb, sdl, sdg, sdak, sdab, sdal, per_half,
    M: tl.constexpr, PAIRING: tl.constexpr, PARTIAL: tl.constexpr, P: tl.constexpr, PP: tl.constexpr, N: tl.constexpr,
    NP: tl.constexpr, SPAN: tl.constexpr, Q: tl.constexpr, PARTS: tl.constexpr, DOT: tl.constexpr,
    PACKED: tl.constexpr, REVERSE: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Gradients of B (KEYS) or C and of the angles of every chunk, summed over a block of heads.

    Leaves those of the biases per chunk and head (chunk slots, H, NP), those of step sizes through the angles per
    half of the columns, and (not KEYS) what passes the chunk's start.
    """
    program = tl.program_id(0).to(tl.int64)
    half, program = program % 2, program // 2
    block, g = program % blocks, (program // blocks) % (heads // group)
    slot = program // (blocks * (heads // group))
    chunk = base * (SPAN // Q) + slot
    row, t, left, _position = locate_tokens(
        chunk, tl.arange(0, Q), segment_ptr, table_ptr, length, per_row, segments, SPAN, Q, PACKED, REVERSE
    )
    left = tl.minimum(left, Q).to(tl.int32)
    first = tl.max(t, 0) if REVERSE else tl.min(t, 0)
    segment = tl.load(segment_ptr + chunk // (SPAN // Q)) if PACKED else row
    v_ptr += row * svb + first * svl
    own_ptr += row * swb + first * swl + g * swg
    other_ptr += row * sob + first * sol + g * sog
    dout_ptr += block * sdk + row * sdb + first * sdl + g * sdg
    angles_ptr += row * sab
    dangles_ptr += (g * blocks + block) * sdak + row * sdab
    head = g * group + block * width
    end = tl.where(left > 0, tl.minimum(head + width, (g + 1) * group), head).to(tl.int32)  # no token, no head
    head = head.to(tl.int32)
    if half == 0:
        half_gradients(
            v_ptr, own_ptr, other_ptr, own_bias_ptr, other_bias_ptr, angles_ptr, phase_ptr, turn_ptr, delta_ptr,
            scale_ptr, sums_ptr, behind_ptr, states_ptr, adjoints_ptr, dscores_ptr, dout_ptr, dangles_ptr, dbias_ptr,
            through_ptr, ddelta_ptr, chunk, slot, t, left, segment, head, end, heads, svl, svh, swl, sol, sal,
            sdl, sdal, M, PAIRING, PARTIAL, P, PP, N, NP, Q, PARTS, DOT, REVERSE, KEYS, 0,
        )  # fmt: skip
    else:
        half_gradients(
            v_ptr, own_ptr, other_ptr, own_bias_ptr, other_bias_ptr, angles_ptr, phase_ptr, turn_ptr, delta_ptr,
            scale_ptr, sums_ptr, behind_ptr, states_ptr, adjoints_ptr, dscores_ptr, dout_ptr, dangles_ptr, dbias_ptr,
            through_ptr + per_half, ddelta_ptr + per_half, chunk, slot, t, left, segment, head, end, heads, svl, svh,
            swl, sol, sal, sdl, sdal, M, PAIRING, PARTIAL, P, PP, N, NP, Q, PARTS, DOT, REVERSE, KEYS, 1,
        )  # fmt: skip
