"""Float64 oracles: every op as its recurrence reads on paper, one token after another.

They share no code with any provider and are the only place with a loop over L. Gradients come from autograd.

Legend: B batch, L length, S segments, D channels, N states, G groups, H heads, P head channels, W taps, M rotated
pairs, R rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Tensors = dict[str, Tensor]


def _softplus(x: Tensor) -> Tensor:
    return x.clamp(min=0) + torch.log1p(torch.exp(-x.abs()))


def _gated(y: Tensor, z: Tensor | None) -> Tensor:
    return y if z is None else y * z / (1 + torch.exp(-z))


def _by_segment(
    tensors: Tensors, time: tuple[str, ...], settings: dict, segment: Callable[[Tensors], tuple]
) -> tuple[Tensor, ...]:
    """Run ``segment`` on every sequence by itself, (1, L, ...) at a time, in scan order."""
    cu_seqlens = settings.get("cu_seqlens")
    first = tensors[time[0]]
    if cu_seqlens is None:
        spans = [(b, 0, first.shape[1]) for b in range(first.shape[0])]
    else:
        bounds = cu_seqlens.tolist()
        spans = [(0, bounds[s], bounds[s + 1]) for s in range(len(bounds) - 1)]
    rows: list[list[Tensor]] = [[] for _ in range(first.shape[0])]
    finals = []
    for s, (b, begin, end) in enumerate(spans):
        part = dict(tensors)
        for name in time:
            if name in tensors:
                piece = tensors[name][b, begin:end]
                part[name] = piece.flip(0) if settings.get("reverse") else piece
        for name in tensors:
            if name.startswith("initial_state"):
                part[name] = tensors[name][s]
        y, final = segment(part)
        rows[b].append(y.flip(0) if settings.get("reverse") else y)
        finals.append(final)
    y = torch.stack([torch.cat(pieces) for pieces in rows]) if rows else first.new_zeros(first.shape)
    if finals and isinstance(finals[0], tuple):
        return y, *(torch.stack(each) for each in zip(*finals, strict=True))
    return y, torch.stack(finals) if finals else first.new_zeros(0)


def selective_scan(tensors: Tensors, settings: dict) -> tuple[Tensor, Tensor]:
    """(y, final state) of the Mamba-1 recurrence."""

    def segment(t: Tensors) -> tuple[Tensor, Tensor]:
        delta = t["delta"] + t["delta_bias"] if "delta_bias" in t else t["delta"]
        if settings.get("delta_softplus"):
            delta = _softplus(delta)
        D, N = t["A"].shape
        h = t.get("initial_state", t["A"].new_zeros(D, N))
        ys = [t["u"].new_zeros(0, D)]
        for i in range(t["u"].shape[0]):
            B, C = (w[i].reshape(-1, N) for w in (t["B"], t["C"]))
            B, C = (w.repeat_interleave(D // w.shape[0], 0) for w in (B, C))
            h = torch.exp(delta[i, :, None] * t["A"]) * h + (delta[i] * t["u"][i])[:, None] * B
            y = (C * h).sum(1)
            ys.append((y + t["D"] * t["u"][i] if "D" in t else y)[None])
        return _gated(torch.cat(ys), t.get("z")), h

    return _by_segment(tensors, ("u", "delta", "B", "C", "z"), settings, segment)


def ssd_scan(tensors: Tensors, settings: dict) -> tuple[Tensor, Tensor]:
    """(y, final state) of the Mamba-2 recurrence."""

    def segment(t: Tensors) -> tuple[Tensor, Tensor]:
        dt = t["dt"] + t["dt_bias"] if "dt_bias" in t else t["dt"]
        if settings.get("dt_softplus"):
            dt = _softplus(dt)
        dt = dt.clamp(settings.get("dt_min", 0.0), settings.get("dt_max", float("inf")))
        (L, H, P), N = t["x"].shape, t["B"].shape[-1]
        h = t.get("initial_state", t["A"].new_zeros(H, P, N))
        skip = t["D"].reshape(H, -1) if "D" in t else t["A"].new_zeros(H, 1)
        ys = [t["x"].new_zeros(0, H, P)]
        for i in range(L):
            B, C = (t[name][i].repeat_interleave(H // t[name].shape[1], 0) for name in ("B", "C"))
            write = dt[i, :, None, None] * t["x"][i][:, :, None] * B[:, None, :]
            h = torch.exp(dt[i] * t["A"])[:, None, None] * h + write
            ys.append(((h * C[:, None, :]).sum(2) + skip * t["x"][i])[None])
        return _gated(torch.cat(ys), t.get("z")), h

    return _by_segment(tensors, ("x", "dt", "B", "C", "z"), settings, segment)


def _rotated(x: Tensor, theta: Tensor, pairing: str) -> Tensor:
    """States (R, H, N) turned by (H, M) angles, pair by pair."""
    out = list(x.unbind(-1))
    for m in range(theta.shape[-1]):
        i, j = (2 * m, 2 * m + 1) if pairing == "adjacent" else (m, m + x.shape[-1] // 2)
        cos, sin = theta[:, m].cos(), theta[:, m].sin()
        out[i], out[j] = x[..., i] * cos - x[..., j] * sin, x[..., i] * sin + x[..., j] * cos
    return torch.stack(out, -1)


def mamba3_scan(tensors: Tensors, settings: dict) -> tuple[Tensor, ...]:
    """(y, final theta in [-pi, pi), ssm, k, v) of the Mamba-3 recurrence."""
    pairing, floor = settings.get("pairing", "adjacent"), settings.get("A_floor", 1e-4)
    ranked = "mimo_x" in tensors

    def segment(t: Tensors) -> tuple[Tensor, tuple[Tensor, ...]]:
        (L, H, P), N, M = t["x"].shape, t["B"].shape[-1], t["angles"].shape[-1]
        R = t["B"].shape[1] if ranked else 1
        ones = t["x"].new_ones(H, R, P)
        mimo_x, mimo_z, mimo_o = (t.get(name, ones) for name in ("mimo_x", "mimo_z", "mimo_o"))
        A, delta = t["A"], _softplus(t["dt"] + t.get("dt_bias", 0.0))
        f = _softplus(A) if settings.get("decay") == "softplus" else torch.where(A < 0, 1 / (1 + A.abs()), 1 + A)
        alpha, share = torch.exp(-delta * f.clamp(min=floor)), 1 / (1 + torch.exp(-t["trap"]))
        theta, h, k_before, x_before = (
            t.get("initial_state." + name, A.new_zeros(shape))
            for name, shape in (("theta", (H, M)), ("ssm", (H, P, N)), ("k", (R, H, N)), ("v", (H, P)))
        )
        skip = t["D"].reshape(H, 1, -1) if "D" in t else A.new_zeros(H, 1, 1)
        ys = [t["x"].new_zeros((0, R, H, P) if ranked and "mimo_o" not in t else (0, H, P))]
        for i in range(L):
            theta = theta + delta[i, :, None] * math.pi * torch.tanh(t["angles"][i])
            keys = []
            for name in ("B", "C"):
                heads = t[name][i].reshape(R, -1, N).repeat_interleave(H // t[name].shape[-2], 1)
                bias = t.get(name + "_bias", A.new_zeros(H, R, N)).reshape(H, R, N)
                keys.append(_rotated(heads + bias.transpose(0, 1), theta, pairing))
            k, q = keys
            before = torch.einsum("hrp,rhn->hpn", x_before[:, None] * mimo_x, k_before)
            v = t["x"][i][:, None] * mimo_x
            h = alpha[i, :, None, None] * (h + ((1 - share[i]) * delta[i])[:, None, None] * before)
            h = h + (share[i] * delta[i])[:, None, None] * torch.einsum("hrp,rhn->hpn", v, k)
            y = torch.einsum("hpn,rhn->hrp", h, q) + skip * v
            if ranked and "mimo_o" not in t:
                ys.append(y.transpose(0, 1)[None])
            else:
                ys.append((mimo_o * _gated(y, t["z"][i][:, None] * mimo_z if "z" in t else None)).sum(1)[None])
            k_before, x_before = k, t["x"][i]
        theta = torch.remainder(theta + math.pi, 2 * math.pi) - math.pi
        return torch.cat(ys), (theta, h, k_before, x_before)

    return _by_segment(tensors, ("x", "dt", "A", "trap", "B", "C", "angles", "z"), settings, segment)


def causal_conv(tensors: Tensors, settings: dict) -> tuple[Tensor, Tensor]:
    """(y, final state) of the depthwise causal convolution."""

    def segment(t: Tensors) -> tuple[Tensor, Tensor]:
        D, W = t["weight"].shape
        window = t.get("initial_state", t["x"].new_zeros(W - 1, D))
        ys = [t["x"].new_zeros(0, D)]
        for i in range(t["x"].shape[0]):
            window = torch.cat([window, t["x"][i : i + 1]])
            y = (window * t["weight"].t()).sum(0)
            ys.append((y + t["bias"] if "bias" in t else y)[None])
            window = window[1:]
        y = torch.cat(ys)
        return _gated(torch.ones_like(y), y) if settings.get("activation") == "silu" else y, window

    return _by_segment(tensors, ("x",), settings, segment)


def rms_norm(tensors: Tensors, settings: dict) -> tuple[Tensor, ...]:
    """(y,), or (y, x + residual)."""
    total = tensors["x"] + tensors["residual"] if "residual" in tensors else tensors["x"]
    y = total / (total.pow(2).mean(-1, keepdim=True) + settings.get("eps", 1e-5)).sqrt() * tensors["weight"]
    return (y, total) if "residual" in tensors else (y,)


def gated_rms_norm(tensors: Tensors, settings: dict) -> tuple[Tensor, ...]:
    """(y,)."""
    x, z, weight = tensors["x"], tensors["z"], tensors["weight"]
    h = x if settings.get("norm_before_gate") else _gated(x, z)
    pieces = []
    size = settings.get("group_size") or x.shape[-1]
    for begin in range(0, x.shape[-1], size):
        part = h[..., begin : begin + size]
        scale = (part.pow(2).mean(-1, keepdim=True) + settings.get("eps", 1e-5)).sqrt()
        pieces.append(part / scale * weight[begin : begin + size])
    y = torch.cat(pieces, -1)
    return (_gated(y, z) if settings.get("norm_before_gate") else y,)


ORACLES = {
    "selective_scan": selective_scan,
    "ssd_scan": ssd_scan,
    "mamba3_scan": mamba3_scan,
    "causal_conv": causal_conv,
    "rms_norm": rms_norm,
    "gated_rms_norm": gated_rms_norm,
}
