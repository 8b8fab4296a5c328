"""Operands of the reference Mamba-3 scan, cut into slabs of chunks; rotated keys and queries live as long as a slab.

Legend: B batch, L length, S segments, H heads, P head channels, N states, G groups, M rotated pairs, R rank, Q tokens
per chunk, X = Q * R rows of a chunk, C chunks in a slab, K chunks, T = B * L token rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from seqkit.kernels.chunks import ChunkTable, take_rows
from seqkit.kernels.mamba3 import phase
from seqkit.kernels.mamba3.steps import Steps, discretise
from seqkit.kernels.numbers import accumulate_dtype

CHUNK_SIZE = 64  # rows of a chunk: tokens times rank
SLAB_ELEMENTS = 1 << 20  # of scores, rotated weights and inputs of a slab on a CPU
SLAB_ELEMENTS_GPU = 1 << 26


@dataclass(frozen=True)
class Operands:
    """What a scan reads; parameters and entering states are already in the accumulation dtype."""

    x_BLHP: Tensor
    dt_BLH: Tensor
    A_BLH: Tensor
    trap_BLH: Tensor
    B_BLRGN: Tensor
    C_BLRGN: Tensor
    angles_BLM: Tensor
    B_bias_HRN: Tensor | None
    C_bias_HRN: Tensor | None
    dt_bias_H: Tensor | None
    D: Tensor | None  # (H, 1) or (H, P)
    z_BLHP: Tensor | None
    mimo_x_HRP: Tensor | None
    mimo_z_HRP: Tensor | None
    mimo_o_HRP: Tensor | None
    theta_SHM: Tensor  # int64 phase
    ssm_SHPN: Tensor
    k_SRHN: Tensor
    v_SHP: Tensor
    cu_seqlens: Tensor | None
    reverse: bool
    decay: str
    pairing: str
    A_floor: float
    chunk_size: int

    @property
    def dtype(self) -> torch.dtype:
        """Accumulation dtype."""
        return self.ssm_SHPN.dtype

    @property
    def bits(self) -> int:
        """Bits of a turn."""
        return phase.phase_bits(self.dtype)

    @property
    def sizes(self) -> tuple[int, int, int, int, int, int]:
        """H, P, R, G, N, M."""
        return *self.x_BLHP.shape[2:], *self.B_BLRGN.shape[2:], self.angles_BLM.shape[2]

    @property
    def empty(self) -> bool:
        """No token at all: states pass through, gradients are zero."""
        return self.x_BLHP.shape[0] * self.x_BLHP.shape[1] == 0 or self.ssm_SHPN.shape[0] == 0

    @property
    def per_rank(self) -> bool:
        """Whether y keeps its ranks apart: (B, L, R, H, P)."""
        return self.mimo_x_HRP is not None and self.mimo_o_HRP is None

    @property
    def slab_width(self) -> int:
        """Chunks in a slab."""
        H, P, R, _, N, M = self.sizes
        Q = self.chunk_size
        limit = SLAB_ELEMENTS_GPU if self.x_BLHP.is_cuda else SLAB_ELEMENTS
        return max(1, limit // (H * (Q * R * (Q * R + P + 2 * N) + 4 * Q * M + P * N)))

    def steps(self) -> Steps:
        """Discretised steps of all tokens."""
        return discretise(
            self.dt_BLH, self.A_BLH, self.trap_BLH, self.dt_bias_H, self.cu_seqlens, self.reverse, self.decay,
            self.A_floor, self.dtype,
        )  # fmt: skip


def tokens_per_chunk(chunk_size: int | None, rank: int) -> int:
    """Q: the rows of a chunk are its tokens times the rank."""
    return chunk_size or max(1, CHUNK_SIZE // rank)


def make_operands(
    x, dt, A, trap, B, C, angles, B_bias, C_bias, dt_bias, D, z, mimo_x, mimo_z, mimo_o, theta, ssm, k, v,
    cu_seqlens, reverse, decay, pairing, A_floor, chunk_size,
) -> Operands:  # fmt: skip
    """Bring the arguments of the custom op into the layout that both passes use."""
    dtype = accumulate_dtype(x)
    segments = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    (H, P), (R, _, N), M = x.shape[2:], B.shape[2:], angles.shape[2]

    def wide(parameter: Tensor | None) -> Tensor | None:
        return None if parameter is None else parameter.to(dtype)

    def entering(state: Tensor | None, *shape: int) -> Tensor:
        return x.new_zeros((segments, *shape), dtype=dtype) if state is None else state.to(dtype)

    if theta is None:
        theta_SHM = x.new_zeros((segments, H, M), dtype=torch.int64)
    else:
        theta_SHM = phase.to_phase(phase.turns_of(theta), phase.phase_bits(dtype))
    return Operands(
        x_BLHP=x,
        dt_BLH=dt,
        A_BLH=A,
        trap_BLH=trap,
        B_BLRGN=B,
        C_BLRGN=C,
        angles_BLM=angles,
        B_bias_HRN=wide(B_bias),
        C_bias_HRN=wide(C_bias),
        dt_bias_H=dt_bias,
        D=None if D is None else D.to(dtype).reshape(H, -1),
        z_BLHP=z,
        mimo_x_HRP=wide(mimo_x),
        mimo_z_HRP=wide(mimo_z),
        mimo_o_HRP=wide(mimo_o),
        theta_SHM=theta_SHM,
        ssm_SHPN=entering(ssm, H, P, N),
        k_SRHN=entering(k, R, H, N),
        v_SHP=entering(v, H, P),
        cu_seqlens=cu_seqlens,
        reverse=reverse,
        decay=decay,
        pairing=pairing,
        A_floor=A_floor,
        chunk_size=tokens_per_chunk(chunk_size, R),
    )


def as_ranks(v_SHP: Tensor, mimo_x_HRP: Tensor | None) -> Tensor:
    """Inputs (..., H, P) as (..., H, R, P)."""
    return v_SHP.unsqueeze(-2) if mimo_x_HRP is None else v_SHP.unsqueeze(-2) * mimo_x_HRP


@dataclass(frozen=True)
class Slab:
    """Operands of C chunks, gathered, in the accumulation dtype; weights are 0 at padding.

    Heads come before rows, so that every contraction is one batched matrix product.
    """

    part: slice
    rows: Tensor  # (C * Q,) to read
    targets: Tensor  # (C * Q,) to write
    invalid_CQ1: Tensor
    last_C: Tensor  # place of the last valid token
    starts_CHM: Tensor  # phase before the first token
    increment_CQHM: Tensor  # int64
    cos_CHQM: Tensor
    sin_CHQM: Tensor
    x_CHQP: Tensor
    v_CHXP: Tensor
    k_CHXN: Tensor  # rotated
    q_CHXN: Tensor  # rotated
    gamma_CHQ: Tensor
    scale_CHQ: Tensor
    between_CHQQ: Tensor  # decay from column to row, 0 above the diagonal
    from_start_CHQ: Tensor  # decay from the chunk's start up to and including a token
    to_end_CHQ: Tensor  # decay after a token to the chunk's end
    rank: int

    def gather(self, x: Tensor) -> Tensor:
        """Rows of (B, L, ...) as (C, Q, ...), 0 at padding."""
        values = take_rows(x, self.rows).to(self.x_CHQP.dtype).unflatten(0, self.invalid_CQ1.shape[:2])
        return values.masked_fill_(self.invalid_CQ1.reshape(*self.invalid_CQ1.shape[:2], *[1] * (x.dim() - 2)), 0)

    def spread(self, x_CHQ: Tensor) -> Tensor:
        """A value per token as one per row, (C, H, X, 1)."""
        return (x_CHQ if self.rank == 1 else x_CHQ.repeat_interleave(self.rank, 2)).unsqueeze(3)

    def ranks(self, x_CHXP: Tensor) -> Tensor:
        """(C, H, X, .) as (C, H, Q, R, .)."""
        return x_CHXP.unflatten(2, (-1, self.rank))

    @property
    def weight_CHQQ(self) -> Tensor:
        """What a token's state update weighs in a token's output: scale and decay, gamma on the diagonal."""
        weight = self.between_CHQQ * self.scale_CHQ.unsqueeze(2)
        weight.diagonal(dim1=2, dim2=3).copy_(self.gamma_CHQ)
        return weight

    def on_rows(self, x_CHQQ: Tensor) -> Tensor:
        """(C, H, Q, Q) repeated over the ranks, (C, H, X, X)."""
        if self.rank == 1:
            return x_CHQQ
        return x_CHQQ.repeat_interleave(self.rank, 2).repeat_interleave(self.rank, 3)


def slabs(
    ops: Operands, steps: Steps, table: ChunkTable, starts_KHM: Tensor, entry: Tensor | None = None
) -> Iterator[Slab]:
    """Slabs in scan order with ``entry``, the phases (H, M) to begin from, which fills ``starts_KHM``; else last first.

    Args:
        ops: Operands.
        steps: Their discretisation.
        table: Their chunks.
        starts_KHM: Phases at chunk starts.
        entry: Phase in front of the first chunk; None where ``starts_KHM`` is already filled.
    """
    chunks, width = table.token_KT.shape[0], ops.slab_width
    begins = range(0, chunks, width)
    for begin in reversed(begins) if entry is None else begins:
        part = slice(begin, min(begin + width, chunks))
        increment_CQHM = _increments(ops, table, part)
        if entry is not None:
            entry = _chain_phases(ops, table, part, increment_CQHM.sum(1), starts_KHM[part], entry)
        yield _load(ops, steps, table, part, starts_KHM[part], increment_CQHM)


def _increments(ops: Operands, table: ChunkTable, part: slice) -> Tensor:
    """Phase that each token adds (C, Q, H, M), 0 at padding."""
    rows = table.token_KT[part].reshape(-1)
    turns = phase.increments(take_rows(ops.dt_BLH, rows), ops.dt_bias_H, take_rows(ops.angles_BLM, rows))
    whole = phase.to_phase(turns, ops.bits).unflatten(0, table.token_KT[part].shape)
    return whole.masked_fill_(~table.valid_KT[part, :, None, None], 0)


def _chain_phases(
    ops: Operands, table: ChunkTable, part: slice, totals_CHM: Tensor, starts_CHM: Tensor, carry_HM: Tensor
) -> Tensor:
    """Hand phases from chunk to chunk: fills ``starts_CHM``, returns the phase behind the last chunk."""
    entry_CHM = ops.theta_SHM.index_select(0, table.segment_K[part])
    first_C = table.first_K[part, None, None].unbind(0)
    for start, total, entry, first in zip(starts_CHM.unbind(0), totals_CHM, entry_CHM.unbind(0), first_C, strict=True):
        torch.where(first, entry, carry_HM, out=start)
        carry_HM = phase.wrap(start + total, ops.bits)
    return carry_HM


def _load(
    ops: Operands, steps: Steps, table: ChunkTable, part: slice, starts_CHM: Tensor, increment_CQHM: Tensor
) -> Slab:
    """Gather the chunks of ``part``, rotate their keys and queries and compute their decays."""
    rows, shape = table.token_KT[part].reshape(-1), table.token_KT[part].shape
    invalid_CQ1 = ~table.valid_KT[part, :, None]
    H, _, R, _, _, _ = ops.sizes

    def per_token(x_TH: Tensor) -> Tensor:
        return x_TH.index_select(0, rows).unflatten(0, shape).masked_fill_(invalid_CQ1, 0).transpose(1, 2)

    def rows_of(x: Tensor) -> Tensor:
        return take_rows(x, rows).to(ops.dtype).unflatten(0, shape)

    theta_CQHM = phase.wrap(starts_CHM.unsqueeze(1) + torch.cumsum(increment_CQHM, 1), ops.bits)
    theta_CHQM = phase.to_radians(theta_CQHM, ops.bits).to(ops.dtype).transpose(1, 2)
    cos, sin = theta_CHQM.cos(), theta_CHQM.sin()

    def rotated(weight_BLRGN: Tensor, bias_HRN: Tensor | None) -> Tensor:
        weight = rows_of(weight_BLRGN).masked_fill_(invalid_CQ1[..., None, None], 0)
        heads_CHQRN = weight.permute(0, 3, 1, 2, 4).repeat_interleave(H // weight.shape[3], 1)
        if bias_HRN is not None:
            heads_CHQRN = heads_CHQRN + bias_HRN.unsqueeze(1)
        return phase.rotate(heads_CHQRN, cos.unsqueeze(3), sin.unsqueeze(3), ops.pairing).flatten(2, 3)

    x_CHQP = rows_of(ops.x_BLHP).masked_fill_(invalid_CQ1.unsqueeze(-1), 0).transpose(1, 2)
    v_CHXP = x_CHQP if ops.mimo_x_HRP is None else (x_CHQP.unsqueeze(3) * ops.mimo_x_HRP.unsqueeze(1)).flatten(2, 3)
    between, from_start, to_end = _decays(per_token(steps.decay_TH))
    return Slab(
        part=part,
        rows=rows,
        targets=table.target_KT[part].reshape(-1),
        invalid_CQ1=invalid_CQ1,
        last_C=(table.valid_KT[part].sum(1) - 1).clamp_(min=0),
        starts_CHM=starts_CHM,
        increment_CQHM=increment_CQHM,
        cos_CHQM=cos,
        sin_CHQM=sin,
        x_CHQP=x_CHQP,
        v_CHXP=v_CHXP,
        k_CHXN=rotated(ops.B_BLRGN, ops.B_bias_HRN),
        q_CHXN=rotated(ops.C_BLRGN, ops.C_bias_HRN),
        gamma_CHQ=per_token(steps.gamma_TH),
        scale_CHQ=per_token(steps.scale_TH),
        between_CHQQ=between,
        from_start_CHQ=from_start,
        to_end_CHQ=to_end,
        rank=R,
    )


def _decays(decay_CHQ: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Decays between tokens, from the start and to the end of each chunk.

    Differences of float64 sums: a tiny step beside a huge one keeps its decay. Masked and clamped before exp.
    """
    sums_CHQ = torch.cumsum(decay_CHQ.double(), dim=2).neg_()
    Q = sums_CHQ.shape[2]
    later = torch.ones(Q, Q, dtype=torch.bool, device=sums_CHQ.device).triu_(1)
    between = (sums_CHQ.unsqueeze(3) - sums_CHQ.unsqueeze(2)).to(decay_CHQ.dtype)
    between = between.masked_fill_(later, -torch.inf).clamp_(max=0).exp_()
    to_end = (sums_CHQ[:, :, -1:] - sums_CHQ).to(decay_CHQ.dtype).clamp_(max=0).exp_()
    return between, sums_CHQ.to(decay_CHQ.dtype).clamp_(max=0).exp_(), to_end
