"""Mamba-3 scan on Triton: slab by slab rotation, an SSD scan with scaled keys, diagonal and gate.

Kept for the backward pass: inputs, states at span starts, phases that enter each slab.

Legend: B batch, L length, S segments, H heads, P head channels, N states, G groups, M rotated pairs, K chunks.
"""

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from seqkit.kernels.mamba3 import gates, phase, rotation, spans
from seqkit.kernels.mamba3.slabs import Operands, make_operands
from seqkit.kernels.mamba3.slices import (
    GATE_TOKENS,
    TURN_TOKENS,
    Slab,
    bounds_of,
    chunk_ranges,
    gate_grid,
    gate_tiles,
    geometry,
    kept_rows,
    kept_shapes,
    load_slab,
    order,
    pairs,
    sums_to_span_end,
    tiles,
    turned,
)
from seqkit.kernels.mamba3.steps import Steps, discretise_backward
from seqkit.kernels.ssd.tiles import strides_of
from seqkit.kernels.triton_compiled import launch
from seqkit.kernels.triton_launch import CompileCase, guard, rows_contiguous


def _outer(v_SHP: Tensor, k_SRHN: Tensor) -> Tensor:
    return v_SHP.unsqueeze(3) * k_SRHN[:, 0].unsqueeze(2)


def _skip(ops: Operands) -> Tensor | None:
    return None if ops.D is None else ops.D.expand(ops.sizes[:2]).contiguous()


def _last_rows(ops: Operands) -> tuple[Tensor, Tensor]:
    """Row (S,) of each segment's last token in scan order, and whether (S,) there is none."""
    batch, length = ops.x_BLHP.shape[:2]
    if ops.cu_seqlens is None:
        begin_S = torch.arange(batch, device=ops.x_BLHP.device) * length
        end_S = begin_S + length
    else:
        begin_S, end_S = ops.cu_seqlens[:-1].long(), ops.cu_seqlens[1:].long()
    last_S = begin_S if ops.reverse else end_S - 1
    return last_S.clamp(0, batch * length - 1), begin_S == end_S


def _rows(x: Tensor, rows_S: Tensor) -> Tensor:
    return x[rows_S // x.shape[1], rows_S % x.shape[1]]


def _last_keys(ops: Operands, theta_SHM: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rotated keys (S, H, N) of the last tokens, and the cosine and sine (S, H, M) of their angles."""
    B = _rows(ops.B_BLRGN[:, :, 0], _last_rows(ops)[0]).to(ops.dtype)
    heads = B.repeat_interleave(ops.sizes[0] // B.shape[1], 1)
    if ops.B_bias_HRN is not None:
        heads = heads + ops.B_bias_HRN[:, 0]
    radians = phase.to_radians(theta_SHM, 32).to(ops.dtype)
    cos, sin = radians.cos(), radians.sin()
    return phase.rotate(heads, cos, sin, ops.pairing), cos, sin


def forward(*args) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Scan.

    Args:
        *args: Those of :func:`seqkit.kernels.mamba3.slabs.make_operands`.

    Returns:
        y (B, L, H, P) in x's dtype; final theta (S, H, M) float64, ssm (S, H, P, N), k (S, 1, H, N), v (S, H, P);
        states (K, H, P, N) at span starts, phases (slabs, S, H, M) that enter slabs.
    """
    ops = make_operands(*args)
    x, chunk_size = ops.x_BLHP, args[-1]
    segments = None if ops.cu_seqlens is None else ops.ssm_SHPN.shape[0]
    shapes = kept_shapes(*x.shape[:2], segments, ops.sizes, chunk_size)
    starts_KHPN, phases = x.new_zeros(shapes[0], dtype=torch.float32), ops.theta_SHM.new_zeros(shapes[1])
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    theta_SHM, ssm_SHPN, k_SRHN, v_SHP = ops.theta_SHM, ops.ssm_SHPN, ops.k_SRHN, ops.v_SHP
    if not ops.empty:
        steps, rows = ops.steps(), kept_rows(ops)
        ssm_SHPN = ssm_SHPN + steps.entry_SH[..., None, None] * _outer(v_SHP, k_SRHN)
        with guard(x):
            for number, bounds in enumerate(bounds_of(ops)):
                phases[number] = theta_SHM
                slab = load_slab(ops, steps, bounds, theta_SHM, chunk_size)
                starts, ssm_SHPN = slab.scan.states(ssm_SHPN)
                starts_KHPN[rows[number][0]], starts_KHPN[rows[number][1]] = starts, ssm_SHPN
                theta_SHM = slab.leaving_SHM
                _gate(ops, slab, slab.scan.outputs(starts), slab.cut(y))
        rows_S, empty_S = _last_rows(ops)
        last_k = _last_keys(ops, theta_SHM)[0].unsqueeze(1)
        k_SRHN = torch.where(empty_S[:, None, None, None], k_SRHN, last_k)
        v_SHP = torch.where(empty_S[:, None, None], v_SHP, _rows(x, rows_S).to(ops.dtype))
    finals = phase.to_radians(theta_SHM, 32), *(s.clone() for s in (ssm_SHPN, k_SRHN, v_SHP))
    return y, *finals, starts_KHPN, phases


def _gate(ops: Operands, slab: Slab, scan: Tensor, y: Tensor) -> None:
    """Write the slab's outputs."""
    (blocks, programs), x = gate_grid(slab), slab.scan.x
    z = None if ops.z_BLHP is None else slab.cut(ops.z_BLHP)
    launch(
        gates.gate_kernel, programs,
        scan, x, z, _skip(ops), slab.gap, slab.dot, y, x.shape[1], blocks, x.shape[2],
        *strides_of(x), *strides_of(z), *strides_of(y), *slab.gap.stride()[:2], **gate_tiles(slab),
    )  # fmt: skip


class _Gradients:
    """Outputs of the backward pass, float64 totals of the parameters, adjoints of the states."""

    def __init__(self, ops: Operands, leaving: tuple[Tensor | None, ...]):
        def like(x: Tensor | None) -> Tensor | None:
            return None if x is None else torch.empty(x.shape, dtype=x.dtype, device=x.device)

        self.x, self.B, self.C = like(ops.x_BLHP), like(ops.B_BLRGN), like(ops.C_BLRGN)
        self.angles, self.z = like(ops.angles_BLM), like(ops.z_BLHP)
        H, P, _, _, N, _ = ops.sizes
        zeros = ops.ssm_SHPN.new_zeros
        self.D_HP, self.bias = zeros((H, P), dtype=torch.float64), zeros((2, H, N), dtype=torch.float64)
        names = ("gamma", "scale", "decay", "angle")
        self.steps = {name: zeros((*ops.dt_BLH.shape,)) for name in names}
        entering = (ops.theta_SHM.double(), ops.ssm_SHPN, ops.k_SRHN, ops.v_SHP)
        self.theta_SHM, self.ssm_SHPN, self.k_SRHN, self.v_SHP = (
            torch.zeros_like(s) if d is None else d.to(s.dtype) for s, d in zip(entering, leaving, strict=True)
        )


def backward(
    dy: Tensor,
    dtheta: Tensor | None,
    dssm: Tensor | None,
    dk: Tensor | None,
    dv: Tensor | None,
    starts_KHPN: Tensor,
    phases: Tensor,
    *args,
) -> tuple[Tensor | None, ...]:
    """Gradients in the order of :func:`seqkit.kernels.mamba3.slabs.make_operands`, None where an operand is absent.

    Args:
        dy: Gradient of y.
        dtheta: Gradient of the final angles, or None; likewise ``dssm``, ``dk``, ``dv``.
        dssm: See above.
        dk: See above.
        dv: See above.
        starts_KHPN: Span-start states of the forward pass.
        phases: Phases that enter the slabs.
        *args: Those of :func:`forward`.
    """
    ops, dy = make_operands(*args), rows_contiguous(dy)
    grads, raw = _Gradients(ops, (dtheta, dssm, dk, dv)), None
    if not ops.empty:
        steps, rows, chunk_size = ops.steps(), kept_rows(ops), args[-1]
        with guard(dy):
            last_SHN, theta_SHM = grads.k_SRHN[:, 0], None
            for number, bounds in reversed(list(enumerate(bounds_of(ops)))):
                slab = load_slab(ops, steps, bounds, phases[number], chunk_size)
                if theta_SHM is None:
                    theta_SHM = slab.leaving_SHM
                    back = _through_last_keys(ops, grads, theta_SHM, last_SHN)
                starts, leaving = (starts_KHPN[part] for part in rows[number])
                _slab_gradients(ops, slab, grads, slab.cut(dy), starts, leaving)
        _finish_last_tokens(ops, grads, back)
        raw = _finish_steps(ops, steps, grads)
    return _results(args, ops, grads, raw)


def _through_last_keys(ops: Operands, grads: _Gradients, theta_SHM: Tensor, dk_SHN: Tensor) -> Tensor:
    """Add what the final keys give to the final angles and the bias; returns their gradient before rotation."""
    k_SHN, cos, sin = _last_keys(ops, theta_SHM)
    dk_SHN = dk_SHN.masked_fill(_last_rows(ops)[1][:, None, None], 0)
    grads.theta_SHM = grads.theta_SHM + phase.angle_gradient(dk_SHN, k_SHN, cos.shape[2], ops.pairing)
    back_SHN = phase.rotate(dk_SHN, cos, -sin, ops.pairing)
    grads.bias[0] += back_SHN.sum(0, dtype=torch.float64)
    return back_SHN


def _finish_last_tokens(ops: Operands, grads: _Gradients, back_SHN: Tensor) -> None:
    """Add to the last tokens what the final keys and inputs give."""
    rows_S, empty_S = _last_rows(ops)
    dB_SGN = back_SHN.unflatten(1, (ops.sizes[3], -1)).sum(2)
    dv_SHP = grads.v_SHP.masked_fill(empty_S[:, None, None], 0)
    for rows, value in ((grads.B[:, :, 0], dB_SGN), (grads.x, dv_SHP)):
        flat = rows.flatten(0, 1)
        flat.index_add_(0, rows_S, value.to(flat.dtype))


def _slab_gradients(ops: Operands, slab: Slab, grads: _Gradients, dy: Tensor, starts: Tensor, leaving: Tensor) -> None:
    """All gradients of a slab's tokens; hands the adjoints of state and angle on to the slab before."""
    inner, ddirect = _through_gate(ops, slab, grads, dy, starts)
    dleaving = grads.ssm_SHPN
    dscan, dk, dq, dscale, ddecay, grads.ssm_SHPN, dends = slab.scan.gradients(inner, starts, dleaving)
    behind = _angles_behind(ops, slab, grads, (starts, leaving), (dends, dleaving))
    (blocks, programs), dx = gate_grid(slab), slab.cut(grads.x)
    launch(
        gates.input_kernel, programs,
        dscan, inner, _skip(ops), slab.gap, slab.dot, dx, dx.shape[1], blocks, dx.shape[2], *strides_of(dx),
        *slab.gap.stride()[:2], **gate_tiles(slab),
    )  # fmt: skip
    ddot = ddirect * slab.gap.transpose(1, 2)
    dangle = _through_rotation(ops, slab, grads, dk, dq, ddot, behind)
    on_diagonal = (ddirect * slab.dot).transpose(1, 2)
    found = {"gamma": on_diagonal, "scale": dscale - on_diagonal, "decay": ddecay, "angle": dangle.transpose(1, 2)}
    for name, value in found.items():
        slab.cut(grads.steps[name]).copy_(value)


def _through_gate(ops: Operands, slab: Slab, grads: _Gradients, dy: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of y before the gate (B, l, H, P) and of the diagonal's weights (B, H, l); writes those of z and D."""
    (blocks, programs), x, skip = gate_grid(slab), slab.scan.x, _skip(ops)
    z, dz, scan = None, None, None
    if ops.z_BLHP is not None:
        z, dz, scan = slab.cut(ops.z_BLHP), slab.cut(grads.z), slab.scan.outputs(starts)
    inner = torch.empty(x.shape, dtype=slab.scan.scratch_dtype, device=x.device)
    ddirect = torch.empty_like(slab.dot)
    dD = None if skip is None else slab.dot.new_empty((x.shape[0] * blocks, *x.shape[2:]))
    launch(
        gates.gate_gradient_kernel, programs,
        scan, x, z, skip, slab.gap, slab.dot, dy, inner, dz, ddirect, dD, x.shape[1], blocks, x.shape[2],
        *strides_of(x), *strides_of(z), *strides_of(dy), *strides_of(dz), *slab.gap.stride()[:2],
        **gate_tiles(slab),
    )  # fmt: skip
    if dD is not None:
        grads.D_HP += dD.sum(0, dtype=torch.float64)
    return inner, ddirect


def _angles_behind(
    ops: Operands, slab: Slab, grads: _Gradients, states: tuple[Tensor, Tensor], adjoints: tuple[Tensor, Tensor]
) -> Tensor:
    """Gradient (K, H, M) of all angles behind every span, from the states at its end.

    Summed over tokens it would be a difference of large numbers: each pair of tokens gives to one what it takes from
    the other, and what rounding leaves of that adds up over the whole length.
    """
    (starts, leaving), (dends, dleaving), M = states, adjoints, ops.sizes[5]
    _, behind_S, segment_K = chunk_ranges(slab.scan.segments, slab.scan.span, starts.device)
    span_K = torch.arange(slab.scan.slots, device=starts.device)
    closes_K = (span_K + 1 >= behind_S.index_select(0, segment_K))[:, None, None]
    ends = torch.cat([starts[1:], starts[:1]])
    inside = turned(dends, ends, M, ops.pairing) - turned(dleaving, leaving, M, ops.pairing).index_select(0, segment_K)
    return inside.double().masked_fill_(closes_K, 0) + grads.theta_SHM.index_select(0, segment_K)


def _through_rotation(
    ops: Operands, slab: Slab, grads: _Gradients, dk: Tensor, dq: Tensor, ddot: Tensor, behind_KHM: Tensor
) -> Tensor:
    """Write the gradients of B, C, their biases and the angles; returns that of step sizes through them (B, H, l)."""
    turns, (H, _, _, G, _, M) = slab.turns, ops.sizes
    dtheta, totals = ddot.new_empty((*dk.shape[:3], M)), ddot.new_zeros((turns.chunks, H, M))
    launch(
        rotation.unrotate_kernel, turns.chunks * H,
        slab.scan.k, slab.scan.q, dk, dq, ddot, slab.delta, slab.half_tanh, slab.start_KHM, dtheta, totals,
        *geometry(turns), H, **tiles(ops), **order(turns, ops), num_warps=2,
    )  # fmt: skip
    for number, (heads, rows) in enumerate(((slab.scan.k, grads.B), (slab.scan.q, grads.C))):
        slab.cut(rows[:, :, 0]).copy_(heads.unflatten(2, (G, -1)).sum(3, dtype=torch.float32))
        grads.bias[number] += heads.sum((0, 1), dtype=torch.float32)
    later_KHM, span_K = sums_to_span_end(turns, slab.scan.segments, slab.scan.span, totals)
    later_KHM += behind_KHM.index_select(0, span_K)
    first_S, end_S, _ = chunk_ranges(turns, TURN_TOKENS, ddot.device)
    entering_SHM = (later_KHM + totals).index_select(0, first_S.clamp(max=turns.chunks - 1))
    grads.theta_SHM = torch.where((first_S == end_S)[:, None, None], grads.theta_SHM, entering_SHM)
    dangles, ddelta = slab.cut(grads.angles), torch.empty_like(ddot)
    launch(
        rotation.angle_kernel, turns.chunks,
        dtheta, later_KHM.float(), slab.delta, slab.half_tanh, dangles, ddelta, *geometry(turns), H,
        *dangles.stride()[:2], **pairs(ops), **order(turns, ops), num_warps=2,
    )  # fmt: skip
    return ddelta


def _finish_steps(ops: Operands, steps: Steps, grads: _Gradients) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of dt + bias, A and trap (T, H); carries that of the entry to the entering key and input."""
    empty_S = steps.first_S == steps.delta_TH.shape[0]
    dentry_SHPN, weight_SH1 = grads.ssm_SHPN, steps.entry_SH.unsqueeze(2)
    from_k_SHP = (dentry_SHPN @ ops.k_SRHN[:, 0].unsqueeze(3)).squeeze(3)
    from_v_SHN = (ops.v_SHP.unsqueeze(2) @ dentry_SHPN).squeeze(2)
    grads.k_SRHN = torch.where(empty_S[:, None, None, None], grads.k_SRHN, (from_v_SHN * weight_SH1).unsqueeze(1))
    grads.v_SHP = torch.where(empty_S[:, None, None], grads.v_SHP, from_k_SHP * weight_SH1)
    each = [grads.steps[name].flatten(0, 1) for name in ("gamma", "scale", "decay", "angle")]
    dentry_SH = (from_k_SHP * ops.v_SHP).sum(2)
    return discretise_backward(steps, *each, dentry_SH, ops.reverse, ops.decay, ops.A_floor)


def _results(args: tuple, ops: Operands, grads: _Gradients, raw: tuple | None) -> tuple[Tensor | None, ...]:
    """All gradients in the order, shapes and dtypes of the operands; None where one is absent."""
    D, (dt, A, trap) = args[10], args[1:4]
    if raw is None:
        raw = tuple(torch.zeros_like(t) for t in (dt, A, trap))
    dbias = raw[0].flatten(0, -2).sum(0, dtype=torch.float64)
    dD = None if D is None else (grads.D_HP.sum(1) if D.dim() == 1 else grads.D_HP)
    parameters = (grads.bias[0].unsqueeze(1), grads.bias[1].unsqueeze(1), dbias, dD)
    entering = (grads.theta_SHM, grads.ssm_SHPN, grads.k_SRHN, grads.v_SHP)
    return (
        grads.x,
        *(value.view(t.shape).to(t.dtype) for value, t in zip(raw, (dt, A, trap), strict=True)),
        grads.B,
        grads.C,
        grads.angles,
        *_like(parameters, args[7:11]),
        grads.z,
        None,
        None,
        None,
        *_like(entering, args[15:19]),
    )


def _like(grads: tuple[Tensor | None, ...], operands: tuple[Tensor | None, ...]) -> list[Tensor | None]:
    return [
        None if x is None else torch.empty(x.shape, dtype=x.dtype, device=x.device).copy_(grad)
        for grad, x in zip(grads, operands, strict=True)
    ]


def compile_cases() -> dict[str, CompileCase]:
    """Every kernel with 128 states, half of them rotating, all operands, packed and reversed, in bfloat16."""
    narrow = ("B", "C", "k", "q", "x", "z", "y", "dy", "dx", "dz", "dB", "dC", "dangles", "inner")
    types = {f"{name}_ptr": "*bf16" for name in narrow} | dict.fromkeys(("segment_ptr", "table_ptr"), "*i64")
    types |= {"delta_ptr": "*fp64", "tanh_ptr": "*fp64", "start_ptr": "*i32"}
    turned = {"M": 32, "MP": 32, "T": TURN_TOKENS, "PACKED": True, "REVERSE": True}
    held = {**turned, "N": 128, "NP": 128, "STEP": 2, "OFFSET": 1}
    gated = {"P": 64, "PP": 64, "T": GATE_TOKENS}
    span = {"SPAN": 512, "Q": 64, "PARTS": 1, "PACKED": True, "REVERSE": True}
    cases = [
        CompileCase(rotation.turn_kernel, turned, 1, types | {"totals_ptr": "*i32"}),
        CompileCase(rotation.rotate_kernel, held, 2, types),
        CompileCase(rotation.unrotate_kernel, held, 2, types),
        CompileCase(rotation.angle_kernel, turned, 2, types),
        CompileCase(gates.gate_kernel, gated, 4, types),
        CompileCase(gates.gate_gradient_kernel, gated, 4, types),
        CompileCase(gates.input_kernel, gated, 4, types),
        CompileCase(spans.decay_kernel, span, 1, types),
        CompileCase(spans.decay_gradient_kernel, {**span, "SUM": tl.float32}, 1, types),
    ]
    return {case.kernel.__name__: case for case in cases}
