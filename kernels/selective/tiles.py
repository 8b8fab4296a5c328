"""What the forward and backward kernels of the selective scan share: tiles on the device, one call on the host.

Legend: B batch, L length, S segments, D channels, N states, G groups, K chunks.
"""

# ruff: noqa: RUF005  (the compiler of kernels knows no starred expressions)

from __future__ import annotations

import torch
import triton
import triton.language as tl

from seqkit.kernels.triton_chunks import only_if
from seqkit.kernels.triton_launch import INTERPRETED, Segments, ceil_div, next_power
from seqkit.kernels.triton_math import sigmoid, softplus

CHUNK = 16 if INTERPRETED else 256  # the same for every length, so that compiled graphs never depend on it
SUMMARY_STEPS = 4  # tokens fetched together
BLOCK = 32  # channels of a program: one warp wide, so that the sum over states stays inside a thread


@triton.jit
def channel_block(program, group, groups, blocks, BLOCK: tl.constexpr):
    """(chunk, group, channels [BLOCK], which of them exist); blocks never straddle groups."""
    block = program % blocks
    g = (program // blocks) % groups
    local = block * BLOCK + tl.arange(0, BLOCK)
    return program // (blocks * groups), g, g * group + local, local < group


@triton.jit
def decay_rates(A_ptr, n, d, on_d, N: tl.constexpr):
    """min(A, 0) as a tile [N, BLOCK]: with delta >= 0 no exponent exceeds 0."""
    on = (n < N)[:, None] & on_d[None, :]
    return tl.minimum(tl.load(A_ptr + d[None, :] * N + n[:, None], mask=on, other=0.0), 0.0)


@triton.jit
def state_tile(k, n, d, on_d, N: tl.constexpr, channels):
    """Offsets and mask of a tile [N, BLOCK] of states (K, N, D)."""
    return (k * N + n[:, None]) * channels + d[None, :], (n < N)[:, None] & on_d[None, :]


@triton.jit
def row_of(first, i, count, REVERSE: tl.constexpr):
    """Token number i of a chunk in scan order, and whether it exists."""
    return (first - i if REVERSE else first + i), i < count


@triton.jit
def fetch_rows(ptr, stride, first, begin, count, mask, STEPS: tl.constexpr, REVERSE: tl.constexpr):
    """Rows of STEPS tokens of a chunk, all asked for before the first is used; 0 past its end."""
    rows = ()
    for j in tl.static_range(STEPS):
        t, valid = row_of(first, begin + j, count, REVERSE)
        rows = rows + (tl.load(ptr + t * stride, mask=only_if(mask, valid), other=0.0),)
    return rows


@triton.jit
def step_size(raw, bias, valid, SOFTPLUS: tl.constexpr):
    """(delta, max(delta, 0), d delta / d raw); delta is 0 where the token does not exist."""
    raw = raw.to(tl.float32) + bias
    if SOFTPLUS:
        delta, slope = softplus(raw), sigmoid(raw)
    else:
        delta, slope = raw, raw * 0.0 + 1.0
    delta = tl.where(valid, delta, 0.0)
    return delta, tl.maximum(delta, 0.0), slope


class Call:
    """Operands of one call as the kernels read them, and everything their launches have in common."""

    def __init__(self, u, delta, A, B, C, D, z, delta_bias, initial_state, cu_seqlens, delta_softplus, reverse):
        def wide(x):
            return None if x is None else x.to(torch.float32).contiguous()

        self.u, self.delta, self.B, self.C, self.z = u, delta, B, C, z
        self.A, self.skip, self.bias, self.entry = wide(A), wide(D), wide(delta_bias), wide(initial_state)
        self.segments = Segments(u, CHUNK, cu_seqlens)
        (self.D, self.N), self.G = A.shape, B.shape[2]
        self.group = self.D // self.G
        self.blocks = ceil_div(self.group, BLOCK)
        self.softplus, self.reverse = delta_softplus, reverse

    @property
    def programs(self) -> int:
        """Chunks x blocks of channels; 0 where there is no token at all."""
        return self.segments.chunks * self.G * self.blocks if self.u.numel() else 0

    @property
    def warps(self) -> int:
        """16 states per thread up to N = 128, 32 beyond."""
        return min(8, max(1, next_power(self.N) // 16))

    def geometry(self) -> tuple:
        """Where chunks and channels lie, in the order of every kernel's signature."""
        spans = self.segments
        sizes = (spans.length, spans.per_row, spans.count, self.D, self.group, self.G, self.blocks)
        return (spans.chunk_segment, spans.table, *sizes)

    def strides(self, *names: str) -> tuple[int, ...]:
        """Strides of these operands but for the last; zeros for an absent one."""
        return tuple(s for name in names for s in strides_of(getattr(self, name)))

    def constants(self) -> dict[str, int | bool]:
        """Compile-time arguments of every kernel."""
        return {
            "N": self.N,
            "NP": next_power(self.N),
            "BLOCK": BLOCK,
            "CHUNK": CHUNK,
            "SOFTPLUS": self.softplus,
            "PACKED": self.segments.packed,
            "REVERSE": self.reverse,
            "num_warps": self.warps,
        }


def strides_of(x: torch.Tensor | None) -> tuple[int, ...]:
    """Strides of (B, L, ...) but for the last; those of (B, L, D) where the operand is absent."""
    return (0, 0) if x is None else x.stride()[:-1]
