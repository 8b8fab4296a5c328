"""Selective scan on Triton, forward: summaries of all chunks, a chain over them, outputs of all chunks.

A program owns BLOCK channels and one chunk; its state [N, BLOCK] stays in registers and time runs inside it. Rows of
STEPS tokens are fetched before the first of them is used, which hides the latency of memory.

Legend: B batch, L length, S segments, D channels, N states, G groups, K chunks.
"""

# ruff: noqa: RUF005  (the compiler of kernels knows no starred expressions)

from __future__ import annotations

import torch
import triton
import triton.language as tl

from seqkit.kernels.chunks import count_chunks
from seqkit.kernels.selective.tiles import (
    CHUNK,
    SUMMARY_STEPS,
    Call,
    channel_block,
    decay_rates,
    fetch_rows,
    row_of,
    state_tile,
    step_size,
)
from seqkit.kernels.triton_chunks import locate_chunk, locate_segment, only_if
from seqkit.kernels.triton_launch import ceil_div, guard
from seqkit.kernels.triton_math import LOG2_E, exp2, sigmoid

CHAIN_BLOCK = 64
OUTPUT_STEPS = 1  # 4 takes 246 registers and is slower by a third
VARYING = [
    "length", "per_row", "segments", "channels", "blocks", "group", "groups", "sub", "sul", "sdb", "sdl",
    "sBb", "sBl", "sBg", "sCb", "sCl", "sCg", "szb", "szl", "syb", "syl",
]  # fmt: skip


@triton.jit(do_not_specialize=VARYING)
def summary_kernel(
    u_ptr, delta_ptr, A_ptr, B_ptr, bias_ptr, ends_ptr, sums_ptr, segment_ptr, table_ptr,
    length, per_row, segments, channels, group, groups, blocks, sub, sul, sdb, sdl, sBb, sBl, sBg,
    N: tl.constexpr, NP: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr, STEPS: tl.constexpr,
    SOFTPLUS: tl.constexpr, PACKED: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """End of every chunk from a zero start (K, N, D), and its sum of delta (K, D)."""
    k, g, d, on_d = channel_block(tl.program_id(0).to(tl.int64), group, groups, blocks, BLOCK)
    row, first, count = locate_chunk(k, segment_ptr, table_ptr, segments, length, per_row, CHUNK, PACKED, REVERSE)
    n = tl.arange(0, NP)
    rates = decay_rates(A_ptr, n, d, on_d, N) * LOG2_E
    bias = tl.load(bias_ptr + d, mask=on_d, other=0.0) if bias_ptr is not None else 0.0
    u_ptr += row * sub + d
    delta_ptr += row * sdb + d
    B_ptr += row * sBb + g * sBg + n
    state = tl.zeros((NP, BLOCK), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for part in range(tl.cdiv(count, STEPS).to(tl.int32)):
        begin = part * STEPS
        us = fetch_rows(u_ptr, sul, first, begin, count, on_d, STEPS, REVERSE)
        deltas = fetch_rows(delta_ptr, sdl, first, begin, count, on_d, STEPS, REVERSE)
        Bs = fetch_rows(B_ptr, sBl, first, begin, count, n < N, STEPS, REVERSE)
        for j in tl.static_range(STEPS):
            delta, positive, _slope = step_size(deltas[j], bias, begin + j < count, SOFTPLUS)
            x = delta * us[j].to(tl.float32)
            state = exp2(rates * positive[None, :]) * state + Bs[j].to(tl.float32)[:, None] * x[None, :]
            total += positive
    at, on = state_tile(k, n, d, on_d, N, channels)
    tl.store(ends_ptr + at, state, mask=on)
    tl.store(sums_ptr + k * channels + d, total, mask=on_d)


@triton.jit(do_not_specialize=VARYING)
def chain_kernel(
    ends_ptr, sums_ptr, A_ptr, entry_ptr, starts_ptr, last_ptr, table_ptr, per_row, segments, channels, blocks,
    N: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr, STEPS: tl.constexpr,
    PACKED: tl.constexpr, FLIP: tl.constexpr,
):  # fmt: skip
    """Hand states from chunk to chunk of a segment, in scan order or (adjoints) against it.

    Reads entries (S, D, N); writes the state each chunk starts from (K, N, D) and the one that leaves the segment
    (S, D, N). The decay over a chunk is exp(A sum of delta): no product of decays spans chunks.
    """
    program = tl.program_id(0).to(tl.int64)
    segment = program // blocks
    first, chunks = locate_segment(segment, table_ptr, segments, per_row, CHUNK, PACKED)
    e = (program % blocks) * BLOCK + tl.arange(0, BLOCK)
    on = e < N * channels
    d, n = e % channels, e // channels
    rates = tl.minimum(tl.load(A_ptr + d * N + n, mask=on, other=0.0), 0.0) * LOG2_E
    at_state = (segment * channels + d) * N + n
    state = tl.zeros((BLOCK,), tl.float32)
    if entry_ptr is not None:
        state += tl.load(entry_ptr + at_state, mask=on, other=0.0)
    for part in range(tl.cdiv(chunks, STEPS).to(tl.int32)):
        ends, sums = (), ()
        for j in tl.static_range(STEPS):
            i = part * STEPS + j
            k = first + (chunks - 1 - i if FLIP else i)
            ends = ends + (tl.load(ends_ptr + k * (N * channels) + e, mask=only_if(on, i < chunks), other=0.0),)
            sums = sums + (tl.load(sums_ptr + k * channels + d, mask=only_if(on, i < chunks), other=0.0),)
        for j in tl.static_range(STEPS):
            i = part * STEPS + j
            k = first + (chunks - 1 - i if FLIP else i)
            tl.store(starts_ptr + k * (N * channels) + e, state, mask=only_if(on, i < chunks))
            state = exp2(rates * sums[j]) * state + ends[j]
    tl.store(last_ptr + at_state, state, mask=on)


@triton.jit(do_not_specialize=VARYING)
def output_kernel(
    u_ptr, delta_ptr, A_ptr, B_ptr, C_ptr, D_ptr, z_ptr, bias_ptr, starts_ptr, y_ptr, segment_ptr, table_ptr,
    length, per_row, segments, channels, group, groups, blocks,
    sub, sul, sdb, sdl, sBb, sBl, sBg, sCb, sCl, sCg, szb, szl,
    N: tl.constexpr, NP: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr, STEPS: tl.constexpr,
    SOFTPLUS: tl.constexpr, PACKED: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """Outputs of every chunk from the state it starts with."""
    k, g, d, on_d = channel_block(tl.program_id(0).to(tl.int64), group, groups, blocks, BLOCK)
    row, first, count = locate_chunk(k, segment_ptr, table_ptr, segments, length, per_row, CHUNK, PACKED, REVERSE)
    n = tl.arange(0, NP)
    rates = decay_rates(A_ptr, n, d, on_d, N) * LOG2_E
    bias = tl.load(bias_ptr + d, mask=on_d, other=0.0) if bias_ptr is not None else 0.0
    skip = tl.load(D_ptr + d, mask=on_d, other=0.0) if D_ptr is not None else 0.0
    u_ptr += row * sub + d
    delta_ptr += row * sdb + d
    B_ptr += row * sBb + g * sBg + n
    C_ptr += row * sCb + g * sCg + n
    y_ptr += row * length * channels + d
    at, on = state_tile(k, n, d, on_d, N, channels)
    state = tl.load(starts_ptr + at, mask=only_if(on, count > 0), other=0.0)
    for part in range(tl.cdiv(count, STEPS).to(tl.int32)):
        begin = part * STEPS
        us = fetch_rows(u_ptr, sul, first, begin, count, on_d, STEPS, REVERSE)
        deltas = fetch_rows(delta_ptr, sdl, first, begin, count, on_d, STEPS, REVERSE)
        Bs = fetch_rows(B_ptr, sBl, first, begin, count, n < N, STEPS, REVERSE)
        Cs = fetch_rows(C_ptr, sCl, first, begin, count, n < N, STEPS, REVERSE)
        if z_ptr is not None:
            zs = fetch_rows(z_ptr + row * szb + d, szl, first, begin, count, on_d, STEPS, REVERSE)
        for j in tl.static_range(STEPS):
            t, valid = row_of(first, begin + j, count, REVERSE)
            delta, positive, _slope = step_size(deltas[j], bias, valid, SOFTPLUS)
            u = us[j].to(tl.float32)
            state = exp2(rates * positive[None, :]) * state + Bs[j].to(tl.float32)[:, None] * (delta * u)[None, :]
            y = tl.sum(Cs[j].to(tl.float32)[:, None] * state, 0) + skip * u
            if z_ptr is not None:
                z = zs[j].to(tl.float32)
                y *= z * sigmoid(z)
            tl.store(y_ptr + t * channels, y.to(y_ptr.dtype.element_ty), mask=only_if(on_d, valid))


def boundary_shape(batch: int, length: int, channels: int, states: int, segments: int | None) -> tuple[int, int, int]:
    """Shape (K, N, D) of the chunk-start states that the forward pass keeps."""
    return count_chunks(batch, length, CHUNK, segments), states, channels


def chain(call: Call, ends: torch.Tensor, sums: torch.Tensor, entry: torch.Tensor | None, flip: bool):
    """Chunk starts (K, N, D) and what leaves each segment (S, D, N); flipped for adjoints."""
    spans, N, D = call.segments, call.N, call.D
    starts = torch.zeros_like(ends) if spans.packed else torch.empty_like(ends)  # packed slots may stay unused
    last = ends.new_empty((spans.count, D, N))
    blocks = ceil_div(N * D, CHAIN_BLOCK)
    if spans.count:
        chain_kernel[(spans.count * blocks,)](
            ends, sums, call.A, entry, starts, last, spans.table, spans.per_row, spans.count, D, blocks,
            N=N, BLOCK=CHAIN_BLOCK, CHUNK=CHUNK, STEPS=16, PACKED=spans.packed, FLIP=flip, num_warps=2,
        )  # fmt: skip
    return starts, last


def forward(*args) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scan.

    Args:
        *args: Those of the custom op, without the provider.

    Returns:
        y (B, L, D) in u's dtype, final states (S, D, N), chunk-start states (K, N, D).
    """
    call = Call(*args)
    u, spans = call.u, call.segments
    y = torch.empty(u.shape, dtype=u.dtype, device=u.device)
    ends = torch.empty((spans.chunks, call.N, call.D), dtype=torch.float32, device=u.device)
    sums = ends.new_empty((spans.chunks, call.D))
    grid = (call.programs,)
    with guard(u):
        if call.programs:
            summary_kernel[grid](
                u, call.delta, call.A, call.B, call.bias, ends, sums, *call.geometry(),
                *call.strides("u", "delta", "B"), STEPS=SUMMARY_STEPS, **call.constants(),
            )  # fmt: skip
        starts, final = chain(call, ends, sums, call.entry, flip=False)
        if call.programs:
            output_kernel[grid](
                u, call.delta, call.A, call.B, call.C, call.skip, call.z, call.bias, starts, y, *call.geometry(),
                *call.strides("u", "delta", "B", "C", "z"), STEPS=OUTPUT_STEPS, **call.constants(),
            )  # fmt: skip
    return y, final, starts
