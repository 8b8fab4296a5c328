"""From tokens and numbers to hidden states.

Legend: B batch, L length, C float channels, D channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from seqkit.backbones.parameters import Linear
from seqkit.errors import ShapeError


class Embedding(nn.Module):
    """Token embedding plus a projection of float channels; either may be absent.

    Args:
        d_model: Width D.
        vocab_size: Rows of the token embedding; 0 for none.
        n_channels: Float channels C; 0 for none.
    """

    def __init__(self, d_model: int, *, vocab_size: int = 0, n_channels: int = 0):
        super().__init__()
        self.n_channels = n_channels
        self.tokens = nn.Embedding(vocab_size, d_model) if vocab_size else None
        self.channels = Linear(n_channels, d_model, bias=vocab_size == 0) if n_channels else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the token embedding with standard deviation 0.02, as the original models do."""
        if self.tokens is not None:
            nn.init.normal_(self.tokens.weight, std=0.02)

    def forward(self, ids_BL: Tensor | None, channels_BLC: Tensor | None = None) -> Tensor:
        """Embed a batch.

        Args:
            ids_BL: Token ids of any integer type; None for numeric input only.
            channels_BLC: Float channels (B, L, C); None only if the module has none.

        Returns:
            Hidden states (B, L, D) in the weights' dtype. One position (B,), (B, C) gives (B, D).

        Raises:
            ShapeError: An input is missing, not wanted, or of the wrong width.
        """
        self._check("ids", ids_BL is not None, self.tokens is not None)
        self._check("channels", channels_BLC is not None, self.channels is not None)
        hidden = 0
        if self.tokens is not None:
            hidden = self.tokens(ids_BL.int() if ids_BL.dtype not in (torch.int32, torch.int64) else ids_BL)
        if self.channels is not None:
            if channels_BLC.shape[-1] != self.n_channels:
                got = f"shape {tuple(channels_BLC.shape)}"
                raise ShapeError("channels", expected=f"{self.n_channels} in the last dimension", got=got)
            hidden = hidden + self.channels(channels_BLC)
        return hidden

    @staticmethod
    def _check(name: str, given: bool, wanted: bool) -> None:
        if given != wanted:
            expected, got = ("a tensor", "None") if wanted else ("None", "a tensor")
            raise ShapeError(
                name, expected=expected, got=got, remedy="vocab_size and n_channels say what a backbone reads."
            )
