"""Mamba-3 on Triton, host side: a sequence in slabs of tokens, each an SSD scan with rotated keys and queries.

Rotated keys and queries of every head exist for one slab; states and phases are handed from slab to slab.

Legend: B batch, L length, S segments, H heads, P head channels, N states, G groups, M rotated pairs, K chunks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from seqkit.kernels.mamba3 import phase, rotation
from seqkit.kernels.mamba3.slabs import Operands
from seqkit.kernels.mamba3.spans import ScaledScan, span_slots
from seqkit.kernels.mamba3.steps import Steps
from seqkit.kernels.numbers import softplus
from seqkit.kernels.ssd.tiles import strides_of
from seqkit.kernels.triton_compiled import launch
from seqkit.kernels.triton_launch import INTERPRETED, Segments, ceil_div, next_power

SLAB_BYTES = 3 * 2**30  # of rotated keys and queries and unfinished outputs, counted in float32
ALIGN = 4096
SUM_CHUNKS = 3 if INTERPRETED else 64
TURN_TOKENS = 4 if INTERPRETED else 8  # per program of the rotation
GATE_TOKENS = 4 if INTERPRETED else 16


def slab_tokens(batch: int, heads: int, head_channels: int, states: int) -> int:
    """Tokens of a slab; a function of shapes, as compiled graphs need it."""
    if INTERPRETED:
        return 12
    fit = SLAB_BYTES // (4 * max(1, batch) * heads * (2 * states + head_channels))
    return max(ALIGN, fit // ALIGN * ALIGN)


def kept_shapes(
    batch: int, length: int, segments: int | None, sizes: tuple[int, ...], chunk_size: int | None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of what the forward pass keeps: states at span starts and behind slabs, phases that enter each slab.

    Args:
        batch: B.
        length: L.
        segments: S of a packed batch, else None.
        sizes: H, P, R, G, N, M.
        chunk_size: The caller's; it does not matter here.
    """
    H, P, _, _, N, M = sizes
    tokens = slab_tokens(batch, H, P, N)
    whole, rest = length // tokens, length % tokens
    spans = whole * span_slots(batch, tokens, H, segments) + span_slots(batch, rest, H, segments)
    entries = batch if segments is None else segments
    return (spans + (whole + 1) * entries, H, P, N), (whole + 1, entries, H, M)


@dataclass
class Slab:
    """Tokens begin to end of every row, rotated.

    Attributes:
        begin: First token.
        end: Behind the last token.
        scan: SSD scan of the slab with rotated keys and queries (B, l, H, N).
        turns: Chunks of the rotation.
        delta: Step sizes (B, l, H) float64.
        half_tanh: Half of tanh(angles) (B, l, M) float64.
        start_KHM: Phase in front of every chunk, int32.
        leaving_SHM: Phase behind the slab, int64.
        dot: Products of keys and queries (B, H, l).
        gap: Gamma minus scale (B, l, H).
    """

    begin: int
    end: int
    scan: ScaledScan
    turns: Segments
    delta: Tensor
    half_tanh: Tensor
    start_KHM: Tensor
    leaving_SHM: Tensor
    dot: Tensor
    gap: Tensor

    def cut(self, x: Tensor) -> Tensor:
        """The slab's tokens of (B, L, ...)."""
        return x[:, self.begin : self.end]


def bounds_of(ops: Operands) -> list[tuple[int, int]]:
    """Slabs in scan order; the last one takes what is left."""
    B, L, H, P = ops.x_BLHP.shape
    tokens = slab_tokens(B, H, P, ops.sizes[4])
    cuts = [(begin, min(begin + tokens, L)) for begin in range(0, L, tokens)] if B else []
    return [(L - end, L - begin) for begin, end in cuts] if ops.reverse else cuts


def kept_rows(ops: Operands) -> list[tuple[slice, slice]]:
    """Where the states of every slab stand among those kept: at its span starts, and behind it."""
    (batch, _, H), entries, slot, rows = ops.x_BLHP.shape[:3], ops.ssm_SHPN.shape[0], 0, []
    for begin, end in bounds_of(ops):
        spans = span_slots(batch, end - begin, H, None if ops.cu_seqlens is None else entries)
        rows.append((slice(slot, slot + spans), slice(slot + spans, slot + spans + entries)))
        slot += spans + entries
    return rows


def load_slab(ops: Operands, steps: Steps, bounds: tuple[int, int], phases_SHM: Tensor, chunk_size: int | None) -> Slab:
    """Rotate keys and queries of a slab's tokens and compute their decays.

    Args:
        ops: Operands of the scan.
        steps: Their discretisation.
        bounds: First token and the one behind the last.
        phases_SHM: Phase that enters the slab, int64.
        chunk_size: The caller's.
    """
    begin, end = bounds
    x, B, C = (t[:, begin:end] for t in (ops.x_BLHP, ops.B_BLRGN[:, :, 0], ops.C_BLRGN[:, :, 0]))
    (batch, length, H), N = x.shape[:3], ops.sizes[4]
    cu = None if ops.cu_seqlens is None else (ops.cu_seqlens - begin).clamp(0, length)
    raw = ops.dt_BLH[:, begin:end].double()
    delta = softplus(raw if ops.dt_bias_H is None else raw + ops.dt_bias_H.double()).contiguous()
    half_tanh = (torch.tanh(ops.angles_BLM[:, begin:end].double()) * 0.5).contiguous()
    turns = Segments(x, TURN_TOKENS, cu)
    single = all(t.dtype != torch.float32 for t in (x, B, C))
    k, q = x.new_empty((2, batch, length, H, N), dtype=B.dtype if single else torch.float32).unbind(0)
    dot = x.new_empty((batch, H, length), dtype=torch.float32)
    per_token = [t.view(*ops.dt_BLH.shape)[:, begin:end] for t in (steps.decay_TH, steps.scale_TH, steps.gamma_TH)]
    start_KHM, leaving_SHM = _phases(ops, turns, delta, half_tanh, phases_SHM)
    launch(
        rotation.rotate_kernel, turns.chunks * H,
        B, C, _head_rows(ops.B_bias_HRN), _head_rows(ops.C_bias_HRN), delta, half_tanh, start_KHM, k, q, dot,
        *geometry(turns), H, H // B.shape[2], *strides_of(B), *strides_of(C), **tiles(ops),
        **order(turns, ops), num_warps=2,
    )  # fmt: skip
    return Slab(
        begin=begin,
        end=end,
        scan=ScaledScan(x, k, q, per_token[0], per_token[1], cu, ops.reverse, chunk_size),
        turns=turns,
        delta=delta,
        half_tanh=half_tanh,
        start_KHM=start_KHM,
        leaving_SHM=leaving_SHM,
        dot=dot,
        gap=per_token[2] - per_token[1],
    )


def _head_rows(bias_HRN: Tensor | None) -> Tensor | None:
    return None if bias_HRN is None else bias_HRN.contiguous()


def geometry(turns: Segments) -> tuple:
    """Where chunks of the rotation lie, in the order of its kernels' signatures."""
    return turns.chunk_segment, turns.table, turns.length, turns.per_row, turns.count


def order(turns: Segments, ops: Operands) -> dict:
    """Compile-time arguments that all kernels of the rotation have."""
    return {"T": TURN_TOKENS, "PACKED": turns.packed, "REVERSE": ops.reverse}


def pairs(ops: Operands) -> dict:
    """Number of rotated pairs as the kernels want it."""
    return {"M": ops.sizes[5], "MP": max(1 if INTERPRETED else 16, next_power(ops.sizes[5]))}


def tiles(ops: Operands) -> dict:
    """Compile-time arguments of the kernels that hold states of tokens."""
    N = ops.sizes[4]
    where = {"STEP": 2, "OFFSET": 1} if ops.pairing == "adjacent" else {"STEP": 1, "OFFSET": N // 2}
    return {**pairs(ops), "N": N, "NP": next_power(N), **where}


def _phases(
    ops: Operands, turns: Segments, delta: Tensor, half_tanh: Tensor, entry_SHM: Tensor
) -> tuple[Tensor, Tensor]:
    """Phases in front of all chunks (K, H, M) int32, and those that leave each segment (S, H, M) int64."""
    H, M = delta.shape[2], half_tanh.shape[2]
    totals = torch.zeros((turns.chunks, H, M), dtype=torch.int32, device=delta.device)
    launch(
        rotation.turn_kernel, turns.chunks * H,
        delta, half_tanh, totals, *geometry(turns), H, **pairs(ops), **order(turns, ops), num_warps=1,
    )  # fmt: skip
    before = sums_before(totals, torch.int64)
    first_S, behind_S, segment_K = chunk_ranges(turns, TURN_TOKENS, delta.device)
    start = before[:-1] + (entry_SHM - before.index_select(0, first_S)).index_select(0, segment_K)
    leaving = entry_SHM + before.index_select(0, behind_S) - before.index_select(0, first_S)
    half = 1 << 31
    return (phase.wrap(start + half, 32) - half).to(torch.int32), phase.wrap(leaving, 32)


def sums_before(x_K: Tensor, dtype: torch.dtype) -> Tensor:
    """Sums of the chunks in front of every chunk and of all, (K + 1, ...): in two levels, one alone would be serial."""
    padded = x_K.new_zeros((ceil_div(x_K.shape[0] + 1, SUM_CHUNKS) * SUM_CHUNKS, *x_K.shape[1:]), dtype=dtype)
    padded[1 : x_K.shape[0] + 1] = x_K
    inner = torch.cumsum(padded.unflatten(0, (-1, SUM_CHUNKS)), 1)
    outer = torch.cumsum(inner[:, -1], 0)
    inner[1:] += outer[:-1].unsqueeze(1)
    return inner.flatten(0, 1)[: x_K.shape[0] + 1]


def chunk_ranges(at: Segments, tokens: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """First chunk of every segment, the one behind its last, and the segment of every chunk of so many tokens."""
    if at.packed:
        return at.table[2], at.table[2] + (at.table[1] + tokens - 1) // tokens, at.chunk_segment
    first_S = torch.arange(at.count, device=device) * at.per_row
    return first_S, first_S + at.per_row, torch.arange(at.chunks, device=device) // max(1, at.per_row)


def sums_to_span_end(turns: Segments, spans: Segments, span: int, x_K: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of the chunks behind every chunk in its span (K, ...), float64, and the span (K,) of every chunk.

    What is not finite stays in its span: differences of sums over all of them would spread it.
    """
    first_S, behind_S, segment_K = chunk_ranges(turns, TURN_TOKENS, x_K.device)
    per_span, chunk_K = span // TURN_TOKENS, torch.arange(turns.chunks, device=x_K.device)
    local_K = (chunk_K - first_S.index_select(0, segment_K)) // per_span
    end_K = first_S.index_select(0, segment_K) + (local_K + 1) * per_span
    end_K = torch.minimum(end_K, behind_S.index_select(0, segment_K)).clamp_(max=turns.chunks)
    span_K = chunk_ranges(spans, span, x_K.device)[0].index_select(0, segment_K) + local_K

    def sums(values: Tensor) -> Tensor:
        before = sums_before(values, torch.float64)
        return before.index_select(0, end_K) - before[1:]

    span_K = span_K.clamp_(max=spans.chunks - 1)  # slots without tokens
    if not turns.packed:
        return sums(x_K), span_K
    broken = ~torch.isfinite(x_K)
    return sums(x_K.masked_fill(broken, 0)).masked_fill_(sums(broken) > 0, torch.nan), span_K


def turned(adjoint: Tensor, state: Tensor, pairs: int, pairing: str) -> Tensor:
    """Gradient (..., H, M) of all angles behind a place, but for a constant of the segment.

    To turn all that follows is to turn back the state (..., H, P, N) there, whose gradient is ``adjoint``.
    """
    first, second = phase.pair_slices(state.shape[-1], pairs, pairing)
    return (adjoint[..., first] * state[..., second] - adjoint[..., second] * state[..., first]).sum(-2)


def gate_grid(slab: Slab) -> tuple[int, int]:
    """(blocks of tokens in a row, programs) of the kernels around the gate."""
    batch, length, heads, _ = slab.scan.x.shape
    blocks = ceil_div(length, GATE_TOKENS)
    return blocks, batch * blocks * heads


def gate_tiles(slab: Slab) -> dict:
    """Compile-time arguments of the kernels around the gate."""
    P = slab.scan.x.shape[3]
    return {"P": P, "PP": next_power(P), "T": GATE_TOKENS, "num_warps": 4}
