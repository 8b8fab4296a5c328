"""Selective scan on Triton, forward: summaries of all chunks, a chain over them, outputs of all chunks.

Legend: B batch, L length, S segments, D channels, N states, G groups, K chunks.
"""

# ruff: noqa: RUF005  (the compiler of kernels knows no starred expressions)

from __future__ import annotations

import torch
import triton
import triton.language as tl

from seqkit.kernels.chunks import count_chunks
from seqkit.kernels.selective.tiles import (
    TOKENS_AHEAD,
    Call,
    advance,
    channel_block,
    chunk_length,
    chunk_of,
    decay_rates,
    far_rows,
    present,
    put,
    row_start,
    state_tile,
    step_size,
    strides_of,
    take,
    take_if,
)
from seqkit.kernels.triton_chunks import locate_segment, only_if
from seqkit.kernels.triton_compiled import launch_settled
from seqkit.kernels.triton_launch import ceil_div, guard
from seqkit.kernels.triton_math import LOG2_E, exp2, prefetch, sigmoid, widen

SUMMARY_BLOCK = 64  # channels of a program: two to a thread
OUTPUT_BLOCK = 64
OUTPUT_REGISTERS = 128  # of a thread, for 16-bit operands: more programs run at once; float32 rows need more
CHAIN_BLOCK = 32
CHAIN_STEPS = 32  # chunks fetched together
VARYING = [
    "length", "per_row", "segments", "channels", "blocks", "group", "groups", "sub", "sul", "sdb", "sdl",
    "sBb", "sBl", "sBg", "sCb", "sCl", "sCg", "szb", "szl",
]  # fmt: skip


@triton.jit(do_not_specialize=VARYING)
def summary_kernel(
    u_ptr, delta_ptr, A_ptr, B_ptr, bias_ptr, ends_ptr, sums_ptr, segment_ptr, table_ptr,
    length, per_row, segments, channels, group, groups, blocks, sub, sul, sdb, sdl, sBb, sBl, sBg,
    N: tl.constexpr, NP: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
    SOFTPLUS: tl.constexpr, PACKED: tl.constexpr, REVERSE: tl.constexpr, MASKED: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """End of every chunk from a zero start (K, N, D), and its sum of delta (K, D)."""
    program = tl.program_id(0).to(tl.int64)
    k, g = program // (blocks * groups), (program // blocks) % groups
    d, on_d = channel_block(g, program % blocks, group, BLOCK)
    row, first, count, some = chunk_of(k, segment_ptr, table_ptr, segments, length, per_row, CHUNK, PACKED, REVERSE)
    n = tl.arange(0, NP)
    on = (n < N)[:, None] & on_d[None, :]
    all_d, all_n = present(tl.arange(0, BLOCK), on_d, MASKED), present(n, n < N, MASKED)
    tile = state_tile(n, d, channels)
    rates = decay_rates(A_ptr, tile, on)
    bias = tl.load(bias_ptr + d, mask=on_d, other=0.0) if bias_ptr is not None else 0.0
    d_0, sign = g * group + program % blocks * BLOCK, -1 if REVERSE else 1
    far, far_step = far_rows(
        u_ptr + row * sub + first * sul + d_0, delta_ptr + row * sdb + first * sdl + d_0, None, None,
        B_ptr + row_start(row, first, g, sBb, sBl, sBg, WIDE), None, sign * sul, sign * sdl, 0, 0, sign * sBl, 0,
        group - program % blocks * BLOCK, BLOCK, 1,
    )  # fmt: skip
    far += tl.maximum(tl.minimum(TOKENS_AHEAD, count - 1), 0) * far_step
    u_ptr += row * sub + first * sul + d
    delta_ptr += row * sdb + first * sdl + d
    B_ptr += row_start(row, first, g, sBb, sBl, sBg, WIDE) + n
    u, raw, b = take_if(u_ptr, all_d, some), take_if(delta_ptr, all_d, some), widen(take_if(B_ptr, all_n, some))
    state = tl.zeros((NP, BLOCK), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for i in range(count):
        more = i + 1 < count
        u_ptr += advance(more, sul, False, REVERSE)
        delta_ptr += advance(more, sdl, False, REVERSE)
        B_ptr += advance(more, sBl, WIDE, REVERSE)
        next_u, next_raw = take(u_ptr, all_d, MASKED), take(delta_ptr, all_d, MASKED)
        next_b = take(B_ptr, all_n, MASKED)
        far += tl.where(count > i + TOKENS_AHEAD + 1, far_step, 0)
        prefetch(far)
        delta, positive = step_size(raw, bias, SOFTPLUS)
        state = exp2(rates * positive[None, :]) * state + b[:, None] * (delta * u.to(tl.float32))[None, :]
        total += positive
        u, raw, b = next_u, next_raw, widen(next_b)
    tl.store(ends_ptr + k * N * channels + tile, state, mask=on)
    tl.store(sums_ptr + k * channels + d, total, mask=on_d)


@triton.jit
def chunk_rows(
    states_ptr, sums_ptr, first, begin, chunks, e, d, on, N: tl.constexpr, channels,
    STEPS: tl.constexpr, FLIP: tl.constexpr,
):  # fmt: skip
    """Ends and sums of delta of STEPS chunks from number begin on; 0 past the last: it changes no state."""
    ends, sums = (), ()
    for j in tl.static_range(STEPS):
        i = begin + j
        k = first + (chunks - 1 - i if FLIP else i)
        ends = ends + (tl.load(states_ptr + k * (N * channels) + e, mask=only_if(on, i < chunks), other=0.0),)
        sums = sums + (tl.load(sums_ptr + k * channels + d, mask=only_if(on, i < chunks), other=0.0),)
    return ends, sums


@triton.jit(do_not_specialize=VARYING)
def chain_kernel(
    states_ptr, sums_ptr, A_ptr, entry_ptr, last_ptr, table_ptr, per_row, segments, channels, blocks,
    N: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr, STEPS: tl.constexpr,
    PACKED: tl.constexpr, FLIP: tl.constexpr,
):  # fmt: skip
    """Hand states from chunk to chunk of a segment, in scan order or (adjoints) against it.

    Takes the ends of the chunks (K, N, D) from zero starts and entries (S, D, N); leaves in place of the ends the
    states that the chunks start from, and writes what leaves each segment (S, D, N). The decay over a chunk is
    exp(A sum of delta): no product of decays spans chunks.
    """
    program = tl.program_id(0).to(tl.int64)
    segment = program // blocks
    first, chunks = locate_segment(segment, table_ptr, segments, per_row, CHUNK, PACKED)
    e = (program % blocks) * BLOCK + tl.arange(0, BLOCK)
    on = e < N * channels
    d, n = e % channels, e // channels
    rates = tl.minimum(tl.load(A_ptr + e, mask=on, other=0.0), 0.0) * LOG2_E
    at_state = (segment * channels + d) * N + n
    state = tl.zeros((BLOCK,), tl.float32)
    if entry_ptr is not None:
        state += tl.load(entry_ptr + at_state, mask=on, other=0.0)
    ends, sums = chunk_rows(states_ptr, sums_ptr, first, 0, chunks, e, d, on, N, channels, STEPS, FLIP)
    for part in range(tl.cdiv(chunks, STEPS).to(tl.int32)):
        begin = part * STEPS
        next_ends, next_sums = chunk_rows(
            states_ptr, sums_ptr, first, begin + STEPS, chunks, e, d, on, N, channels, STEPS, FLIP
        )
        for j in tl.static_range(STEPS):
            k = first + (chunks - 1 - begin - j if FLIP else begin + j)
            tl.store(states_ptr + k * (N * channels) + e, state, mask=only_if(on, begin + j < chunks))
            state = exp2(rates * sums[j]) * state + ends[j]
        ends, sums = next_ends, next_sums
    tl.store(last_ptr + at_state, state, mask=on)


@triton.jit(do_not_specialize=VARYING)
def output_kernel(
    u_ptr, delta_ptr, A_ptr, B_ptr, C_ptr, D_ptr, z_ptr, bias_ptr, starts_ptr, y_ptr, segment_ptr, table_ptr,
    length, per_row, segments, channels, group, groups, blocks,
    sub, sul, sdb, sdl, sBb, sBl, sBg, sCb, sCl, sCg, szb, szl,
    N: tl.constexpr, NP: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
    SOFTPLUS: tl.constexpr, PACKED: tl.constexpr, REVERSE: tl.constexpr, MASKED: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Outputs of every chunk from the state it starts with."""
    program = tl.program_id(0).to(tl.int64)
    k, g = program // (blocks * groups), (program // blocks) % groups
    d, on_d = channel_block(g, program % blocks, group, BLOCK)
    row, first, count, some = chunk_of(k, segment_ptr, table_ptr, segments, length, per_row, CHUNK, PACKED, REVERSE)
    n = tl.arange(0, NP)
    on = (n < N)[:, None] & on_d[None, :]
    all_d, all_n = present(tl.arange(0, BLOCK), on_d, MASKED), present(n, n < N, MASKED)
    tile = state_tile(n, d, channels)
    rates = decay_rates(A_ptr, tile, on)
    bias = tl.load(bias_ptr + d, mask=on_d, other=0.0) if bias_ptr is not None else 0.0
    skip = tl.load(D_ptr + d, mask=on_d, other=0.0) if D_ptr is not None else 0.0
    d_0, sign = g * group + program % blocks * BLOCK, -1 if REVERSE else 1
    far, far_step = far_rows(
        u_ptr + row * sub + first * sul + d_0, delta_ptr + row * sdb + first * sdl + d_0, None,
        z_ptr + row * szb + first * szl + d_0 if z_ptr is not None else None,
        B_ptr + row_start(row, first, g, sBb, sBl, sBg, WIDE), C_ptr + row_start(row, first, g, sCb, sCl, sCg, WIDE),
        sign * sul, sign * sdl, 0, sign * szl, sign * sBl, sign * sCl, group - program % blocks * BLOCK, BLOCK, 1,
    )  # fmt: skip
    far += tl.maximum(tl.minimum(TOKENS_AHEAD, count - 1), 0) * far_step
    u_ptr += row * sub + first * sul + d
    delta_ptr += row * sdb + first * sdl + d
    B_ptr += row_start(row, first, g, sBb, sBl, sBg, WIDE) + n
    C_ptr += row_start(row, first, g, sCb, sCl, sCg, WIDE) + n
    y_ptr += (row * length + first) * channels + d
    u, raw = take_if(u_ptr, all_d, some), take_if(delta_ptr, all_d, some)
    b, c = widen(take_if(B_ptr, all_n, some)), widen(take_if(C_ptr, all_n, some))
    if z_ptr is not None:
        z_ptr += row * szb + first * szl + d
        z = take_if(z_ptr, all_d, some)
    state = take_if(starts_ptr + k * N * channels + tile, on, some)
    for i in range(count):
        more = i + 1 < count
        u_ptr += advance(more, sul, False, REVERSE)
        delta_ptr += advance(more, sdl, False, REVERSE)
        B_ptr += advance(more, sBl, WIDE, REVERSE)
        C_ptr += advance(more, sCl, WIDE, REVERSE)
        next_u, next_raw = take(u_ptr, all_d, MASKED), take(delta_ptr, all_d, MASKED)
        next_b, next_c = take(B_ptr, all_n, MASKED), take(C_ptr, all_n, MASKED)
        if z_ptr is not None:
            z_ptr += advance(more, szl, False, REVERSE)
            next_z = take(z_ptr, all_d, MASKED)
        far += tl.where(count > i + TOKENS_AHEAD + 1, far_step, 0)
        prefetch(far)
        delta, positive = step_size(raw, bias, SOFTPLUS)
        x = u.to(tl.float32)
        state = exp2(rates * positive[None, :]) * state + b[:, None] * (delta * x)[None, :]
        y = tl.sum(c[:, None] * state, 0) + skip * x
        if z_ptr is not None:
            gate = z.to(tl.float32)
            y *= gate * sigmoid(gate)
            z = next_z
        put(y_ptr, y, all_d, MASKED)
        y_ptr += -channels if REVERSE else channels
        u, raw, b, c = next_u, next_raw, widen(next_b), widen(next_c)


def boundary_shape(batch: int, length: int, channels: int, states: int, segments: int | None) -> tuple[int, int, int]:
    """Shape (K, N, D) of the chunk-start states that the forward pass keeps."""
    return count_chunks(batch, length, chunk_length(batch, length, channels), segments), states, channels


def chain(call: Call, states_KND: torch.Tensor, sums_KD: torch.Tensor, entry: torch.Tensor | None, flip: bool):
    """Turn chunk ends into chunk starts in place; returns what leaves each segment (S, D, N). Flipped for adjoints."""
    spans, N, D = call.segments, call.N, call.D
    last = states_KND.new_empty((spans.count, D, N))
    blocks = ceil_div(N * D, CHAIN_BLOCK)

    def settle():
        sizes = {"N": N, "BLOCK": CHAIN_BLOCK, "CHUNK": call.chunk, "STEPS": CHAIN_STEPS}
        constants = {**sizes, "PACKED": spans.packed, "FLIP": flip, "num_warps": 1}
        return spans.count * blocks, (spans.per_row, spans.count, D, blocks), constants

    if spans.count:
        operands = states_KND, sums_KD, call.A, entry, last, spans.table
        launch_settled(chain_kernel, (call.settings, flip), settle, *operands)
    return last


def forward(*args) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scan.

    Args:
        *args: Those of the custom op, without the provider.

    Returns:
        y (B, L, D) in u's dtype, final states (S, D, N), chunk-start states (K, N, D).
    """
    call = Call(*args)
    u = call.u
    y = torch.empty(u.shape, dtype=u.dtype, device=u.device)
    with guard(u):
        states, final = _starts(call)
        if u.numel():
            _outputs(call, states, y)
    return y, final, states


def starts(*args) -> torch.Tensor:
    """The chunk-start states (K, N, D) of :func:`forward` alone, at about half its cost."""
    call = Call(*args)
    with guard(call.u):
        return _starts(call)[0]


def _outputs(call: Call, states: torch.Tensor, y: torch.Tensor) -> None:
    """Write the outputs of all chunks."""
    narrow, strides = call.u.element_size() == 2, strides_of(call.u, call.delta, call.B, call.C, call.z)

    def settle():
        constants = {**call.constants(OUTPUT_BLOCK), "maxnreg": OUTPUT_REGISTERS if narrow else None}
        return call.programs(OUTPUT_BLOCK), (*call.geometry(OUTPUT_BLOCK), *strides), constants

    operands = call.u, call.delta, call.A, call.B, call.C, call.skip, call.z, call.bias, states, y
    launch_settled(output_kernel, (call.settings, narrow, strides), settle, *operands, *call.tables)


def _starts(call: Call) -> tuple[torch.Tensor, torch.Tensor]:
    """Chunk-start states (K, N, D), and what leaves each segment (S, D, N)."""
    states = torch.empty((call.segments.chunks, call.N, call.D), dtype=torch.float32, device=call.u.device)
    sums = states.new_empty((call.segments.chunks, call.D))
    if call.u.numel():
        strides = strides_of(call.u, call.delta, call.B)
        operands = call.u, call.delta, call.A, call.B, call.bias, states, sums
        key, settle = (call.settings, strides), lambda: call.settled(SUMMARY_BLOCK, strides)
        launch_settled(summary_kernel, key, settle, *operands, *call.tables)
    return states, chain(call, states, sums, call.entry, flip=False)
