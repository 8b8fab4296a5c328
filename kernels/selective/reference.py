"""Selective scan (Mamba-1) in plain PyTorch: chunked, linear in L, backward by recomputation.

The recurrence is diagonal in (d, n): chunks of T tokens run side by side, and a loop over the T steps inside a chunk is
the only loop over time. The (tokens, N, D) hidden states exist for one slab of chunks at a time; only the states at
chunk starts are kept for the backward pass.

Legend: B batch, L length, S segments, D channels, N states, G groups, T steps per chunk, C chunks in a slab, K chunks,
R = B * L rows.
"""

from __future__ import annotations

import torch

from seqkit.kernels.chunks import as_batch, chunk_table, count_chunks, new_rows, put_rows
from seqkit.kernels.numbers import silu_and_derivative
from seqkit.kernels.selective.slabs import STEPS, Operands, Slab, SlabPlan, make_operands


def boundary_shape(batch: int, length: int, channels: int, states: int, segments: int | None) -> tuple[int, int, int]:
    """Shape (K, N, D) of the chunk-start states that the forward pass keeps."""
    return count_chunks(batch, length, STEPS, segments), states, channels


def forward(*args) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scan.

    Args:
        *args: Those of :func:`seqkit.kernels.selective.slabs.make_operands`.

    Returns:
        y (B, L, D) in u's dtype, final states (S, D, N), chunk-start states (K, N, D).
    """
    ops = make_operands(*args)
    B, L, D = ops.u_BLD.shape
    segments = None if ops.cu_seqlens is None else ops.entry_SND.shape[0]
    starts_KND = ops.A_ND.new_zeros(boundary_shape(B, L, D, ops.A_ND.shape[0], segments))
    final_SND = torch.cat([ops.entry_SND, torch.zeros_like(ops.A_ND)[None]])  # the extra row swallows non-closers
    if ops.empty:
        return ops.u_BLD.new_empty(ops.u_BLD.shape), _to_state(final_SND), starts_KND
    plan = SlabPlan(ops, chunk_table(B, L, STEPS, ops.cu_seqlens, ops.reverse, ops.u_BLD.device))
    y_RD = new_rows(ops.u_BLD)
    carry_ND = torch.zeros_like(ops.A_ND)
    for slab in plan.slabs():
        start_CND = starts_KND[slab.begin : slab.end]
        decay, states = _decays_and_inputs(slab, plan)
        ends_CND = _ends_from_zero(decay, states)
        carry_ND = _chain_forward(plan, slab, start_CND, ends_CND, carry_ND)
        final_SND.index_copy_(0, plan.table.closes_K[slab.begin : slab.end], ends_CND)
        _run_forward(decay, states, start_CND)
        y_TCD = _read_out(ops, slab, states)
        if ops.z_BLD is not None:
            y_TCD *= silu_and_derivative(slab.gather(ops.z_BLD))[0]
        put_rows(y_RD, slab.targets, y_TCD.flatten(0, 1))
    return as_batch(y_RD, ops.u_BLD), _to_state(final_SND), starts_KND


def starts(*args) -> torch.Tensor:
    """The chunk-start states (K, N, D) of :func:`forward` alone."""
    return forward(*args)[2]


def _to_state(state_SND: torch.Tensor) -> torch.Tensor:
    return state_SND[:-1].transpose(1, 2).clone(memory_format=torch.contiguous_format)


def _decays_and_inputs(slab: Slab, plan: SlabPlan) -> tuple[torch.Tensor, torch.Tensor]:
    """exp(delta A) and delta B u, both (T, C, N, D)."""
    T, C, D = slab.u_TCD.shape
    G, N = slab.B_TCGN.shape[2:]
    decay = torch.mul(slab.decay_TCD.unsqueeze(2), plan.ops.log2_decay_ND, out=plan.buffer("decay", T, C, N, D)).exp2_()
    inputs = plan.buffer("states", T, C, N, D)
    _outer(slab.B_TCGN, slab.x_TCD, G, inputs)
    return decay, inputs


def _outer(weight_TCGN: torch.Tensor, x_TCD: torch.Tensor, groups: int, out: torch.Tensor) -> None:
    """out[t, c, n, d] = weight[t, c, group(d), n] * x[t, c, d]."""
    if groups == 1:
        torch.mul(weight_TCGN.transpose(2, 3), x_TCD.unsqueeze(2), out=out)
        return
    out_TCNGd = out.unflatten(3, (groups, -1))
    x_TC1Gd = x_TCD.unflatten(2, (groups, -1)).unsqueeze(2)
    torch.mul(weight_TCGN.transpose(2, 3).unsqueeze(-1), x_TC1Gd, out=out_TCNGd)


def _contract_states(weight_TCGN: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """Sum over n of weight[t, c, group(d), n] * states[t, c, n, d]: (T, C, D)."""
    T, C, G, N = weight_TCGN.shape
    D = states.shape[3]
    out = states.new_empty((T * C, 1, D))
    for g, channels in _group_slices(G, D):
        torch.bmm(
            weight_TCGN[:, :, g].reshape(T * C, 1, N),
            states.view(T * C, N, D)[:, :, channels],
            out=out[:, :, channels],
        )
    return out.view(T, C, D)


def _contract_channels(x_TCD: torch.Tensor, states: torch.Tensor, groups: int) -> torch.Tensor:
    """Sum over the channels of a group of x[t, c, d] * states[t, c, n, d]: (T, C, G, N)."""
    T, C, N, D = states.shape
    parts = [
        torch.bmm(
            x_TCD.view(T * C, 1, D)[:, :, channels],
            states.view(T * C, N, D)[:, :, channels].transpose(1, 2),
        )
        for _, channels in _group_slices(groups, D)
    ]
    return torch.cat(parts, dim=1).view(T, C, groups, N)


def _group_slices(groups: int, channels: int) -> list[tuple[int, slice]]:
    width = channels // groups
    return [(g, slice(g * width, (g + 1) * width)) for g in range(groups)]


def _ends_from_zero(decay: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """State at the end of every chunk if it had started from zero: (C, N, D)."""
    state_CND = inputs[0].clone()
    for a, b in zip(decay[1:].unbind(0), inputs[1:].unbind(0), strict=True):
        torch.addcmul(b, a, state_CND, out=state_CND)
    return state_CND


def _run_forward(decay: torch.Tensor, states: torch.Tensor, start_CND: torch.Tensor) -> None:
    """Turn inputs into states in place."""
    previous = start_CND
    for a, b in zip(decay.unbind(0), states.unbind(0), strict=True):
        torch.addcmul(b, a, previous, out=b)
        previous = b


def _chunk_decay(plan: SlabPlan, slab: Slab) -> torch.Tensor:
    """Decay over whole chunks, from the sum of delta: no product of decays ever spans chunks. (C, N, D)."""
    return torch.mul(slab.decay_TCD.sum(0).unsqueeze(1), plan.ops.log2_decay_ND).exp2_()


def _chain_forward(
    plan: SlabPlan, slab: Slab, start_CND: torch.Tensor, ends_CND: torch.Tensor, carry_ND: torch.Tensor
) -> torch.Tensor:
    """Hand states from chunk to chunk: fills ``start_CND``, corrects ``ends_CND``, returns the last end."""
    chunks = slice(slab.begin, slab.end)
    entry_CND = plan.ops.entry_SND.index_select(0, plan.table.segment_K[chunks])
    first_C11 = plan.table.first_K[chunks, None, None]
    links = zip(
        start_CND.unbind(0), ends_CND.unbind(0), _chunk_decay(plan, slab).unbind(0), entry_CND.unbind(0),
        first_C11.unbind(0), strict=True,
    )  # fmt: skip
    for start, end, decay, entry, first in links:
        torch.where(first, entry, carry_ND, out=start)
        torch.addcmul(end, decay, start, out=end)
        carry_ND = end
    return carry_ND


def _read_out(ops: Operands, slab: Slab, states: torch.Tensor) -> torch.Tensor:
    """C h + D u, before the gate: (T, C, D)."""
    y_TCD = _contract_states(slab.C_TCGN, states)
    if ops.D_D is not None:
        y_TCD.addcmul_(slab.u_TCD, ops.D_D)
    return y_TCD


class _Gradients:
    """Outputs of the backward pass: token rows with a padding row, and float64 totals of the parameters."""

    def __init__(self, ops: Operands, with_y: bool):
        self.y = new_rows(ops.u_BLD) if with_y else None
        self.u, self.delta = new_rows(ops.u_BLD), new_rows(ops.delta_BLD)
        self.B, self.C = new_rows(ops.B_BLGN), new_rows(ops.C_BLGN)
        self.z = None if ops.z_BLD is None else new_rows(ops.z_BLD)
        self.A_ND = torch.zeros_like(ops.A_ND, dtype=torch.float64)
        self.D_D = ops.A_ND.new_zeros(ops.A_ND.shape[1], dtype=torch.float64)
        self.bias_D = torch.zeros_like(self.D_D)


def backward(
    dy: torch.Tensor,
    dfinal: torch.Tensor | None,
    starts_KND: torch.Tensor,
    *args,
    into: dict[str, torch.Tensor] | None = None,
) -> tuple[torch.Tensor | None, ...]:
    """Gradients of u, delta, A, B, C, D, z, delta_bias, initial_state (None where the operand is absent).

    Args:
        dy: Gradient of y (B, L, D).
        dfinal: Gradient of the final states (S, D, N), or None.
        starts_KND: Chunk-start states of the forward pass.
        *args: Those of :func:`forward`.
        into: Tensors to write to, any of "du", "ddelta", "dB", "dC" (B, L, G, N), "dz", and "y", which receives the
            output of the forward pass again; last dimensions contiguous.
    """
    ops, into = make_operands(*args), into or {}
    B, L, _ = ops.u_BLD.shape
    grads = _Gradients(ops, with_y="y" in into)
    dentry_SND = torch.zeros_like(torch.cat([ops.entry_SND, ops.A_ND[None]]))  # the extra row is never opened
    if dfinal is not None:
        dentry_SND[:-1] = dfinal.to(ops.dtype).transpose(1, 2)
    if not ops.empty:
        plan = SlabPlan(ops, chunk_table(B, L, STEPS, ops.cu_seqlens, ops.reverse, ops.u_BLD.device))
        dfinal_SND, carry_ND = dentry_SND.clone(), torch.zeros_like(ops.A_ND)
        for slab in plan.slabs_backwards():
            start_CND = starts_KND[slab.begin : slab.end]
            carry_ND = _backward_slab(plan, slab, grads, dy, dfinal_SND, dentry_SND, start_CND, carry_ND)
    A, D, z, bias, initial = args[2], args[5], args[6], args[7], args[8]
    if "y" in into:
        as_batch(grads.y, ops.u_BLD, into["y"])
    return (
        as_batch(grads.u, ops.u_BLD, into.get("du")),
        as_batch(grads.delta, ops.delta_BLD, into.get("ddelta")),
        grads.A_ND.masked_fill_(ops.A_ND > 0, 0).t().to(A.dtype).contiguous(),
        as_batch(grads.B, ops.B_BLGN, into.get("dB")),
        as_batch(grads.C, ops.C_BLGN, into.get("dC")),
        None if D is None else grads.D_D.to(D.dtype),
        None if z is None else as_batch(grads.z, ops.z_BLD, into.get("dz")),
        None if bias is None else grads.bias_D.to(bias.dtype),
        None if initial is None else _to_state(dentry_SND).to(initial.dtype),
    )


def _backward_slab(
    plan: SlabPlan,
    slab: Slab,
    grads: _Gradients,
    dy: torch.Tensor,
    dfinal_SND: torch.Tensor,
    dentry_SND: torch.Tensor,
    start_CND: torch.Tensor,
    carry_ND: torch.Tensor,
) -> torch.Tensor:
    """Recompute the states of one slab, run the adjoint through it, return the adjoint of its first chunk's start."""
    ops = plan.ops
    decay, states = _decays_and_inputs(slab, plan)
    _run_forward(decay, states, start_CND)
    dy_TCD = _through_gate(ops, slab, grads, states, slab.gather(dy).masked_fill_(slab.invalid_TC1, 0))
    G = slab.B_TCGN.shape[2]
    adjoint = plan.buffer("adjoint", *states.shape)
    _outer(slab.C_TCGN, dy_TCD, G, adjoint)
    dends_CND, carry_ND = _chain_backward(plan, slab, decay, adjoint, dfinal_SND, dentry_SND, carry_ND)
    _run_backward(decay, adjoint, dends_CND)
    put_rows(grads.C, slab.targets, _contract_channels(dy_TCD, states, G).flatten(0, 1))
    put_rows(grads.B, slab.targets, _contract_channels(slab.x_TCD, adjoint, G).flatten(0, 1))
    dx_TCD = _contract_states(slab.B_TCGN, adjoint)
    du_TCD = dx_TCD * slab.delta_TCD
    if ops.D_D is not None:
        du_TCD.addcmul_(dy_TCD, ops.D_D)
        grads.D_D += (dy_TCD * slab.u_TCD.masked_fill(slab.invalid_TC1, 0)).sum((0, 1))
    put_rows(grads.u, slab.targets, du_TCD.flatten(0, 1))
    ddelta_TCD = dx_TCD.mul_(slab.u_TCD)
    ddelta_TCD += _decay_gradient(plan, slab, grads, decay, states, adjoint, start_CND)
    if ops.delta_softplus:
        ddelta_TCD *= torch.sigmoid(slab.raw_TCD)
    ddelta_TCD.masked_fill_(slab.invalid_TC1, 0)
    grads.bias_D += ddelta_TCD.sum((0, 1))
    put_rows(grads.delta, slab.targets, ddelta_TCD.flatten(0, 1))
    return carry_ND


def _through_gate(
    ops: Operands, slab: Slab, grads: _Gradients, states: torch.Tensor, dy_TCD: torch.Tensor
) -> torch.Tensor:
    """Gradient before the gate (T, C, D); writes the gate's gradient, and y where it is asked for."""
    if ops.z_BLD is None and grads.y is None:
        return dy_TCD
    y_TCD = _read_out(ops, slab, states)
    if ops.z_BLD is None:
        put_rows(grads.y, slab.targets, y_TCD.flatten(0, 1))
        return dy_TCD
    gate, slope = silu_and_derivative(slab.gather(ops.z_BLD))
    if grads.y is not None:
        put_rows(grads.y, slab.targets, (y_TCD * gate).flatten(0, 1))
    put_rows(grads.z, slab.targets, y_TCD.mul_(slope).mul_(dy_TCD).flatten(0, 1))
    return (dy_TCD * gate).masked_fill_(slab.invalid_TC1, 0)


def _chain_backward(
    plan: SlabPlan,
    slab: Slab,
    decay: torch.Tensor,
    adjoint: torch.Tensor,
    dfinal_SND: torch.Tensor,
    dentry_SND: torch.Tensor,
    carry_ND: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Hand adjoints from chunk to chunk, last first.

    Returns:
        Adjoints of the chunk ends (C, N, D), and of the start of the slab's first chunk (N, D).
    """
    chunks = slice(slab.begin, slab.end)
    dstart_CND = adjoint[-1].clone()
    for t in range(adjoint.shape[0] - 2, -1, -1):
        torch.addcmul(adjoint[t], decay[t + 1], dstart_CND, out=dstart_CND)
    dstart_CND *= decay[0]
    closes_C = plan.table.closes_K[chunks]
    dends_CND = dfinal_SND.index_select(0, closes_C)
    closing_C11 = (closes_C < plan.ops.entry_SND.shape[0])[:, None, None]
    links = zip(
        dstart_CND.unbind(0), dends_CND.unbind(0), _chunk_decay(plan, slab).unbind(0), closing_C11.unbind(0),
        strict=True,
    )  # fmt: skip
    for dstart, dend, whole, closing in reversed(list(links)):
        torch.where(closing, dend, carry_ND, out=dend)
        torch.addcmul(dstart, whole, dend, out=dstart)
        carry_ND = dstart
    dentry_SND.index_copy_(0, plan.table.opens_K[chunks], dstart_CND)
    return dends_CND, carry_ND


def _run_backward(decay: torch.Tensor, adjoint: torch.Tensor, dends_CND: torch.Tensor) -> None:
    """Turn C dy into the adjoint of the states, in place."""
    adjoint[-1] += dends_CND
    for t in range(adjoint.shape[0] - 2, -1, -1):
        torch.addcmul(adjoint[t], decay[t + 1], adjoint[t + 1], out=adjoint[t])


def _decay_gradient(
    plan: SlabPlan,
    slab: Slab,
    grads: _Gradients,
    decay: torch.Tensor,
    states: torch.Tensor,
    adjoint: torch.Tensor,
    start_CND: torch.Tensor,
) -> torch.Tensor:
    """Gradient that reaches delta and A through exp(delta A); adds A's share, returns delta's (T, C, D)."""
    decay[0] *= start_CND
    decay[1:] *= states[:-1]
    q = decay.mul_(adjoint)  # gradient of the exponent
    dA_CND = torch.zeros_like(start_CND)
    for q_CND, delta_C1D in zip(q.unbind(0), slab.decay_TCD.unsqueeze(2).unbind(0), strict=True):
        dA_CND.addcmul_(q_CND, delta_C1D)
    grads.A_ND += dA_CND.sum(0)
    A_ND = plan.ops.A_ND.clamp(max=0)
    ddelta_TCD = q[:, :, 0] * A_ND[0]
    for n in range(1, A_ND.shape[0]):
        ddelta_TCD.addcmul_(q[:, :, n], A_ND[n])
    if not plan.ops.delta_softplus:
        ddelta_TCD.masked_fill_(slab.delta_TCD < 0, 0)
    return ddelta_TCD
