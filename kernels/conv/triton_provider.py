"""Causal convolution on Triton, channel-last: every chunk of every segment at once.

Backward takes two passes: gradients before the activation and the partial sums of the parameters, one per chunk, then
gradients of the inputs. Partial sums are added up in the same order every time: no atomics.

Legend: B batch, L length, S segments, D channels, W taps, K chunks.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from seqkit.kernels.conv.tiles import BLOCK, CHUNK, channels_of, convolve, inputs_at, token_at
from seqkit.kernels.triton_chunks import locate_positions
from seqkit.kernels.triton_launch import CompileCase, Segments, ceil_div, guard, rows_contiguous
from seqkit.kernels.triton_math import sigmoid

VARYING = ["length", "per_row", "segments", "blocks", "batch"]


@triton.jit(do_not_specialize=VARYING)
def forward_kernel(
    x_ptr, entry_ptr, taps_ptr, bias_ptr, y_ptr, segment_ptr, table_ptr,
    length, per_row, segments, channels, blocks, sxb, sxl,
    W: tl.constexpr, SILU: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
    PACKED: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """Y of every token."""
    program = tl.program_id(0).to(tl.int64)
    segment, row, begin, tokens, before = locate_positions(
        program // blocks, segment_ptr, table_ptr, segments, length, per_row, CHUNK, PACKED
    )
    d, on_d = channels_of(program % blocks, channels, BLOCK)
    position = before + tl.arange(0, CHUNK)
    x_ptr += row * sxb
    y = convolve(
        position, x_ptr, entry_ptr, taps_ptr, bias_ptr, segment, begin, tokens, d, on_d, sxl, channels,
        W, REVERSE, BLOCK, CHUNK,
    )  # fmt: skip
    if SILU:
        y *= sigmoid(y)
    t = row * length + token_at(position, begin, tokens, REVERSE)
    on = (position < tokens)[:, None] & on_d[None, :]
    tl.store(y_ptr + t[:, None] * channels + d[None, :], y.to(y_ptr.dtype.element_ty), mask=on)


@triton.jit(do_not_specialize=VARYING)
def activation_kernel(
    dy_ptr, x_ptr, entry_ptr, taps_ptr, bias_ptr, dpre_ptr, dtaps_ptr, dbias_ptr, segment_ptr, table_ptr,
    length, per_row, segments, channels, blocks, sgb, sgl, sxb, sxl,
    W: tl.constexpr, SILU: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
    PACKED: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """Gradient before the activation (B, L, D), and one partial sum per chunk of the taps' and the bias's."""
    program = tl.program_id(0).to(tl.int64)
    k = program // blocks
    segment, row, begin, tokens, before = locate_positions(
        k, segment_ptr, table_ptr, segments, length, per_row, CHUNK, PACKED
    )
    d, on_d = channels_of(program % blocks, channels, BLOCK)
    position = before + tl.arange(0, CHUNK)
    x_ptr += row * sxb
    t = token_at(position, begin, tokens, REVERSE)
    on = (position < tokens)[:, None] & on_d[None, :]
    dpre = tl.load(dy_ptr + row * sgb + t[:, None] * sgl + d[None, :], mask=on, other=0.0).to(tl.float32)
    if SILU:
        pre = convolve(
            position, x_ptr, entry_ptr, taps_ptr, bias_ptr, segment, begin, tokens, d, on_d, sxl, channels,
            W, REVERSE, BLOCK, CHUNK,
        )  # fmt: skip
        s = sigmoid(pre)
        dpre = tl.where(on, dpre * (s + pre * s * (1.0 - s)), 0.0)
    tl.store(dpre_ptr + (row * length + t[:, None]) * channels + d[None, :], dpre, mask=on)
    tl.store(dbias_ptr + k * channels + d, tl.sum(dpre, 0), mask=on_d)
    for w in range(W):
        source = position - (W - 1) + w
        x = inputs_at(source, x_ptr, entry_ptr, segment, begin, tokens, d, on_d, sxl, channels, W, REVERSE)
        tl.store(dtaps_ptr + (k * W + w) * channels + d, tl.sum(dpre * x, 0), mask=on_d)


@triton.jit
def gradient_at(
    position, dpre_ptr, dfinal_ptr, taps_ptr, row, length, segment, begin, tokens, d, on_d, channels,
    W: tl.constexpr, REVERSE: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Gradient of the inputs at positions [T], those of the initial state included: [T, BLOCK]."""
    total = tl.zeros((CHUNK, BLOCK), tl.float32)
    for w in range(W):
        reader = position + (W - 1) - w
        tap = tl.load(taps_ptr + w * channels + d, mask=on_d, other=0.0)
        at = row * length + token_at(reader, begin, tokens, REVERSE)
        on = ((reader >= 0) & (reader < tokens))[:, None] & on_d[None, :]
        total += tap[None, :] * tl.load(dpre_ptr + at[:, None] * channels + d[None, :], mask=on, other=0.0)
    if dfinal_ptr is not None:
        slot = position - tokens + (W - 1)
        on = ((slot >= 0) & (slot < W - 1))[:, None] & on_d[None, :]
        at = segment * (W - 1) + slot
        total += tl.load(dfinal_ptr + at[:, None] * channels + d[None, :], mask=on, other=0.0)
    return total


@triton.jit(do_not_specialize=VARYING)
def input_kernel(
    dpre_ptr, dfinal_ptr, taps_ptr, dx_ptr, segment_ptr, table_ptr, length, per_row, segments, channels, blocks,
    W: tl.constexpr, SILU: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
    PACKED: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """Gradient of every token."""
    program = tl.program_id(0).to(tl.int64)
    segment, row, begin, tokens, before = locate_positions(
        program // blocks, segment_ptr, table_ptr, segments, length, per_row, CHUNK, PACKED
    )
    d, on_d = channels_of(program % blocks, channels, BLOCK)
    position = before + tl.arange(0, CHUNK)
    dx = gradient_at(
        position, dpre_ptr, dfinal_ptr, taps_ptr, row, length, segment, begin, tokens, d, on_d, channels,
        W, REVERSE, BLOCK, CHUNK,
    )  # fmt: skip
    t = row * length + token_at(position, begin, tokens, REVERSE)
    on = (position < tokens)[:, None] & on_d[None, :]
    tl.store(dx_ptr + t[:, None] * channels + d[None, :], dx.to(dx_ptr.dtype.element_ty), mask=on)


@triton.jit(do_not_specialize=VARYING)
def state_kernel(
    x_ptr, entry_ptr, dpre_ptr, dfinal_ptr, taps_ptr, out_ptr, table_ptr, length, segments, channels, blocks, sxb, sxl,
    W: tl.constexpr, SLOTS: tl.constexpr, BLOCK: tl.constexpr, PACKED: tl.constexpr, REVERSE: tl.constexpr,
    GRADIENT: tl.constexpr,
):  # fmt: skip
    """Final states, the last W - 1 inputs of every segment; or with GRADIENT those of the initial states."""
    program = tl.program_id(0).to(tl.int64)
    segment = program // blocks
    if PACKED:
        row, begin, tokens = segment * 0, tl.load(table_ptr + segment), tl.load(table_ptr + segments + segment)
    else:
        row, begin, tokens = segment, segment * 0, segment * 0 + length
    d, on_d = channels_of(program % blocks, channels, BLOCK)
    slot = segment * 0 + tl.arange(0, SLOTS)
    if GRADIENT:
        value = gradient_at(
            slot - (W - 1), dpre_ptr, dfinal_ptr, taps_ptr, row, length, segment, begin, tokens, d, on_d, channels,
            W, REVERSE, BLOCK, SLOTS,
        )  # fmt: skip
    else:
        value = inputs_at(
            tokens - (W - 1) + slot, x_ptr + row * sxb, entry_ptr, segment, begin, tokens, d, on_d, sxl, channels,
            W, REVERSE,
        )  # fmt: skip
    on = (slot < W - 1)[:, None] & on_d[None, :]
    tl.store(out_ptr + (segment * (W - 1) + slot[:, None]) * channels + d[None, :], value, mask=on)


class _Call:
    """Operands as the kernels read them, and what their launches have in common."""

    def __init__(self, x, weight, bias, initial_state, cu_seqlens, activation, reverse):
        self.x, (self.D, self.W) = x, weight.shape
        self.taps = weight.t().to(torch.float32).contiguous()
        self.bias = None if bias is None else bias.to(torch.float32).contiguous()
        self.entry = None if initial_state is None else initial_state.to(torch.float32).contiguous()
        self.segments, self.silu, self.reverse = Segments(x, CHUNK, cu_seqlens), activation == "silu", reverse
        self.blocks = ceil_div(self.D, BLOCK)
        self.programs = self.segments.chunks * self.blocks if x.numel() else 0

    def geometry(self) -> tuple:
        spans = self.segments
        return spans.chunk_segment, spans.table, spans.length, spans.per_row, spans.count, self.D, self.blocks

    def constants(self) -> dict[str, int | bool]:
        return {
            "W": self.W,
            "SILU": self.silu,
            "CHUNK": CHUNK,
            "BLOCK": BLOCK,
            "PACKED": self.segments.packed,
            "REVERSE": self.reverse,
        }

    def states(self, dpre: torch.Tensor | None, dfinal: torch.Tensor | None, gradient: bool) -> torch.Tensor:
        """Final states, or gradients of the initial ones: (S, W - 1, D)."""
        spans = self.segments
        out = torch.empty((spans.count, self.W - 1, self.D), dtype=torch.float32, device=self.x.device)
        if out.numel():
            state_kernel[(spans.count * self.blocks,)](
                self.x, self.entry, dpre, dfinal, self.taps, out, spans.table, spans.length, spans.count, self.D,
                self.blocks, self.x.stride(0), self.x.stride(1), W=self.W, SLOTS=triton.next_power_of_2(self.W - 1),
                BLOCK=BLOCK, PACKED=spans.packed, REVERSE=self.reverse, GRADIENT=gradient,
            )  # fmt: skip
        return out


def forward(*args) -> tuple[torch.Tensor, torch.Tensor]:
    """Convolve.

    Args:
        *args: Those of the custom op, without the provider.

    Returns:
        y (B, L, D) in x's dtype, final states (S, W - 1, D).
    """
    call = _Call(*args)
    x = call.x
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    with guard(x):
        if call.programs:
            forward_kernel[(call.programs,)](
                x, call.entry, call.taps, call.bias, y, *call.geometry(), x.stride(0), x.stride(1), **call.constants()
            )
        return y, call.states(None, None, gradient=False)


def backward(
    dy: torch.Tensor, dfinal: torch.Tensor | None, *args
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Gradients of x, weight, bias, initial_state (None where the operand is absent).

    Args:
        dy: Gradient of y (B, L, D).
        dfinal: Gradient of the final states (S, W - 1, D), or None.
        *args: Those of :func:`forward`.
    """
    call, dy = _Call(*args), rows_contiguous(dy)
    (x, weight, bias, initial), K = args[:4], call.segments.chunks
    dfinal = None if dfinal is None else dfinal.float().contiguous()
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    dpre = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    dparameters = dpre.new_empty((K, call.W * call.D)), dpre.new_empty((K, call.D))
    with guard(x):
        if call.programs:
            activation_kernel[(call.programs,)](
                dy, x, call.entry, call.taps, call.bias, dpre, *dparameters, *call.geometry(),
                *dy.stride()[:2], *x.stride()[:2], **call.constants(),
            )  # fmt: skip
            input_kernel[(call.programs,)](dpre, dfinal, call.taps, dx, *call.geometry(), **call.constants())
        dentry = None if initial is None else call.states(dpre, dfinal, gradient=True).to(initial.dtype)
    if not call.programs:
        dparameters = tuple(part.new_zeros(1, part.shape[1]) for part in dparameters)
    dtaps, dbias = (part.sum(0) for part in dparameters)
    return (
        dx,
        dtaps.view(call.W, call.D).t().to(weight.dtype).contiguous(),
        None if bias is None else dbias.to(bias.dtype),
        dentry,
    )


def compile_cases() -> dict[str, CompileCase]:
    """Every kernel with four taps, all operands, packed segments and bfloat16."""
    types = {f"{name}_ptr": "*bf16" for name in ("x", "y", "dy", "dx")} | {"segment_ptr": "*i64", "table_ptr": "*i64"}
    constants = {"W": 4, "SILU": True, "CHUNK": CHUNK, "BLOCK": BLOCK, "PACKED": True, "REVERSE": True}
    state = {"W": 4, "SLOTS": 4, "BLOCK": BLOCK, "PACKED": True, "REVERSE": True, "GRADIENT": True}
    cases = {
        k.__name__: CompileCase(k, constants, types=types) for k in (forward_kernel, activation_kernel, input_kernel)
    }
    return cases | {"state_kernel": CompileCase(state_kernel, state, types=types)}
