"""Mamba-3 on Triton: what enters a segment with its state and leaves it with the next one, (S, ...) each.

A small part of the work, and only for callers that hand states on: plain PyTorch.

Legend: B batch, L length, S segments, H heads, P head channels, N states, G groups, M rotated pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from seqkit.kernels.mamba3 import phase
from seqkit.kernels.mamba3.slabs import Operands
from seqkit.kernels.numbers import softplus


def end_rows(ops: Operands, last: bool) -> tuple[Tensor, Tensor]:
    """Row (S,) of each segment's first or last token in scan order, and whether (S,) there is none."""
    batch, length = ops.x_BLHP.shape[:2]
    if ops.cu_seqlens is None:
        begin_S = torch.arange(batch, device=ops.x_BLHP.device) * length
        end_S = begin_S + length
    else:
        begin_S, end_S = ops.cu_seqlens[:-1].long(), ops.cu_seqlens[1:].long()
    rows_S = end_S - 1 if last != ops.reverse else begin_S
    return rows_S.clamp(0, batch * length - 1), begin_S == end_S


def _rows(x: Tensor, rows_S: Tensor) -> Tensor:
    return x[rows_S // x.shape[1], rows_S % x.shape[1]].float()


def add_rows(x: Tensor, rows_S: Tensor, value: Tensor) -> None:
    """Add to tokens of a contiguous (B, L, ...)."""
    x.flatten(0, 1).index_add_(0, rows_S, value.to(x.dtype))


@dataclass(frozen=True)
class Entry:
    """The first token of every segment gives a part of its step to the token before it.

    Attributes:
        rows_S: Rows of the first tokens.
        none_S: Whether a segment is empty.
        raw_SH: dt + bias there.
        trap_SH: Raw trap there.
        k_SHN: Rotated key of the token before.
        v_SHP: Its input.
        state_SHPN: State with its part.
    """

    rows_S: Tensor
    none_S: Tensor
    raw_SH: Tensor
    trap_SH: Tensor
    k_SHN: Tensor
    v_SHP: Tensor
    state_SHPN: Tensor

    @classmethod
    def of(cls, ops: Operands) -> Entry:
        """Read from the operands."""
        rows_S, none_S = end_rows(ops, last=False)
        raw_SH, trap_SH = _rows(ops.dt_BLH, rows_S), _rows(ops.trap_BLH, rows_S)
        if ops.dt_bias_H is not None:
            raw_SH = raw_SH + ops.dt_bias_H.float()
        weight_SH = _carried(raw_SH, trap_SH).masked_fill_(none_S[:, None], 0)
        k_SHN, v_SHP = ops.k_SRHN[:, 0], ops.v_SHP
        state_SHPN = ops.ssm_SHPN + weight_SH[..., None, None] * v_SHP.unsqueeze(3) * k_SHN.unsqueeze(2)
        return cls(rows_S, none_S, raw_SH, trap_SH, k_SHN, v_SHP, state_SHPN)

    def gradients(
        self, dstate_SHPN: Tensor, dk_SHN: Tensor | None, dv_SHP: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Gradients of dt + bias and trap of the first tokens (S, H), of k and v.

        Args:
            dstate_SHPN: Gradient of the state.
            dk_SHN: Gradient of what empty segments hand on, or None; likewise ``dv_SHP``.
            dv_SHP: See above.
        """
        weight_SH1 = _carried(self.raw_SH, self.trap_SH).unsqueeze(2)
        from_k_SHP = (dstate_SHPN @ self.k_SHN.unsqueeze(3)).squeeze(3)
        from_v_SHN = (self.v_SHP.unsqueeze(2) @ dstate_SHPN).squeeze(2)
        dweight_SH = (from_k_SHP * self.v_SHP).sum(2).masked_fill_(self.none_S[:, None], 0)
        share, rest = torch.sigmoid(self.trap_SH), torch.sigmoid(-self.trap_SH)
        empty = self.none_S[:, None, None]
        return (
            dweight_SH * rest * torch.sigmoid(self.raw_SH),
            -dweight_SH * softplus(self.raw_SH) * share * rest,
            torch.where(empty, 0.0 if dk_SHN is None else dk_SHN, from_v_SHN * weight_SH1),
            torch.where(empty, 0.0 if dv_SHP is None else dv_SHP, from_k_SHP * weight_SH1),
        )


def _carried(raw: Tensor, trap: Tensor) -> Tensor:
    """(1 - lambda) delta."""
    return torch.sigmoid(-trap) * softplus(raw)


def through_last_keys(ops: Operands, theta_SHM: Tensor, dk_SHN: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the last keys before rotation (S, H, N), and of their angles (S, H, M).

    Args:
        ops: Operands.
        theta_SHM: Phases of the last tokens.
        dk_SHN: Gradient of their rotated keys.
    """
    rows_S, none_S = end_rows(ops, last=True)
    B = _rows(ops.B_BLRGN[:, :, 0], rows_S)
    heads_SHN = B.repeat_interleave(ops.sizes[0] // B.shape[1], 1)
    if ops.B_bias_HRN is not None:
        heads_SHN = heads_SHN + ops.B_bias_HRN[:, 0]
    radians = phase.to_radians(theta_SHM, 32).to(ops.dtype)
    cos, sin = radians.cos(), radians.sin()
    k_SHN = phase.rotate(heads_SHN, cos, sin, ops.pairing)
    dk_SHN = dk_SHN.masked_fill(none_S[:, None, None], 0)
    dtheta_SHM = phase.angle_gradient(dk_SHN, k_SHN, cos.shape[2], ops.pairing)
    return phase.rotate(dk_SHN, cos, -sin, ops.pairing), dtheta_SHM


def turned(adjoint: Tensor, state: Tensor, pairs: int, pairing: str) -> Tensor:
    """Gradient (..., H, M) of all angles behind a place, but for a constant of the segment.

    To turn all that follows is to turn back the state (..., H, P, N) there, whose gradient is ``adjoint``.
    """
    first, second = phase.pair_slices(state.shape[-1], pairs, pairing)
    return (adjoint[..., first] * state[..., second] - adjoint[..., second] * state[..., first]).sum(-2)
