"""Steps on Triton: one launch a token, nothing looked at on the host, so that a CUDA graph can hold it.

Memory is what a step costs: a program reads a tile of the state once and writes it once. Exponentials are the accurate
ones, which costs nothing here.

Legend: B batch, D channels, N states, G groups, H heads, P head channels, W taps.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from seqkit.kernels.triton_compiled import launch
from seqkit.kernels.triton_launch import CompileCase, ceil_div, guard, next_power, rows_contiguous
from seqkit.kernels.triton_math import exp_of_negative, sigmoid, softplus

TILE = 512  # states of a program: small, so that one sequence spreads over the whole GPU
BLOCK = 256  # channels of a program of the convolution


@triton.jit
def step_size(raw, bias_ptr, at, mask, SOFTPLUS: tl.constexpr):
    """Step sizes in float32."""
    delta = raw.to(tl.float32)
    if bias_ptr is not None:
        delta += tl.load(bias_ptr + at, mask=mask, other=0.0)
    return softplus(delta) if SOFTPLUS else delta


@triton.jit
def gated(y, z_ptr, at, mask):
    """Y silu(z), where there is a gate."""
    if z_ptr is not None:
        z = tl.load(z_ptr + at, mask=mask, other=0.0).to(tl.float32)
        y *= z * sigmoid(z)
    return y


@triton.jit(do_not_specialize=["blocks"])
def selective_kernel(
    u_ptr, delta_ptr, A_ptr, B_ptr, C_ptr, state_ptr, D_ptr, z_ptr, bias_ptr, y_ptr, new_ptr,
    channels, group, blocks, su, sd, sBb, sBg, sCb, sCg, sz,
    N: tl.constexpr, NP: tl.constexpr, BLOCK: tl.constexpr, SOFTPLUS: tl.constexpr,
):  # fmt: skip
    """BLOCK channels of one sequence."""
    program = tl.program_id(0).to(tl.int64)
    row = program // blocks
    d, n = (program % blocks) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, NP)
    on_d = d < channels
    on = on_d[:, None] & (n < N)[None, :]
    u = tl.load(u_ptr + row * su + d, mask=on_d, other=0.0).to(tl.float32)
    delta = step_size(tl.load(delta_ptr + row * sd + d, mask=on_d, other=0.0), bias_ptr, d, on_d, SOFTPLUS)
    rates = tl.minimum(tl.load(A_ptr + d[:, None] * N + n[None, :], mask=on, other=0.0), 0.0)
    g = (d // group)[:, None]
    B = tl.load(B_ptr + row * sBb + g * sBg + n[None, :], mask=on, other=0.0).to(tl.float32)
    C = tl.load(C_ptr + row * sCb + g * sCg + n[None, :], mask=on, other=0.0).to(tl.float32)
    at = (row * channels + d[:, None]) * N + n[None, :]
    decay = exp_of_negative(tl.maximum(delta, 0.0)[:, None] * rates)
    h = decay * tl.load(state_ptr + at, mask=on, other=0.0) + (delta * u)[:, None] * B
    tl.store(new_ptr + at, h, mask=on)
    y = tl.sum(h * C, 1)
    if D_ptr is not None:
        y += tl.load(D_ptr + d, mask=on_d, other=0.0) * u
    y = gated(y, z_ptr, row * sz + d, on_d)
    tl.store(y_ptr + row * channels + d, y.to(y_ptr.dtype.element_ty), mask=on_d)


@triton.jit(do_not_specialize=["blocks", "dt_min", "dt_max"])
def ssd_kernel(
    x_ptr, dt_ptr, A_ptr, B_ptr, C_ptr, state_ptr, D_ptr, z_ptr, bias_ptr, y_ptr, new_ptr, dt_min, dt_max,
    heads, width, group, blocks, sxb, sxh, sd, sBb, sBg, sCb, sCg, sDh, sDp, szb, szh,
    N: tl.constexpr, NP: tl.constexpr, BLOCK: tl.constexpr, SOFTPLUS: tl.constexpr,
):  # fmt: skip
    """BLOCK channels of one head of one sequence."""
    program = tl.program_id(0).to(tl.int64)
    head = (program // blocks) % heads
    row = program // (blocks * heads)
    p, n = (program % blocks) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, NP)
    on_p, on_n = p < width, n < N
    on = on_p[:, None] & on_n[None, :]
    x = tl.load(x_ptr + row * sxb + head * sxh + p, mask=on_p, other=0.0).to(tl.float32)
    dt = step_size(tl.load(dt_ptr + row * sd + head), bias_ptr, head, head < heads, SOFTPLUS)
    dt = tl.minimum(tl.maximum(dt, dt_min), dt_max)
    g = head // group
    B = tl.load(B_ptr + row * sBb + g * sBg + n, mask=on_n, other=0.0).to(tl.float32)
    C = tl.load(C_ptr + row * sCb + g * sCg + n, mask=on_n, other=0.0).to(tl.float32)
    decay = exp_of_negative(tl.maximum(dt, 0.0) * tl.minimum(tl.load(A_ptr + head), 0.0))
    at = ((row * heads + head) * width + p[:, None]) * N + n[None, :]
    h = decay * tl.load(state_ptr + at, mask=on, other=0.0) + (dt * x)[:, None] * B[None, :]
    tl.store(new_ptr + at, h, mask=on)
    y = tl.sum(h * C[None, :], 1)
    if D_ptr is not None:
        y += tl.load(D_ptr + head * sDh + p * sDp, mask=on_p, other=0.0) * x
    y = gated(y, z_ptr, row * szb + head * szh + p, on_p)
    tl.store(y_ptr + (row * heads + head) * width + p, y.to(y_ptr.dtype.element_ty), mask=on_p)


@triton.jit(do_not_specialize=["blocks"])
def conv_kernel(
    x_ptr, weight_ptr, state_ptr, bias_ptr, y_ptr, new_ptr, channels, blocks, sx, swd, sww,
    W: tl.constexpr, BLOCK: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    """BLOCK channels of one sequence; the state moves up by one input."""
    program = tl.program_id(0).to(tl.int64)
    row = program // blocks
    d = (program % blocks) * BLOCK + tl.arange(0, BLOCK)
    on = d < channels
    slots = row * (W - 1) * channels + d
    x = tl.load(x_ptr + row * sx + d, mask=on, other=0.0).to(tl.float32)
    y = x * tl.load(weight_ptr + d * swd + (W - 1) * sww, mask=on, other=0.0).to(tl.float32)
    for w in tl.static_range(W - 1):
        past = tl.load(state_ptr + slots + w * channels, mask=on, other=0.0)
        y += past * tl.load(weight_ptr + d * swd + w * sww, mask=on, other=0.0).to(tl.float32)
        if w > 0:
            tl.store(new_ptr + slots + (w - 1) * channels, past, mask=on)
    if W > 1:
        tl.store(new_ptr + slots + (W - 2) * channels, x, mask=on)
    if bias_ptr is not None:
        y += tl.load(bias_ptr + d, mask=on, other=0.0).to(tl.float32)
    if SILU:
        y *= sigmoid(y)
    tl.store(y_ptr + row * channels + d, y.to(y_ptr.dtype.element_ty), mask=on)


def _wide(x: torch.Tensor | None) -> torch.Tensor | None:
    return None if x is None else x.to(torch.float32).contiguous()


def _strides(x: torch.Tensor | None, count: int) -> tuple[int, ...]:
    return (0,) * count if x is None else x.stride()[:count]


def _tile(states: int, whole: int) -> dict[str, int]:
    """Channels and states of a program."""
    padded = next_power(states)
    return {"N": states, "NP": padded, "BLOCK": min(next_power(whole), max(1, TILE // padded))}


def selective_step_forward(u, delta, A, B, C, state, D, z, delta_bias, delta_softplus):
    """(y (B, D) in u's dtype, new state (B, D, N)); B and C are (B, G, N)."""
    u, delta, B, C = (rows_contiguous(x) for x in (u, delta, B, C))
    z = None if z is None else rows_contiguous(z)
    (batch, channels), states = u.shape, A.shape[1]
    y = torch.empty((batch, channels), dtype=u.dtype, device=u.device)
    new = torch.empty(state.shape, dtype=torch.float32, device=u.device)
    tile = _tile(states, channels)
    blocks = ceil_div(channels, tile["BLOCK"])
    if batch:
        with guard(u):
            launch(
                selective_kernel, batch * blocks,
                u, delta, _wide(A), B, C, _wide(state), _wide(D), z, _wide(delta_bias), y, new,
                channels, channels // B.shape[1], blocks, u.stride(0), delta.stride(0), *B.stride()[:2],
                *C.stride()[:2], *_strides(z, 1), SOFTPLUS=delta_softplus, **tile,
            )  # fmt: skip
    return y, new


def ssd_step_forward(x, dt, A, B, C, state, D, z, dt_bias, dt_softplus, dt_min, dt_max):
    """(y (B, H, P) in x's dtype, new state (B, H, P, N))."""
    x, dt, B, C = (rows_contiguous(t) for t in (x, dt, B, C))
    z = None if z is None else rows_contiguous(z)
    (batch, heads, width), (groups, states) = x.shape, B.shape[1:]
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    new = torch.empty(state.shape, dtype=torch.float32, device=x.device)
    tile = _tile(states, width)
    blocks, skip = ceil_div(width, tile["BLOCK"]), _wide(D)
    if batch:
        with guard(x):
            launch(
                ssd_kernel, batch * heads * blocks,
                x, dt, _wide(A), B, C, _wide(state), skip, z, _wide(dt_bias), y, new, dt_min, dt_max,
                heads, width, heads // groups, blocks, *x.stride()[:2], dt.stride(0), *B.stride()[:2], *C.stride()[:2],
                *((1, 0) if skip is None or skip.dim() == 1 else skip.stride()), *_strides(z, 2),
                SOFTPLUS=dt_softplus, **tile,
            )  # fmt: skip
    return y, new


def conv_step_forward(x, weight, state, bias, activation):
    """(y (B, D) in x's dtype, new state (B, W - 1, D))."""
    x, (channels, taps) = rows_contiguous(x), weight.shape
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    new = torch.empty(state.shape, dtype=torch.float32, device=x.device)
    blocks = ceil_div(channels, BLOCK)
    if x.shape[0]:
        with guard(x):
            launch(
                conv_kernel, x.shape[0] * blocks,
                x, weight, _wide(state), None if bias is None else bias.contiguous(), y, new, channels, blocks,
                x.stride(0), *weight.stride(), W=taps, BLOCK=BLOCK, SILU=activation == "silu",
            )  # fmt: skip
    return y, new


def compile_cases() -> dict[str, CompileCase]:
    """Every kernel with all operands, in bfloat16."""
    types = {f"{name}_ptr": "*bf16" for name in ("u", "delta", "x", "dt", "B", "C", "z", "y")}
    bounds = {"dt_min": "fp32", "dt_max": "fp32"}
    return {
        "selective_kernel": CompileCase(selective_kernel, {**_tile(16, 2048), "SOFTPLUS": True}, types=types),
        "ssd_kernel": CompileCase(ssd_kernel, {**_tile(128, 64), "SOFTPLUS": True}, types=types | bounds),
        "conv_kernel": CompileCase(conv_kernel, {"W": 4, "BLOCK": BLOCK, "SILU": True}, types=types),
    }
