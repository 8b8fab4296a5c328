"""Steps in plain PyTorch, and the gradients of every provider's steps.

Backward recomputes the few intermediates: nothing but the operands is kept.

Legend: B batch, D channels, N states, G groups, H heads, P head channels, W taps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seqkit.kernels.numbers import accumulate_dtype, silu_and_derivative, softplus


def _step_size(raw: Tensor, bias: Tensor | None, with_softplus: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(step size, its derivative by raw)."""
    raw = raw.to(dtype) if bias is None else raw.to(dtype) + bias
    return (softplus(raw), torch.sigmoid(raw)) if with_softplus else (raw, torch.ones_like(raw))


def _spread(weight_BGN: Tensor, whole: int, dtype: torch.dtype) -> Tensor:
    """(B, D or H, N) from groups."""
    return weight_BGN.to(dtype).repeat_interleave(whole // weight_BGN.shape[1], dim=1)


def _gathered(grad: Tensor, like_BGN: Tensor) -> Tensor:
    """Gradient of the groups from that of (B, D or H, N)."""
    return grad.unflatten(1, (like_BGN.shape[1], -1)).sum(2).to(like_BGN.dtype)


def _gated(y: Tensor, z: Tensor | None) -> Tensor:
    return y if z is None else y * torch.nn.functional.silu(z.to(y.dtype))


def _through_gate(dy: Tensor, y: Tensor, z: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Gradients of y before the gate, and of the gate."""
    if z is None:
        return dy, None
    gate, slope = silu_and_derivative(z.to(dy.dtype))
    return dy * gate, (dy * y * slope).to(z.dtype)


def _selective(u, delta, A, B, C, state, D, delta_bias, delta_softplus):
    """(delta, d delta / d raw, decay, new state, y before the gate)."""
    dtype, channels = accumulate_dtype(u), u.shape[1]
    delta, slope = _step_size(delta, delta_bias, delta_softplus, dtype)
    decay = torch.exp(delta.clamp(min=0).unsqueeze(2) * A.clamp(max=0))
    state = decay * state + _spread(B, channels, dtype) * (delta * u).unsqueeze(2)
    y = (state * _spread(C, channels, dtype)).sum(2)
    return delta, slope, decay, state.to(dtype), y if D is None else y + D * u


def selective_step_forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    state: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> tuple[Tensor, Tensor]:
    """(y (B, D) in u's dtype, new state (B, D, N)); B and C are (B, G, N)."""
    *_, state, y = _selective(u, delta, A, B, C, state, D, delta_bias, delta_softplus)
    return _gated(y, z).to(u.dtype).contiguous(), state.contiguous()


def selective_step_backward(
    dy: Tensor, dnew: Tensor, u, delta, A, B, C, state, D, z, delta_bias, delta_softplus
) -> tuple[Tensor | None, ...]:
    """Gradients of u, delta, A, B, C, state, D, z, delta_bias (None where the operand is absent)."""
    step, slope, decay, new, y = _selective(u, delta, A, B, C, state, D, delta_bias, delta_softplus)
    dtype, channels = accumulate_dtype(u), u.shape[1]
    u_wide, B_wide, C_wide = u.to(dtype), _spread(B, channels, dtype), _spread(C, channels, dtype)
    dy, dz = _through_gate(dy.to(dtype), y, z)
    dnew = dnew + dy.unsqueeze(2) * C_wide
    dwrite = (dnew * B_wide).sum(2)
    dexponent = dnew * state * decay
    dstep = dwrite * u_wide + (dexponent * A.clamp(max=0)).sum(2).where(step >= 0, 0.0)
    du = dwrite * step if D is None else dwrite * step + dy * D
    ddelta = dstep * slope
    return (
        du.to(u.dtype),
        ddelta.to(delta.dtype),
        (dexponent * step.clamp(min=0).unsqueeze(2)).sum(0).where(A <= 0, 0.0).to(A.dtype),
        _gathered(dnew * (step * u_wide).unsqueeze(2), B),
        _gathered(dy.unsqueeze(2) * new, C),
        (dnew * decay).to(state.dtype),
        None if D is None else (dy * u_wide).sum(0).to(D.dtype),
        dz,
        None if delta_bias is None else ddelta.sum(0).to(delta_bias.dtype),
    )


def _ssd(x, dt, A, B, C, state, D, dt_bias, dt_softplus, dt_min, dt_max):
    """(dt, d dt / d raw, decay (B, H, 1, 1), new state, y before the gate)."""
    dtype, heads = accumulate_dtype(x), x.shape[1]
    dt, slope = _step_size(dt, dt_bias, dt_softplus, dtype)
    slope = slope.where((dt >= dt_min) & (dt <= dt_max), 0.0)
    dt = dt.clamp(dt_min, dt_max)
    decay = torch.exp(dt.clamp(min=0) * A.clamp(max=0))[:, :, None, None]
    state = decay * state + (dt.unsqueeze(2) * x).unsqueeze(3) * _spread(B, heads, dtype).unsqueeze(2)
    y = (state * _spread(C, heads, dtype).unsqueeze(2)).sum(3)
    return dt, slope, decay, state.to(dtype), y if D is None else y + D.reshape(heads, -1) * x


def ssd_step_forward(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    state: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    dt_min: float,
    dt_max: float,
) -> tuple[Tensor, Tensor]:
    """(y (B, H, P) in x's dtype, new state (B, H, P, N))."""
    *_, state, y = _ssd(x, dt, A, B, C, state, D, dt_bias, dt_softplus, dt_min, dt_max)
    return _gated(y, z).to(x.dtype).contiguous(), state.contiguous()


def ssd_step_backward(
    dy: Tensor, dnew: Tensor, x, dt, A, B, C, state, D, z, dt_bias, dt_softplus, dt_min, dt_max
) -> tuple[Tensor | None, ...]:
    """Gradients of x, dt, A, B, C, state, D, z, dt_bias (None where the operand is absent)."""
    step, slope, decay, new, y = _ssd(x, dt, A, B, C, state, D, dt_bias, dt_softplus, dt_min, dt_max)
    dtype, heads = accumulate_dtype(x), x.shape[1]
    x_wide, B_wide, C_wide = x.to(dtype), _spread(B, heads, dtype), _spread(C, heads, dtype)
    dy, dz = _through_gate(dy.to(dtype), y, z)
    dnew = dnew + dy.unsqueeze(3) * C_wide.unsqueeze(2)
    dwrite = (dnew * B_wide.unsqueeze(2)).sum(3)
    dexponent = (dnew * state * decay).sum((2, 3))
    dstep = (dwrite * x_wide).sum(2) + dexponent * A.clamp(max=0)  # the clamp's own slope is in ``slope``: dt_min >= 0
    dx = dwrite * step.unsqueeze(2)
    skip = None if D is None else D.reshape(heads, -1)
    dskip = None if D is None else (dy * x_wide).sum(0).sum_to_size(skip.shape).reshape(D.shape).to(D.dtype)
    ddt = dstep * slope
    return (
        (dx if D is None else dx + dy * skip).to(x.dtype),
        ddt.to(dt.dtype),
        (dexponent * step).sum(0).where(A <= 0, 0.0).to(A.dtype),
        _gathered((dnew * (step.unsqueeze(2) * x_wide).unsqueeze(3)).sum(2), B),
        _gathered((dy.unsqueeze(3) * new).sum(2), C),
        (dnew * decay).to(state.dtype),
        dskip,
        dz,
        None if dt_bias is None else ddt.sum(0).to(dt_bias.dtype),
    )


def _window(x: Tensor, weight: Tensor, state: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """(the last W inputs (B, W, D), taps (W, D), y before the activation)."""
    dtype = accumulate_dtype(x)
    window = torch.cat([state.to(dtype), x.to(dtype).unsqueeze(1)], dim=1)
    taps = weight.to(dtype).t()
    y = (window * taps).sum(1)
    return window, taps, y if bias is None else y + bias.to(dtype)


def conv_step_forward(
    x: Tensor, weight: Tensor, state: Tensor, bias: Tensor | None, activation: str
) -> tuple[Tensor, Tensor]:
    """(y (B, D) in x's dtype, new state (B, W - 1, D))."""
    window, _, y = _window(x, weight, state, bias)
    y = torch.nn.functional.silu(y) if activation == "silu" else y
    return y.to(x.dtype).contiguous(), window[:, 1:].clone(memory_format=torch.contiguous_format)


def conv_step_backward(
    dy: Tensor, dnew: Tensor, x, weight, state, bias, activation
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of x, weight, state, bias (None where it is absent)."""
    window, taps, y = _window(x, weight, state, bias)
    dpre = dy.to(y.dtype)
    if activation == "silu":
        dpre = dpre * silu_and_derivative(y)[1]
    dwindow = dpre.unsqueeze(1) * taps
    dwindow[:, 1:] += dnew
    return (
        dwindow[:, -1].to(x.dtype, copy=True),
        (dpre.unsqueeze(1) * window).sum(0).t().to(weight.dtype),
        dwindow[:, :-1].to(state.dtype, copy=True),
        None if bias is None else dpre.sum(0).to(bias.dtype),
    )
