"""Both reading directions in one mixer.

Legend: B batch, L length, D channels, E inner channels, S sequences.
"""

from __future__ import annotations

from typing import Any, NoReturn

from torch import Tensor, nn

from seqkit.backbones.mixer import ProjectedMixer
from seqkit.backbones.parameters import Linear
from seqkit.backbones.state import BidirectionalState
from seqkit.errors import ConfigError


class Bidirectional(nn.Module):
    """One core per direction between shared projections; the directions' outputs are summed.

    The projections are most of a block's parameters and work; sharing them makes the second direction cheap.

    Args:
        kind: ``Mamba1``, ``Mamba2``, ``Mamba3`` or ``S4D``.
        d_model: Width D.
        bias: Whether the projections have biases.
        options: Keyword arguments of the kind's core.

    Reference: Schiff et al. 2024, Caduceus, section 3.1 (BiMamba).
    """

    def __init__(self, kind: type[ProjectedMixer], d_model: int, *, bias: bool = False, **options):
        super().__init__()
        self.left = kind.Core(d_model, **options)
        self.right = kind.Core(d_model, **options)
        self.in_proj = Linear(d_model, self.left.projection_width, bias=bias)
        self.out_proj = Linear(self.left.d_inner, d_model, bias=bias)

    def forward(
        self,
        x_BLD: Tensor,
        state: BidirectionalState | None = None,
        *,
        cu_seqlens: Tensor | None = None,
        reverse: bool = False,
    ) -> tuple[Tensor, BidirectionalState]:
        """Mix positions from both sides.

        Args:
            x_BLD: Input (B, L, D).
            state: States that enter from the left and from the right; None for zeros.
            cu_seqlens: (S + 1,) int32 bounds of packed segments (B = 1).
            reverse: Mirror the mixer: the core ``left`` then reads from the right.

        Returns:
            y (B, L, D) and the states that leave: ``left`` behind the last token, ``right`` before the first.
            With ``reverse`` they change sides.
        """
        left, right = (None, None) if state is None else (state.left, state.right)
        if self.left.takes_slabs(x_BLD):
            projections = self.in_proj, self.out_proj
            y_BLD, states = self.left.scan_both_slabs(
                self.right, x_BLD, *projections, (left, right), cu_seqlens=cu_seqlens, reverse=reverse
            )
            return y_BLD, BidirectionalState(*states)
        projected = self.in_proj(x_BLD)
        y_BLE, left = self.left.scan(projected, left, cu_seqlens=cu_seqlens, reverse=reverse)
        mirrored_BLE, right = self.right.scan(projected, right, cu_seqlens=cu_seqlens, reverse=not reverse)
        return self.out_proj(y_BLE + mirrored_BLE), BidirectionalState(left, right)

    def step(self, x_BD: Tensor, state: Any) -> NoReturn:
        """Refuse: one direction reads from the end, which a single step has not seen.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError(
            "step",
            expected="a causal mixer",
            got="a bidirectional one",
            remedy="Use the two-sweep stream of seqkit.inference, or forward with the states of both sides.",
        )

    def initial_state(self, batch: int) -> BidirectionalState:
        """Zeros for ``batch`` sequences on both sides."""
        return BidirectionalState(self.left.initial_state(batch), self.right.initial_state(batch))
