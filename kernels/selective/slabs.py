"""Operands of the reference selective scan, cut into slabs of chunks.

Legend: B batch, L length, S segments, D channels, N states, G groups, T steps per chunk, C chunks in a slab, K chunks.
Inside a slab time is outermost and D innermost: every step touches one contiguous (C, N, D) block.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from seqkit.kernels.chunks import ChunkTable, take_rows
from seqkit.kernels.numbers import LOG2_E, accumulate_dtype, softplus

STEPS = 16  # T: fewer steps save more boundary states, more steps pad short sequences
STEP_ELEMENTS = 1 << 16  # of one (C, N, D) step on a CPU: enough for two threads; a slab of T steps is 4 MiB, inside L3
STEP_ELEMENTS_GPU = 1 << 21


@dataclass(frozen=True)
class Operands:
    """What a scan reads; A, D, bias and initial states are already in the accumulation dtype."""

    u_BLD: torch.Tensor
    delta_BLD: torch.Tensor
    A_ND: torch.Tensor
    B_BLGN: torch.Tensor
    C_BLGN: torch.Tensor
    D_D: torch.Tensor | None
    z_BLD: torch.Tensor | None
    bias_D: torch.Tensor | None
    entry_SND: torch.Tensor
    cu_seqlens: torch.Tensor | None
    delta_softplus: bool
    reverse: bool

    @property
    def dtype(self) -> torch.dtype:
        """Accumulation dtype."""
        return self.A_ND.dtype

    @property
    def empty(self) -> bool:
        """No token at all: states pass through, gradients are zero."""
        return self.u_BLD.shape[0] * self.u_BLD.shape[1] == 0 or self.entry_SND.shape[0] == 0

    @property
    def log2_decay_ND(self) -> torch.Tensor:
        """min(A, 0) in base 2: together with max(delta, 0) no exponent exceeds 0."""
        return self.A_ND.clamp(max=0) * LOG2_E


def make_operands(u, delta, A, B, C, D, z, delta_bias, initial_state, cu_seqlens, delta_softplus, reverse) -> Operands:
    """Bring the arguments of the custom op into the layout that both passes use."""
    dtype = accumulate_dtype(u)
    segments = u.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    if initial_state is None:
        entry_SND = u.new_zeros((segments, A.shape[1], A.shape[0]), dtype=dtype)
    else:
        entry_SND = initial_state.to(dtype).transpose(1, 2).contiguous()
    return Operands(
        u_BLD=u,
        delta_BLD=delta,
        A_ND=A.t().to(dtype).contiguous(),
        B_BLGN=B,
        C_BLGN=C,
        D_D=None if D is None else D.to(dtype),
        z_BLD=z,
        bias_D=None if delta_bias is None else delta_bias.to(dtype),
        entry_SND=entry_SND,
        cu_seqlens=cu_seqlens,
        delta_softplus=delta_softplus,
        reverse=reverse,
    )


@dataclass(frozen=True)
class Slab:
    """Operands of C chunks, gathered, in the accumulation dtype; delta is 0 at padding."""

    begin: int
    end: int
    rows: torch.Tensor  # (T * C,) to read
    targets: torch.Tensor  # (T * C,) to write
    invalid_TC1: torch.Tensor
    raw_TCD: torch.Tensor  # delta + bias, before softplus
    delta_TCD: torch.Tensor
    decay_TCD: torch.Tensor  # max(delta, 0)
    u_TCD: torch.Tensor
    x_TCD: torch.Tensor  # delta * u
    B_TCGN: torch.Tensor
    C_TCGN: torch.Tensor

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        """Rows of (B, L, ...) as (T, C, ...)."""
        return take_rows(x, self.rows).to(self.u_TCD.dtype).unflatten(0, self.invalid_TC1.shape[:2])


def load_slab(ops: Operands, table: ChunkTable, begin: int, end: int) -> Slab:
    """Gather chunks ``begin`` to ``end`` (exclusive)."""
    rows = table.token_KT[begin:end].t().reshape(-1)
    invalid_TC1 = ~table.valid_KT[begin:end].t().unsqueeze(-1)

    def gather(x: torch.Tensor) -> torch.Tensor:
        return take_rows(x, rows).to(ops.dtype).unflatten(0, invalid_TC1.shape[:2])

    raw_TCD, u_TCD = gather(ops.delta_BLD), gather(ops.u_BLD)
    if ops.bias_D is not None:
        raw_TCD = raw_TCD + ops.bias_D
    delta_TCD = softplus(raw_TCD) if ops.delta_softplus else raw_TCD
    delta_TCD = delta_TCD.masked_fill(invalid_TC1, 0)
    return Slab(
        begin=begin,
        end=end,
        rows=rows,
        targets=table.target_KT[begin:end].t().reshape(-1),
        invalid_TC1=invalid_TC1,
        raw_TCD=raw_TCD,
        delta_TCD=delta_TCD,
        decay_TCD=delta_TCD if ops.delta_softplus else delta_TCD.clamp(min=0),
        u_TCD=u_TCD,
        x_TCD=(delta_TCD * u_TCD).masked_fill_(invalid_TC1, 0),
        B_TCGN=gather(ops.B_BLGN),
        C_TCGN=gather(ops.C_BLGN),
    )


class SlabPlan:
    """Sizes of the slabs of one call, and the (T, C, N, D) buffers that all of them reuse."""

    def __init__(self, ops: Operands, table: ChunkTable):
        self.ops, self.table, self.chunks = ops, table, table.token_KT.shape[0]
        limit = STEP_ELEMENTS_GPU if ops.u_BLD.is_cuda else STEP_ELEMENTS
        self.width = max(1, min(self.chunks, limit // ops.A_ND.numel()))
        self._buffers: dict[str, torch.Tensor] = {}

    def slabs(self) -> Iterator[Slab]:
        """Slabs in scan order."""
        for begin in range(0, self.chunks, self.width):
            yield load_slab(self.ops, self.table, begin, min(begin + self.width, self.chunks))

    def slabs_backwards(self) -> Iterator[Slab]:
        """Slabs in the opposite order."""
        for begin in reversed(range(0, self.chunks, self.width)):
            yield load_slab(self.ops, self.table, begin, min(begin + self.width, self.chunks))

    def buffer(self, name: str, *shape: int) -> torch.Tensor:
        """Contiguous uninitialised tensor; the same ``name`` means the same memory."""
        if name not in self._buffers:
            self._buffers[name] = self.ops.A_ND.new_empty(self.width * STEPS * self.ops.A_ND.numel())
        return self._buffers[name][: math.prod(shape)].view(shape)
