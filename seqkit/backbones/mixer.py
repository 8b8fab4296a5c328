"""What the scan mixers share: projections around a core that scans.

A core owns everything that belongs to one direction (convolution, scan parameters, norm). A mixer puts an input and an
output projection around one core, a bidirectional mixer around two.

Legend: B batch, L length, D channels, E width of the input projection, S sequences.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from seqkit.backbones.parameters import KeepsFloat32


class ScanCore(KeepsFloat32):
    """What belongs to one direction of a scan mixer.

    Attributes:
        slab: Positions that a pass over a longer sequence takes at a time, projections included; None takes all.
        recompute: Whether shorter sequences are one slab when gradients are wanted: all that is kept is the input.
        reads_time: Whether ``scan`` takes the distances between positions.
    """

    slab: int | None = None
    recompute: bool = False
    reads_time: ClassVar[bool] = False

    def takes_slabs(self, x_BLD: Tensor) -> bool:
        """Whether this input goes through ``scan_slabs``, which keeps the input and the states between slabs."""
        length = x_BLD.shape[1]
        if self.slab is not None and length > self.slab:
            return True
        return self.recompute and length > 0 and torch.is_grad_enabled()

    def scan_whole(
        self,
        x_BLD: Tensor,
        in_proj: nn.Module,
        out_proj: nn.Module,
        state: Any,
        *,
        cu_seqlens: Tensor | None,
        reverse: bool,
    ) -> tuple[Tensor, Any]:
        """Projections and core on all positions at once; what lies between is kept for the backward pass.

        Args:
            x_BLD: Input (B, L, D).
            in_proj: Input projection.
            out_proj: Output projection.
            state: That enters; None for zeros.
            cu_seqlens: (S + 1,) int32 bounds of packed segments (B = 1).
            reverse: Scan every segment from its end.

        Returns:
            y (B, L, D) and the state that leaves.
        """
        y_BLE, state = self.scan(in_proj(x_BLD), state, cu_seqlens=cu_seqlens, reverse=reverse)
        return out_proj(y_BLE), state

    def scan_both_slabs(
        self,
        mirrored: ScanCore,
        x_BLD: Tensor,
        in_proj: nn.Module,
        out_proj: nn.Module,
        states: tuple[Any, Any],
        *,
        cu_seqlens: Tensor | None,
        reverse: bool,
    ) -> tuple[Tensor, tuple[Any, Any]]:
        """Sum of this core's ``scan_slabs`` and of another's that reads the other way.

        Slabs of the two never meet, so each projects its own: memory is paid for with work.

        Args:
            mirrored: Core of the other direction.
            x_BLD: Input (B, L, D).
            in_proj: Input projection of both.
            out_proj: Output projection of both.
            states: That enter, of this direction and of the other; None for zeros.
            cu_seqlens: (S + 1,) int32 bounds of packed segments (B = 1).
            reverse: Whether this core reads from the end.

        Returns:
            y (B, L, D) and the states that leave.
        """
        projections = in_proj, out_proj
        y_BLD, own = self.scan_slabs(x_BLD, *projections, states[0], cu_seqlens=cu_seqlens, reverse=reverse)
        mirrored_BLD, other = mirrored.scan_slabs(
            x_BLD, *projections, states[1], cu_seqlens=cu_seqlens, reverse=not reverse, add_bias=False
        )
        return y_BLD + mirrored_BLD, (own, other)


def timed(dt_BLK: Tensor, bias_K: Tensor, step_size_BL: Tensor) -> Tensor:
    """Time steps (B, L, K): softplus of the projection and its bias, times the distance between positions."""
    return softplus(dt_BLK.to(bias_K.dtype) + bias_K) * step_size_BL.to(bias_K.dtype).unsqueeze(-1)


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
        step_size: Tensor | None = None,
    ) -> tuple[Tensor, Any]:
        """Mix positions, causally in scan order.

        Args:
            x_BLD: Input (B, L, D).
            state: State behind the token before the first; None for zeros.
            cu_seqlens: (S + 1,) int32 bounds of packed segments (B = 1); the state then has S rows.
            reverse: Scan every segment from its end; the state enters there.
            step_size: (B, L) distance of each position from the one before, in units of the usual one: the state
                decays and takes up input accordingly. Only cores that read time take it.

        Returns:
            y (B, L, D) and the state behind the last token in scan order.
        """
        if step_size is not None:
            options = {"cu_seqlens": cu_seqlens, "reverse": reverse, "step_size": step_size}
            y_BLE, state = self.scan(self.in_proj(x_BLD), state, **options)
            return self.out_proj(y_BLE), state
        scan = self.scan_slabs if self.takes_slabs(x_BLD) else self.scan_whole
        return scan(x_BLD, self.in_proj, self.out_proj, state, cu_seqlens=cu_seqlens, reverse=reverse)

    def step(self, x_BD: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Advance one token per sequence: (B, D) and a state to (B, D) and the next state."""
        y_BE, state = self.scan_step(self.in_proj(x_BD), state)
        return self.out_proj(y_BE), state
