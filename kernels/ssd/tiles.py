"""What the forward and backward kernels of the SSD scan share: tiles on the device, one call on the host.

A span is a run of SPAN tokens of one segment, cut into chunks of Q tokens; positions count in scan order. Only states
at span starts go through memory in float32. Numbers per token and head lie chunk by chunk, (chunk slots, H, Q), in
whole chunks whatever the length: they need no mask and have no direction. A head whose state no program could hold is
cut into PARTS of its channels, which the kernels take for heads: their H and P are those of parts. Strides along L are
known to the compiler: the rows of a tile are then one address and constants, not a register pair each.

Legend: B batch, L length, S segments, H heads, P head channels, N states, G groups, Q tokens per chunk, K spans.
"""

from __future__ import annotations

from functools import cached_property
from typing import ClassVar

import torch
import triton
import triton.language as tl

from seqkit.kernels.chunks import count_chunks
from seqkit.kernels.devices import capability, has_bfloat16, launch_row
from seqkit.kernels.ssd.rotation import STILL
from seqkit.kernels.triton_chunks import locate_chunk
from seqkit.kernels.triton_compiled import launch_settled
from seqkit.kernels.triton_launch import INTERPRETED, Segments, ceil_div, guard, next_power
from seqkit.kernels.triton_math import LOG2_E, exp2, prefetch, sigmoid, softplus

CHUNK = 4 if INTERPRETED else 64
SPANS = (8,) if INTERPRETED else (4096, 2048, 1024, 512, 256)
LARGEST_STATE = 16 if INTERPRETED else 128 * 128  # P N of bfloat16 states; half of that in float32
OPERANDS = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
SCRATCH_BYTES = 1 if INTERPRETED else 2**28  # each for states and adjoints; at least one span
IN_FLIGHT, ON_HAND = 96 * 1024, 40 * 1024  # bytes of tiles being fetched, and of those in use
HEADS = tl.constexpr(4)  # whose step sizes a program computes: they share the bytes that memory hands out
PROGRAMS = 1024  # spans x heads that fill any device twice
NO_DECAY_LEFT = tl.constexpr(-200.0)  # 2^-200 is 0: a larger step changes nothing, and costs its neighbours no digits
GEOMETRY = ["base", "length", "per_row", "segments"]


def span_length(batch: int, length: int, heads: int, segments: int | None) -> int:
    """Tokens of a span: the most that leaves enough programs and at most doubles the tokens of packed segments.

    A function of shapes alone, as compiled graphs need it.
    """
    for span in SPANS[:-1]:
        if batch * length * heads >= PROGRAMS * span and (segments is None or segments * span <= length):
            return span
    return SPANS[-1]


def boundary_shape(
    batch: int, length: int, heads: int, head_channels: int, states: int, segments: int | None, chunk_size: int | None
) -> tuple[int, int, int, int]:
    """Shape (K, H, P, N) of the span-start states that the forward pass keeps."""
    span = span_length(batch, length, heads, segments)
    return count_chunks(batch, length, span, segments), heads, head_channels, states


@triton.jit
def token_tile(ptr, stride, q, left, w, W: tl.constexpr, REVERSE: tl.constexpr):
    """Rows of the tokens q of a chunk as a tile [Q, WP]; 0 past the end of the segment and beyond W."""
    on = (q < left)[:, None]
    if w.shape[0] > W:
        on = on & (w < W)[None, :]
    return tl.load(ptr + (-q if REVERSE else q)[:, None] * stride + w[None, :], mask=on, other=0.0)


@triton.jit
def put_token_tile(ptr, stride, q, left, w, value, W: tl.constexpr, REVERSE: tl.constexpr):
    """Write what :func:`token_tile` reads."""
    on = (q < left)[:, None]
    if w.shape[0] > W:
        on = on & (w < W)[None, :]
    at = ptr + (-q if REVERSE else q)[:, None] * stride + w[None, :]
    tl.store(at, value.to(ptr.dtype.element_ty), mask=on)


@triton.jit
def near_rows(ptr, stride, row, W: tl.constexpr):
    """Have rows of W numbers, the next turn's of a loop, brought near: its loads then wait for no memory.

    The other way to that, two turns in flight, costs shared memory that a second program of a multiprocessor needs.
    """
    SECTOR: tl.constexpr = 32 * 8 // ptr.dtype.element_ty.primitive_bitwidth  # numbers that come together
    SECTORS: tl.constexpr = W // SECTOR if W > SECTOR else 1
    w = tl.arange(0, SECTORS) * SECTOR
    at = ptr + row[:, None] * stride + w[None, :]
    prefetch(at.to(tl.int64, bitcast=True))


@triton.jit
def head_at(h, stride, P: tl.constexpr, PARTS: tl.constexpr):
    """Offset of a part of a head."""
    return (h // PARTS) * stride + (h % PARTS) * P


@triton.jit
def decay_of(exponent):
    """2^exponent for exponents that rounding alone can take above 0."""
    return exp2(tl.minimum(exponent, 0.0).to(tl.float32))


@triton.jit
def state_tile(n, p, P: tl.constexpr, N: tl.constexpr):
    """Offsets and mask of one head's state (P, N) as a tile [NP, PP]."""
    return p[None, :] * N + n[:, None], (n < N)[:, None] & (p < P)[None, :]


@triton.jit
def scratch_tile(n, p, P: tl.constexpr, N: tl.constexpr):
    """Offsets and mask of a state that only kernels see: (N, P), as the tile [NP, PP] lies."""
    return n[:, None] * P + p[None, :], (n < N)[:, None] & (p < P)[None, :]


@triton.jit
def matmul(a, b, acc, DOT: tl.constexpr):
    """Add a b to ``acc``, with operands in DOT and float32 sums."""
    return tl.dot(a.to(DOT), b.to(DOT), acc, input_precision="tf32x3")


@triton.jit
def step_size(raw, bias, valid, dt_min, dt_max, SOFTPLUS: tl.constexpr):
    """(dt, its derivative by raw); 0 where the token does not exist."""
    raw = raw.to(tl.float32) + bias
    if SOFTPLUS:
        free, slope = softplus(raw), sigmoid(raw)
    else:
        free, slope = raw, raw * 0.0 + 1.0
    inside = valid & (free >= dt_min) & (free <= dt_max)
    return tl.where(valid, tl.minimum(tl.maximum(free, dt_min), dt_max), 0.0), tl.where(inside, slope, 0.0)


@triton.jit
def chunk_and_heads(heads):
    """Chunk slot (int64) of a program and the heads, from one up to another, that it takes in turn."""
    blocks = tl.cdiv(heads, HEADS)
    begin = tl.program_id(0) % blocks * HEADS
    return tl.program_id(0).to(tl.int64) // blocks, begin, tl.minimum(begin + HEADS, heads)


@triton.jit(do_not_specialize=GEOMETRY)
def step_kernel(
    raw_ptr, A_ptr, bias_ptr, dt_ptr, sums_ptr, segment_ptr, table_ptr,
    base, length, per_row, segments, heads, srb, srl, dt_min, dt_max,
    SPAN: tl.constexpr, Q: tl.constexpr, PARTS: tl.constexpr,
    SOFTPLUS: tl.constexpr, PACKED: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """Step sizes and, inside every chunk, running sums of log2 decays: (chunk slots, H, Q) each."""
    chunk, begin, end = chunk_and_heads(heads // PARTS)
    k, c = chunk // (SPAN // Q), chunk % (SPAN // Q)
    row, first, count = locate_chunk(k, segment_ptr, table_ptr, segments, length, per_row, SPAN, PACKED, REVERSE)
    left = count - c * Q
    q = tl.arange(0, Q)
    t = first + (-(c * Q + q) if REVERSE else c * Q + q)
    until = q[:, None] >= q[None, :]
    for h in range(begin, end):
        bias = tl.load(bias_ptr + h) if bias_ptr is not None else 0.0
        rate = tl.minimum(tl.load(A_ptr + h), 0.0).to(sums_ptr.dtype.element_ty) * LOG2_E
        raw = tl.load(raw_ptr + row * srb + t * srl + h, mask=q < left, other=0.0)
        dt, _slope = step_size(raw, bias, q < left, dt_min, dt_max, SOFTPLUS)
        decay = tl.maximum(tl.maximum(dt, 0.0).to(sums_ptr.dtype.element_ty) * rate, NO_DECAY_LEFT)
        at = (chunk * (heads // PARTS) + h) * Q + q
        tl.store(dt_ptr + at, dt)
        tl.store(sums_ptr + at, tl.sum(tl.where(until, decay[None, :], 0.0), 1))


class Call:
    """Operands of one call as the kernels read them, and everything their launches have in common.

    Attributes:
        pairs: Compile-time arguments of the rotation; here there is none.
        biases: Added to B and to C.
        turns: Phases of the rotation from chunk starts to tokens, and at chunk starts.
        direct: Weights of tokens in their own outputs, where those are not their weights in the state.
    """

    pairs: ClassVar[dict] = {"M": 0, "PAIRING": STILL.value, "PARTIAL": False}
    biases: tuple[torch.Tensor | None, ...] = (None, None)
    turns: tuple[torch.Tensor | None, ...] = (None, None)
    direct: torch.Tensor | None = None

    def __init__(
        self, x, dt, A, B, C, D, z, dt_bias, initial_state,
        cu_seqlens, dt_softplus, dt_min, dt_max, reverse, chunk_size,
    ):  # fmt: skip
        def wide(t):
            return None if t is None else t.to(torch.float32).contiguous()

        batch, length, heads, head_channels = x.shape
        self.G, self.N = B.shape[2:]
        # One 16-bit format for all: of two, neither holds what the other does.
        self.single = x.dtype != torch.float32 and x.dtype == B.dtype == C.dtype
        self.parts = _parts(head_channels, self.N, self.single)
        self.H, self.P = heads * self.parts, head_channels // self.parts
        self.x, self.raw, self.B, self.C, self.z = x, dt, B, C, z
        self.A, self.bias, self.entry, self.skip = wide(A), wide(dt_bias), wide(initial_state), wide(D)
        self.span = span_length(batch, length, heads, None if cu_seqlens is None else cu_seqlens.shape[0] - 1)
        self.segments = Segments(x, self.span, cu_seqlens)
        self.scratch_dtype = _operand_dtype(x, self.single)
        self.chunk = self._chunk(chunk_size)
        self.softplus, self.limits, self.reverse = dt_softplus, (dt_min, dt_max), reverse

    def _chunk(self, wanted: int | None) -> int:
        """Tokens of a chunk: as many as ``wanted``, rounded up to a power of two, if they fit."""
        chunk = CHUNK if wanted is None else min(CHUNK, max(16, next_power(wanted)))
        limit = launch_row(self.x).shared_memory * 4 // 5
        while chunk > 16 and self._tiles(2, 3, 1, chunk) > (limit if self.single else limit * 2 // 3):
            chunk //= 2
        return chunk

    def _tiles(self, values: int, weights: int, states: int, chunk: int) -> int:
        """Bytes of so many tiles of each kind."""
        numbers = values * chunk * self.P + (weights * chunk + states * self.P) * self.N
        return numbers * self.scratch_dtype.itemsize

    def stages(self, warps: int, values: int, weights: int, states: int = 0) -> int:
        """Chunks in flight of a loop that reads so many tiles of each kind per turn.

        Registers let a multiprocessor hold two programs of 4 warps, or one of 8, which then has all of its memory.
        """
        room = launch_row(self.x).shared_memory - ON_HAND
        if warps <= 4:
            room = min(IN_FLIGHT, room)
        return max(1, min(3, room // self._tiles(values, weights, states, self.chunk)))

    @property
    def state_size(self) -> int:
        """Numbers per channel of the states that only kernels see."""
        return self.N if self.pairs["PAIRING"] == STILL.value else self.sizes()["NP"]

    @property
    def spans(self) -> int:
        """K; 0 where there is no token at all."""
        return self.segments.chunks if self.x.numel() else 0

    @property
    def chunks_per_span(self) -> int:
        """Chunks of a whole span."""
        return self.span // self.chunk

    @property
    def states_per_span(self) -> int:
        """Numbers in the states at the chunk starts of a span, over all heads."""
        return self.chunks_per_span * self.H * self.P * self.state_size

    @property
    def scratch_spans(self) -> int:
        """Spans whose states at chunk starts scratch memory holds."""
        return max(1, min(self.spans, SCRATCH_BYTES // (self.states_per_span * self.scratch_dtype.itemsize)))

    @property
    def fits_scratch(self) -> bool:
        """Whether it holds those of all."""
        return self.spans <= self.scratch_spans

    @property
    def step_programs(self) -> int:
        """Programs of a kernel that takes the heads of :func:`chunk_and_heads`."""
        return self.spans * self.chunks_per_span * ceil_div(self.H // self.parts, HEADS.value)

    @property
    def skip_per_head(self) -> bool:
        """Whether D is one number per head: it then rides on the diagonal of the chunk's scores."""
        return self.skip is not None and self.skip.dim() == 1

    @property
    def warps(self) -> int:
        """Warps of a program that holds a state."""
        return 4 if self.P * self.N <= 128 * 64 else 8

    @cached_property
    def settings(self) -> tuple:
        """What scalars and constants of a launch depend on, beside what its site knows."""
        at = self.segments
        return (
            self.x.device, at.length, at.per_row, at.count, self.spans, at.packed, self.H, self.P, self.G, self.N,
            self.parts, self.span, self.chunk, self.scratch_dtype, self.skip_per_head, self.softplus, self.limits,
            self.reverse, *self.pairs.values(),
        )  # fmt: skip

    @property
    def tables(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Segments of the spans and where segments lie: the last tensors of most kernels."""
        return self.segments.chunk_segment, self.segments.table

    def geometry(self, base: int = 0) -> tuple:
        """Where spans and heads lie, in the order of every kernel's signature; spans count from ``base``."""
        at = self.segments
        return (at.chunk_segment, at.table, base, at.length, at.per_row, at.count, self.H)

    def constants(self) -> dict:
        """Compile-time arguments that all kernels have."""
        packed = self.segments.packed
        return {"SPAN": self.span, "Q": self.chunk, "PARTS": self.parts, "PACKED": packed, "REVERSE": self.reverse}

    def sizes(self) -> dict:
        """Compile-time arguments of the kernels with matrix products.

        Products of 16-bit operands run in bfloat16, whose range no state and no scaled gradient leaves.
        """
        return {
            "P": self.P,
            "PP": max(16, next_power(self.P)),
            "N": self.N,
            "NP": max(16, next_power(self.N)),
            "DOT": OPERANDS[self.scratch_dtype],
        }

    def new(self, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Uninitialised memory on the operands' device."""
        return torch.empty(shape, dtype=dtype, device=self.x.device)

    def per_token(self, dtype: torch.dtype) -> torch.Tensor:
        """Uninitialised numbers per token and part of a head (chunk slots, H, Q)."""
        return self.new(self.segments.chunks * self.chunks_per_span, self.H, self.chunk, dtype=dtype)

    def steps(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Step sizes and running sums of log2 decays, (chunk slots, H, Q) of whole heads.

        Sums are float64 for float32 operands: a step of 1e-6 beside one of 50 keeps its decay only in differences of
        those.
        """
        dt = self.new(self.segments.chunks * self.chunks_per_span, self.H // self.parts, self.chunk)
        sums = torch.empty_like(dt, dtype=torch.float32 if self.single else torch.float64)
        strides = self.raw.stride()[:2]

        def settle():
            constants = {"SOFTPLUS": self.softplus, **self.constants(), "num_warps": 1}
            return self.step_programs, (*self.geometry()[2:], *strides, *self.limits), constants

        if self.spans:
            with guard(self.x):
                operands = self.raw, self.A, self.bias, dt, sums, *self.tables
                launch_settled(step_kernel, (self.settings, strides), settle, *operands)
        return dt, sums


def _operand_dtype(x: torch.Tensor, single: bool) -> torch.dtype:
    """Dtype of the operands of matrix products; the interpreter's products of bfloat16 are wrong."""
    if INTERPRETED or not single:
        return torch.float32
    return torch.bfloat16 if has_bfloat16(capability(x.device.index)) else torch.float16


def _parts(head_channels: int, states: int, single: bool) -> int:
    """Parts of a head: halves until a state fits; an odd head stays whole."""
    parts, largest = 1, LARGEST_STATE if single else LARGEST_STATE // 2
    while (head_channels // parts) % 2 == 0 and head_channels // parts * states > largest:
        parts *= 2
    return parts


def strides_of(x: torch.Tensor | None) -> tuple[int, int, int]:
    """Strides of (B, L, H, P) or (B, L, G, N) but for the last; zeros for an absent operand."""
    return (0, 0, 0) if x is None else x.stride()[:3]
