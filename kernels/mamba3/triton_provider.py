"""Mamba-3 scan on Triton: the SSD kernels with keys that rotate on chip, and what angles and step sizes need besides.

Kept for the backward pass: inputs, states at span starts and behind segments; phases and steps are computed again.

Legend: B batch, L length, S segments, H heads, P head channels, N states, G groups, M rotated pairs, K spans; states
that only kernels see are (H, P, NP) in the order of tiles.
"""

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from seqkit.kernels.mamba3 import phase, tokens, turns, weights
from seqkit.kernels.mamba3.ends import Entry, add_rows, end_rows, through_last_keys, turned
from seqkit.kernels.mamba3.scan import RotatedScan, TokenGradients
from seqkit.kernels.mamba3.slabs import Operands, make_operands
from seqkit.kernels.ssd.rotation import ADJACENT
from seqkit.kernels.ssd.tiles import CHUNK, SPANS, boundary_shape
from seqkit.kernels.triton_launch import CompileCase, guard, next_power, rows_contiguous

NOTHING = (0,)  # shape of the phases kept: they are computed again


def kept_shapes(
    batch: int, length: int, segments: int | None, sizes: tuple[int, ...], chunk_size: int | None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of what the forward pass keeps: states at span starts and behind segments, no phases.

    Args:
        batch: B.
        length: L.
        segments: S of a packed batch, else None.
        sizes: H, P, R, G, N, M.
        chunk_size: The caller's; it does not matter here.
    """
    H, P, _, _, N, _ = sizes
    spans, *state = boundary_shape(batch, length, H, P, max(16, next_power(N)), segments, chunk_size)
    return (spans + (batch if segments is None else segments), *state), NOTHING


def forward(*args) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Scan.

    Args:
        *args: Those of :func:`seqkit.kernels.mamba3.slabs.make_operands`.

    Returns:
        y (B, L, H, P) in x's dtype; final theta (S, H, M) float64, ssm (S, H, P, N), k (S, 1, H, N), v (S, H, P);
        states (K + S, H, P, NP) at span starts and behind segments; no phases.
    """
    ops, x = make_operands(*args), args[0]
    segments = None if ops.cu_seqlens is None else ops.ssm_SHPN.shape[0]
    kept = x.new_zeros(kept_shapes(*x.shape[:2], segments, ops.sizes, None)[0], dtype=torch.float32)
    phases = x.new_empty(NOTHING, dtype=torch.int64)
    if ops.empty:
        finals = (phase.to_radians(ops.theta_SHM, 32), ops.ssm_SHPN, ops.k_SRHN, ops.v_SHP)
        return torch.empty(x.shape, dtype=x.dtype, device=x.device), *(s.clone() for s in finals), kept, phases
    with guard(x):
        scan = RotatedScan(ops, args[-1])
        entry = None if args[15] is None else Entry.of(ops)
        scan.states(entry, kept)
        return scan.outputs(kept), *scan.last_tokens(entry, kept), kept, phases


def backward(
    dy: Tensor,
    dtheta: Tensor | None,
    dssm: Tensor | None,
    dk: Tensor | None,
    dv: Tensor | None,
    kept: Tensor,
    _phases: Tensor,
    *args,
) -> tuple[Tensor | None, ...]:
    """Gradients in the order of :func:`seqkit.kernels.mamba3.slabs.make_operands`, None where an operand is absent.

    Args:
        dy: Gradient of y.
        dtheta: Gradient of the final angles, or None; likewise ``dssm``, ``dk``, ``dv``.
        dssm: See above.
        dk: See above.
        dv: See above.
        kept: States of the forward pass.
        _phases: None are kept.
        *args: Those of :func:`forward`.
    """
    ops, dy, leaving = make_operands(*args), rows_contiguous(dy), (dtheta, dssm, dk, dv)
    if ops.empty:
        return _handed_on(args, leaving)
    with guard(dy):
        scan = RotatedScan(ops, args[-1])
        behind_SHM, back_SHN = _behind(ops, scan, kept, leaving)
        grads, dentry = scan.gradients(dy, kept, dssm, behind_SHM)
    biases = grads.bias_totals()
    dt_bias = grads.dt_bias.sum(0, dtype=torch.float64)
    entering = (None,) * 4
    if args[15] is not None:
        entering = _through_entry(ops, scan.as_states(dentry), behind_SHM, grads, dt_bias, leaving)
    rows_S, none_S = end_rows(ops, last=True)
    if back_SHN is not None:
        biases[0] += back_SHN.sum(0)
        add_rows(grads.B[:, :, 0], rows_S, back_SHN.unflatten(1, (ops.sizes[3], -1)).sum(2))
    if dv is not None:
        add_rows(grads.x, rows_S, dv.masked_fill(none_S[:, None, None], 0))
    D = args[10]
    parameters = (biases[0].unsqueeze(1), biases[1].unsqueeze(1), dt_bias, None if D is None else grads.skip(D))
    return (
        grads.x,
        *grads.raw,
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


def _behind(
    ops: Operands, scan: RotatedScan, kept: Tensor, leaving: tuple[Tensor | None, ...]
) -> tuple[Tensor | None, Tensor | None]:
    """What leaves the segments: gradients of angles and of keys, None for zeros.

    Those of all angles behind the last token but for what the final state gives (S, H, M), and of the final keys before
    their rotation (S, H, N).
    """
    dtheta, dssm, dk, _ = leaving
    behind = ops.ssm_SHPN.new_zeros(ops.theta_SHM.shape)
    back = None
    if dtheta is not None:
        behind += dtheta
    if dk is not None:
        back, dangle = through_last_keys(ops, scan.leaving.long(), dk[:, 0].float())
        behind += dangle
    if dssm is not None:
        behind -= turned(dssm, scan.as_states(kept[-ops.ssm_SHPN.shape[0] :]), ops.sizes[5], ops.pairing)
    absent = dtheta is None and dssm is None and dk is None
    return None if absent else behind, back


def _through_entry(
    ops: Operands,
    dstate: Tensor,
    behind: Tensor | None,
    grads: TokenGradients,
    dt_bias: Tensor,
    leaving: tuple[Tensor | None, ...],
) -> tuple[Tensor, ...]:
    """Gradients of the entering theta, ssm, k and v; adds to those of the first tokens."""
    entry, (dtheta, _, dk, dv) = Entry.of(ops), leaving
    draw, dtrap, dk, dv = entry.gradients(dstate, None if dk is None else dk[:, 0], dv)
    add_rows(grads.raw[0], entry.rows_S, draw)
    add_rows(grads.raw[2], entry.rows_S, dtrap)
    dt_bias += draw.sum(0)
    angle = turned(dstate, entry.state_SHPN, ops.sizes[5], ops.pairing)
    if behind is not None:
        angle = angle + behind
    handed_on = 0.0 if dtheta is None else dtheta.to(angle.dtype)
    return torch.where(entry.none_S[:, None, None], handed_on, angle), dstate, dk.unsqueeze(1), dv


def _handed_on(args: tuple, leaving: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    """Gradients of a scan without tokens."""
    finals = [
        None if t is None else torch.zeros_like(t) if d is None else d
        for t, d in zip(args[15:19], leaving, strict=True)
    ]
    return (*(None if t is None else torch.zeros_like(t) for t in args[:15]), *_like(tuple(finals), args[15:19]))


def _like(grads: tuple[Tensor | None, ...], operands: tuple[Tensor | None, ...]) -> list[Tensor | None]:
    return [
        None if x is None else torch.empty(x.shape, dtype=x.dtype, device=x.device).copy_(grad)
        for grad, x in zip(grads, operands, strict=True)
    ]


def compile_cases() -> dict[str, CompileCase]:
    """Every kernel with 64 states, half of them rotating, all operands, packed and reversed, in bfloat16.

    Gradients of queries also without packing, in bfloat16 alone: a form for which ptxas has made wrong code.
    """
    narrow = ("B", "x", "v", "own", "other", "dscores", "dout", "raw", "A", "trap", "angles", "draw", "dA", "dtrap")
    types = {f"{name}_ptr": "*bf16" for name in (*narrow, "states", "adjoints")}
    types |= {"delta_ptr": "*fp64", "theta_ptr": "*fp64", "entry_ptr": "*i64", "floor": "fp32"}
    types |= dict.fromkeys(("segment_ptr", "table_ptr"), "*i64")
    types |= dict.fromkeys(("turn_ptr", "totals_ptr", "starts_ptr", "leaving_ptr"), "*i32")
    where = {"SPAN": SPANS[0], "Q": CHUNK, "PARTS": 1, "PACKED": True, "REVERSE": True}
    heads = {"P": 64, "PP": 64, "N": 64, "NP": 64, "M": 16, "PAIRING": ADJACENT.value, "PARTIAL": True}
    strides = dict.fromkeys(("svl", "swl", "sol"), 1024)
    weight = {**where, **heads, **strides, "DOT": tl.float16, "KEYS": False}
    dense = {"DOT": tl.bfloat16, "PACKED": False, "REVERSE": False}
    chain = {"BLOCK": 32, "CHUNKS": turns.CHAIN_CHUNKS, "SPAN": SPANS[0], "Q": CHUNK, "PACKED": True, "M": 32}
    leave = {**heads, "PACKED": True, "REVERSE": True}
    cases = [
        CompileCase(tokens.step_kernel, {**where, "HEAVY_TAIL": True}, 1, types),
        CompileCase(tokens.step_gradient_kernel, {**where, "HEAVY_TAIL": False, "PARTIAL": True}, 1, types),
        CompileCase(turns.phase_kernel, {**where, "M": 32, "MP": 32}, 4, types | {"phase_ptr": "*i16"}),
        CompileCase(turns.turn_chain_kernel, chain, 4, types),
        CompileCase(turns.leave_kernel, leave, 1, types | {"phase_ptr": "*i32", "states_ptr": "*fp32"}),
        CompileCase(weights.weight_kernel, weight, 4, types | {"phase_ptr": "*i16"}),
    ]
    plain = CompileCase(weights.weight_kernel, weight | dense, 4, types | {"phase_ptr": "*i16"}, (8, 0))
    return {case.kernel.__name__: case for case in cases} | {"weight_kernel-dense": plain}
