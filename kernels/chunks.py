"""Cut sequences, dense or packed, forward or reversed, into chunks of equal length.

Every scan of the reference provider runs on a flat list of chunks: all chunks of the first segment in scan order, then
those of the next. Short tails are padded with positions marked invalid. No step synchronises a device with the host.

Legend: B batch, L length, S segments, K chunks, T tokens per chunk, R = B * L token rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class ChunkTable:
    """Chunks of all segments, in scan order.

    Attributes:
        token_KT: Row of the flattened (B * L) operand to read; padding repeats a valid row.
        target_KT: Row to write; padding points at row R, one past the end.
        valid_KT: False at padding.
        segment_K: Segment a chunk belongs to.
        first_K: Whether a chunk opens its segment.
        closes_K: Segment that a chunk closes, S where it closes none.
        opens_K: Segment that a chunk opens, S where it opens none.
    """

    token_KT: torch.Tensor
    target_KT: torch.Tensor
    valid_KT: torch.Tensor
    segment_K: torch.Tensor
    first_K: torch.Tensor
    closes_K: torch.Tensor
    opens_K: torch.Tensor


def count_chunks(batch: int, length: int, chunk: int, segments: int | None) -> int:
    """Number of chunk slots: exact for a dense batch, an upper bound for ``segments`` packed ones.

    Args:
        batch: B.
        length: L.
        chunk: Tokens per chunk.
        segments: Number of packed segments, None for a dense batch.
    """
    if segments is None:
        return batch * ((length + chunk - 1) // chunk)
    return length // chunk + segments


def segment_bounds(batch: int, length: int, cu_seqlens: torch.Tensor | None, device: torch.device) -> torch.Tensor:
    """Boundaries (S + 1,) int64 of the segments among the flattened token rows."""
    if cu_seqlens is None:
        return torch.arange(batch + 1, device=device, dtype=torch.int64) * length
    return cu_seqlens.to(torch.int64)


def chunk_table(
    batch: int, length: int, chunk: int, cu_seqlens: torch.Tensor | None, reverse: bool, device: torch.device
) -> ChunkTable:
    """Build the table; needs at least one token row and one segment."""
    bounds = segment_bounds(batch, length, cu_seqlens, device)
    begin_S, len_S = bounds[:-1], bounds[1:] - bounds[:-1]
    segments = len_S.shape[0]
    chunks_S = (len_S + chunk - 1) // chunk
    ends_S = torch.cumsum(chunks_S, 0)
    slots = count_chunks(batch, length, chunk, None if cu_seqlens is None else segments)
    j_K = torch.arange(slots, device=device)
    segment_K = torch.searchsorted(ends_S, j_K, right=True).clamp_(max=segments - 1)
    local_K = j_K - (ends_S - chunks_S)[segment_K]
    offset_KT = local_K[:, None] * chunk + torch.arange(chunk, device=device)
    seglen_K1 = len_S[segment_K][:, None]
    valid_KT = offset_KT < seglen_K1
    position_KT = torch.minimum(offset_KT, seglen_K1 - 1).clamp_(min=0)
    if reverse:
        position_KT = seglen_K1 - 1 - position_KT
    rows = batch * length
    token_KT = (begin_S[segment_K][:, None] + position_KT).clamp_(min=0, max=rows - 1)
    used_K = valid_KT[:, 0]
    first_K = used_K & (local_K == 0)
    return ChunkTable(
        token_KT=token_KT,
        target_KT=torch.where(valid_KT, token_KT, rows),
        valid_KT=valid_KT,
        segment_K=segment_K,
        first_K=first_K,
        closes_K=torch.where(used_K & (local_K == chunks_S[segment_K] - 1), segment_K, segments),
        opens_K=torch.where(first_K, segment_K, segments),
    )


def take_rows(x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Gather token rows of (B, L, ...) by flat index without copying the operand, whatever its strides."""
    batch, length = x.shape[:2]
    if batch == 1:
        return x[0].index_select(0, rows)
    if x.stride(0) == length * x.stride(1):
        return x.flatten(0, 1).index_select(0, rows)
    return x[rows // length, rows % length]


def put_rows(out: torch.Tensor, rows: torch.Tensor, values: torch.Tensor) -> None:
    """Write token rows into (R + 1, ...); the last row swallows padding."""
    out.index_copy_(0, rows, values.to(out.dtype))


def new_rows(like: torch.Tensor) -> torch.Tensor:
    """Uninitialised (R + 1, ...) rows for a result shaped like (B, L, ...)."""
    return like.new_empty((like.shape[0] * like.shape[1] + 1, *like.shape[2:]))


def as_batch(rows: torch.Tensor, like: torch.Tensor, into: torch.Tensor | None = None) -> torch.Tensor:
    """Drop the padding row of (R + 1, ...) and restore (B, L, ...); copied into a given tensor, if there is one."""
    batch = rows[:-1].view(like.shape)
    return batch if into is None else into.copy_(batch)
