"""Mamba-3 scan in plain PyTorch: an SSD scan with scaled keys, keys and queries rotated slab by slab.

Only states and phases at chunk starts are kept for the backward pass.

Legend: B batch, L length, S segments, H heads, P head channels, N states, G groups, M rotated pairs, R rank, Q tokens
per chunk, X = Q * R rows of a chunk, C chunks in a slab, K chunks, T = B * L token rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seqkit.kernels.chunks import ChunkTable, chunk_table, count_chunks, new_rows, put_rows
from seqkit.kernels.mamba3 import phase
from seqkit.kernels.mamba3.gradients import Gradients
from seqkit.kernels.mamba3.slabs import Operands, Slab, as_ranks, make_operands, slabs, tokens_per_chunk
from seqkit.kernels.mamba3.steps import Steps
from seqkit.kernels.numbers import silu_and_derivative
from seqkit.kernels.ssd.slabs import chain_backward


def kept_shapes(
    batch: int, length: int, segments: int | None, sizes: tuple[int, ...], chunk_size: int | None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of the states (K, H, P, N) and phases (K, H, M) at chunk starts that the forward pass keeps.

    Args:
        batch: B.
        length: L.
        segments: S of a packed batch, else None.
        sizes: H, P, R, G, N, M.
        chunk_size: The caller's.
    """
    H, P, R, _, N, M = sizes
    chunks = count_chunks(batch, length, tokens_per_chunk(chunk_size, R), segments)
    return (chunks, H, P, N), (chunks, H, M)


def _table(ops: Operands) -> ChunkTable:
    batch, length = ops.x_BLHP.shape[:2]
    return chunk_table(batch, length, ops.chunk_size, ops.cu_seqlens, ops.reverse, ops.x_BLHP.device)


def output_shape(ops: Operands) -> tuple[int, ...]:
    """(B, L, H, P), or (B, L, R, H, P) where ranks stay apart."""
    B, L, H, P = ops.x_BLHP.shape
    return (B, L, ops.sizes[2], H, P) if ops.per_rank else (B, L, H, P)


def forward(*args) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Scan.

    Args:
        *args: Those of :func:`seqkit.kernels.mamba3.slabs.make_operands`.

    Returns:
        y in x's dtype; final theta (S, H, M) float64, ssm (S, H, P, N), k (S, R, H, N), v (S, H, P); states
        (K, H, P, N) and phases (K, H, M) at chunk starts.
    """
    ops = make_operands(*args)
    B, L = ops.x_BLHP.shape[:2]
    segments = None if ops.cu_seqlens is None else ops.ssm_SHPN.shape[0]
    shapes = kept_shapes(B, L, segments, ops.sizes, ops.chunk_size)
    starts_KHPN, phases_KHM = ops.ssm_SHPN.new_zeros(shapes[0]), ops.theta_SHM.new_zeros(shapes[1])
    # the extra row of a final state takes what closes no segment
    theta, ssm, k, v = (torch.cat([s, s.new_zeros((1, *s.shape[1:]))]) for s in _entering(ops))
    y = new_rows(ops.x_BLHP.new_empty(output_shape(ops)))
    if not ops.empty:
        table, steps = _table(ops), ops.steps()
        entry_SHPN = ops.ssm_SHPN + steps.entry_SH[..., None, None] * _last_outer(ops)
        carry_HPN = torch.zeros_like(starts_KHPN[0])
        for slab in slabs(ops, steps, table, phases_KHM, torch.zeros_like(phases_KHM[0])):
            start_CHPN, closes_C = starts_KHPN[slab.part], table.closes_K[slab.part]
            ends_CHPN = (slab.v_CHXP * slab.spread(slab.to_end_CHQ * slab.scale_CHQ)).transpose(2, 3) @ slab.k_CHXN
            carry_HPN = _chain_forward(table, slab, entry_SHPN, start_CHPN, ends_CHPN, carry_HPN)
            end_CHM = slab.starts_CHM + slab.increment_CQHM.sum(1)
            theta.index_copy_(0, closes_C, phase.wrap(end_CHM, ops.bits))
            ssm.index_copy_(0, closes_C, ends_CHPN)
            chunk_C = torch.arange(closes_C.shape[0], device=closes_C.device)
            k.index_copy_(0, closes_C, slab.ranks(slab.k_CHXN)[chunk_C, :, slab.last_C].transpose(1, 2))
            v.index_copy_(0, closes_C, slab.x_CHQP[chunk_C, :, slab.last_C])
            out = _gated(ops, slab, _outputs(ops, slab, start_CHPN))
            put_rows(y, slab.targets, out.flatten(0, 1))
    radians = phase.to_radians(theta[:-1], ops.bits)
    finals = (radians, *(s[:-1].clone() for s in (ssm, k, v)))
    return y[:-1].view(output_shape(ops)), *finals, starts_KHPN, phases_KHM


def _entering(ops: Operands) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return ops.theta_SHM, ops.ssm_SHPN, ops.k_SRHN, ops.v_SHP


def _last_outer(ops: Operands) -> Tensor:
    """Sum over ranks of v k^T of the token before the first (S, H, P, N)."""
    return as_ranks(ops.v_SHP, ops.mimo_x_HRP).transpose(2, 3) @ ops.k_SRHN.transpose(1, 2)


def _outputs(ops: Operands, slab: Slab, start_CHPN: Tensor) -> Tensor:
    """Outputs of every rank before the gate (C, H, X, P)."""
    mixing = (slab.q_CHXN @ slab.k_CHXN.transpose(2, 3)).mul_(slab.on_rows(slab.weight_CHQQ))
    y_CHXP = mixing @ slab.v_CHXP
    y_CHXP.addcmul_(slab.q_CHXN @ start_CHPN.transpose(2, 3), slab.spread(slab.from_start_CHQ))
    return y_CHXP if ops.D is None else y_CHXP.addcmul_(slab.v_CHXP, ops.D.unsqueeze(1))


def _gate(ops: Operands, slab: Slab) -> tuple[Tensor, Tensor, Tensor]:
    """Silu of the gate of every rank, its derivative (C, H, Q, R, P), and z (C, H, Q, 1, P)."""
    z_CHQ1P = slab.gather(ops.z_BLHP).transpose(1, 2).unsqueeze(3)
    gate = z_CHQ1P if ops.mimo_z_HRP is None else z_CHQ1P * ops.mimo_z_HRP.unsqueeze(1)
    return *silu_and_derivative(gate), z_CHQ1P


def _gated(ops: Operands, slab: Slab, y_CHXP: Tensor) -> Tensor:
    """Gate and sum over ranks: (C, Q, H, P), or (C, Q, R, H, P) where ranks stay apart."""
    y_CHQRP = slab.ranks(y_CHXP)
    if ops.per_rank:
        return y_CHQRP.permute(0, 2, 3, 1, 4)
    if ops.z_BLHP is not None:
        y_CHQRP = y_CHQRP * _gate(ops, slab)[0]
    if ops.mimo_o_HRP is not None:
        y_CHQRP = y_CHQRP * ops.mimo_o_HRP.unsqueeze(1)
    return y_CHQRP.sum(3).transpose(1, 2)


def _chain_forward(
    table: ChunkTable, slab: Slab, entry_SHPN: Tensor, start_CHPN: Tensor, ends_CHPN: Tensor, carry_HPN: Tensor
) -> Tensor:
    """Hand states from chunk to chunk: fills ``start_CHPN``, corrects ``ends_CHPN``, returns the last end."""
    entry_CHPN = entry_SHPN.index_select(0, table.segment_K[slab.part])
    first_C = table.first_K[slab.part, None, None, None].unbind(0)
    whole_C = slab.from_start_CHQ[:, :, -1, None, None].unbind(0)
    links = zip(start_CHPN.unbind(0), ends_CHPN.unbind(0), whole_C, entry_CHPN.unbind(0), first_C, strict=True)
    for start, end, whole, entry, first in links:
        torch.where(first, entry, carry_HPN, out=start)
        end.addcmul_(whole, start)
        carry_HPN = end
    return carry_HPN


def backward(
    dy: Tensor,
    dtheta: Tensor | None,
    dssm: Tensor | None,
    dk: Tensor | None,
    dv: Tensor | None,
    starts_KHPN: Tensor,
    phases_KHM: Tensor,
    *args,
) -> tuple[Tensor | None, ...]:
    """Gradients of x, dt, A, trap, B, C, angles, the eight parameters and z, and the four entering states.

    They come in the order of :func:`seqkit.kernels.mamba3.slabs.make_operands`, None where the operand is absent.

    Args:
        dy: Gradient of y.
        dtheta: Gradient of the final angles, or None; likewise ``dssm``, ``dk``, ``dv``.
        dssm: See above.
        dk: See above.
        dv: See above.
        starts_KHPN: Chunk-start states of the forward pass.
        phases_KHM: Chunk-start phases of the forward pass.
        *args: Those of :func:`forward`.
    """
    ops = make_operands(*args)
    grads = Gradients(ops, (dtheta, dssm, dk, dv))
    if ops.empty:
        return grads.results(args)
    table, steps = _table(ops), ops.steps()
    carry_HPN, turn_HM = torch.zeros_like(starts_KHPN[0]), grads.theta_SHM.new_zeros(grads.theta_SHM.shape[1:])
    for slab in slabs(ops, steps, table, phases_KHM):
        start_CHPN = starts_KHPN[slab.part]
        dy_CHXP = _through_gate(ops, slab, grads, dy, start_CHPN)
        from_start_CHXP = dy_CHXP * slab.spread(slab.from_start_CHQ)
        dstart_CHPN = from_start_CHXP.transpose(2, 3) @ slab.q_CHXN
        dends_CHPN = chain_backward(
            table.closes_K[slab.part], slab.from_start_CHQ, dstart_CHPN, grads.ssm_leaving_SHPN, carry_HPN
        )
        carry_HPN = dstart_CHPN[0]
        grads.ssm_SHPN.index_copy_(0, table.opens_K[slab.part], dstart_CHPN)
        dk_CHXN, dq_CHXN = _slab_gradients(ops, slab, grads, dy_CHXP, start_CHPN, dends_CHPN, table)
        turn_HM = _rotation_gradients(ops, steps, slab, grads, dk_CHXN, dq_CHXN, table, turn_HM)
    grads.finish(ops, steps)
    return grads.results(args)


def _through_gate(ops: Operands, slab: Slab, grads: Gradients, dy: Tensor, start_CHPN: Tensor) -> Tensor:
    """Gradient of every rank's output before the gate (C, H, X, P); writes that of gate and mixing back."""
    if ops.per_rank:
        return slab.gather(dy).permute(0, 3, 1, 2, 4).flatten(2, 3)
    dy_CHQRP = slab.gather(dy).transpose(1, 2).unsqueeze(3)
    if ops.z_BLHP is None and ops.mimo_o_HRP is None:
        return dy_CHQRP.flatten(2, 3)
    y_CHQRP = slab.ranks(_outputs(ops, slab, start_CHPN))
    gate, slope, z = (None, None, None) if ops.z_BLHP is None else _gate(ops, slab)
    if ops.mimo_o_HRP is not None:
        grads.mimo_o += (dy_CHQRP * (y_CHQRP if gate is None else y_CHQRP * gate)).sum((0, 2), dtype=torch.float64)
        dy_CHQRP = dy_CHQRP * ops.mimo_o_HRP.unsqueeze(1)
    if gate is None:
        return dy_CHQRP.flatten(2, 3)
    dgate_CHQRP = dy_CHQRP * y_CHQRP * slope
    if ops.mimo_z_HRP is not None:
        grads.mimo_z += (dgate_CHQRP * z).sum((0, 2), dtype=torch.float64)
        dgate_CHQRP = dgate_CHQRP * ops.mimo_z_HRP.unsqueeze(1)
    put_rows(grads.z, slab.targets, dgate_CHQRP.sum(3).transpose(1, 2).flatten(0, 1))
    return (dy_CHQRP * gate).flatten(2, 3)


def _slab_gradients(
    ops: Operands,
    slab: Slab,
    grads: Gradients,
    dy_CHXP: Tensor,
    start_CHPN: Tensor,
    dends_CHPN: Tensor,
    table: ChunkTable,
) -> tuple[Tensor, Tensor]:
    """Write the gradients of x and of the token weights of a slab; return those of the rotated keys and queries."""
    k, q, v = slab.k_CHXN, slab.q_CHXN, slab.v_CHXP
    weight_CHQQ = slab.weight_CHQQ
    weights_CHXX = slab.on_rows(weight_CHQQ)
    scores_CHXX, dmixing_CHXX = q @ k.transpose(2, 3), dy_CHXP @ v.transpose(2, 3)
    to_end_CHX1 = slab.spread(slab.to_end_CHQ * slab.scale_CHQ)
    from_end_CHXP = k @ dends_CHPN.transpose(2, 3)
    off_CHXP = q @ start_CHPN.transpose(2, 3)
    dv_CHXP = (scores_CHXX * weights_CHXX).transpose(2, 3) @ dy_CHXP + from_end_CHXP * to_end_CHX1
    if ops.D is not None:
        dv_CHXP.addcmul_(dy_CHXP, ops.D.unsqueeze(1))
        grads.D_HP += (dy_CHXP * v).sum((0, 2), dtype=torch.float64)
    dscores_CHXX = dmixing_CHXX * weights_CHXX
    dk_CHXN = dscores_CHXX.transpose(2, 3) @ q + (v * to_end_CHX1) @ dends_CHPN
    dq_CHXN = dscores_CHXX @ k + (dy_CHXP * slab.spread(slab.from_start_CHQ)) @ start_CHPN
    dweight_CHQQ = dmixing_CHXX.mul_(scores_CHXX).unflatten(3, (-1, slab.rank)).unflatten(2, (-1, slab.rank))
    dweight_CHQQ = dweight_CHQQ.sum((3, 5))
    start_CHQ = slab.ranks((dy_CHXP * off_CHXP).sum(3)).sum(3) * slab.from_start_CHQ
    end_CHQ = slab.ranks((v * from_end_CHXP).sum(3)).sum(3) * slab.to_end_CHQ
    whole_CH = (start_CHPN * dends_CHPN).sum((2, 3)) * slab.from_start_CHQ[:, :, -1]
    diagonal_CHQ = dweight_CHQQ.diagonal(dim1=2, dim2=3)
    grads.put_steps(slab, "gamma", diagonal_CHQ)
    diagonal_CHQ.zero_()
    grads.put_steps(slab, "scale", (dweight_CHQQ * slab.between_CHQQ).sum(2) + end_CHQ)
    pair_CHQQ = dweight_CHQQ.mul_(weight_CHQQ)
    grads.put_steps(slab, "decay", -_log_decay_gradient(pair_CHQQ, start_CHQ, end_CHQ * slab.scale_CHQ, whole_CH))
    grads.put_inputs(ops, slab, dv_CHXP, table.closes_K[slab.part])
    return dk_CHXN, dq_CHXN


def _log_decay_gradient(pair_CHQQ: Tensor, start_CHQ: Tensor, end_CHQ: Tensor, whole_CH: Tensor) -> Tensor:
    """Gradient of every token's log decay (C, H, Q) from gradient times value of each decay between two places.

    Args:
        pair_CHQQ: From column to row, 0 on the diagonal.
        start_CHQ: From chunk start to token.
        end_CHQ: From token to chunk end.
        whole_CH: From chunk start to chunk end.
    """
    dsum_CHQ = pair_CHQQ.sum(3, dtype=torch.float64) - pair_CHQQ.sum(2, dtype=torch.float64)
    dsum_CHQ += start_CHQ - end_CHQ
    dsum_CHQ[:, :, -1] += end_CHQ.sum(2) + whole_CH
    later_CHQ = dsum_CHQ.sum(2, keepdim=True) - torch.cumsum(dsum_CHQ, 2) + dsum_CHQ
    return later_CHQ.to(pair_CHQQ.dtype)


def _rotation_gradients(
    ops: Operands,
    steps: Steps,
    slab: Slab,
    grads: Gradients,
    dk_CHXN: Tensor,
    dq_CHXN: Tensor,
    table: ChunkTable,
    turn_HM: Tensor,
) -> Tensor:
    """Write the gradients of B, C, their biases and the angles; returns that of the phase before the slab (H, M).

    Args:
        ops: Operands.
        steps: Their discretisation.
        slab: The slab.
        grads: Receives the gradients.
        dk_CHXN: Gradient of the rotated keys.
        dq_CHXN: Gradient of the rotated queries.
        table: Chunks.
        turn_HM: Gradient of the phase behind the slab.
    """
    closes_C, M = table.closes_K[slab.part], slab.cos_CHQM.shape[3]
    dk_CHQRN, dq_CHQRN = slab.ranks(dk_CHXN), slab.ranks(dq_CHXN)
    chunk_C = torch.arange(closes_C.shape[0], device=closes_C.device)
    dk_CHQRN[chunk_C, :, slab.last_C] += grads.k_leaving_SRHN.index_select(0, closes_C).transpose(1, 2)
    dtheta_CHQM = phase.angle_gradient(dk_CHQRN, slab.ranks(slab.k_CHXN), M, ops.pairing).sum(3)
    dtheta_CHQM += phase.angle_gradient(dq_CHQRN, slab.ranks(slab.q_CHXN), M, ops.pairing).sum(3)
    cos, back = slab.cos_CHQM.unsqueeze(3), -slab.sin_CHQM.unsqueeze(3)
    grads.put_weights(slab, "B", phase.rotate(dk_CHQRN, cos, back, ops.pairing))
    grads.put_weights(slab, "C", phase.rotate(dq_CHQRN, cos, back, ops.pairing))
    later_CHQM, turn_HM = _chain_turns(table, slab, grads, dtheta_CHQM.double(), turn_HM)
    grads.put_angles(ops, steps, slab, later_CHQM.to(ops.dtype))
    return turn_HM


def _chain_turns(
    table: ChunkTable, slab: Slab, grads: Gradients, dtheta_CHQM: Tensor, turn_HM: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradient of every token's increment: of its own angle and all later ones of the segment (C, H, Q, M)."""
    closes_C = table.closes_K[slab.part]
    total_CHM = dtheta_CHQM.sum(2)
    later_CHQM = total_CHM.unsqueeze(2) - torch.cumsum(dtheta_CHQM, 2) + dtheta_CHQM
    leaving_CHM = grads.theta_leaving_SHM.index_select(0, closes_C)
    closing_C = (closes_C < grads.theta_leaving_SHM.shape[0] - 1)[:, None, None].unbind(0)
    links = zip(total_CHM.unbind(0), leaving_CHM.unbind(0), closing_C, strict=True)
    for total, leaving, closing in reversed(list(links)):
        torch.where(closing, leaving, turn_HM, out=leaving)
        total += leaving
        turn_HM = total
    grads.theta_SHM.index_copy_(0, table.opens_K[slab.part], total_CHM)
    return later_CHQM + leaving_CHM.unsqueeze(2), turn_HM
