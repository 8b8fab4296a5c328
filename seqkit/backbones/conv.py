"""The short causal convolution in front of a scan.

Legend: B batch, L length, D channels, W width, S sequences.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from seqkit.backbones.parameters import KeepsFloat32
from seqkit.kernels import causal_conv, conv_step


class DepthwiseConv(KeepsFloat32):
    """Causal depthwise convolution followed by SiLU.

    Parameters have the names, shapes and initial distribution of ``nn.Conv1d(D, D, W, groups=D)``.

    Args:
        channels: Width D.
        width: Taps W.
        bias: Whether to add a bias.
    """

    float32_parameters = ("bias",)

    def __init__(self, channels: int, width: int, bias: bool = True):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 1, width))
        self.bias = nn.Parameter(torch.empty(channels, dtype=torch.float32)) if bias else None
        self.mark_parameters()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weights and bias uniformly within 1 / sqrt(W)."""
        bound = self.weight.shape[-1] ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(
        self, x_BLD: Tensor, state: Tensor | None, *, cu_seqlens: Tensor | None, reverse: bool
    ) -> tuple[Tensor, Tensor]:
        """Convolve (B, L, D), starting behind ``state`` (S, W - 1, D); returns y and the next state."""
        return causal_conv(
            x_BLD,
            self.weight[:, 0],
            bias=self.bias,
            activation="silu",
            initial_state=state,
            return_final_state=True,
            reverse=reverse,
            cu_seqlens=cu_seqlens,
        )

    def step(self, x_BD: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Convolve one token per sequence."""
        return conv_step(x_BD, self.weight[:, 0], state, bias=self.bias, activation="silu")

    def initial_state(self, batch: int) -> Tensor:
        """Zeros (batch, W - 1, D) in float32, or float64 for a float64 module."""
        channels, _, width = self.weight.shape
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        return self.weight.new_zeros(batch, width - 1, channels, dtype=dtype)
