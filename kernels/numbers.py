"""Numerics that all reference ops share: accumulation dtype, softplus, silu."""

from __future__ import annotations

import torch

LOG2_E = 1.4426950408889634  # exp(x) = exp2(x * LOG2_E); exp2 is the cheaper of the two on CPUs and GPUs


def accumulate_dtype(x: torch.Tensor) -> torch.dtype:
    """float64 operands run in float64, all others in float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def softplus(x: torch.Tensor) -> torch.Tensor:
    """log(1 + exp(x)) to a relative 1e-6 over [-20, 50].

    log1p keeps the small end exact; the identity takes over only where exp(-x) is below the last bit of x.
    """
    return torch.nn.functional.softplus(x, beta=1.0, threshold=50.0)


def silu_and_derivative(z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """silu(z) and its derivative."""
    sigmoid = torch.sigmoid(z)
    value = z * sigmoid
    return value, sigmoid + value * (1 - sigmoid)
