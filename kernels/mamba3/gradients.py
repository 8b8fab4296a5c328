"""Where the backward pass of the reference Mamba-3 scan collects its results.

Legend: S segments, H heads, P head channels, N states, G groups, M rotated pairs, R rank, Q tokens per chunk, X = Q * R
rows of a chunk, C chunks in a slab, T token rows.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from seqkit.kernels.chunks import as_batch, new_rows, put_rows, take_rows
from seqkit.kernels.mamba3.slabs import Operands, Slab, as_ranks
from seqkit.kernels.mamba3.steps import Steps, discretise_backward


class Gradients:
    """Token rows with a padding row, float64 totals of the parameters, adjoints of the states.

    Args:
        ops: Operands of the scan.
        leaving: Gradients of the final theta, ssm, k and v, each may be None.
    """

    def __init__(self, ops: Operands, leaving: tuple[Tensor | None, ...]):
        self.x, self.B, self.C = new_rows(ops.x_BLHP), new_rows(ops.B_BLRGN), new_rows(ops.C_BLRGN)
        self.angles = new_rows(ops.angles_BLM)
        self.z = None if ops.z_BLHP is None else new_rows(ops.z_BLHP)
        H, P, R, _, N, _ = ops.sizes
        zeros = ops.ssm_SHPN.new_zeros
        self.D_HP = zeros((H, P), dtype=torch.float64)
        self.bias = {name: zeros((H, R, N), dtype=torch.float64) for name in ("B", "C")}
        self.mimo_x, self.mimo_z, self.mimo_o = (zeros((H, R, P), dtype=torch.float64) for _ in range(3))
        rows = ops.x_BLHP.shape[0] * ops.x_BLHP.shape[1] + 1
        self.steps = {name: zeros((rows, H)) for name in ("gamma", "scale", "decay", "angle")}
        self.raw = [new_rows(x) for x in (ops.dt_BLH, ops.A_BLH, ops.trap_BLH)]
        self.dt_bias_H = zeros((H,), dtype=torch.float64)
        entering = (ops.theta_SHM.double(), ops.ssm_SHPN, ops.k_SRHN, ops.v_SHP)
        # the extra row of a leaving gradient is that of chunks which close no segment
        self.theta_leaving_SHM, self.ssm_leaving_SHPN, self.k_leaving_SRHN, self.v_leaving_SHP = (
            torch.cat([torch.zeros_like(s) if d is None else d.to(s.dtype), s.new_zeros((1, *s.shape[1:]))])
            for s, d in zip(entering, leaving, strict=True)
        )
        # an empty segment hands its state through; others are overwritten where they open
        self.theta_SHM, self.ssm_SHPN = self.theta_leaving_SHM.clone(), self.ssm_leaving_SHPN.clone()
        self.k_SRHN, self.v_SHP = self.k_leaving_SRHN[:-1], self.v_leaving_SHP[:-1]

    def put_steps(self, slab: Slab, name: str, value_CHQ: Tensor) -> None:
        """Write the gradient of a per-token weight: gamma, scale, decay, or delta through the angle."""
        put_rows(self.steps[name], slab.targets, value_CHQ.transpose(1, 2).flatten(0, 1))

    def put_inputs(self, ops: Operands, slab: Slab, dv_CHXP: Tensor, closes_C: Tensor) -> None:
        """Write the gradient of x from that of its ranks and of the final v."""
        if ops.mimo_x_HRP is None:
            dx_CHQP = dv_CHXP
        else:
            dv_CHQRP = slab.ranks(dv_CHXP)
            self.mimo_x += (dv_CHQRP * slab.x_CHQP.unsqueeze(3)).sum((0, 2), dtype=torch.float64)
            dx_CHQP = (dv_CHQRP * ops.mimo_x_HRP.unsqueeze(1)).sum(3)
        chunk_C = torch.arange(closes_C.shape[0], device=closes_C.device)
        dx_CHQP[chunk_C, :, slab.last_C] += self.v_leaving_SHP.index_select(0, closes_C)
        put_rows(self.x, slab.targets, dx_CHQP.transpose(1, 2).flatten(0, 1))

    def put_weights(self, slab: Slab, name: str, weight_CHQRN: Tensor) -> None:
        """Write the gradient of B or C from that of its heads, before rotation; add to its bias."""
        self.bias[name] += weight_CHQRN.sum((0, 2), dtype=torch.float64)
        rows = getattr(self, name)
        groups_CGQRN = weight_CHQRN.unflatten(1, (rows.shape[2], -1)).sum(2)
        put_rows(rows, slab.targets, groups_CGQRN.permute(0, 2, 3, 1, 4).flatten(0, 1))

    def put_angles(self, ops: Operands, steps: Steps, slab: Slab, later_CHQM: Tensor) -> None:
        """Write the gradients of the angles and of delta through them from those of the increments."""
        shape = slab.invalid_CQ1.shape[:2]
        tanh_CQM = torch.tanh(take_rows(ops.angles_BLM, slab.rows).to(ops.dtype)).unflatten(0, shape)
        delta_CQH = steps.delta_TH.index_select(0, slab.rows).unflatten(0, shape)
        turned_CQHM = later_CHQM.transpose(1, 2) * math.pi
        dangles_CQM = (turned_CQHM * delta_CQH.unsqueeze(3)).sum(2) * (1 - tanh_CQM.square())
        put_rows(self.angles, slab.targets, dangles_CQM.flatten(0, 1))
        self.put_steps(slab, "angle", (turned_CQHM * tanh_CQM.unsqueeze(2)).sum(3).transpose(1, 2))

    def finish(self, ops: Operands, steps: Steps) -> None:
        """Carry the gradients of the token weights to dt, A and trap, and that of the entry to the entering states."""
        dentry_SHPN, weight_SH11 = self.ssm_SHPN[:-1], steps.entry_SH[..., None, None]
        k_SHRN, v_SHRP = ops.k_SRHN.transpose(1, 2), as_ranks(ops.v_SHP, ops.mimo_x_HRP)
        from_k_SHRP = k_SHRN @ dentry_SHPN.transpose(2, 3)
        empty_S = steps.first_S == steps.delta_TH.shape[0]
        dv_SHRP = from_k_SHRP * weight_SH11
        if ops.mimo_x_HRP is not None:
            self.mimo_x += (dv_SHRP * ops.v_SHP.unsqueeze(2)).sum(0)
            dv_SHRP = dv_SHRP * ops.mimo_x_HRP
        dk_SHRN = (v_SHRP @ dentry_SHPN) * weight_SH11
        self.k_SRHN = torch.where(empty_S[:, None, None, None], self.k_SRHN, dk_SHRN.transpose(1, 2))
        self.v_SHP = torch.where(empty_S[:, None, None], self.v_SHP, dv_SHRP.sum(2))
        steps_TH = [self.steps[name][:-1] for name in ("gamma", "scale", "decay", "angle")]
        dentry_SH = (from_k_SHRP * v_SHRP).sum((2, 3))
        raw = discretise_backward(steps, *steps_TH, dentry_SH, ops.reverse, ops.decay, ops.A_floor)
        self.dt_bias_H += raw[0].sum(0, dtype=torch.float64)
        for rows, value in zip(self.raw, raw, strict=True):
            rows[:-1] = value

    def results(self, args: tuple) -> tuple[Tensor | None, ...]:
        """All gradients in the order, shapes and dtypes of the operands ``args``; None where one is absent."""
        x, dt, A, trap, B, C, angles, *_, D, z = args[:12]
        entering = (self.theta_SHM[:-1], self.ssm_SHPN[:-1], self.k_SRHN, self.v_SHP)
        dD = None if D is None else (self.D_HP.sum(1) if D.dim() == 1 else self.D_HP)
        parameters = [self.bias["B"], self.bias["C"], self.dt_bias_H, dD]
        rest = [self.mimo_x, self.mimo_z, self.mimo_o, *entering]
        rows = zip((self.x, *self.raw, self.B, self.C, self.angles), (x, dt, A, trap, B, C, angles), strict=True)
        return (
            *(as_batch(grad, operand) for grad, operand in rows),
            *_like(parameters, args[7:11]),
            None if z is None else as_batch(self.z, z),
            *_like(rest, args[12:19]),
        )


def _like(grads: list[Tensor | None], operands: tuple[Tensor | None, ...]) -> list[Tensor | None]:
    """Each gradient in its operand's dtype, contiguous and in memory of its own; None for an absent operand."""
    return [
        None if x is None else torch.empty(x.shape, dtype=x.dtype, device=x.device).copy_(grad)
        for grad, x in zip(grads, operands, strict=True)
    ]
