"""Device code that the forward and backward kernels of the causal convolution share.

A program walks through one chunk of one segment, BLOCK channels wide, and holds the last W - 1 rows in registers: each
row is read once. Positions count from the start of a segment in scan order; negative ones lie in the initial state.

Legend: B batch, L length, S segments, D channels, W taps, K chunks.
"""

# ruff: noqa: RUF005  (the compiler of kernels knows no starred expressions)

from __future__ import annotations

import triton
import triton.language as tl

from seqkit.kernels.triton_chunks import only_if
from seqkit.kernels.triton_launch import INTERPRETED
from seqkit.kernels.triton_math import sigmoid, widen

BLOCK = 16 if INTERPRETED else 128  # one warp, four channels a thread: the widest load of float32
CHUNKS = (8, 8) if INTERPRETED else (64, 256)  # tokens: the short one where the long one would leave the GPU empty
FORWARD_STEPS = 4 if INTERPRETED else 8  # rows on their way at once
BACKWARD_STEPS = 4


@triton.jit
def channels_of(block, channels, BLOCK: tl.constexpr):
    """(channels [BLOCK], which of them exist)."""
    d = block * BLOCK + tl.arange(0, BLOCK)
    return d, d < channels


@triton.jit
def token_at(position, begin, tokens, REVERSE: tl.constexpr):
    """Token at a position of its segment."""
    return begin + (tokens - 1 - position if REVERSE else position)


@triton.jit
def fetch_row(x_ptr, sxl, position, begin, tokens, on_d, REVERSE: tl.constexpr):
    """Row at a position as it lies in memory; 0 outside the segment. The pointer is that of channels [BLOCK]."""
    inside = only_if(on_d, (position >= 0) & (position < tokens))
    return tl.load(x_ptr + token_at(position, begin, tokens, REVERSE) * sxl, mask=inside, other=0.0)


@triton.jit
def fetch_rows(x_ptr, sxl, position, begin, tokens, on_d, STEPS: tl.constexpr, REVERSE: tl.constexpr):
    """Rows at ``STEPS`` positions."""
    rows = ()
    for j in tl.static_range(STEPS):
        rows = rows + (fetch_row(x_ptr, sxl, position + j, begin, tokens, on_d, REVERSE),)
    return rows


@triton.jit
def input_row(
    position, x_ptr, sxl, entry_ptr, segment, begin, tokens, d, on_d, channels, W: tl.constexpr, REVERSE: tl.constexpr
):
    """Input at a position, from the initial state before the segment, in float32."""
    x = widen(fetch_row(x_ptr, sxl, position, begin, tokens, on_d, REVERSE))
    if entry_ptr is not None:
        at = (segment * (W - 1) + position + (W - 1)) * channels + d
        x += tl.load(entry_ptr + at, mask=only_if(on_d, position < 0), other=0.0)
    return x


@triton.jit
def inputs_before(
    position, x_ptr, sxl, entry_ptr, segment, begin, tokens, d, on_d, channels, W: tl.constexpr, REVERSE: tl.constexpr
):
    """The W - 1 inputs before a position, oldest first."""
    rows = ()
    for i in tl.static_range(W - 1):
        rows = rows + (
            input_row(
                position - (W - 1) + i, x_ptr, sxl, entry_ptr, segment, begin, tokens, d, on_d, channels, W, REVERSE
            ),
        )  # fmt: skip
    return rows


@triton.jit
def last_of(rows, COUNT: tl.constexpr, SKIP: tl.constexpr):
    """``COUNT`` rows behind the first ``SKIP``."""
    kept = ()
    for i in tl.static_range(COUNT):
        kept = kept + (rows[SKIP + i],)
    return kept


@triton.jit
def load_taps(weight_ptr, d, on_d, swd, sww, W: tl.constexpr):
    """The W weights of every channel, oldest input first."""
    taps = ()
    for w in tl.static_range(W):
        taps = taps + (tl.load(weight_ptr + d * swd + w * sww, mask=on_d, other=0.0).to(tl.float32),)
    return taps


@triton.jit
def convolve(rows, taps, bias, FIRST: tl.constexpr, W: tl.constexpr):
    """Value before the activation, from W rows starting at ``FIRST``."""
    total = bias
    for w in tl.static_range(W):
        total += taps[w] * rows[FIRST + w]
    return total


@triton.jit
def through_activation(dy, value, SILU: tl.constexpr):
    """Gradient of the value before the activation."""
    if SILU:
        s = sigmoid(value)
        return dy * s * (1.0 + value * (1.0 - s))
    else:
        return dy
