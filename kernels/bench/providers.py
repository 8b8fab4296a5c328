"""Who computes an op: ours, through ``SEQKIT_KERNELS``, and other packages where they are installed.

Each takes the operands of ``operations.py``; packages that want channels before time get them so, outside the timing.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from seqkit import kernels
from seqkit.kernels import dispatch
from seqkit.kernels.bench.operations import Sizes, Tensors

OURS = ("triton", "reference")
PACKAGES = {  # provider -> (module, distribution)
    "mamba_ssm": ("mamba_ssm", "mamba_ssm"),
    "causal_conv1d": ("causal_conv1d", "causal_conv1d"),
    "flash-linear-attention": ("fla", "flash-linear-attention"),
    "mambapy": ("mambapy", "mambapy"),
}
SCANS = {"mamba1_inner": "selective_scan", "mamba2_inner": "ssd_scan"}  # inside an op of several
# beyond this many tokens they take minutes, or keep every hidden state several times over
LONGEST = {"mambapy": 16_384, "reference": {"cpu": 1 << 40, "cuda": 4096}}


@dataclass(frozen=True)
class Implementation:
    """One provider of one op.

    Attributes:
        run: Outputs from operands and sizes.
        channel_first: Operands and outputs whose dimensions 1 and 2 it wants, and gives, swapped.
    """

    run: Callable[[Tensors, Sizes], tuple[Tensor, ...]]
    channel_first: tuple[str, ...] = ()

    def native(self, name: str, x: Tensor) -> Tensor:
        """In the provider's layout, or from it: swapping is its own inverse."""
        return x.transpose(1, 2).contiguous() if name in self.channel_first else x


@contextmanager
def chosen(provider: str) -> Iterator[None]:
    """Ours under a provider's name; other packages are left alone."""
    before = os.environ.get(dispatch.ENVIRONMENT_VARIABLE)
    if provider in OURS:
        os.environ[dispatch.ENVIRONMENT_VARIABLE] = provider
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(dispatch.ENVIRONMENT_VARIABLE, None)
        else:
            os.environ[dispatch.ENVIRONMENT_VARIABLE] = before


def available(op: str, provider: str, device: str) -> bool:
    """Whether a provider can run an op on this machine."""
    if provider == "triton":
        return device == "cuda" and SCANS.get(op, op) in dispatch.PROVIDERS["triton"] and dispatch.triton_installed()
    if provider in PACKAGES and importlib.util.find_spec(PACKAGES[provider][0]) is None:
        return False
    return device == "cuda" or provider in ("reference", "mambapy", "sdpa")


def longest(provider: str, device: str) -> int:
    """Largest L that a provider is timed at."""
    limit = LONGEST.get(provider, 1 << 40)
    return limit[device] if isinstance(limit, dict) else limit


def version(provider: str) -> str:
    """Version of the package behind a provider; empty for ours and PyTorch's."""
    return importlib.metadata.version(PACKAGES[provider][1]) if provider in PACKAGES else ""


def _selective(t: Tensors, s: Sizes) -> tuple[Tensor, ...]:
    operands = (t[name] for name in ("u", "delta", "A", "B", "C"))
    options = {name: t[name] for name in ("D", "z", "delta_bias")}
    return (kernels.selective_scan(*operands, delta_softplus=True, **options),)


def _selective_mamba_ssm(t: Tensors, s: Sizes) -> tuple[Tensor, ...]:
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    return (selective_scan_fn(**t, delta_softplus=True),)


def _selective_mambapy(t: Tensors, s: Sizes) -> tuple[Tensor, ...]:
    from mambapy.pscan import pscan

    delta = torch.nn.functional.softplus(t["delta"] + t["delta_bias"]).unsqueeze(3)
    writes = delta * t["B"].unsqueeze(2) * t["u"].unsqueeze(3)
    states = pscan(torch.exp(delta * t["A"]), writes)
    y = (states @ t["C"].unsqueeze(3)).squeeze(3) + t["D"] * t["u"]
    return (y * torch.nn.functional.silu(t["z"]),)


def _ssd(t: Tensors, s: Sizes) -> tuple[Tensor, ...]:
    operands = (t[name] for name in ("x", "dt", "A", "B", "C"))
    return (kernels.ssd_scan(*operands, D=t["D"], dt_bias=t["dt_bias"], dt_softplus=True),)


def _ssd_mamba_ssm(t: Tensors, s: Sizes) -> tuple[Tensor, ...]:
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

    operands = (t[name] for name in ("x", "dt", "A", "B", "C"))
    return (mamba_chunk_scan_combined(*operands, chunk_size=256, D=t["D"], dt_bias=t["dt_bias"], dt_softplus=True),)


def _ssd_fla(t: Tensors, s: Sizes) -> tuple[Tensor, ...]:
    from fla.ops.simple_gla import chunk_simple_gla

    dt = torch.nn.functional.softplus(t["dt"].float() + t["dt_bias"])
    B, C = (t[name].expand(-1, -1, s["H"], -1) for name in ("B", "C"))
    values = (t["x"] * dt.unsqueeze(3)).to(t["x"].dtype)
    y, _ = chunk_simple_gla(q=C, k=B, v=values, g=dt * t["A"], scale=1.0)
    return (y + (t["D"].unsqueeze(1) * t["x"]).to(y.dtype),)


def _conv(t: Tensors, s: Sizes) -> tuple[Tensor, ...]:
    return (kernels.causal_conv(t["x"], t["weight"], bias=t["bias"], activation="silu"),)


def _conv_causal_conv1d(t: Tensors, s: Sizes) -> tuple[Tensor, ...]:
    from causal_conv1d import causal_conv1d_fn

    x = t["x"].transpose(1, 2)  # channel-last in memory, which the package knows by its strides
    return (causal_conv1d_fn(x, t["weight"].to(x.dtype), t["bias"].to(x.dtype), activation="silu").transpose(1, 2),)


def _norm(t: Tensors, s: Sizes) -> tuple[Tensor, ...]:
    return kernels.rms_norm(t["x"], t["weight"], residual=t["residual"])


def _norm_mamba_ssm(t: Tensors, s: Sizes) -> tuple[Tensor, ...]:
    from mamba_ssm.ops.triton.layer_norm import rms_norm_fn

    options = {"residual": t["residual"], "eps": 1e-5, "prenorm": True, "residual_in_fp32": True}
    return rms_norm_fn(t["x"], t["weight"], None, **options)


def _gated(t: Tensors, s: Sizes) -> tuple[Tensor, ...]:
    return (kernels.gated_rms_norm(t["x"], t["z"], t["weight"]),)


def _gated_mamba_ssm(t: Tensors, s: Sizes) -> tuple[Tensor, ...]:
    from mamba_ssm.ops.triton.layernorm_gated import rmsnorm_fn

    return (rmsnorm_fn(t["x"], t["weight"], None, z=t["z"], eps=1e-5, norm_before_gate=False),)


def _inner(t: Tensors, s: Sizes) -> tuple[Tensor, ...]:
    return (kernels.selective_inner(**t, slab=s["slab"] or None)[0],)


def _mamba2(t: Tensors, s: Sizes) -> tuple[Tensor, ...]:
    return (kernels.ssd_inner(**t, slab=s["slab"] or None, keep=not s["slab"])[0],)


def _inner_mamba_ssm(t: Tensors, s: Sizes) -> tuple[Tensor, ...]:
    from mamba_ssm.ops.selective_scan_interface import mamba_inner_fn

    projected = torch.matmul(t["in_weight"], t["x"].transpose(1, 2))
    weights = (t["conv_weight"].unsqueeze(1), t["conv_bias"], t["x_weight"], t["dt_weight"], t["out_weight"], None)
    return (mamba_inner_fn(projected, *weights, t["A"], None, None, t["D"], t["dt_bias"], delta_softplus=True),)


def _inner_mambapy(t: Tensors, s: Sizes) -> tuple[Tensor, ...]:
    from mambapy.mamba import MambaBlock, MambaConfig

    config = MambaConfig(d_model=s["M"], n_layers=1, d_state=s["N"], d_conv=s["W"], dt_rank=s["R"])
    weights = {
        "in_proj.weight": t["in_weight"],
        "conv1d.weight": t["conv_weight"].unsqueeze(1),
        "conv1d.bias": t["conv_bias"],
        "x_proj.weight": t["x_weight"],
        "dt_proj.weight": t["dt_weight"],
        "dt_proj.bias": t["dt_bias"],
        "A_log": torch.log(-t["A"]),
        "D": t["D"],
        "out_proj.weight": t["out_weight"],
    }
    return (torch.func.functional_call(MambaBlock(config), weights, (t["x"],)),)


def _attention(t: Tensors, s: Sizes) -> tuple[Tensor, ...]:
    return (torch.nn.functional.scaled_dot_product_attention(t["q"], t["k"], t["v"], is_causal=True),)


def _ours(run: Callable[[Tensors, Sizes], tuple[Tensor, ...]]) -> dict[str, Implementation]:
    return {name: Implementation(run) for name in OURS}


PROVIDERS: dict[str, dict[str, Implementation]] = {
    "selective_scan": {
        **_ours(_selective),
        "mamba_ssm": Implementation(_selective_mamba_ssm, ("u", "delta", "B", "C", "z", "y")),
        "mambapy": Implementation(_selective_mambapy),
    },
    "ssd_scan": {
        **_ours(_ssd),
        "mamba_ssm": Implementation(_ssd_mamba_ssm),
        "flash-linear-attention": Implementation(_ssd_fla),
    },
    "causal_conv": {**_ours(_conv), "causal_conv1d": Implementation(_conv_causal_conv1d)},
    "rms_norm": {**_ours(_norm), "mamba_ssm": Implementation(_norm_mamba_ssm)},
    "gated_rms_norm": {**_ours(_gated), "mamba_ssm": Implementation(_gated_mamba_ssm)},
    "mamba1_inner": {
        **_ours(_inner),
        "mamba_ssm": Implementation(_inner_mamba_ssm),
        "mambapy": Implementation(_inner_mambapy),
    },
    "mamba2_inner": _ours(_mamba2),
    "attention": {"sdpa": Implementation(_attention)},
}
NAMES = tuple(dict.fromkeys(name for providers in PROVIDERS.values() for name in providers))
