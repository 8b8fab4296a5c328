"""One token at a time: the recurrences of the scans and the convolution, O(1) per token.

Functional: states go in and come out, none is mutated. Plain differentiable PyTorch, in float32 under autocast too.

Legend: B batch, D channels, N states, G groups, H heads, P head channels, W taps.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from seqkit.kernels.conv.function import check_activation
from seqkit.kernels.numbers import accumulate_dtype, softplus
from seqkit.kernels.validate import check_groups, check_rank, check_tensor


def selective_step(
    u_BD: Tensor,
    delta_BD: Tensor,
    A_DN: Tensor,
    B: Tensor,
    C: Tensor,
    state: Tensor,
    *,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
) -> tuple[Tensor, Tensor]:
    """One token of :func:`seqkit.kernels.selective_scan`.

    Args:
        u_BD: Input (B, D).
        delta_BD: Step sizes (B, D).
        A_DN: Decay rates (D, N), <= 0.
        B: Input weights (B, N) or (B, G, N).
        C: Output weights, shaped like ``B``.
        state: (B, D, N); left as it is.
        D: Skip weights (D,).
        z: Gate (B, D).
        delta_bias: Added to delta before softplus (D,).
        delta_softplus: Pass delta through softplus.

    Returns:
        y (B, D) in u's dtype, new state (B, D, N).

    Raises:
        ShapeError: A shape, dtype or device does not fit.

    Reference:
        Gu and Dao, Mamba, 2023, section 3.5.
    """
    check_rank("u", u_BD, 2, "(B, D)")
    check_rank("A", A_DN, 2, "(D, N)")
    batch, channels = u_BD.shape
    states, dtype = A_DN.shape[1], accumulate_dtype(u_BD)
    check_tensor("delta", delta_BD, (batch, channels), "(B, D)", u_BD, any_layout=True)
    check_tensor("A", A_DN, (channels, states), "(D, N)", u_BD, wide=True, any_layout=True)
    check_tensor("state", state, (batch, channels, states), "(B, D, N)", u_BD, wide=True, any_layout=True)
    B_BDN = _spread(B, "B", batch, channels, states, dtype, u_BD)
    C_BDN = _spread(C, "C", batch, channels, states, dtype, u_BD)
    with torch.autocast(u_BD.device.type, enabled=False):
        u, delta = u_BD.to(dtype), delta_BD.to(dtype)
        if delta_bias is not None:
            delta = delta + delta_bias
        if delta_softplus:
            delta = softplus(delta)
        decay = torch.exp(delta.clamp(min=0).unsqueeze(2) * A_DN.clamp(max=0))
        state = decay * state + B_BDN * (delta * u).unsqueeze(2)
        y = (state * C_BDN).sum(2)
        if D is not None:
            y = y + D * u
        if z is not None:
            y = y * torch.nn.functional.silu(z.to(dtype))
    return y.to(u_BD.dtype), state


def _spread(weight: Tensor, name: str, batch: int, whole: int, states: int, dtype: torch.dtype, like: Tensor) -> Tensor:
    """(B, N) or (B, G, N) as (B, D or H, N), or broadcastable to it."""
    grouped = weight.unsqueeze(1) if weight.dim() == 2 else weight
    check_rank(name, grouped, 3, "(B, G, N)")
    groups = grouped.shape[1]
    check_groups(name, groups, whole, "D or H")
    check_tensor(name, grouped, (batch, groups, states), "(B, G, N)", like, any_layout=True)
    return grouped.to(dtype) if groups == 1 else grouped.to(dtype).repeat_interleave(whole // groups, dim=1)


def ssd_step(
    x_BHP: Tensor,
    dt_BH: Tensor,
    A_H: Tensor,
    B_BGN: Tensor,
    C_BGN: Tensor,
    state: Tensor,
    *,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    dt_min: float = 0.0,
    dt_max: float = math.inf,
) -> tuple[Tensor, Tensor]:
    """One token of :func:`seqkit.kernels.ssd_scan`.

    Args:
        x_BHP: Input (B, H, P).
        dt_BH: Step sizes (B, H).
        A_H: Decay rates (H,), <= 0.
        B_BGN: Input weights (B, G, N).
        C_BGN: Output weights (B, G, N).
        state: (B, H, P, N); left as it is.
        D: Skip weights (H,) or (H, P).
        z: Gate (B, H, P).
        dt_bias: Added to dt before softplus (H,).
        dt_softplus: Pass dt through softplus.
        dt_min: Lower end of dt's clamp.
        dt_max: Upper end of dt's clamp.

    Returns:
        y (B, H, P) in x's dtype, new state (B, H, P, N).

    Raises:
        ShapeError: A shape, dtype or device does not fit.

    Reference:
        Dao and Gu, Transformers are SSMs, 2024, section 3.
    """
    check_rank("x", x_BHP, 3, "(B, H, P)")
    check_rank("B", B_BGN, 3, "(B, G, N)")
    batch, heads, head_channels = x_BHP.shape
    states, dtype = B_BGN.shape[2], accumulate_dtype(x_BHP)
    check_tensor("dt", dt_BH, (batch, heads), "(B, H)", x_BHP, any_layout=True)
    check_tensor("A", A_H, (heads,), "(H,)", x_BHP, wide=True, any_layout=True)
    shape = (batch, heads, head_channels, states)
    check_tensor("state", state, shape, "(B, H, P, N)", x_BHP, wide=True, any_layout=True)
    B_BHN = _spread(B_BGN, "B", batch, heads, states, dtype, x_BHP)
    C_BHN = _spread(C_BGN, "C", batch, heads, states, dtype, x_BHP)
    with torch.autocast(x_BHP.device.type, enabled=False):
        x, dt = x_BHP.to(dtype), dt_BH.to(dtype)
        if dt_bias is not None:
            dt = dt + dt_bias
        dt = (softplus(dt) if dt_softplus else dt).clamp(dt_min, dt_max)
        decay = torch.exp(dt.clamp(min=0) * A_H.clamp(max=0))[:, :, None, None]
        state = decay * state + (dt.unsqueeze(2) * x).unsqueeze(3) * B_BHN.unsqueeze(2)
        y = (state * C_BHN.unsqueeze(2)).sum(3)
        if D is not None:
            y = y + D.reshape(heads, -1) * x
        if z is not None:
            y = y * torch.nn.functional.silu(z.to(dtype))
    return y.to(x_BHP.dtype), state


def conv_step(
    x_BD: Tensor,
    weight_DW: Tensor,
    state: Tensor,
    *,
    bias: Tensor | None = None,
    activation: str | None = None,
) -> tuple[Tensor, Tensor]:
    """One token of :func:`seqkit.kernels.causal_conv`.

    Args:
        x_BD: Input (B, D).
        weight_DW: Taps (D, W), oldest input first.
        state: The W - 1 inputs before, oldest first (B, W - 1, D); left as it is.
        bias: (D,).
        activation: None or ``"silu"``.

    Returns:
        y (B, D) in x's dtype, new state (B, W - 1, D).

    Raises:
        ShapeError: A shape, dtype or device does not fit.
        ConfigError: The activation is unknown.
    """
    check_activation(activation)
    check_rank("x", x_BD, 2, "(B, D)")
    check_rank("weight", weight_DW, 2, "(D, W)")
    batch, channels = x_BD.shape
    taps, dtype = weight_DW.shape[1], accumulate_dtype(x_BD)
    check_tensor("weight", weight_DW, (channels, taps), "(D, W)", x_BD, any_layout=True)
    check_tensor("state", state, (batch, taps - 1, channels), "(B, W - 1, D)", x_BD, wide=True, any_layout=True)
    with torch.autocast(x_BD.device.type, enabled=False):
        window_BWD = torch.cat([state, x_BD.to(state.dtype).unsqueeze(1)], dim=1)
        y = (window_BWD.to(dtype) * weight_DW.to(dtype).t()).sum(1)
        if bias is not None:
            y = y + bias.to(dtype)
        if activation == "silu":
            y = torch.nn.functional.silu(y)
    return y.to(x_BD.dtype), window_BWD[:, 1:].contiguous()
