"""Float64 values of every op on a sample of its channels, heads or tokens, fast enough for millions of tokens.

They share no code with any provider; ``tests/kernels/test_bench.py`` holds them to the oracle.

Legend: B batch, L length, D channels, N states, H heads, P head channels, W taps; small letters: sampled ones.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

Tensors = dict[str, Tensor]


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x))."""
    return x.clamp(min=0) + torch.log1p(torch.exp(-x.abs()))


def silu(x: Tensor) -> Tensor:
    """X sigmoid(x)."""
    return x / (1 + torch.exp(-x))


def _scan(decay: Tensor, write: Tensor) -> Tensor:
    """h_t = decay_t h_{t-1} + write_t along the first dimension, from zero, in about 2 sqrt(L) steps."""
    length = write.shape[0]
    steps = math.isqrt(max(length - 1, 0)) + 1
    runs = -(-length // steps)
    padded = decay.new_ones(runs * steps, *decay.shape[1:]), write.new_zeros(runs * steps, *write.shape[1:])
    padded[0][:length], padded[1][:length] = decay, write
    # time inside a run comes first, so that a step of all runs is one contiguous block
    decay, h = (x.unflatten(0, (runs, steps)).transpose(0, 1).contiguous() for x in padded)
    for t in range(1, steps):
        h[t] += decay[t] * h[t - 1]
        decay[t] *= decay[t - 1]
    entry = torch.zeros_like(h[0])
    for k in range(1, runs):
        entry[k] = decay[-1, k - 1] * entry[k - 1] + h[-1, k - 1]
    h += decay * entry
    return h.transpose(0, 1).flatten(0, 1)[:length]


class Recurrence(torch.autograd.Function):
    """h_t = decay_t h_{t-1} + write_t along the first dimension; the adjoint is the same recurrence backwards."""

    @staticmethod
    def forward(ctx, decay: Tensor, write: Tensor) -> Tensor:
        """H (L, ...)."""
        h = _scan(decay, write)
        ctx.save_for_backward(decay, h)
        return h

    @staticmethod
    def backward(ctx, dh: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of the decays and of what is written."""
        decay, h = ctx.saved_tensors
        following = torch.cat([decay[1:], torch.zeros_like(decay[:1])])
        adjoint = _scan(following.flip(0), dh.flip(0)).flip(0)
        before = torch.cat([torch.zeros_like(h[:1]), h[:-1]])
        return adjoint * before, adjoint


def selective_scan(t: Tensors) -> tuple[Tensor, ...]:
    """Y of the sampled channels."""
    delta = softplus(t["delta"] + t["delta_bias"]).unsqueeze(3)
    decay, write = torch.exp(delta * t["A"]), delta * t["u"].unsqueeze(3) * t["B"].unsqueeze(2)
    h = Recurrence.apply(decay.transpose(0, 1), write.transpose(0, 1)).transpose(0, 1)
    return ((torch.einsum("bldn,bln->bld", h, t["C"]) + t["D"] * t["u"]) * silu(t["z"]),)


def ssd_scan(t: Tensors) -> tuple[Tensor, ...]:
    """Y of the sampled channels of the sampled heads; one group."""
    dt = softplus(t["dt"] + t["dt_bias"])
    write = torch.einsum("blhp,blgn->blhpn", dt.unsqueeze(3) * t["x"], t["B"])
    decay = torch.exp(dt * t["A"])[..., None, None].expand_as(write)
    h = Recurrence.apply(decay.transpose(0, 1), write.transpose(0, 1)).transpose(0, 1)
    return (torch.einsum("blhpn,blgn->blhp", h, t["C"]) + t["D"].unsqueeze(1) * t["x"],)


def causal_conv(t: Tensors) -> tuple[Tensor, ...]:
    """Y of the sampled channels, with silu."""
    (length, taps), y = (t["x"].shape[1], t["weight"].shape[1]), t["bias"]
    padded = torch.nn.functional.pad(t["x"], (0, 0, taps - 1, 0))
    for w in range(taps):
        y = y + t["weight"][:, w] * padded[:, w : w + length]
    return (silu(y),)


def _normed(h: Tensor, weight: Tensor) -> Tensor:
    return h / (h.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight


def rms_norm(t: Tensors) -> tuple[Tensor, ...]:
    """Y and the residual stream of the sampled tokens."""
    total = t["x"] + t["residual"]
    return _normed(total, t["weight"]), total


def gated_rms_norm(t: Tensors) -> tuple[Tensor, ...]:
    """Y of the sampled tokens."""
    return (_normed(t["x"] * silu(t["z"]), t["weight"]),)


def mamba1_inner(t: Tensors) -> tuple[Tensor, ...]:
    """Y of all tokens given: those before the sampled ones warm the states up."""
    linear = torch.nn.functional.linear
    u, z = linear(t["x"], t["in_weight"]).chunk(2, dim=-1)
    (u,) = causal_conv({"x": u, "weight": t["conv_weight"], "bias": t["conv_bias"]})
    rank, states = t["dt_weight"].shape[1], t["A"].shape[1]
    low, B, C = linear(u, t["x_weight"]).split([rank, states, states], dim=-1)
    scanned = {"u": u, "delta": linear(low, t["dt_weight"]), "B": B, "C": C, "z": z, "delta_bias": t["dt_bias"]}
    (y,) = selective_scan({**scanned, "A": t["A"], "D": t["D"]})
    return (linear(y, t["out_weight"]),)


def mamba2_inner(t: Tensors) -> tuple[Tensor, ...]:
    """The same for Mamba-2; one group."""
    linear, (channels, mixed) = torch.nn.functional.linear, (t["norm_weight"].shape[0], t["conv_weight"].shape[0])
    z, u, dt = linear(t["x"], t["in_weight"]).split([channels, mixed, t["A"].shape[0]], dim=-1)
    (u,) = causal_conv({"x": u, "weight": t["conv_weight"], "bias": t["conv_bias"]})
    x, B, C = u.split([channels, (mixed - channels) // 2, (mixed - channels) // 2], dim=-1)
    scanned = {"x": x.unflatten(2, (t["A"].shape[0], -1)), "dt": dt, "B": B.unsqueeze(2), "C": C.unsqueeze(2)}
    (y,) = ssd_scan({**scanned, **{name: t[name] for name in ("A", "D", "dt_bias")}})
    (y,) = gated_rms_norm({"x": y.flatten(2), "z": z, "weight": t["norm_weight"]})
    return (linear(y, t["out_weight"]),)


def attention(t: Tensors, rows: Tensor) -> tuple[Tensor, ...]:
    """Y (B, H, l, P) of the sampled queries, which stand at ``rows``."""
    scores = t["q"] @ t["k"].transpose(2, 3) / math.sqrt(t["q"].shape[-1])
    late = torch.arange(t["k"].shape[2], device=rows.device) > rows.unsqueeze(1)
    return (torch.softmax(scores.masked_fill(late, -math.inf), -1) @ t["v"],)
