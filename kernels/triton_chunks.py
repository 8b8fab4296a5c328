"""Where a chunk of tokens lies: the device side of :class:`seqkit.kernels.triton_launch.Segments`."""

from __future__ import annotations

import triton
import triton.language as tl

from seqkit.kernels.triton_launch import INTERPRETED

SPREAD_BY_HAND = tl.constexpr(INTERPRETED)


@triton.jit
def locate_positions(k, segment_ptr, table_ptr, segments, length, per_row, CHUNK: tl.constexpr, PACKED: tl.constexpr):
    """(segment, batch row, first token and number of tokens of the segment, tokens before chunk k), all int64."""
    if PACKED:
        segment = tl.load(segment_ptr + k)
        begin = tl.load(table_ptr + segment)
        tokens = tl.load(table_ptr + segments + segment)
        position = (k - tl.load(table_ptr + 2 * segments + segment)) * CHUNK
        row = segment * 0
    else:
        segment = k // per_row
        row = segment
        begin = segment * 0
        tokens = begin + length
        position = (k - segment * per_row) * CHUNK
    return segment, row, begin, tokens, position


@triton.jit
def locate_chunk(
    k, segment_ptr, table_ptr, segments, length, per_row,
    CHUNK: tl.constexpr, PACKED: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """(batch row, first token in scan order, number of tokens) of chunk k, all int64."""
    _segment, row, begin, tokens, position = locate_positions(
        k, segment_ptr, table_ptr, segments, length, per_row, CHUNK, PACKED
    )
    count = tl.maximum(tl.minimum(tokens - position, CHUNK), 0)
    first = begin + (tokens - 1 - position if REVERSE else position)
    return row, first, count


@triton.jit
def locate_segment(segment, table_ptr, segments, per_row, CHUNK: tl.constexpr, PACKED: tl.constexpr):
    """(first chunk, number of chunks) of a segment, int64."""
    if PACKED:
        first = tl.load(table_ptr + 2 * segments + segment)
        chunks = (tl.load(table_ptr + segments + segment) + CHUNK - 1) // CHUNK
    else:
        first = segment * per_row
        chunks = first * 0 + per_row
    return first, chunks


@triton.jit
def only_if(mask, condition):
    """``mask`` where a scalar condition holds, else nothing; the interpreter cannot spread a comparison over a mask."""
    if SPREAD_BY_HAND:
        return mask & (mask.to(tl.int32) * 0 + condition.to(tl.int32) > 0)
    else:
        return mask & condition
