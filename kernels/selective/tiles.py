"""What the forward and backward kernels of the selective scan share: tiles on the device, one call on the host.

A program owns BLOCK channels and walks through the tokens of a chunk; a thread holds all states of its channels (N to
16), so that sums over states stay in registers and time needs no communication. The row of the next token is asked for
before the present one is worked on.

Legend: B batch, L length, S segments, D channels, N states, G groups, K chunks.
"""

from __future__ import annotations

from functools import cached_property

import torch
import triton
import triton.language as tl

from seqkit.kernels.triton_chunks import locate_chunk, only_if
from seqkit.kernels.triton_launch import INTERPRETED, Segments, ceil_div, next_power
from seqkit.kernels.triton_math import LOG2_E, softplus

TOKENS_AHEAD = tl.constexpr(4)  # between a prefetch and its load
# numbers (B L D) from which on a chunk has so many tokens: the fewer there are, the shorter the chunks that fill a GPU
CHUNKS = ((0, 16),) if INTERPRETED else ((1 << 25, 256), (1 << 22, 64), (0, 32))


@triton.jit
def channel_block(g, block, group, BLOCK: tl.constexpr):
    """(channels [BLOCK], which of them exist); blocks never straddle groups."""
    local = block * BLOCK + tl.arange(0, BLOCK)
    return g * group + local, local < group


def chunk_length(batch: int, length: int, channels: int) -> int:
    """Tokens of a chunk. A graph compiled for all lengths is compiled once more beyond each border."""
    return next(tokens for numbers, tokens in CHUNKS if batch * length * channels >= numbers)


@triton.jit
def chunk_of(
    k, segment_ptr, table_ptr, segments, length, per_row,
    CHUNK: tl.constexpr, PACKED: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """(batch row, first token in scan order, number of tokens, whether there is one) of chunk k.

    A slot without tokens names token 0, so that rows fetched before anything is known of them exist.
    """
    row, first, count = locate_chunk(k, segment_ptr, table_ptr, segments, length, per_row, CHUNK, PACKED, REVERSE)
    return row, tl.where(count > 0, first, 0), count.to(tl.int32), count > 0


@triton.jit
def present(index, on, MASKED: tl.constexpr):
    """Mask of a row; all true, and known to be, where no channel or state is padding."""
    if MASKED:
        return on
    else:
        return index >= 0


@triton.jit
def state_tile(n, d, channels):
    """Offsets of a tile [N, BLOCK] in (N, D); 32 bits are enough within one state and take half the registers."""
    return n[:, None] * channels.to(tl.int32) + d.to(tl.int32)[None, :]


@triton.jit
def decay_rates(A_ptr, tile, on):
    """min(A, 0) log2(e) as a tile [N, BLOCK], from A (N, D): with delta >= 0 no exponent exceeds 0."""
    return tl.minimum(tl.load(A_ptr + tile, mask=on, other=0.0), 0.0) * LOG2_E


@triton.jit
def row_start(row, first, g, row_stride, token_stride, group_stride, WIDE: tl.constexpr):
    """Offset of the first row of a chunk in B or C; WIDE tells the compiler that it may load 16 bytes at once."""
    at = row * row_stride + first * token_stride + g * group_stride
    if WIDE:
        at = tl.multiple_of(at, 8)
    return at


@triton.jit
def advance(more, stride, WIDE: tl.constexpr, BACKWARD: tl.constexpr):
    """Step to the next token; 0 where there is none: the last row is fetched twice rather than one past the end."""
    step = tl.where(more, -1 if BACKWARD else 1, 0) * stride
    if WIDE:
        step = tl.multiple_of(step, 8)
    return step


@triton.jit
def parts_of(WIDTH: tl.constexpr, TOKENS: tl.constexpr):
    """How the lanes of a warp share out what is brought near: (row, element of it, token), each [32].

    Eight rows, four lanes to each: for one token quarters, for two tokens halves of WIDTH numbers.
    """
    lane = tl.arange(0, 32)
    return lane // 4, lane % (4 // TOKENS) * (WIDTH * TOKENS // 4), lane // (4 // TOKENS) % TOKENS


@triton.jit
def row_addresses(address, step, mine, ptr, element, stride):
    """(addresses, bytes to the next token) [32], those of the lanes ``mine`` set to a row that starts at ``ptr``."""
    size: tl.constexpr = ptr.dtype.element_ty.primitive_bitwidth // 8
    at = ptr.to(tl.int64) + element * size
    return tl.where(mine, at, address), tl.where(mine, stride.to(tl.int64) * size, step)


@triton.jit
def far_rows(
    first_at, delta_at, dy_at, z_at, B_at, C_at, s_first, sd, sg, sz, sB, sC, width,
    BLOCK: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """Addresses by lanes of the rows of one or two tokens, and bytes from token to token; an absent operand is None.

    ``width``: channels that exist from the first of the block on; no address lies behind them.
    """
    row, element, _token = parts_of(BLOCK, TOKENS)
    element = tl.minimum(element, width - 1)
    none = tl.zeros((32,), tl.int64)
    at, step = row_addresses(none, none, row >= 0, first_at, element, s_first)
    at, step = row_addresses(at, step, row == 1, delta_at, element, sd)
    if dy_at is not None:
        at, step = row_addresses(at, step, row == 2, dy_at, element, sg)
    if z_at is not None:
        at, step = row_addresses(at, step, row == 3, z_at, element, sz)
    if B_at is not None:
        at, step = row_addresses(at, step, row == 4, B_at, 0, sB)
    if C_at is not None:
        at, step = row_addresses(at, step, row == 5, C_at, 0, sC)
    return at, step


@triton.jit
def take(ptr, mask, MASKED: tl.constexpr):
    """A row; padding is 0."""
    if MASKED:
        return tl.load(ptr, mask=mask, other=0.0)
    else:
        return tl.load(ptr)


@triton.jit
def take_if(ptr, mask, condition):
    """A row where a scalar condition holds, else 0."""
    return tl.load(ptr, mask=only_if(mask, condition), other=0.0)


@triton.jit
def put(ptr, x, mask, MASKED: tl.constexpr):
    """Store a row in the dtype of its tensor."""
    if MASKED:
        tl.store(ptr, x.to(ptr.dtype.element_ty), mask=mask)
    else:
        tl.store(ptr, x.to(ptr.dtype.element_ty))


@triton.jit
def step_size(raw, bias, SOFTPLUS: tl.constexpr):
    """(delta, max(delta, 0))."""
    raw = raw.to(tl.float32) + bias
    if SOFTPLUS:
        delta = softplus(raw)
        return delta, delta
    else:
        return raw, tl.maximum(raw, 0.0)


class Call:
    """Operands of one call as the kernels read them, and everything their launches have in common."""

    def __init__(self, u, delta, A, B, C, D, z, delta_bias, initial_state, cu_seqlens, delta_softplus, reverse):
        def wide(x):
            return None if x is None else x.to(torch.float32).contiguous()

        self.u, self.delta, self.B, self.C, self.z = u, delta, B, C, z
        self.A, self.skip, self.bias, self.entry = wide(A.t()), wide(D), wide(delta_bias), wide(initial_state)
        self.chunk = chunk_length(*u.shape)
        self.segments = Segments(u, self.chunk, cu_seqlens)
        (self.D, self.N), self.G = A.shape, B.shape[2]
        self.group = self.D // self.G
        self.softplus, self.reverse = delta_softplus, reverse
        self.wide = loads_wide(B) and loads_wide(C)

    def blocks(self, block: int) -> int:
        """Blocks of channels in a group."""
        return ceil_div(self.group, block)

    def programs(self, block: int) -> int:
        """Chunks x blocks of channels; 0 where there is no token at all."""
        return self.segments.chunks * self.G * self.blocks(block) if self.u.numel() else 0

    @cached_property
    def settings(self) -> tuple:
        """What scalars and constants of a launch depend on, beside what its site knows."""
        at = self.segments
        return (
            self.u.device, at.length, at.per_row, at.count, at.chunks, at.packed, self.D, self.group, self.G, self.N,
            self.chunk, self.softplus, self.reverse, self.wide,
        )  # fmt: skip

    @property
    def tables(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Segments of the chunks and where segments lie: the last tensors of every kernel."""
        return self.segments.chunk_segment, self.segments.table

    def geometry(self, block: int) -> tuple[int, ...]:
        """Where chunks and channels lie, in the order of every kernel's signature."""
        at = self.segments
        return at.length, at.per_row, at.count, self.D, self.group, self.G, self.blocks(block)

    def constants(self, block: int) -> dict[str, int | bool]:
        """Compile-time arguments of every kernel."""
        return {
            "N": self.N,
            "NP": next_power(self.N),
            "BLOCK": block,
            "CHUNK": self.chunk,
            "SOFTPLUS": self.softplus,
            "PACKED": self.segments.packed,
            "REVERSE": self.reverse,
            "MASKED": next_power(self.N) != self.N or self.group % block != 0,
            "WIDE": self.wide,
            "num_warps": warps_for(self.N),
        }

    def settled(self, block: int, strides: tuple[int, ...]) -> tuple[int, tuple[int, ...], dict[str, int | bool]]:
        """Programs, scalars and constants of a kernel that needs nothing but these."""
        return self.programs(block), (*self.geometry(block), *strides), self.constants(block)


def warps_for(states: int) -> int:
    """Warps that share the states of a channel: 16 to a thread up to N = 128, 32 beyond."""
    return min(8, max(1, next_power(states) // 16))


def loads_wide(x: torch.Tensor) -> bool:
    """Whether every row (..., N) starts at a multiple of 8 numbers and of 16 bytes."""
    return x.shape[-1] % 8 == 0 and x.data_ptr() % 16 == 0 and all(s % 8 == 0 for s in x.stride()[:-1])


def strides_of(*operands: torch.Tensor | None) -> tuple[int, ...]:
    """Strides of (B, L, ...) but for the last; those of (B, L, D), zero, where an operand is absent."""
    return tuple([s for x in operands for s in ((0, 0) if x is None else x.stride()[:-1])])
