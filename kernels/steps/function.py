"""Public steps, one token at a time: checks, custom ops for forward and backward, autograd.

Functional: states go in and come out, none is mutated. Nothing is looked at on the host: a CUDA graph can hold a step.

Legend: B batch, D channels, N states, G groups, H heads, P head channels, W taps.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from seqkit.errors import ConfigError
from seqkit.kernels import dispatch
from seqkit.kernels.conv.function import check_activation
from seqkit.kernels.numbers import accumulate_dtype
from seqkit.kernels.registration import CustomOp, autocast_off, custom_op, or_empty, or_none, refuse_double_backward
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
    (batch, channels), states = u_BD.shape, A_DN.shape[1]
    _check_input("u", u_BD, (batch, channels), "(B, D)", u_BD)
    _check_input("delta", delta_BD, (batch, channels), "(B, D)", u_BD)
    _check_input("z", z, (batch, channels), "(B, D)", u_BD)
    _check_parameter("A", A_DN, (channels, states), "(D, N)", u_BD)
    _check_parameter("D", D, (channels,), "(D,)", u_BD)
    _check_parameter("delta_bias", delta_bias, (channels,), "(D,)", u_BD)
    _check_parameter("state", state, (batch, channels, states), "(B, D, N)", u_BD)
    B, C = (_grouped(name, weight, batch, channels, states, u_BD) for name, weight in (("B", B), ("C", C)))
    provider = dispatch.provider_for("selective_step", u_BD, delta_BD, B, C, z)
    return torch.ops.seqkit.selective_step_fwd(
        u_BD, delta_BD, A_DN, B, C, state, D, z, delta_bias, delta_softplus, provider
    )


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
    if not 0 <= dt_min <= dt_max:
        raise ConfigError("dt_min, dt_max", expected="0 <= dt_min <= dt_max", got=f"{dt_min}, {dt_max}")
    batch, heads, width = x_BHP.shape
    states = B_BGN.shape[2]
    _check_input("x", x_BHP, (batch, heads, width), "(B, H, P)", x_BHP)
    _check_input("dt", dt_BH, (batch, heads), "(B, H)", x_BHP)
    _check_input("z", z, (batch, heads, width), "(B, H, P)", x_BHP)
    _check_parameter("A", A_H, (heads,), "(H,)", x_BHP)
    shape, letters = ((heads, width), "(H, P)") if D is not None and D.dim() == 2 else ((heads,), "(H,)")
    _check_parameter("D", D, shape, letters, x_BHP)
    _check_parameter("dt_bias", dt_bias, (heads,), "(H,)", x_BHP)
    _check_parameter("state", state, (batch, heads, width, states), "(B, H, P, N)", x_BHP)
    B, C = (_grouped(name, weight, batch, heads, states, x_BHP) for name, weight in (("B", B_BGN), ("C", C_BGN)))
    provider = dispatch.provider_for("ssd_step", x_BHP, dt_BH, B, C, z)
    return torch.ops.seqkit.ssd_step_fwd(
        x_BHP, dt_BH, A_H, B, C, state, D, z, dt_bias, dt_softplus, float(dt_min), float(dt_max), provider
    )


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
    (batch, channels), taps = x_BD.shape, weight_DW.shape[1]
    _check_input("x", x_BD, (batch, channels), "(B, D)", x_BD)
    _check_input("weight", weight_DW, (channels, taps), "(D, W)", x_BD)
    _check_input("bias", bias, (channels,), "(D,)", x_BD)
    _check_parameter("state", state, (batch, taps - 1, channels), "(B, W - 1, D)", x_BD)
    provider = dispatch.provider_for("conv_step", x_BD, weight_DW, bias)
    return torch.ops.seqkit.conv_step_fwd(x_BD, weight_DW, state, bias, activation or "none", provider)


def _check_input(name: str, x: Tensor | None, shape: tuple[int, ...], letters: str, like: Tensor) -> None:
    if x is not None:
        check_tensor(name, x, shape, letters, like, any_layout=True)


def _check_parameter(name: str, x: Tensor | None, shape: tuple[int, ...], letters: str, like: Tensor) -> None:
    if x is not None:
        check_tensor(name, x, shape, letters, like, wide=True, any_layout=True)


def _grouped(name: str, weight: Tensor, batch: int, whole: int, states: int, like: Tensor) -> Tensor:
    """(B, G, N), checked, from (B, N) or (B, G, N)."""
    weight = weight.unsqueeze(1) if weight.dim() == 2 else weight
    check_rank(name, weight, 3, "(B, G, N)")
    check_groups(name, weight.shape[1], whole, "D or H")
    check_tensor(name, weight, (batch, weight.shape[1], states), "(B, G, N)", like, any_layout=True)
    return weight


def _run(op: str, provider: str, direction: str, *args):
    """Forward of a provider; backward is the reference's for all of them: a step keeps and costs next to nothing."""
    with autocast_off(args[0]):
        return getattr(dispatch.implementation(op, provider), f"{op}_{direction}")(*args)


def _like(x: Tensor | None, absent: Tensor) -> Tensor:
    """Fake gradient of an operand."""
    return absent.new_empty(0) if x is None else x.new_empty(x.shape)


@custom_op("selective_step_fwd")
def selective_step_fwd(
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
    provider: str,
) -> tuple[Tensor, Tensor]:
    """(y, new state)."""
    return _run("selective_step", provider, "forward", u, delta, A, B, C, state, D, z, delta_bias, delta_softplus)


@selective_step_fwd.register_fake
def _(u, delta, A, B, C, state, *_settings):
    return u.new_empty(u.shape), state.new_empty(state.shape, dtype=accumulate_dtype(u))


@custom_op("selective_step_bwd")
def selective_step_bwd(
    dy: Tensor,
    dnew: Tensor,
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of all operands; empty where one is absent."""
    operands = (u, delta, A, B, C, state, D, z, delta_bias)
    return _packed(_run("selective_step", "reference", "backward", dy, dnew, *operands, delta_softplus), A)


@selective_step_bwd.register_fake
def _(dy, dnew, u, delta, A, B, C, state, D, z, delta_bias, delta_softplus):
    return tuple(_like(x, A) for x in (u, delta, A, B, C, state, D, z, delta_bias))


@custom_op("ssd_step_fwd")
def ssd_step_fwd(
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
    provider: str,
) -> tuple[Tensor, Tensor]:
    """(y, new state)."""
    operands = (x, dt, A, B, C, state, D, z, dt_bias)
    return _run("ssd_step", provider, "forward", *operands, dt_softplus, dt_min, dt_max)


@ssd_step_fwd.register_fake
def _(x, dt, A, B, C, state, *_settings):
    return x.new_empty(x.shape), state.new_empty(state.shape, dtype=accumulate_dtype(x))


@custom_op("ssd_step_bwd")
def ssd_step_bwd(
    dy: Tensor,
    dnew: Tensor,
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of all operands; empty where one is absent."""
    operands = (x, dt, A, B, C, state, D, z, dt_bias)
    return _packed(_run("ssd_step", "reference", "backward", dy, dnew, *operands, dt_softplus, dt_min, dt_max), A)


@ssd_step_bwd.register_fake
def _(dy, dnew, x, dt, A, B, C, state, D, z, dt_bias, dt_softplus, dt_min, dt_max):
    return tuple(_like(operand, A) for operand in (x, dt, A, B, C, state, D, z, dt_bias))


@custom_op("conv_step_fwd")
def conv_step_fwd(
    x: Tensor, weight: Tensor, state: Tensor, bias: Tensor | None, activation: str, provider: str
) -> tuple[Tensor, Tensor]:
    """(y, new state)."""
    return _run("conv_step", provider, "forward", x, weight, state, bias, activation)


@conv_step_fwd.register_fake
def _(x, weight, state, bias, activation, provider):
    return x.new_empty(x.shape), state.new_empty(state.shape, dtype=accumulate_dtype(x))


@custom_op("conv_step_bwd")
def conv_step_bwd(
    dy: Tensor, dnew: Tensor, x: Tensor, weight: Tensor, state: Tensor, bias: Tensor | None, activation: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of all operands; empty where one is absent."""
    return _packed(_run("conv_step", "reference", "backward", dy, dnew, x, weight, state, bias, activation), weight)


@conv_step_bwd.register_fake
def _(dy, dnew, x, weight, state, bias, activation):
    return tuple(_like(operand, weight) for operand in (x, weight, state, bias))


def _packed(grads: tuple[Tensor | None, ...], absent: Tensor) -> tuple[Tensor, ...]:
    return tuple(grad.contiguous() for grad in or_empty(grads, absent))


def _differentiable(name: str, forward: CustomOp, backward: CustomOp, operands: int) -> None:
    """Register the gradient of a step: its first arguments are operands, then come settings and the provider."""

    def setup(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:operands])
        ctx.settings = inputs[operands:-1]

    def differentiate(ctx, dy, dnew):
        tensors = ctx.saved_tensors
        grads = getattr(torch.ops.seqkit, f"{name}_bwd")(dy, dnew, *tensors, *ctx.settings)
        return *or_none(grads, tensors), *(None for _ in ctx.settings), None

    forward.register_autograd(differentiate, setup_context=setup)
    refuse_double_backward(backward, name)


_differentiable("selective_step", selective_step_fwd, selective_step_bwd, 9)
_differentiable("ssd_step", ssd_step_fwd, ssd_step_bwd, 9)
_differentiable("conv_step", conv_step_fwd, conv_step_bwd, 4)
