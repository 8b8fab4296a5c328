"""Which provider runs an op: PyTorch reference or Triton, by device, dtype and ``SEQKIT_KERNELS``."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType

import torch

from seqkit.errors import ConfigError
from seqkit.kernels import devices

ENVIRONMENT_VARIABLE = "SEQKIT_KERNELS"
CHOICES = ("auto", "reference", "triton")

# provider -> op -> module that implements it; a provider without a row for an op cannot run that op
PROVIDERS: dict[str, dict[str, str]] = {
    "reference": {
        "selective_scan": "seqkit.kernels.selective.reference",
        "ssd_scan": "seqkit.kernels.ssd.reference",
        "mamba3_scan": "seqkit.kernels.mamba3.reference",
        "mamba3_mimo": "seqkit.kernels.mamba3.reference",
        "causal_conv": "seqkit.kernels.conv.reference",
        "rms_norm": "seqkit.kernels.norm.reference",
        "gated_rms_norm": "seqkit.kernels.norm.reference",
        "selective_step": "seqkit.kernels.steps.reference",
        "ssd_step": "seqkit.kernels.steps.reference",
        "conv_step": "seqkit.kernels.steps.reference",
    },
    "triton": {
        "selective_scan": "seqkit.kernels.selective.triton_provider",
        "mamba3_scan": "seqkit.kernels.mamba3.triton_provider",
        "ssd_scan": "seqkit.kernels.ssd.triton_provider",
        "causal_conv": "seqkit.kernels.conv.triton_provider",
        "rms_norm": "seqkit.kernels.norm.triton_provider",
        "gated_rms_norm": "seqkit.kernels.norm.triton_provider",
        "selective_step": "seqkit.kernels.steps.triton_provider",
        "ssd_step": "seqkit.kernels.steps.triton_provider",
        "conv_step": "seqkit.kernels.steps.triton_provider",
    },
}


_PLANNING_FOR_GPU = False

# looked up once, here: torch.compile cannot trace the search
_TRITON_FOUND = importlib.util.find_spec("triton") is not None


def triton_installed() -> bool:
    """Whether Triton can be imported (without importing it)."""
    return _TRITON_FOUND


def on_gpu(x: torch.Tensor) -> bool:
    """Whether ``x`` lies on a GPU, or is meant to under :func:`planning_for_gpu`."""
    return x.is_cuda or _PLANNING_FOR_GPU


@contextmanager
def planning_for_gpu() -> Iterator[None]:
    """Ops choose as for operands on a GPU, to count the memory of fake tensors; real ones must not run here."""
    global _PLANNING_FOR_GPU
    before, _PLANNING_FOR_GPU = _PLANNING_FOR_GPU, True
    try:
        yield
    finally:
        _PLANNING_FOR_GPU = before


def provider_for(op: str, x: torch.Tensor, *others: torch.Tensor | None) -> str:
    """Name of the provider that ``op`` uses for operands like ``x``.

    Args:
        op: Name of a public op, for example ``"selective_scan"``.
        x: Its first operand; device and dtype decide under ``SEQKIT_KERNELS=auto``.
        others: Its other activations: a card without bfloat16 runs the reference if any of them is bfloat16.

    Returns:
        ``"reference"`` or ``"triton"``.

    Raises:
        ConfigError: ``SEQKIT_KERNELS`` is unknown, the op is unknown, or Triton was asked for by name and cannot
            run this op on these operands.
    """
    choice = os.environ.get(ENVIRONMENT_VARIABLE, "auto")
    if choice not in CHOICES:
        raise ConfigError(ENVIRONMENT_VARIABLE, expected="one of " + ", ".join(CHOICES), got=repr(choice))
    if op not in PROVIDERS["reference"]:
        known = ", ".join(sorted(PROVIDERS["reference"]))
        raise ConfigError("op", expected=f"one of {known}", got=repr(op))
    if choice == "triton":
        _require_triton(op, x, others)
        return "triton"
    if choice == "reference" or not on_gpu(x) or x.dtype == torch.float64 or _lacks_bfloat16(x, others):
        return "reference"
    return "triton" if op in PROVIDERS["triton"] and triton_installed() else "reference"


def _lacks_bfloat16(x: torch.Tensor, others: tuple[torch.Tensor | None, ...]) -> bool:
    """Whether an operand is bfloat16 on a GPU that has no instructions for it."""
    narrow = any(t is not None and t.dtype == torch.bfloat16 for t in (x, *others))
    return narrow and x.is_cuda and not devices.has_bfloat16(devices.capability(x.device.index))


def _require_triton(op: str, x: torch.Tensor, others: tuple[torch.Tensor | None, ...]) -> None:
    remedy = f"Set {ENVIRONMENT_VARIABLE}=auto or reference."
    if op not in PROVIDERS["triton"]:
        raise ConfigError(
            ENVIRONMENT_VARIABLE, expected=f"a provider with a kernel for {op}", got="'triton'", remedy=remedy
        )
    if not triton_installed():
        raise ConfigError(ENVIRONMENT_VARIABLE, expected="an installed Triton", got="'triton'", remedy=remedy)
    if x.dtype == torch.float64:
        raise ConfigError(ENVIRONMENT_VARIABLE, expected="a provider that runs float64", got="'triton'", remedy=remedy)
    if _lacks_bfloat16(x, others):
        expected = "a GPU of compute capability 8.0 or higher for bfloat16"
        remedy = f"Use float16 or float32 operands, or set {ENVIRONMENT_VARIABLE}=auto or reference."
        raise ConfigError(ENVIRONMENT_VARIABLE, expected=expected, got=f"'triton' on {x.device}", remedy=remedy)
    if not x.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        where = f"operands on an NVIDIA GPU, or TRITON_INTERPRET=1 before Triton is imported, for {op}"
        raise ConfigError(ENVIRONMENT_VARIABLE, expected=where, got=f"'triton' on {x.device.type}", remedy=remedy)


def implementation(op: str, provider: str) -> ModuleType:
    """Module of ``provider`` that implements ``op``; imported on first use, so Triton loads only where it runs."""
    return _imported(PROVIDERS[provider][op])


@cache
def _imported(name: str) -> ModuleType:
    return importlib.import_module(name)
