"""What the scan mixers share: projections around a core that scans.

A core owns everything that belongs to one direction (convolution, scan parameters, norm). A mixer puts an input and an
output projection around one core, a bidirectional mixer around two.

Legend: B batch, L length, D channels, E width of the input projection, S sequences.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from seqkit.backbones.parameters import KeepsFloat32


class ScanCore(KeepsFloat32):
    """What belongs to one direction of a scan mixer.

    Attributes:
        slab: Positions that a pass over a longer sequence takes at a time, projections included; None takes all.
        recompute: Whether shorter sequences are one slab when gradients are wanted: all that is kept is the input.
    """

    slab: int | None = None
    recompute: bool = False

    def takes_slabs(self, x_BLD: Tensor) -> bool:
        """Whether this input goes through ``scan_slabs``, which keeps the input and the states between slabs."""
        length = x_BLD.shape[1]
        if self.slab is not None and length > self.slab:
            return True
        return self.recompute and length > 0 and torch.is_grad_enabled()


class ProjectedMixer(nn.Module):
    """A core between ``in_proj`` and ``out_proj``, which the subclass makes."""

    in_proj: nn.Module
    out_proj: nn.Module

    def forward(
        self,
        x_BLD: Tensor,
        state: Any = None,
        *,
        cu_seqlens: Tensor | None = None,
        reverse: bool = False,
    ) -> tuple[Tensor, Any]:
        """Mix positions, causally in scan order.

        Args:
            x_BLD: Input (B, L, D).
            state: State behind the token before the first; None for zeros.
            cu_seqlens: (S + 1,) int32 bounds of packed segments (B = 1); the state then has S rows.
            reverse: Scan every segment from its end; the state enters there.

        Returns:
            y (B, L, D) and the state behind the last token in scan order.
        """
        if self.takes_slabs(x_BLD):
            return self.scan_slabs(x_BLD, self.in_proj, self.out_proj, state, cu_seqlens=cu_seqlens, reverse=reverse)
        y_BLE, state = self.scan(self.in_proj(x_BLD), state, cu_seqlens=cu_seqlens, reverse=reverse)
        return self.out_proj(y_BLE), state

    def step(self, x_BD: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Advance one token per sequence: (B, D) and a state to (B, D) and the next state."""
        y_BE, state = self.scan_step(self.in_proj(x_BD), state)
        return self.out_proj(y_BE), state
