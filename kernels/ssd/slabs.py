"""Operands of the reference SSD scan, cut into slabs of chunks.

Legend: B batch, L length, S segments, H heads, P head channels, N states, G groups, Q tokens per chunk, C chunks in a
slab, K chunks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from seqkit.kernels.chunks import ChunkTable, take_rows
from seqkit.kernels.numbers import accumulate_dtype, softplus

CHUNK_SIZE = 64
SLAB_ELEMENTS = 1 << 20  # of the (C, H, Q, Q) decays plus the (C, H, Q, P) inputs on a CPU
SLAB_ELEMENTS_GPU = 1 << 26


@dataclass(frozen=True)
class Operands:
    """What a scan reads; A, D, bias and initial states are already in the accumulation dtype."""

    x_BLHP: torch.Tensor
    dt_BLH: torch.Tensor
    A_H: torch.Tensor
    B_BLGN: torch.Tensor
    C_BLGN: torch.Tensor
    D: torch.Tensor | None  # (H, 1) or (H, P)
    z_BLHP: torch.Tensor | None
    bias_H: torch.Tensor | None
    entry_SHPN: torch.Tensor
    cu_seqlens: torch.Tensor | None
    dt_softplus: bool
    dt_min: float
    dt_max: float
    reverse: bool
    chunk_size: int

    @property
    def dtype(self) -> torch.dtype:
        """Accumulation dtype."""
        return self.A_H.dtype

    @property
    def empty(self) -> bool:
        """No token at all: states pass through, gradients are zero."""
        return self.x_BLHP.shape[0] * self.x_BLHP.shape[1] == 0 or self.entry_SHPN.shape[0] == 0

    @property
    def slab_width(self) -> int:
        """Chunks in a slab."""
        H, P = self.x_BLHP.shape[2:]
        N, Q = self.B_BLGN.shape[3], self.chunk_size
        limit = SLAB_ELEMENTS_GPU if self.x_BLHP.is_cuda else SLAB_ELEMENTS
        return max(1, limit // (H * (Q * Q + Q * P + P * N)))


def make_operands(
    x, dt, A, B, C, D, z, dt_bias, initial_state, cu_seqlens, softplus_, dt_min, dt_max, reverse, chunk_size
) -> Operands:
    """Bring the arguments of the custom op into the layout that both passes use."""
    dtype = accumulate_dtype(x)
    segments = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    if initial_state is None:
        entry_SHPN = x.new_zeros((segments, *x.shape[2:], B.shape[3]), dtype=dtype)
    else:
        entry_SHPN = initial_state.to(dtype)
    return Operands(
        x_BLHP=x,
        dt_BLH=dt,
        A_H=A.to(dtype),
        B_BLGN=B,
        C_BLGN=C,
        D=None if D is None else D.to(dtype).reshape(A.shape[0], -1),
        z_BLHP=z,
        bias_H=None if dt_bias is None else dt_bias.to(dtype),
        entry_SHPN=entry_SHPN,
        cu_seqlens=cu_seqlens,
        dt_softplus=softplus_,
        dt_min=dt_min,
        dt_max=dt_max,
        reverse=reverse,
        chunk_size=chunk_size or CHUNK_SIZE,
    )


@dataclass(frozen=True)
class Slab:
    """Operands of C chunks, gathered, in the accumulation dtype; dt is 0 at padding.

    Heads come before tokens, so that every contraction is one batched matrix product.
    """

    part: slice
    rows: torch.Tensor  # (C * Q,) to read
    targets: torch.Tensor  # (C * Q,) to write
    invalid_CQ1: torch.Tensor
    raw_CHQ: torch.Tensor  # dt + bias, before softplus
    open_CHQ: torch.Tensor  # after softplus, before the clamp
    dt_CHQ: torch.Tensor
    decay_CHQ: torch.Tensor  # max(dt, 0)
    x_CHQP: torch.Tensor
    B_CGQN: torch.Tensor
    C_CGQN: torch.Tensor
    between_CHQQ: torch.Tensor  # exp of the log decay from column to row, 0 above the diagonal
    from_start_CHQ: torch.Tensor  # decay from the chunk's start up to and including a token
    to_end_CHQ: torch.Tensor  # decay after a token to the chunk's end

    def gather_heads(self, x: torch.Tensor) -> torch.Tensor:
        """Rows of (B, L, H, P) as (C, H, Q, P), 0 at padding."""
        shape = self.invalid_CQ1.shape[:2]
        rows = take_rows(x, self.rows).to(self.x_CHQP.dtype).unflatten(0, shape)
        return rows.masked_fill_(self.invalid_CQ1.unsqueeze(-1), 0).transpose(1, 2)


def load_slab(ops: Operands, table: ChunkTable, part: slice) -> Slab:
    """Gather the chunks of ``part`` and compute their decays."""
    rows = table.token_KT[part].reshape(-1)
    invalid_CQ1 = ~table.valid_KT[part, :, None]

    def gather(x: torch.Tensor) -> torch.Tensor:
        return take_rows(x, rows).to(ops.dtype).unflatten(0, invalid_CQ1.shape[:2])

    raw_CQH = gather(ops.dt_BLH)
    if ops.bias_H is not None:
        raw_CQH = raw_CQH + ops.bias_H
    open_CQH = softplus(raw_CQH) if ops.dt_softplus else raw_CQH
    dt_CHQ = open_CQH.clamp(ops.dt_min, ops.dt_max).masked_fill(invalid_CQ1, 0).transpose(1, 2)
    decay_CHQ = dt_CHQ.clamp(min=0)
    between, from_start, to_end = _decays(decay_CHQ, ops.A_H.clamp(max=0))
    return Slab(
        part=part,
        rows=rows,
        targets=table.target_KT[part].reshape(-1),
        invalid_CQ1=invalid_CQ1,
        raw_CHQ=raw_CQH.transpose(1, 2),
        open_CHQ=open_CQH.transpose(1, 2),
        dt_CHQ=dt_CHQ,
        decay_CHQ=decay_CHQ,
        x_CHQP=gather(ops.x_BLHP).masked_fill_(invalid_CQ1.unsqueeze(-1), 0).transpose(1, 2),
        B_CGQN=gather(ops.B_BLGN).masked_fill_(invalid_CQ1.unsqueeze(-1), 0).transpose(1, 2),
        C_CGQN=gather(ops.C_BLGN).masked_fill_(invalid_CQ1.unsqueeze(-1), 0).transpose(1, 2),
        between_CHQQ=between,
        from_start_CHQ=from_start,
        to_end_CHQ=to_end,
    )


def _decays(decay_CHQ: torch.Tensor, A_H: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Decays between tokens, from the start and to the end of each chunk.

    Differences of float64 sums: a tiny step beside a huge one keeps its decay. Masked and clamped before exp.
    """
    sums_CHQ = torch.cumsum(decay_CHQ.double() * A_H.double()[:, None], dim=2)
    Q = sums_CHQ.shape[2]
    later = torch.ones(Q, Q, dtype=torch.bool, device=sums_CHQ.device).triu_(1)
    between = (sums_CHQ.unsqueeze(3) - sums_CHQ.unsqueeze(2)).to(decay_CHQ.dtype)
    between = between.masked_fill_(later, -torch.inf).clamp_(max=0).exp_()
    to_end = (sums_CHQ[:, :, -1:] - sums_CHQ).to(decay_CHQ.dtype).clamp_(max=0).exp_()
    return between, sums_CHQ.to(decay_CHQ.dtype).clamp_(max=0).exp_(), to_end


def slabs(ops: Operands, table: ChunkTable, backwards: bool = False) -> Iterator[Slab]:
    """Slabs in scan order, or in the opposite one."""
    chunks, width = table.token_KT.shape[0], ops.slab_width
    begins = range(0, chunks, width)
    for begin in reversed(begins) if backwards else begins:
        yield load_slab(ops, table, slice(begin, min(begin + width, chunks)))


def chain_backward(
    closes_C: torch.Tensor,
    from_start_CHQ: torch.Tensor,
    dstart_CHPN: torch.Tensor,
    dfinal_SHPN: torch.Tensor,
    carry_HPN: torch.Tensor,
) -> torch.Tensor:
    """Hand adjoints from chunk to chunk, last first: completes ``dstart_CHPN``, returns those of the chunk ends."""
    dends_CHPN = dfinal_SHPN.index_select(0, closes_C)
    closing_C = (closes_C < dfinal_SHPN.shape[0] - 1)[:, None, None, None].unbind(0)
    whole_C = from_start_CHQ[:, :, -1, None, None].unbind(0)
    links = zip(dstart_CHPN.unbind(0), dends_CHPN.unbind(0), whole_C, closing_C, strict=True)
    for dstart, dend, whole, closing in reversed(list(links)):
        torch.where(closing, dend, carry_HPN, out=dend)
        dstart.addcmul_(whole, dend)
        carry_HPN = dstart
    return dends_CHPN
