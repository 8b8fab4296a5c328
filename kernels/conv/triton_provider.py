"""Causal convolution on Triton, channel-last: every chunk of every segment at once.

Backward is one pass as well: the value before the activation is computed again from the rows in registers, and so is
the gradient of the W - 1 tokens behind a chunk, on which its last inputs depend. Parameters get one partial sum per
chunk, added up in the same order every time: no atomics.

Legend: B batch, L length, S segments, D channels, W taps, K chunks.
"""

# ruff: noqa: RUF005  (the compiler of kernels knows no starred expressions)

from __future__ import annotations

from functools import cached_property

import torch
import triton
import triton.language as tl

from seqkit.kernels.conv import reference
from seqkit.kernels.conv.tiles import (
    BACKWARD_STEPS,
    BLOCK,
    CHUNKS,
    FORWARD_STEPS,
    channels_of,
    convolve,
    fetch_row,
    fetch_rows,
    input_row,
    inputs_before,
    last_of,
    load_taps,
    through_activation,
    token_at,
)
from seqkit.kernels.triton_chunks import locate_positions, only_if
from seqkit.kernels.triton_compiled import launch_settled
from seqkit.kernels.triton_launch import (
    CompileCase,
    Segments,
    ceil_div,
    guard,
    resident_programs,
    rows_contiguous,
    token_strides,
)
from seqkit.kernels.triton_math import sigmoid, widen
from seqkit.kernels.triton_sums import sum_over_chunks

MOST_TAPS = 8  # the window of a program fits its registers; wider ones run on the reference
VARYING = ["length", "per_row", "segments", "blocks"]


@triton.jit(do_not_specialize=VARYING)
def conv_forward_kernel(
    x_ptr, entry_ptr, weight_ptr, bias_ptr, y_ptr, segment_ptr, table_ptr,
    length, per_row, segments, channels, blocks, swd, sww, sxb, sxl: tl.constexpr,
    W: tl.constexpr, SILU: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr, STEPS: tl.constexpr,
    PACKED: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """Y of every token."""
    program = tl.program_id(0).to(tl.int64)
    segment, row, begin, tokens, first = locate_positions(
        program // blocks, segment_ptr, table_ptr, segments, length, per_row, CHUNK, PACKED
    )
    d, on_d = channels_of(program % blocks, channels, BLOCK)
    x_ptr += row * sxb + d
    y_ptr += row * length * channels + d
    taps = load_taps(weight_ptr, d, on_d, swd, sww, W)
    bias = tl.zeros((BLOCK,), tl.float32)
    if bias_ptr is not None:
        bias += tl.load(bias_ptr + d, mask=on_d, other=0.0)
    window = inputs_before(first, x_ptr, sxl, entry_ptr, segment, begin, tokens, d, on_d, channels, W, REVERSE)
    for part in range(tl.cdiv(tl.minimum(tokens - first, CHUNK), STEPS).to(tl.int32)):
        position = first + part * STEPS
        fetched = fetch_rows(x_ptr, sxl, position, begin, tokens, on_d, STEPS, REVERSE)
        rows = window
        for j in tl.static_range(STEPS):
            rows = rows + (widen(fetched[j]),)
            y = convolve(rows, taps, bias, j, W)
            if SILU:
                y *= sigmoid(y)
            at = token_at(position + j, begin, tokens, REVERSE) * channels
            tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=only_if(on_d, position + j < tokens))
        window = last_of(rows, W - 1, STEPS)


@triton.jit
def input_gradient(dpres, taps, LAST: tl.constexpr, W: tl.constexpr):
    """Gradient of the input W - 1 positions before ``LAST``, from the gradients before the activation since then."""
    total = taps[0] * dpres[LAST]
    for w in tl.static_range(1, W):
        total += taps[w] * dpres[LAST - w]
    return total


@triton.jit
def put_gradient(dx_ptr, at, value, mask, ADD: tl.constexpr):
    """Write a row of dx, or add to what stands there."""
    if ADD:
        value += tl.load(dx_ptr + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(dx_ptr + at, value.to(dx_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=VARYING)
def conv_gradient_kernel(
    dy_ptr, x_ptr, entry_ptr, weight_ptr, bias_ptr, dx_ptr, dtaps_ptr, dbias_ptr, segment_ptr, table_ptr,
    length, per_row, segments, channels, blocks, swd, sww, sgb, sgl: tl.constexpr, sxb, sxl: tl.constexpr,
    sob, sol: tl.constexpr,
    W: tl.constexpr, SILU: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr, STEPS: tl.constexpr,
    PACKED: tl.constexpr, REVERSE: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    """Gradient of every input as far as y depends on it, and one partial sum per chunk of the taps' and the bias's."""
    program = tl.program_id(0).to(tl.int64)
    k = program // blocks
    segment, row, begin, tokens, first = locate_positions(
        k, segment_ptr, table_ptr, segments, length, per_row, CHUNK, PACKED
    )
    d, on_d = channels_of(program % blocks, channels, BLOCK)
    dy_ptr += row * sgb + d
    x_ptr += row * sxb + d
    dx_ptr += row * sob + d
    taps = load_taps(weight_ptr, d, on_d, swd, sww, W)
    bias = tl.zeros((BLOCK,), tl.float32)
    if bias_ptr is not None:
        bias += tl.load(bias_ptr + d, mask=on_d, other=0.0)
    window = inputs_before(first, x_ptr, sxl, entry_ptr, segment, begin, tokens, d, on_d, channels, W, REVERSE)
    dbias = tl.zeros((BLOCK,), tl.float32)
    dtaps, owed = (), ()  # what the last W - 1 gradients before the activation still owe to the inputs
    for _w in tl.static_range(W):
        dtaps = dtaps + (tl.zeros((BLOCK,), tl.float32),)
    for _w in tl.static_range(W - 1):
        owed = owed + (tl.zeros((BLOCK,), tl.float32),)
    parts = tl.cdiv(tl.maximum(tl.minimum(tokens - first, CHUNK), 0), STEPS).to(tl.int32)
    fetched = fetch_rows(x_ptr, sxl, first, begin, tokens, on_d, STEPS, REVERSE)
    dys = fetch_rows(dy_ptr, sgl, first, begin, tokens, on_d, STEPS, REVERSE)
    for part in range(parts):
        position = first + part * STEPS
        # the next rows are on their way while these are worked on: too few warps are resident to hide the wait
        coming = fetch_rows(x_ptr, sxl, position + STEPS, begin, tokens, on_d, STEPS, REVERSE)
        dys_coming = fetch_rows(dy_ptr, sgl, position + STEPS, begin, tokens, on_d, STEPS, REVERSE)
        rows, dpres = window, owed
        for j in tl.static_range(STEPS):
            rows = rows + (widen(fetched[j]),)
            dpre = through_activation(widen(dys[j]), convolve(rows, taps, bias, j, W), SILU)
            dpres = dpres + (dpre,)
            dbias += dpre
            sums = ()
            for w in tl.static_range(W):
                sums = sums + (dtaps[w] + dpre * rows[j + w],)
            dtaps = sums
            source = position + j - (W - 1)
            at = token_at(source, begin, tokens, REVERSE) * sol
            mask = only_if(on_d, (source >= first) & (source < tokens))
            put_gradient(dx_ptr, at, input_gradient(dpres, taps, W - 1 + j, W), mask, ADD)
        window, owed = last_of(rows, W - 1, STEPS), last_of(dpres, W - 1, STEPS)
        fetched, dys = coming, dys_coming
    rows, dpres = window, owed
    for j in tl.static_range(W - 1):
        position = first + parts * STEPS + j
        rows = rows + (widen(fetch_row(x_ptr, sxl, position, begin, tokens, on_d, REVERSE)),)
        dy = widen(fetch_row(dy_ptr, sgl, position, begin, tokens, on_d, REVERSE))
        dpres = dpres + (through_activation(dy, convolve(rows, taps, bias, j, W), SILU),)
        source = position - (W - 1)
        at = token_at(source, begin, tokens, REVERSE) * sol
        mask = only_if(on_d, (source >= first) & (source < tokens))
        put_gradient(dx_ptr, at, input_gradient(dpres, taps, W - 1 + j, W), mask, ADD)
    tl.store(dbias_ptr + k * channels + d, dbias, mask=on_d)
    for w in tl.static_range(W):
        tl.store(dtaps_ptr + (k * W + w) * channels + d, dtaps[w], mask=on_d)


@triton.jit
def locate_whole(program, blocks, table_ptr, segments, length, channels, BLOCK: tl.constexpr, PACKED: tl.constexpr):
    """(segment, batch row, first token, number of tokens, channels, which exist) of a program per segment."""
    segment = program // blocks
    if PACKED:
        row, begin, tokens = segment * 0, tl.load(table_ptr + segment), tl.load(table_ptr + segments + segment)
    else:
        row, begin, tokens = segment, segment * 0, segment * 0 + length
    d, on_d = channels_of(program % blocks, channels, BLOCK)
    return segment, row, begin, tokens, d, on_d


@triton.jit(do_not_specialize=VARYING)
def conv_state_kernel(
    x_ptr, entry_ptr, final_ptr, table_ptr, length, segments, channels, blocks, sxb, sxl: tl.constexpr,
    W: tl.constexpr, BLOCK: tl.constexpr, PACKED: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """Final states: the last W - 1 inputs of every segment, reaching back into its initial state."""
    segment, row, begin, tokens, d, on_d = locate_whole(
        tl.program_id(0).to(tl.int64), blocks, table_ptr, segments, length, channels, BLOCK, PACKED
    )
    x_ptr += row * sxb + d
    last = inputs_before(tokens, x_ptr, sxl, entry_ptr, segment, begin, tokens, d, on_d, channels, W, REVERSE)
    for i in tl.static_range(W - 1):
        tl.store(final_ptr + (segment * (W - 1) + i) * channels + d, last[i], mask=on_d)


@triton.jit(do_not_specialize=VARYING)
def conv_state_gradient_kernel(
    dy_ptr, x_ptr, entry_ptr, weight_ptr, bias_ptr, dfinal_ptr, dx_ptr, dentry_ptr, table_ptr,
    length, segments, channels, blocks, swd, sww, sgb, sgl: tl.constexpr, sxb, sxl: tl.constexpr,
    sob, sol: tl.constexpr,
    W: tl.constexpr, SILU: tl.constexpr, BLOCK: tl.constexpr, PACKED: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """Gradient of every initial state; the final state's, added to the inputs that it was copied from."""
    segment, row, begin, tokens, d, on_d = locate_whole(
        tl.program_id(0).to(tl.int64), blocks, table_ptr, segments, length, channels, BLOCK, PACKED
    )
    dy_ptr += row * sgb + d
    x_ptr += row * sxb + d
    dx_ptr += row * sob + d
    taps = load_taps(weight_ptr, d, on_d, swd, sww, W)
    bias = tl.zeros((BLOCK,), tl.float32)
    if bias_ptr is not None:
        bias += tl.load(bias_ptr + d, mask=on_d, other=0.0)
    start = tokens * 0
    rows = inputs_before(start, x_ptr, sxl, entry_ptr, segment, begin, tokens, d, on_d, channels, W, REVERSE)
    dpres = ()
    for _i in tl.static_range(W - 1):
        dpres = dpres + (tl.zeros((BLOCK,), tl.float32),)
    for i in tl.static_range(W - 1):
        position = start + i
        x = input_row(position, x_ptr, sxl, entry_ptr, segment, begin, tokens, d, on_d, channels, W, REVERSE)
        rows = rows + (x,)
        dy = widen(fetch_row(dy_ptr, sgl, position, begin, tokens, on_d, REVERSE))
        dpres = dpres + (through_activation(dy, convolve(rows, taps, bias, i, W), SILU),)
        dentry = input_gradient(dpres, taps, W - 1 + i, W)
        if dfinal_ptr is not None:
            slot = (segment * (W - 1) + i - tokens) * channels + d
            dentry += tl.load(dfinal_ptr + slot, mask=only_if(on_d, i >= tokens), other=0.0)
            source = tokens - (W - 1) + i
            on = only_if(on_d, source >= 0)
            at = token_at(source, begin, tokens, REVERSE) * sol
            dlast = tl.load(dfinal_ptr + (segment * (W - 1) + i) * channels + d, mask=on, other=0.0)
            dx = tl.load(dx_ptr + at, mask=on, other=0.0).to(tl.float32) + dlast
            tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask=on)
        if dentry_ptr is not None:
            tl.store(dentry_ptr + (segment * (W - 1) + i) * channels + d, dentry, mask=on_d)


class _Call:
    """Operands as the kernels read them, and what their launches have in common."""

    def __init__(self, x, weight, bias, initial_state, cu_seqlens, activation, reverse):
        self.x, self.weight, (self.D, self.W) = x, weight, weight.shape
        self.bias = None if bias is None else bias.to(torch.float32).contiguous()
        self.entry = None if initial_state is None else initial_state.to(torch.float32).contiguous()
        self.silu, self.reverse = activation == "silu", reverse
        self.blocks = ceil_div(self.D, BLOCK)
        short, long = CHUNKS
        full = x.shape[0] * ceil_div(x.shape[1], long) * self.blocks >= resident_programs(x, 32)
        self.chunk = long if full else short
        self.segments = Segments(x, self.chunk, cu_seqlens)
        self.programs = self.segments.chunks * self.blocks if x.numel() else 0

    @cached_property
    def settings(self) -> tuple:
        """What scalars and constants of a launch depend on, beside what its site knows."""
        at = self.segments
        lengths = at.length, at.per_row, at.count, at.packed, self.programs
        return *lengths, self.D, self.W, self.chunk, self.silu, self.reverse

    @property
    def tables(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.segments.chunk_segment, self.segments.table

    def geometry(self) -> tuple[int, ...]:
        spans = self.segments
        return spans.length, spans.per_row, spans.count, self.D, self.blocks

    def constants(self, steps: int) -> dict[str, int | bool]:
        return {
            "W": self.W,
            "SILU": self.silu,
            "CHUNK": self.chunk,
            "BLOCK": BLOCK,
            "STEPS": steps,
            "PACKED": self.segments.packed,
            "REVERSE": self.reverse,
            "num_warps": 1,
        }

    def state_geometry(self) -> tuple[int, ...]:
        return self.segments.length, self.segments.count, self.D, self.blocks

    def state_constants(self) -> dict[str, int | bool]:
        return {"W": self.W, "BLOCK": BLOCK, "PACKED": self.segments.packed, "REVERSE": self.reverse, "num_warps": 1}


def forward(*args) -> tuple[torch.Tensor, torch.Tensor]:
    """Convolve.

    Args:
        *args: Those of the custom op, without the provider.

    Returns:
        y (B, L, D) in x's dtype, final states (S, W - 1, D).
    """
    x, weight = args[:2]
    if not 2 <= weight.shape[1] <= MOST_TAPS:
        return reference.forward(*args)
    call = _Call(*args)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    final = torch.empty((call.segments.count, call.W - 1, call.D), dtype=torch.float32, device=x.device)
    strides = token_strides(x)

    def settle():
        scalars = *call.geometry(), *weight.stride(), *strides
        return call.programs, scalars, call.constants(FORWARD_STEPS)

    def settle_states():
        return call.segments.count * call.blocks, (*call.state_geometry(), *strides), call.state_constants()

    with guard(x):
        key = call.settings, weight.stride(), strides
        if call.programs:
            launch_settled(conv_forward_kernel, key, settle, x, call.entry, call.weight, call.bias, y, *call.tables)
        if final.numel():
            launch_settled(conv_state_kernel, key, settle_states, x, call.entry, final, call.segments.table)
    return y, final


def backward(
    dy: torch.Tensor,
    dfinal: torch.Tensor | None,
    *args,
    into: dict[str, torch.Tensor] | None = None,
    add: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Gradients of x, weight, bias, initial_state (None where the operand is absent).

    Args:
        dy: Gradient of y (B, L, D).
        dfinal: Gradient of the final states (S, W - 1, D), or None.
        *args: Those of :func:`forward`.
        into: ``{"dx": tensor}`` to write that gradient there; last dimension contiguous.
        add: Add to what stands there.
    """
    x, weight, bias, initial = args[:4]
    if not 2 <= weight.shape[1] <= MOST_TAPS:
        return reference.backward(dy, dfinal, *args, into=into, add=add)
    call, dy = _Call(*args), rows_contiguous(dy)
    dx = into["dx"] if into else torch.empty(x.shape, dtype=x.dtype, device=x.device)
    dfinal = None if dfinal is None else dfinal.float().contiguous()
    K, options = call.segments.chunks if call.programs else 0, {"dtype": torch.float32, "device": x.device}
    dtaps, dbias = torch.empty((K, call.W, call.D), **options), torch.empty((K, call.D), **options)
    dentry = None if initial is None else torch.empty((call.segments.count, call.W - 1, call.D), **options)
    strides = *token_strides(dy), *token_strides(x), *token_strides(dx)
    operands = dy, x, call.entry, call.weight, call.bias

    def settle():
        scalars = *call.geometry(), *weight.stride(), *strides
        return call.programs, scalars, {"ADD": add, **call.constants(BACKWARD_STEPS)}

    def settle_states():
        constants = {"SILU": call.silu, **call.state_constants()}
        scalars = *call.state_geometry(), *weight.stride(), *strides
        return call.segments.count * call.blocks, scalars, constants

    with guard(x):
        key = call.settings, weight.stride(), add, strides
        if call.programs:
            launch_settled(conv_gradient_kernel, key, settle, *operands, dx, dtaps, dbias, *call.tables)
        if call.segments.count and (dentry is not None or dfinal is not None):
            results = dfinal, dx, dentry, call.segments.table
            launch_settled(conv_state_gradient_kernel, key, settle_states, *operands, *results)
        dweight, dbias, _ = sum_over_chunks(dtaps, None if bias is None else dbias)
    return (
        dx,
        dweight.to(weight.dtype),
        None if bias is None else dbias.to(bias.dtype),
        None if initial is None else dentry.to(initial.dtype),
    )


def compile_cases() -> dict[str, CompileCase]:
    """Every kernel with all operands, packed and reversed, in bfloat16."""
    types = dict.fromkeys(("x_ptr", "y_ptr", "dy_ptr", "dx_ptr"), "*bf16")
    types |= dict.fromkeys(("segment_ptr", "table_ptr"), "*i64")
    slices = {"sxl": 1160}  # of a wider tensor, whose rows begin at multiples of 16 bytes
    state = {"W": 4, "BLOCK": BLOCK, "PACKED": True, "REVERSE": True, **slices}
    gradient = {"sgl": 640, "sol": 1160}
    chunk = {**state, "SILU": True, "CHUNK": CHUNKS[1]}
    return {
        "conv_forward_kernel": CompileCase(conv_forward_kernel, {**chunk, "STEPS": FORWARD_STEPS}, 1, types),
        "conv_gradient_kernel": CompileCase(
            conv_gradient_kernel, {**chunk, **gradient, "STEPS": BACKWARD_STEPS, "ADD": True}, 1, types
        ),
        "conv_state_kernel": CompileCase(conv_state_kernel, state, 1, types),
        "conv_state_gradient_kernel": CompileCase(
            conv_state_gradient_kernel, {**state, **gradient, "SILU": True}, 1, types
        ),
    }
