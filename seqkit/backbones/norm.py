"""Root-mean-square norms."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from seqkit.backbones.parameters import KeepsFloat32
from seqkit.kernels import gated_rms_norm, rms_norm


class RMSNorm(KeepsFloat32):
    """RMSNorm over the last dimension.

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


class ResidualNorm(RMSNorm):
    """Adds a block's output to the residual stream and normalises the sum, in one pass over memory.

    Args:
        d_model: Width D.
        eps: Added to the mean square.
        in_fp32: Whether the stream is float32 (float64 for float64 input) whatever the blocks compute in.
    """

    def __init__(self, d_model: int, eps: float = 1e-5, *, in_fp32: bool = True):
        super().__init__(d_model, eps)
        self.in_fp32 = in_fp32

    def forward(self, y: Tensor, stream: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the normalised sum in y's dtype, and the sum.

        Args:
            y: What the last block adds (..., D); the embedding in front of the first block.
            stream: Sum so far (..., D); None in front of the first block.
        """
        if self.in_fp32 and stream is not None:
            return rms_norm(y, self.weight, residual=stream, eps=self.eps)
        if self.in_fp32:
            return super().forward(y), self.add(y, None)
        stream = self.add(y, stream)
        return super().forward(stream), stream

    def add(self, y: Tensor, stream: Tensor | None) -> Tensor:
        """The sum alone, in the stream's precision."""
        if stream is not None:
            return stream + y
        return y.to(torch.promote_types(y.dtype, torch.float32)) if self.in_fp32 else y

    @torch.no_grad()
    def again(self, stream_BLD: Tensor, dtype: torch.dtype) -> Tensor:
        """The normalised sum (B, L, D) from the sum, in ``dtype``: what :meth:`forward` gave, for a backward pass."""
        return rms_norm(stream_BLD, self.weight, eps=self.eps, dtype=dtype)


class GatedRMSNorm(KeepsFloat32):
    """RMSNorm of ``x * silu(z)`` over groups of channels, as the original Mamba-2 block has it.

    With ``norm_before_gate`` x is normalised alone, as in Mamba-3.

    Args:
        d_inner: Width D.
        group_size: Channels per group; divides ``d_inner``.
        eps: Added to the mean square.
        norm_before_gate: Gate after the norm instead of before.
    """

    float32_parameters = ("weight",)

    def __init__(self, d_inner: int, *, group_size: int, eps: float = 1e-5, norm_before_gate: bool = False):
        super().__init__()
        self.group_size, self.eps, self.norm_before_gate = group_size, eps, norm_before_gate
        self.weight = nn.Parameter(torch.ones(d_inner, dtype=torch.float32))
        self.mark_parameters()

    def reset_parameters(self) -> None:
        """Set the weight to one."""
        nn.init.ones_(self.weight)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """Gate and normalise (..., D)."""
        order = self.norm_before_gate
        return gated_rms_norm(x, z, self.weight, eps=self.eps, group_size=self.group_size, norm_before_gate=order)
