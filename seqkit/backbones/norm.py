"""Root-mean-square norms.

Legend: B batch, L length, D channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from seqkit.backbones.parameters import KeepsFloat32
from seqkit.kernels import gated_rms_norm, rms_norm


class RMSNorm(KeepsFloat32):
    """RMSNorm that can add a residual first.

    Args:
        d_model: Width D.
        eps: Added to the mean square.

    Reference: Zhang and Sennrich 2019, Root mean square layer normalization.
    """

    float32_parameters = ("weight",)

    def __init__(self, d_model: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d_model, dtype=torch.float32))
        self.mark_parameters()

    def reset_parameters(self) -> None:
        """Set the weight to one."""
        nn.init.ones_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (..., D)."""
        return rms_norm(x, self.weight, eps=self.eps)


class GatedRMSNorm(KeepsFloat32):
    """RMSNorm of ``x * silu(z)`` over groups of channels, as the original Mamba-2 block has it.

    Args:
        d_inner: Width D.
        group_size: Channels per group; divides ``d_inner``.
        eps: Added to the mean square.
    """

    float32_parameters = ("weight",)

    def __init__(self, d_inner: int, *, group_size: int, eps: float = 1e-5):
        super().__init__()
        self.group_size, self.eps = group_size, eps
        self.weight = nn.Parameter(torch.ones(d_inner, dtype=torch.float32))
        self.mark_parameters()

    def reset_parameters(self) -> None:
        """Set the weight to one."""
        nn.init.ones_(self.weight)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """Gate and normalise (..., D)."""
        return gated_rms_norm(x, z, self.weight, eps=self.eps, group_size=self.group_size, norm_before_gate=False)
