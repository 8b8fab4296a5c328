"""Device code that the forward and backward kernels of the causal convolution share.

A program owns CHUNK positions of one segment and BLOCK channels. Positions count from the start of a segment in scan
order: negative ones lie in the initial state.

Legend: B batch, L length, S segments, D channels, W taps, K chunks.
"""

from __future__ import annotations

import triton
import triton.language as tl

from seqkit.kernels.triton_launch import INTERPRETED

CHUNK = 16 if INTERPRETED else 64
BLOCK = 16 if INTERPRETED else 64


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
def inputs_at(
    position, x_ptr, entry_ptr, segment, begin, tokens, d, on_d, sxl, channels,
    W: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """Inputs at positions [T] as a tile [T, BLOCK]; those before the segment come from its initial state, or are 0."""
    t = token_at(position, begin, tokens, REVERSE)
    inside = ((position >= 0) & (position < tokens))[:, None] & on_d[None, :]
    x = tl.load(x_ptr + t[:, None] * sxl + d[None, :], mask=inside, other=0.0).to(tl.float32)
    if entry_ptr is not None:
        slot = segment * (W - 1) + position + (W - 1)
        before = (position < 0)[:, None] & on_d[None, :]
        x += tl.load(entry_ptr + slot[:, None] * channels + d[None, :], mask=before, other=0.0)
    return x


@triton.jit
def convolve(
    position, x_ptr, entry_ptr, taps_ptr, bias_ptr, segment, begin, tokens, d, on_d, sxl, channels,
    W: tl.constexpr, REVERSE: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Values before the activation [T, BLOCK]."""
    total = tl.zeros((CHUNK, BLOCK), tl.float32)
    if bias_ptr is not None:
        total += tl.load(bias_ptr + d, mask=on_d, other=0.0)[None, :]
    for w in range(W):
        tap = tl.load(taps_ptr + w * channels + d, mask=on_d, other=0.0)
        total += tap[None, :] * inputs_at(
            position - (W - 1) + w, x_ptr, entry_ptr, segment, begin, tokens, d, on_d, sxl, channels, W, REVERSE
        )
    return total
