"""One token of the Mamba-3 scan, O(1): plain differentiable PyTorch, in float32 under autocast too.

Legend: B batch, H heads, P head channels, N states, G groups, M rotated pairs, R rank.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from seqkit.kernels.mamba3 import phase
from seqkit.kernels.mamba3.checks import check_parameters, check_ranks, check_settings, check_state, check_tokens
from seqkit.kernels.mamba3.slabs import as_ranks
from seqkit.kernels.mamba3.state import Mamba3State
from seqkit.kernels.mamba3.steps import decay_rate
from seqkit.kernels.numbers import accumulate_dtype, softplus
from seqkit.kernels.validate import check_rank


def mamba3_step(
    x_BHP: Tensor,
    dt_BH: Tensor,
    A_BH: Tensor,
    trap_BH: Tensor,
    B: Tensor,
    C: Tensor,
    angles_BM: Tensor,
    state: Mamba3State,
    *,
    B_bias: Tensor | None = None,
    C_bias: Tensor | None = None,
    dt_bias: Tensor | None = None,
    D: Tensor | None = None,
    z: Tensor | None = None,
    mimo_x: Tensor | None = None,
    mimo_z: Tensor | None = None,
    mimo_o: Tensor | None = None,
    decay: str = "heavy-tail",
    pairing: str = "adjacent",
    A_floor: float = 1e-4,
) -> tuple[Tensor, Mamba3State]:
    """One token of :func:`seqkit.kernels.mamba3_scan`; its angles are those of the scan, bit for bit.

    Args:
        x_BHP: Input (B, H, P).
        dt_BH: Step sizes before bias and softplus (B, H).
        A_BH: Decay rates before f (B, H).
        trap_BH: Share of the token's own step before the sigmoid (B, H).
        B: Keys (B, G, N), or (B, R, G, N) with ``mimo_x``.
        C: Queries, shaped like ``B``.
        angles_BM: Rotation rates (B, M).
        state: State of B rows; left as it is.
        B_bias: (H, N), or (H, R, N) with ``mimo_x``.
        C_bias: Shaped like ``B_bias``.
        dt_bias: (H,).
        D: Skip weights (H,) or (H, P).
        z: Gate (B, H, P).
        mimo_x: Inputs of the ranks (H, R, P).
        mimo_z: Gates of the ranks (H, R, P).
        mimo_o: Outputs of the ranks (H, R, P); without it y keeps its ranks apart.
        decay: As in the scan.
        pairing: As in the scan.
        A_floor: As in the scan.

    Returns:
        y (B, H, P) in x's dtype, or (B, R, H, P) with ``mimo_x`` and no ``mimo_o``; the new state.

    Raises:
        ShapeError: A shape, dtype or device does not fit.
        ConfigError: A setting is out of range.
    """
    check_settings(decay, pairing, A_floor)
    check_rank("x", x_BHP, 3, "(B, H, P)")
    check_tokens("", x_BHP, dt_BH, A_BH, trap_BH, B, C, angles_BM, z, mimo_x is not None)
    check_parameters(x_BHP, B, B_bias, C_bias, dt_bias, D, mimo_x)
    check_ranks(x_BHP, B, z, mimo_x, mimo_z, mimo_o)
    check_state("state", state, x_BHP.shape[0], x_BHP, B, angles_BM)
    dtype = accumulate_dtype(x_BHP)
    with torch.autocast(x_BHP.device.type, enabled=False):
        theta = _turn(state.theta, phase.increments(dt_BH, dt_bias, angles_BM), phase.phase_bits(dtype))
        cos, sin = (f(theta.to(dtype)).unsqueeze(1) for f in (torch.cos, torch.sin))
        k_BRHN = phase.rotate(_heads(B, B_bias, x_BHP, mimo_x, dtype), cos, sin, pairing)
        q_BRHN = phase.rotate(_heads(C, C_bias, x_BHP, mimo_x, dtype), cos, sin, pairing)
        x, raw, trap = (t.to(dtype) for t in (x_BHP, dt_BH, trap_BH))
        delta = softplus(raw if dt_bias is None else raw + dt_bias)
        kept = torch.exp(-delta * decay_rate(A_BH.to(dtype), decay, A_floor))
        before = (torch.sigmoid(-trap) * delta)[..., None, None] * _outer(state.v, state.k, mimo_x)
        now = (torch.sigmoid(trap) * delta)[..., None, None] * _outer(x, k_BRHN, mimo_x)
        ssm = kept[..., None, None] * (state.ssm + before) + now
        y_BRHP = torch.einsum("bhpn,brhn->brhp", ssm, q_BRHN)
        if D is not None:
            y_BRHP = y_BRHP + D.reshape(D.shape[0], -1) * as_ranks(x, mimo_x).transpose(1, 2)
        y = _join(y_BRHP, None if z is None else z.to(dtype), mimo_x, mimo_z, mimo_o)
    return y.to(x_BHP.dtype), Mamba3State(theta, ssm, k_BRHN, x)


def _turn(theta: Tensor, turns: Tensor, bits: int) -> Tensor:
    """The next angle: exact in fixed point, with the gradient of a plain sum."""
    total = phase.to_phase(phase.turns_of(theta.detach()), bits) + phase.to_phase(turns.detach(), bits)
    moved = theta.double() + turns * (2 * math.pi)
    return moved - moved.detach() + phase.to_radians(total, bits)


def _heads(weight: Tensor, bias: Tensor | None, x_BHP: Tensor, mimo_x: Tensor | None, dtype: torch.dtype) -> Tensor:
    """B or C of every rank and head (B, R, H, N) with its bias, not yet rotated."""
    ranked = weight.unsqueeze(1) if mimo_x is None else weight
    heads = ranked.to(dtype).repeat_interleave(x_BHP.shape[1] // ranked.shape[2], dim=2)
    if bias is None:
        return heads
    return heads + (bias if mimo_x is None else bias.transpose(0, 1))


def _outer(v_BHP: Tensor, k_BRHN: Tensor, mimo_x: Tensor | None) -> Tensor:
    """Sum over ranks of v k^T (B, H, P, N)."""
    return torch.einsum("bhrp,brhn->bhpn", as_ranks(v_BHP, mimo_x).expand(-1, -1, k_BRHN.shape[1], -1), k_BRHN)


def _join(
    y_BRHP: Tensor, z: Tensor | None, mimo_x: Tensor | None, mimo_z: Tensor | None, mimo_o: Tensor | None
) -> Tensor:
    """Gate the ranks and sum them."""
    if mimo_x is not None and mimo_o is None:
        return y_BRHP
    if z is not None:
        gate = z.unsqueeze(1) if mimo_z is None else z.unsqueeze(1) * mimo_z.transpose(0, 1)
        y_BRHP = y_BRHP * torch.nn.functional.silu(gate)
    return y_BRHP.squeeze(1) if mimo_o is None else (y_BRHP * mimo_o.transpose(0, 1)).sum(1)
