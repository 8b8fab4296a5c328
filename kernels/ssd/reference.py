"""SSD scan (Mamba-2) in plain PyTorch: matrix products inside chunks, a short chain of states between them.

One slab of chunks exists at a time; only the states at chunk starts are kept for the backward pass.

Legend: B batch, L length, S segments, H heads, P head channels, N states, G groups, J heads per group, Q tokens per
chunk, C chunks in a slab, K chunks, R = B * L rows.
"""

from __future__ import annotations

import torch

from seqkit.kernels.chunks import ChunkTable, as_batch, chunk_table, count_chunks, new_rows, put_rows
from seqkit.kernels.numbers import silu_and_derivative
from seqkit.kernels.ssd.slabs import CHUNK_SIZE, Operands, Slab, chain_backward, make_operands, slabs


def boundary_shape(
    batch: int, length: int, heads: int, head_channels: int, states: int, segments: int | None, chunk_size: int | None
) -> tuple[int, int, int, int]:
    """Shape (K, H, P, N) of the chunk-start states that the forward pass keeps."""
    return count_chunks(batch, length, chunk_size or CHUNK_SIZE, segments), heads, head_channels, states


def _table(ops: Operands) -> ChunkTable:
    batch, length = ops.x_BLHP.shape[:2]
    return chunk_table(batch, length, ops.chunk_size, ops.cu_seqlens, ops.reverse, ops.x_BLHP.device)


def forward(
    *args, into: dict[str, torch.Tensor] | None = None, keep: bool = False
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scan.

    Args:
        *args: Those of :func:`seqkit.kernels.ssd.slabs.make_operands`.
        into: ``{"y": tensor}`` to write the outputs there; last dimensions contiguous.
        keep: Whether the backward pass follows at once; it takes the same either way.

    Returns:
        y (B, L, H, P) in x's dtype, final states (S, H, P, N), chunk-start states (K, H, P, N).
    """
    ops, out = make_operands(*args), (into or {}).get("y")
    B, L, H, P = ops.x_BLHP.shape
    N = ops.B_BLGN.shape[3]
    segments = None if ops.cu_seqlens is None else ops.entry_SHPN.shape[0]
    starts = ops.A_H.new_zeros(boundary_shape(B, L, H, P, N, segments, ops.chunk_size))
    final_SHPN = torch.cat([ops.entry_SHPN, ops.A_H.new_zeros((1, H, P, N))])  # the extra row swallows non-closers
    if ops.empty:
        return ops.x_BLHP.new_empty(ops.x_BLHP.shape) if out is None else out, final_SHPN[:-1].clone(), starts
    table = _table(ops)
    y_RHP = new_rows(ops.x_BLHP)
    carry_HPN = ops.A_H.new_zeros((H, P, N))
    for slab in slabs(ops, table):
        start_CHPN = starts[slab.part]
        xdt_CHQP = slab.x_CHQP * slab.dt_CHQ.unsqueeze(3)
        ends_CHPN = _into_states(xdt_CHQP * slab.to_end_CHQ.unsqueeze(3), slab.B_CGQN)
        carry_HPN = _chain_forward(ops, table, slab, start_CHPN, ends_CHPN, carry_HPN)
        final_SHPN.index_copy_(0, table.closes_K[slab.part], ends_CHPN)
        y_CHQP = _mixing(slab) @ xdt_CHQP
        y_CHQP.addcmul_(_from_states(slab.C_CGQN, start_CHPN), slab.from_start_CHQ.unsqueeze(3))
        if ops.D is not None:
            y_CHQP.addcmul_(slab.x_CHQP, ops.D.unsqueeze(1))
        if ops.z_BLHP is not None:
            y_CHQP *= silu_and_derivative(slab.gather_heads(ops.z_BLHP))[0]
        put_rows(y_RHP, slab.targets, y_CHQP.transpose(1, 2).flatten(0, 1))
    return as_batch(y_RHP, ops.x_BLHP, out), final_SHPN[:-1].clone(), starts


def _mixing(slab: Slab) -> torch.Tensor:
    """Decayed scores (C, H, Q, Q): what a token's output takes from each token of its chunk."""
    scores_CGQQ = slab.C_CGQN @ slab.B_CGQN.transpose(2, 3)
    groups = scores_CGQQ.shape[1]
    return (slab.between_CHQQ.unflatten(1, (groups, -1)) * scores_CGQQ.unsqueeze(2)).flatten(1, 2)


def _stack_heads(x_CHQP: torch.Tensor, groups: int) -> torch.Tensor:
    """(C, H, Q, P) as (C, G, Q, J * P): the heads of a group side by side."""
    return x_CHQP.unflatten(1, (groups, -1)).transpose(2, 3).flatten(3)


def _into_states(x_CHQP: torch.Tensor, weight_CGQN: torch.Tensor) -> torch.Tensor:
    """Sum over tokens of x[p] * weight[n]: (C, H, P, N)."""
    stacked = _stack_heads(x_CHQP, weight_CGQN.shape[1])
    states = stacked.transpose(2, 3) @ weight_CGQN
    return states.unflatten(2, (-1, x_CHQP.shape[3])).flatten(1, 2)


def _from_states(weight_CGQN: torch.Tensor, states_CHPN: torch.Tensor) -> torch.Tensor:
    """Sum over n of weight[n] * states[p, n]: (C, H, Q, P)."""
    groups = weight_CGQN.shape[1]
    stacked = states_CHPN.unflatten(1, (groups, -1)).flatten(2, 3)
    return (
        (weight_CGQN @ stacked.transpose(2, 3)).unflatten(3, (-1, states_CHPN.shape[2])).transpose(2, 3).flatten(1, 2)
    )


def _onto_weights(x_CHQP: torch.Tensor, states_CHPN: torch.Tensor, groups: int) -> torch.Tensor:
    """Sum over a group's heads and p of x[p] * states[p, n]: (C, G, Q, N)."""
    stacked = states_CHPN.unflatten(1, (groups, -1)).flatten(2, 3)
    return _stack_heads(x_CHQP, groups) @ stacked


def _chain_forward(
    ops: Operands,
    table: ChunkTable,
    slab: Slab,
    start_CHPN: torch.Tensor,
    ends_CHPN: torch.Tensor,
    carry_HPN: torch.Tensor,
) -> torch.Tensor:
    """Hand states from chunk to chunk: fills ``start_CHPN``, corrects ``ends_CHPN``, returns the last end."""
    entry_CHPN = ops.entry_SHPN.index_select(0, table.segment_K[slab.part])
    first_C = table.first_K[slab.part, None, None, None].unbind(0)
    whole_C = slab.from_start_CHQ[:, :, -1, None, None].unbind(0)
    links = zip(start_CHPN.unbind(0), ends_CHPN.unbind(0), whole_C, entry_CHPN.unbind(0), first_C, strict=True)
    for start, end, whole, entry, first in links:
        torch.where(first, entry, carry_HPN, out=start)
        end.addcmul_(whole, start)
        carry_HPN = end
    return carry_HPN


class _Gradients:
    """Outputs of the backward pass: token rows with a padding row, and float64 totals of the parameters."""

    def __init__(self, ops: Operands):
        self.x, self.dt = new_rows(ops.x_BLHP), new_rows(ops.dt_BLH)
        self.B, self.C = new_rows(ops.B_BLGN), new_rows(ops.C_BLGN)
        self.z = None if ops.z_BLHP is None else new_rows(ops.z_BLHP)
        self.A_H = torch.zeros_like(ops.A_H, dtype=torch.float64)
        self.bias_H = torch.zeros_like(self.A_H)
        self.D_HP = ops.A_H.new_zeros(ops.x_BLHP.shape[2:], dtype=torch.float64)


def backward(
    dy: torch.Tensor,
    dfinal: torch.Tensor | None,
    starts: torch.Tensor,
    *args,
    into: dict[str, torch.Tensor] | None = None,
) -> tuple[torch.Tensor | None, ...]:
    """Gradients of x, dt, A, B, C, D, z, dt_bias, initial_state (None where the operand is absent).

    Args:
        dy: Gradient of y (B, L, H, P).
        dfinal: Gradient of the final states (S, H, P, N), or None.
        starts: Chunk-start states of the forward pass.
        *args: Those of :func:`forward`.
        into: Tensors to write to, any of "dx", "ddt", "dB", "dC" and "dz"; last dimensions contiguous.
    """
    ops, into = make_operands(*args), into or {}
    grads = _Gradients(ops)
    zero_HPN = ops.A_H.new_zeros(ops.entry_SHPN.shape[1:])
    dentry_SHPN = torch.cat([torch.zeros_like(ops.entry_SHPN), zero_HPN[None]])  # the extra row is never opened
    if dfinal is not None:
        dentry_SHPN[:-1] = dfinal
    if not ops.empty:
        table = _table(ops)
        dfinal_SHPN, carry_HPN = dentry_SHPN.clone(), zero_HPN
        for slab in slabs(ops, table, backwards=True):
            dy_CHQP = _through_gate(ops, slab, grads, dy, starts[slab.part])
            dstart_CHPN = _into_states(dy_CHQP * slab.from_start_CHQ.unsqueeze(3), slab.C_CGQN)
            closes_C = table.closes_K[slab.part]
            dends_CHPN = chain_backward(closes_C, slab.from_start_CHQ, dstart_CHPN, dfinal_SHPN, carry_HPN)
            carry_HPN = dstart_CHPN[0]
            dentry_SHPN.index_copy_(0, table.opens_K[slab.part], dstart_CHPN)
            _slab_gradients(ops, slab, grads, dy_CHQP, starts[slab.part], dends_CHPN)
    A, D, z, bias, initial = args[2], args[5], args[6], args[7], args[8]
    dD = None if D is None else (grads.D_HP.sum(1) if D.dim() == 1 else grads.D_HP).to(D.dtype)
    return (
        as_batch(grads.x, ops.x_BLHP, into.get("dx")),
        as_batch(grads.dt, ops.dt_BLH, into.get("ddt")),
        grads.A_H.masked_fill_(A > 0, 0).to(A.dtype),
        as_batch(grads.B, ops.B_BLGN, into.get("dB")),
        as_batch(grads.C, ops.C_BLGN, into.get("dC")),
        dD,
        None if z is None else as_batch(grads.z, ops.z_BLHP, into.get("dz")),
        None if bias is None else grads.bias_H.to(bias.dtype),
        None if initial is None else dentry_SHPN[:-1].to(initial.dtype, copy=True),
    )


def _through_gate(
    ops: Operands, slab: Slab, grads: _Gradients, dy: torch.Tensor, start_CHPN: torch.Tensor
) -> torch.Tensor:
    """Gradient of y before the gate (C, H, Q, P); writes that of z."""
    dy_CHQP = slab.gather_heads(dy)
    if ops.z_BLHP is None:
        return dy_CHQP
    gate, slope = silu_and_derivative(slab.gather_heads(ops.z_BLHP))
    y_CHQP = _mixing(slab) @ (slab.x_CHQP * slab.dt_CHQ.unsqueeze(3))
    y_CHQP.addcmul_(_from_states(slab.C_CGQN, start_CHPN), slab.from_start_CHQ.unsqueeze(3))
    if ops.D is not None:
        y_CHQP.addcmul_(slab.x_CHQP, ops.D.unsqueeze(1))
    put_rows(grads.z, slab.targets, y_CHQP.mul_(dy_CHQP).mul_(slope).transpose(1, 2).flatten(0, 1))
    return dy_CHQP * gate


def _slab_gradients(
    ops: Operands,
    slab: Slab,
    grads: _Gradients,
    dy_CHQP: torch.Tensor,
    start_CHPN: torch.Tensor,
    dends_CHPN: torch.Tensor,
) -> None:
    """Write the gradients of one slab's tokens and add its share to those of the parameters."""
    G = slab.B_CGQN.shape[1]
    xdt_CHQP = slab.x_CHQP * slab.dt_CHQ.unsqueeze(3)
    mixing_CHQQ = _mixing(slab)
    dmixing_CHQQ = dy_CHQP @ xdt_CHQP.transpose(2, 3)
    dscores_CGQQ = (dmixing_CHQQ * slab.between_CHQQ).unflatten(1, (G, -1)).sum(2)
    from_end_CHQP = _from_states(slab.B_CGQN, dends_CHPN) * slab.to_end_CHQ.unsqueeze(3)
    dxdt_CHQP = mixing_CHQQ.transpose(2, 3) @ dy_CHQP + from_end_CHQP
    dC_CGQN = dscores_CGQQ @ slab.B_CGQN
    dC_CGQN += _onto_weights(dy_CHQP * slab.from_start_CHQ.unsqueeze(3), start_CHPN, G)
    dB_CGQN = dscores_CGQQ.transpose(2, 3) @ slab.C_CGQN
    dB_CGQN += _onto_weights(xdt_CHQP * slab.to_end_CHQ.unsqueeze(3), dends_CHPN, G)
    off_CHQP = _from_states(slab.C_CGQN, start_CHPN) * slab.from_start_CHQ.unsqueeze(3)
    whole_CH = (start_CHPN * dends_CHPN).sum((2, 3)) * slab.from_start_CHQ[:, :, -1]
    dlog_CHQ = _log_decay_gradient(
        dmixing_CHQQ.mul_(mixing_CHQQ), (dy_CHQP * off_CHQP).sum(3), (xdt_CHQP * from_end_CHQP).sum(3), whole_CH
    )
    ddt_CHQ = (dlog_CHQ * ops.A_H.clamp(max=0)[:, None]).masked_fill_(slab.dt_CHQ < 0, 0)
    ddt_CHQ += (dxdt_CHQP * slab.x_CHQP).sum(3)
    grads.A_H += (dlog_CHQ * slab.decay_CHQ).sum((0, 2))
    dx_CHQP = dxdt_CHQP.mul_(slab.dt_CHQ.unsqueeze(3))
    if ops.D is not None:
        dx_CHQP.addcmul_(dy_CHQP, ops.D.unsqueeze(1))
        grads.D_HP += (dy_CHQP * slab.x_CHQP).sum((0, 2))
    ddt_CHQ.masked_fill_((slab.open_CHQ < ops.dt_min) | (slab.open_CHQ > ops.dt_max), 0)
    if ops.dt_softplus:
        ddt_CHQ *= torch.sigmoid(slab.raw_CHQ)
    ddt_CHQ.masked_fill_(slab.invalid_CQ1.transpose(1, 2), 0)
    grads.bias_H += ddt_CHQ.sum((0, 2))
    put_rows(grads.x, slab.targets, dx_CHQP.transpose(1, 2).flatten(0, 1))
    put_rows(grads.dt, slab.targets, ddt_CHQ.transpose(1, 2).flatten(0, 1))
    put_rows(grads.B, slab.targets, dB_CGQN.transpose(1, 2).flatten(0, 1))
    put_rows(grads.C, slab.targets, dC_CGQN.transpose(1, 2).flatten(0, 1))


def _log_decay_gradient(
    pair_CHQQ: torch.Tensor, start_CHQ: torch.Tensor, end_CHQ: torch.Tensor, whole_CH: torch.Tensor
) -> torch.Tensor:
    """Gradient of every token's dt * A (C, H, Q).

    Args:
        pair_CHQQ: Gradient times value of each pair of tokens; the diagonal carries no decay. Consumed.
        start_CHQ: Same for chunk start to token.
        end_CHQ: Same for token to chunk end.
        whole_CH: Same for chunk start to chunk end.
    """
    pair_CHQQ.diagonal(dim1=2, dim2=3).zero_()
    dsum_CHQ = pair_CHQQ.sum(3, dtype=torch.float64) - pair_CHQQ.sum(2, dtype=torch.float64)
    end_CHQ = end_CHQ.double()  # what reaches the chunk's end cancels but for what decays: digits that float32 lacks
    dsum_CHQ += start_CHQ - end_CHQ
    dsum_CHQ[:, :, -1] += end_CHQ.sum(2) + whole_CH
    later_CHQ = dsum_CHQ.sum(2, keepdim=True) - torch.cumsum(dsum_CHQ, 2) + dsum_CHQ
    return later_CHQ.to(pair_CHQQ.dtype)
