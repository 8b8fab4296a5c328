"""Keys and queries that rotate, as Mamba-3 has them: per head, with a bias, by an angle of their token, in registers.

Pairs of states rotate, those from M on by an angle of 0. If no more than half of a tile's pairs rotate (PARTIAL), the
others are never multiplied. Columns of a tile, and rows of a state, come in the order that costs no exchange between
threads: members of a pair are neighbours and, if PARTIAL, columns that rotate and columns that stay take turns. PAIRING
says where the members of a pair stand in memory; it is 0 for a scan without rotation.

Legend: N states, M rotated pairs, Q tokens per chunk; NP is N rounded up to a power of two, MP the pairs that may
rotate: a half of NP, or a quarter if PARTIAL.
"""

from __future__ import annotations

import triton
import triton.language as tl

from seqkit.kernels.triton_math import cosine, sine

STILL, HALVES, ADJACENT = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)  # no pairs; (i, i + N / 2); (2i, 2i + 1)
RADIANS = tl.constexpr(1.4629180792671596e-09)  # 2 pi / 2^32


@triton.jit
def member(pair, second, N: tl.constexpr, PAIRING: tl.constexpr):
    """Which state is the first or the second member of a pair; N or more if it does not exist."""
    if PAIRING == HALVES:
        return tl.where(pair < N // 2 + second * (N % 2), pair + second * (N // 2), N)
    else:
        return 2 * pair + second


@triton.jit
def half_of(on, pair, second: tl.constexpr, BELOW: tl.constexpr, N: tl.constexpr):
    """``on`` for pairs (all below BELOW) whose first or second member exists; addresses stay plain sums of numbers."""
    if N // 2 + second * (N % 2) < BELOW:
        on = on & (pair < N // 2 + second * (N % 2))
    return on


@triton.jit
def together(a, b):
    """Columns of two tiles in turn."""
    return tl.reshape(tl.join(a, b), (a.shape[0], 2 * a.shape[1]))


@triton.jit
def apart(x):
    """Even and odd columns of a tile."""
    return tl.split(tl.reshape(x, (x.shape[0], x.shape[1] // 2, 2)))


@triton.jit
def pair_tile(
    ptr, stride, q, left, FROM: tl.constexpr, PAIRS: tl.constexpr, N: tl.constexpr, PAIRING: tl.constexpr,
    REVERSE: tl.constexpr,
):  # fmt: skip
    """Some pairs of a chunk's tokens [Q, 2 PAIRS], members side by side; 0 past the end of the segment and beyond N."""
    on, at = (q < left)[:, None], ptr + (-q if REVERSE else q)[:, None] * stride
    if PAIRING == HALVES:
        pair = FROM + tl.arange(0, PAIRS)[None, :]
        a = tl.load(at + pair, mask=half_of(on, pair, 0, FROM + PAIRS, N), other=0.0)
        b = tl.load(at + N // 2 + pair, mask=half_of(on, pair, 1, FROM + PAIRS, N), other=0.0)
        return together(a, b)
    else:
        n = 2 * FROM + tl.arange(0, 2 * PAIRS)
        if 2 * (FROM + PAIRS) > N:
            on = on & (n < N)[None, :]
        return tl.load(at + n[None, :], mask=on, other=0.0)


@triton.jit
def put_pair_tile(
    ptr, stride, q, left, value, FROM: tl.constexpr, PAIRS: tl.constexpr, N: tl.constexpr, PAIRING: tl.constexpr,
    REVERSE: tl.constexpr,
):  # fmt: skip
    """Write what :func:`pair_tile` reads."""
    on, at = (q < left)[:, None], ptr + (-q if REVERSE else q)[:, None] * stride
    value = value.to(ptr.dtype.element_ty)
    if PAIRING == HALVES:
        pair = FROM + tl.arange(0, PAIRS)[None, :]
        first, second = apart(value)
        tl.store(at + pair, first, mask=half_of(on, pair, 0, FROM + PAIRS, N))
        tl.store(at + N // 2 + pair, second, mask=half_of(on, pair, 1, FROM + PAIRS, N))
    else:
        n = 2 * FROM + tl.arange(0, 2 * PAIRS)
        if 2 * (FROM + PAIRS) > N:
            on = on & (n < N)[None, :]
        tl.store(at + n[None, :], value, mask=on)


@triton.jit
def bias_row(ptr, FROM: tl.constexpr, PAIRS: tl.constexpr, N: tl.constexpr, PAIRING: tl.constexpr):
    """A head's bias (N,) as a row of :func:`pair_tile`; 0 without one."""
    n = tl.arange(0, 2 * PAIRS)
    if ptr is None:
        return n.to(tl.float32) * 0.0
    else:
        state = member(FROM + n // 2, n % 2, N, PAIRING)
        return tl.load(ptr + state, mask=state < N, other=0.0)


@triton.jit
def turns_of(phase_ptr, turn_ptr, chunk, q, m, M: tl.constexpr):
    """Cosines and sines [Q, MP] of the angles of a chunk's tokens.

    Phases are 2^-32 turns: at the chunk's start (chunks, M), and from there to the tokens (chunks, Q, M), of which
    16-bit operands need no more than the upper 16 bits.
    """
    at, on = (chunk * q.shape[0] + q)[:, None] * M + m[None, :], m < M
    phase = tl.load(phase_ptr + at, mask=on[None, :], other=0)
    if phase.dtype == tl.int16:
        phase = phase.to(tl.int32) << 16
    phase += tl.load(turn_ptr + chunk * M + m, mask=on, other=0)[None, :]
    radians = phase.to(tl.float32) * RADIANS
    return cosine(radians), sine(radians)


@triton.jit
def rotated_tile(
    ptr, bias_ptr, stride, q, left, cos, sin, N: tl.constexpr, NP: tl.constexpr, PAIRING: tl.constexpr,
    PARTIAL: tl.constexpr, REVERSE: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """Keys or queries of a chunk's tokens [Q, NP], with their bias, rotated; past the end they are the bias."""
    MP: tl.constexpr = NP // 4 if PARTIAL else NP // 2
    rows = pair_tile(ptr, stride, q, left, 0, MP, N, PAIRING, REVERSE).to(tl.float32)
    a, b = apart(rows + bias_row(bias_ptr, 0, MP, N, PAIRING)[None, :])
    turned = together((a * cos - b * sin).to(DOT), (a * sin + b * cos).to(DOT))
    if PARTIAL:
        rest = pair_tile(ptr, stride, q, left, MP, MP, N, PAIRING, REVERSE).to(tl.float32)
        rest += bias_row(bias_ptr, MP, MP, N, PAIRING)[None, :]
        turned = together(turned, rest.to(DOT))
    return turned
