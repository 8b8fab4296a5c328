"""Public Mamba-3 scan: custom ops for forward and backward, autograd.

Legend: B batch, L length, S segments, H heads, P head channels, N states, G groups, M rotated pairs, R rank.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seqkit.kernels import dispatch
from seqkit.kernels.mamba3.checks import check_operands, check_settings
from seqkit.kernels.mamba3.state import Mamba3State
from seqkit.kernels.numbers import accumulate_dtype
from seqkit.kernels.registration import autocast_off, custom_op, or_empty, or_none, refuse_double_backward
from seqkit.kernels.validate import check_boundaries

OPERANDS = 19  # tensors of the op that have a gradient


def mamba3_scan(
    x_BLHP: Tensor,
    dt_BLH: Tensor,
    A_BLH: Tensor,
    trap_BLH: Tensor,
    B: Tensor,
    C: Tensor,
    angles_BLM: Tensor,
    *,
    B_bias: Tensor | None = None,
    C_bias: Tensor | None = None,
    dt_bias: Tensor | None = None,
    D: Tensor | None = None,
    z: Tensor | None = None,
    mimo_x: Tensor | None = None,
    mimo_z: Tensor | None = None,
    mimo_o: Tensor | None = None,
    initial_state: Mamba3State | None = None,
    return_final_state: bool = False,
    reverse: bool = False,
    cu_seqlens: Tensor | None = None,
    decay: str = "heavy-tail",
    pairing: str = "adjacent",
    A_floor: float = 1e-4,
    chunk_size: int | None = None,
) -> Tensor | tuple[Tensor, Mamba3State]:
    """Scan with a trapezoidal discretisation and keys and queries rotated by a data-dependent angle.

    Per head, with delta = softplus(dt + dt_bias), a = max(f(A), A_floor), lambda = sigmoid(trap):

        theta_t = theta_{t-1} + delta_t pi tanh(angles_t)
        k_t = rotate(B_t + B_bias, theta_t)        q_t = rotate(C_t + C_bias, theta_t)
        h_t = exp(-delta_t a_t) (h_{t-1} + (1 - lambda_t) delta_t x_{t-1} k_{t-1}^T) + lambda_t delta_t x_t k_t^T
        y_t = (h_t q_t + D x_t) silu(z_t)

    With rank R (MIMO) x_t k_t^T is a sum over r of (x_t mimo_x_r) k_{t,r}^T, and y_t the sum over r of mimo_o_r times
    the output for q_{t,r}, gated by silu(z_t mimo_z_r).

    Differentiable in every tensor, in the initial state and through the final one; not twice. Linear in L in time and
    memory. Activations may be float32, bfloat16 or float16 in any mix, parameters and states are float32 (theta is
    float64), sums run in float32; float64 runs in float64. Only last dimensions must be contiguous.

    Args:
        x_BLHP: Input (B, L, H, P).
        dt_BLH: Step sizes before bias and softplus (B, L, H).
        A_BLH: Decay rates before f (B, L, H).
        trap_BLH: Share of a token's own step before the sigmoid (B, L, H).
        B: Keys (B, L, G, N), G groups of H / G neighbouring heads; (B, L, R, G, N) with ``mimo_x``.
        C: Queries, shaped like ``B``.
        angles_BLM: Rotation rates (B, L, M) of M <= N / 2 pairs of states; other states are not rotated.
        B_bias: Added to B per head (H, N), or (H, R, N) with ``mimo_x``.
        C_bias: Added to C, shaped like ``B_bias``.
        dt_bias: Added to dt before softplus (H,).
        D: Skip weights (H,) or (H, P).
        z: Gate (B, L, H, P).
        mimo_x: Inputs of the ranks (H, R, P); makes the scan multi-input, multi-output.
        mimo_z: Gates of the ranks (H, R, P); with ``z`` and ``mimo_x`` only, and then required.
        mimo_o: Outputs of the ranks (H, R, P); without it y keeps its ranks apart and takes no gate.
        initial_state: State before the first token, S rows; zero if absent. S is B, or the number of segments.
        return_final_state: Also return the state behind the last token.
        reverse: Scan from the last token of each segment to its first.
        cu_seqlens: Packed segments: int32 boundaries (S + 1,), first 0, last L; needs B = 1. Segments may be empty.
        decay: f: ``"heavy-tail"`` (1 + A above 0, 1 / (1 - A) below) or ``"softplus"``.
        pairing: Which states rotate together: ``"adjacent"`` (2i, 2i + 1) or ``"halves"`` (i, i + N / 2).
        A_floor: Smallest decay rate, > 0.
        chunk_size: Tokens per chunk, 1 to 1024; None leaves it to the provider. Changes speed and rounding only.

    Returns:
        y (B, L, H, P) in x's dtype, or (B, L, R, H, P) with ``mimo_x`` and no ``mimo_o``; with
        ``return_final_state`` also the final state. A step of size 0 keeps theta and ssm, but its token becomes the
        state's last one: padding goes by ``cu_seqlens``.

    Raises:
        ShapeError: A shape, dtype, device or layout does not fit.
        ConfigError: A setting is out of range, or ``SEQKIT_KERNELS`` asks for a provider that cannot run this.

    Reference:
        Mamba-3, 2026, https://github.com/state-spaces/mamba (mamba_ssm/modules/mamba3.py).
    """
    check_settings(decay, pairing, A_floor, chunk_size)
    tensors = (x_BLHP, dt_BLH, A_BLH, trap_BLH, B, C, angles_BLM, B_bias, C_bias, dt_bias, D, z, mimo_x, mimo_z, mimo_o)
    check_operands(*tensors, initial_state, cu_seqlens)
    if mimo_x is None:
        B, C = B.unsqueeze(2), C.unsqueeze(2)
        B_bias, C_bias = (None if bias is None else bias.unsqueeze(1) for bias in (B_bias, C_bias))
    y, theta, ssm, k, v, _, _ = torch.ops.seqkit.mamba3_scan_fwd(
        *tensors[:4],
        B,
        C,
        angles_BLM,
        B_bias,
        C_bias,
        *tensors[9:],
        *((None,) * 4 if initial_state is None else initial_state.tensors),
        cu_seqlens,
        reverse,
        decay,
        pairing,
        float(A_floor),
        chunk_size,
        dispatch.provider_for("mamba3_scan" if mimo_x is None else "mamba3_mimo", x_BLHP, B, C, z),
    )
    return (y, Mamba3State(theta, ssm, k, v)) if return_final_state else y


@custom_op("mamba3_scan_fwd")
def mamba3_scan_fwd(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    trap: Tensor,
    B: Tensor,
    C: Tensor,
    angles: Tensor,
    B_bias: Tensor | None,
    C_bias: Tensor | None,
    dt_bias: Tensor | None,
    D: Tensor | None,
    z: Tensor | None,
    mimo_x: Tensor | None,
    mimo_z: Tensor | None,
    mimo_o: Tensor | None,
    theta: Tensor | None,
    ssm: Tensor | None,
    k: Tensor | None,
    v: Tensor | None,
    cu_seqlens: Tensor | None,
    reverse: bool,
    decay: str,
    pairing: str,
    A_floor: float,
    chunk_size: int | None,
    provider: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(y, final theta, ssm, k, v, boundary states, boundary phases)."""
    check_boundaries(cu_seqlens, x.shape[1])
    operands = (x, dt, A, trap, B, C, angles, B_bias, C_bias, dt_bias, D, z, mimo_x, mimo_z, mimo_o, theta, ssm, k, v)
    settings = (cu_seqlens, reverse, decay, pairing, A_floor, chunk_size)
    with autocast_off(x):
        return dispatch.implementation("mamba3_scan", provider).forward(*operands, *settings)


@mamba3_scan_fwd.register_fake
def _(x, dt, A, trap, B, C, angles, *rest):
    (mimo_x, _, mimo_o), (cu_seqlens, _, _, _, _, chunk_size, provider) = rest[5:8], rest[12:]
    (batch, length, H, P), (R, G, N), M = x.shape, B.shape[2:], angles.shape[2]
    packed = None if cu_seqlens is None else cu_seqlens.shape[0] - 1
    S, dtype = batch if packed is None else packed, accumulate_dtype(x)
    implementation = dispatch.implementation("mamba3_scan", provider)
    states, phases = implementation.kept_shapes(batch, length, packed, (H, P, R, G, N, M), chunk_size)
    per_rank = mimo_x is not None and mimo_o is None
    return (
        x.new_empty((batch, length, R, H, P) if per_rank else x.shape),
        x.new_empty((S, H, M), dtype=torch.float64),
        x.new_empty((S, H, P, N), dtype=dtype),
        x.new_empty((S, R, H, N), dtype=dtype),
        x.new_empty((S, H, P), dtype=dtype),
        x.new_empty(states, dtype=dtype),
        x.new_empty(phases, dtype=torch.int64),
    )


@custom_op("mamba3_scan_bwd")
def mamba3_scan_bwd(
    dy: Tensor,
    dtheta: Tensor | None,
    dssm: Tensor | None,
    dk: Tensor | None,
    dv: Tensor | None,
    boundary: Tensor,
    phases: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    trap: Tensor,
    B: Tensor,
    C: Tensor,
    angles: Tensor,
    B_bias: Tensor | None,
    C_bias: Tensor | None,
    dt_bias: Tensor | None,
    D: Tensor | None,
    z: Tensor | None,
    mimo_x: Tensor | None,
    mimo_z: Tensor | None,
    mimo_o: Tensor | None,
    theta: Tensor | None,
    ssm: Tensor | None,
    k: Tensor | None,
    v: Tensor | None,
    cu_seqlens: Tensor | None,
    reverse: bool,
    decay: str,
    pairing: str,
    A_floor: float,
    chunk_size: int | None,
    provider: str,
) -> list[Tensor]:
    """Gradients of the operands x to v in order; empty where one is absent."""
    operands = (x, dt, A, trap, B, C, angles, B_bias, C_bias, dt_bias, D, z, mimo_x, mimo_z, mimo_o, theta, ssm, k, v)
    settings = (cu_seqlens, reverse, decay, pairing, A_floor, chunk_size)
    final = (dy, dtheta, dssm, dk, dv, boundary, phases)
    with autocast_off(x):
        grads = dispatch.implementation("mamba3_scan", provider).backward(*final, *operands, *settings)
    return list(or_empty(grads, x))


@mamba3_scan_bwd.register_fake
def _(dy, dtheta, dssm, dk, dv, boundary, phases, x, *rest):
    operands = (x, *rest[: OPERANDS - 1])
    return list(or_empty(tuple(None if t is None else t.new_empty(t.shape) for t in operands), x))


def _setup_context(ctx, inputs, output):
    tensors, ctx.settings = inputs[: OPERANDS + 1], inputs[OPERANDS + 1 :]
    ctx.output_shape = output[0].shape
    ctx.save_for_backward(*output[5:], *tensors)
    ctx.set_materialize_grads(False)


def _backward(ctx, dy, dtheta, dssm, dk, dv, dboundary, dphases):
    boundary, phases, *tensors = ctx.saved_tensors
    dy = tensors[0].new_zeros(ctx.output_shape) if dy is None else dy
    finals = (dtheta, dssm, dk, dv)
    grads = torch.ops.seqkit.mamba3_scan_bwd(dy, *finals, boundary, phases, *tensors, *ctx.settings)
    return *or_none(tuple(grads), tensors[:OPERANDS]), None, *(None for _ in ctx.settings)


mamba3_scan_fwd.register_autograd(_backward, setup_context=_setup_context)
refuse_double_backward(mamba3_scan_bwd, "mamba3_scan")
