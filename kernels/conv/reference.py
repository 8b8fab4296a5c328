"""Causal depthwise convolution in plain PyTorch, channel-last, in slabs of chunks.

Every chunk carries a halo of the W - 1 inputs before it: those of the preceding chunk, or the initial state where the
chunk opens its segment. Inputs of another segment are never read into a result.

Legend: B batch, L length, S segments, D channels, W taps, T tokens per chunk, C chunks in a slab, R = B * L rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from seqkit.kernels.chunks import (
    ChunkTable,
    as_batch,
    chunk_table,
    new_rows,
    put_rows,
    segment_bounds,
    take_rows,
)
from seqkit.kernels.numbers import accumulate_dtype, silu_and_derivative

STEPS = 64
SLAB_ELEMENTS = 1 << 18  # of one (C, T, D) buffer on a CPU: 1 MiB stays in L2
SLAB_ELEMENTS_GPU = 1 << 25


@dataclass(frozen=True)
class Operands:
    """What a convolution reads; parameters and states are in the accumulation dtype."""

    x_BLD: torch.Tensor
    taps_WD: torch.Tensor
    bias_D: torch.Tensor | None
    entry_SWD: torch.Tensor  # W - 1 rows
    cu_seqlens: torch.Tensor | None
    silu: bool
    reverse: bool

    @property
    def halo(self) -> int:
        """W - 1."""
        return self.taps_WD.shape[0] - 1

    @property
    def empty(self) -> bool:
        """No token at all."""
        return self.x_BLD.shape[0] * self.x_BLD.shape[1] == 0 or self.entry_SWD.shape[0] == 0


def make_operands(x, weight, bias, initial_state, cu_seqlens, activation, reverse) -> Operands:
    """Bring the arguments of the custom op into the layout that both passes use."""
    dtype = accumulate_dtype(x)
    segments = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    if initial_state is None:
        entry_SWD = x.new_zeros((segments, weight.shape[1] - 1, weight.shape[0]), dtype=dtype)
    else:
        entry_SWD = initial_state.to(dtype)
    return Operands(
        x_BLD=x,
        taps_WD=weight.t().to(dtype).contiguous(),
        bias_D=None if bias is None else bias.to(dtype),
        entry_SWD=entry_SWD,
        cu_seqlens=cu_seqlens,
        silu=activation == "silu",
        reverse=reverse,
    )


def _table(ops: Operands) -> ChunkTable:
    batch, length = ops.x_BLD.shape[:2]
    steps = max(STEPS, ops.halo)  # a halo never reaches past the preceding chunk
    return chunk_table(batch, length, steps, ops.cu_seqlens, ops.reverse, ops.x_BLD.device)


def _slices(ops: Operands, table: ChunkTable) -> Iterator[slice]:
    chunks, steps = table.token_KT.shape
    limit = SLAB_ELEMENTS_GPU if ops.x_BLD.is_cuda else SLAB_ELEMENTS
    width = max(1, limit // (steps * ops.x_BLD.shape[2]))
    for begin in range(0, chunks, width):
        yield slice(begin, min(begin + width, chunks))


def _window(ops: Operands, table: ChunkTable, part: slice) -> torch.Tensor:
    """Inputs of chunks with their halos: (C, W - 1 + T, D)."""
    token_CT = table.token_KT[part]
    before = slice(max(part.start - 1, 0), part.stop - 1) if part.start else slice(0, part.stop)
    previous_CT = table.token_KT[before]
    if part.start == 0:
        previous_CT = torch.cat([previous_CT[:1], previous_CT[:-1]])  # the very first chunk opens a segment
    rows = torch.cat([previous_CT[:, token_CT.shape[1] - ops.halo :], token_CT], dim=1)
    window = take_rows(ops.x_BLD, rows.reshape(-1)).to(ops.taps_WD.dtype).unflatten(0, rows.shape)
    if ops.halo:
        entry_CWD = ops.entry_SWD.index_select(0, table.segment_K[part])
        halo_CWD = window[:, : ops.halo]
        halo_CWD.copy_(torch.where(table.first_K[part, None, None], entry_CWD, halo_CWD))
    return window


def _convolve(ops: Operands, window: torch.Tensor) -> torch.Tensor:
    """Pre-activation (C, T, D)."""
    steps = window.shape[1] - ops.halo
    out = window[:, :steps] * ops.taps_WD[0]
    for w in range(1, ops.halo + 1):
        out.addcmul_(window[:, w : w + steps], ops.taps_WD[w])
    if ops.bias_D is not None:
        out += ops.bias_D
    return out


def _tail(ops: Operands) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Where the last W - 1 inputs of each segment lie.

    Returns:
        Token rows (S, W - 1), whether they are tokens (else they precede the segment), segment lengths (S, 1).
    """
    batch, length = ops.x_BLD.shape[:2]
    bounds = segment_bounds(batch, length, ops.cu_seqlens, ops.x_BLD.device)
    len_S1 = (bounds[1:] - bounds[:-1])[:, None]
    position_SW = len_S1 - ops.halo + torch.arange(ops.halo, device=bounds.device)
    inside_SW = position_SW >= 0
    if ops.reverse:
        position_SW = len_S1 - 1 - position_SW
    row_SW = (bounds[:-1, None] + position_SW).clamp(min=0, max=max(batch * length - 1, 0))
    return row_SW, inside_SW, len_S1


def _final_state(ops: Operands) -> torch.Tensor:
    """Last W - 1 inputs in scan order, reaching back into the initial state: (S, W - 1, D)."""
    if ops.empty or not ops.halo:
        return ops.entry_SWD.clone(memory_format=torch.contiguous_format)
    row_SW, inside_SW, len_S1 = _tail(ops)
    tokens_SWD = take_rows(ops.x_BLD, row_SW.reshape(-1)).to(ops.entry_SWD.dtype).view(ops.entry_SWD.shape)
    older_SW = (len_S1 + torch.arange(ops.halo, device=len_S1.device)).clamp(max=ops.halo - 1)
    older_SWD = ops.entry_SWD.gather(1, older_SW[:, :, None].expand(ops.entry_SWD.shape))
    return torch.where(inside_SW[:, :, None], tokens_SWD, older_SWD)


def forward(*args) -> tuple[torch.Tensor, torch.Tensor]:
    """Convolve.

    Args:
        *args: Those of :func:`make_operands`.

    Returns:
        y (B, L, D) in x's dtype, final states (S, W - 1, D).
    """
    ops = make_operands(*args)
    final_SWD = _final_state(ops)
    if ops.empty:
        return ops.x_BLD.new_empty(ops.x_BLD.shape), final_SWD
    table = _table(ops)
    y_RD = new_rows(ops.x_BLD)
    for part in _slices(ops, table):
        y_CTD = _convolve(ops, _window(ops, table, part))
        if ops.silu:
            y_CTD = torch.nn.functional.silu(y_CTD, inplace=True)
        put_rows(y_RD, table.target_KT[part].reshape(-1), y_CTD.flatten(0, 1))
    return as_batch(y_RD, ops.x_BLD), final_SWD


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
    ops = make_operands(*args)
    weight, bias, initial = args[1], args[2], args[3]
    dx_RD = new_rows(ops.x_BLD)
    dtaps_WD = torch.zeros_like(ops.taps_WD, dtype=torch.float64)
    dbias_D = dtaps_WD.new_zeros(dtaps_WD.shape[1])
    dentry_SWD = torch.cat([torch.zeros_like(ops.entry_SWD), ops.entry_SWD.new_zeros((1, *ops.entry_SWD.shape[1:]))])
    if not ops.empty:
        table = _table(ops)
        carry_WD = ops.taps_WD.new_zeros((ops.halo, ops.taps_WD.shape[1]))
        for part in reversed(list(_slices(ops, table))):
            dpre_CTD, window = _activation_gradient(ops, table, part, dy)
            dbias_D += dpre_CTD.sum((0, 1))
            dwindow = torch.zeros_like(window)
            steps = dpre_CTD.shape[1]
            for w in range(ops.halo + 1):
                dwindow[:, w : w + steps].addcmul_(dpre_CTD, ops.taps_WD[w])
                dtaps_WD[w] += (window[:, w : w + steps] * dpre_CTD).sum((0, 1))
            if ops.halo:
                carry_WD = _pass_halos(ops, table, part, dwindow, dentry_SWD, carry_WD)
            put_rows(dx_RD, table.target_KT[part].reshape(-1), dwindow[:, ops.halo :].flatten(0, 1))
    dentry_SWD = dentry_SWD[:-1]
    if dfinal is not None and ops.halo:
        dentry_SWD = _final_gradient(ops, dfinal.to(ops.taps_WD.dtype), dx_RD, dentry_SWD)
    return (
        into["dx"].add_(as_batch(dx_RD, ops.x_BLD)) if add else as_batch(dx_RD, ops.x_BLD, (into or {}).get("dx")),
        dtaps_WD.t().to(weight.dtype).contiguous(),
        None if bias is None else dbias_D.to(bias.dtype),
        None if initial is None else dentry_SWD.to(initial.dtype).contiguous(),
    )


def _activation_gradient(
    ops: Operands, table: ChunkTable, part: slice, dy: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradient before the activation (C, T, D), 0 at padding, and the inputs with halos."""
    window = _window(ops, table, part)
    rows_CT = table.token_KT[part]
    dpre_CTD = take_rows(dy, rows_CT.reshape(-1)).to(ops.taps_WD.dtype).unflatten(0, rows_CT.shape)
    if ops.silu:
        dpre_CTD = dpre_CTD * silu_and_derivative(_convolve(ops, window))[1]
    invalid_CT1 = ~table.valid_KT[part, :, None]
    window[:, ops.halo :].masked_fill_(invalid_CT1, 0)
    return dpre_CTD.masked_fill(invalid_CT1, 0), window


def _pass_halos(
    ops: Operands,
    table: ChunkTable,
    part: slice,
    dwindow: torch.Tensor,
    dentry_SWD: torch.Tensor,
    carry_WD: torch.Tensor,
) -> torch.Tensor:
    """Add each halo's gradient to the chunk before it; returns what the slab before this one is owed."""
    dhalo_CWD = dwindow[:, : ops.halo]
    dentry_SWD.index_copy_(0, table.opens_K[part], dhalo_CWD)
    owed_CWD = dhalo_CWD.masked_fill(table.first_K[part, None, None], 0)
    dwindow[:, -ops.halo :] += torch.cat([owed_CWD[1:], carry_WD[None]])
    return owed_CWD[0]


def _final_gradient(
    ops: Operands, dfinal_SWD: torch.Tensor, dx_RD: torch.Tensor, dentry_SWD: torch.Tensor
) -> torch.Tensor:
    """Route the final state's gradient to the tokens and initial states it was copied from."""
    if ops.empty:
        return dentry_SWD + dfinal_SWD
    row_SW, inside_SW, len_S1 = _tail(ops)
    target = torch.where(inside_SW, row_SW, dx_RD.shape[0] - 1).reshape(-1)
    tail = dx_RD.index_select(0, target).to(dfinal_SWD.dtype) + dfinal_SWD.flatten(0, 1)
    put_rows(dx_RD, target, tail)
    slot_SW = torch.arange(ops.halo, device=len_S1.device) - len_S1
    from_final = dfinal_SWD.gather(1, slot_SW.clamp(min=0)[:, :, None].expand(dfinal_SWD.shape))
    return dentry_SWD + from_final.masked_fill(slot_SW[:, :, None] < 0, 0)
