"""Reverse-complement equivariance: both strands through the same weights.

A hidden state is a pair of halves (a, b), (B, L, 2D): ``a`` read from the strand as given, ``b`` from the other one,
written at the position of the base it belongs to. Reverse-complementing the input reverses L and swaps the halves.
The strands meet only in a head, so every block is equivariant by construction: it runs on ``a``, and mirrored on ``b``.

Legend: B batch, L length, C float channels, D channels per strand.

Reference: Schiff et al. 2024, Caduceus, sections 3.2 and 4 (parameter sharing over strands).
"""

from __future__ import annotations

import torch
from torch import Tensor

from seqkit.backbones.config import BackboneConfig
from seqkit.backbones.embed import Embedding
from seqkit.backbones.stack import Stack
from seqkit.backbones.state import StrandState
from seqkit.errors import ConfigError


def reverse_complement_hidden(hidden_BLD: Tensor) -> Tensor:
    """What an equivariant hidden state (B, L, 2D) becomes when the input is reverse-complemented."""
    forward, reverse = hidden_BLD.chunk(2, dim=-1)
    return torch.cat([reverse, forward], dim=-1).flip(1)


class EquivariantEmbedding(Embedding):
    """Embeds the strand as given and, base by base, the other one.

    Parameters have the names of the plain embedding, so weights load either way.

    Args:
        config: Settings; ``complement`` and ``channel_complement`` say what a strand change does to an input.
    """

    def __init__(self, config: BackboneConfig):
        super().__init__(config.d_model, vocab_size=config.vocab_size, n_channels=config.n_channels)
        order = config.channel_complement or tuple(range(config.n_channels))
        self.register_buffer("complement", torch.tensor(config.token_complement, dtype=torch.int64), persistent=False)
        self.register_buffer("channel_order", torch.tensor(order, dtype=torch.int64), persistent=False)

    def forward(self, ids_BL: Tensor | None, channels_BLC: Tensor | None = None) -> Tensor:
        """Embed (B, L) ids and (B, L, C) channels as (B, L, 2D)."""
        own = super().forward(ids_BL, channels_BLC)
        ids = None if ids_BL is None else self.complement[ids_BL.long()]
        channels = None if channels_BLC is None else channels_BLC[..., self.channel_order]
        return torch.cat([own, super().forward(ids, channels)], dim=-1)


class _JoinStrands(torch.autograd.Function):
    """Both strands (B, L, D) side by side; their gradients lie apart, so that each is freed with its strand."""

    @staticmethod
    def forward(ctx, own_BLD: Tensor, other_BLD: Tensor) -> Tensor:
        return torch.cat([own_BLD, other_BLD], dim=-1)

    @staticmethod
    def backward(ctx, dhidden_BLD: Tensor) -> tuple[Tensor, Tensor]:
        return tuple(half.contiguous() for half in dhidden_BLD.chunk(2, dim=-1))


class EquivariantStack(Stack):
    """A stack that runs on one half of the channels and, mirrored, on the other.

    Parameters have the names of the plain stack, so weights load either way.
    """

    def forward(
        self,
        x_BLD: Tensor,
        state: StrandState | None = None,
        *,
        cu_seqlens: Tensor | None = None,
        reverse: bool = False,
    ) -> tuple[Tensor, StrandState]:
        """Run both strands.

        Args:
            x_BLD: Embedded input (B, L, 2D).
            state: States of both strands; None for zeros.
            cu_seqlens: (S + 1,) int32 bounds of packed segments (B = 1).
            reverse: Mirror both strands.

        Returns:
            Hidden states (B, L, 2D) and the states of both strands.
        """
        own, other = x_BLD.chunk(2, dim=-1)
        before, behind = (None, None) if state is None else (state.forward, state.reverse)
        y_own, before = super().forward(own, before, cu_seqlens=cu_seqlens, reverse=reverse)
        y_other, behind = super().forward(other, behind, cu_seqlens=cu_seqlens, reverse=not reverse)
        return _JoinStrands.apply(y_own, y_other), StrandState(before, behind)

    def step(self, x_BD: Tensor, state: StrandState) -> tuple[Tensor, StrandState]:
        """Refuse: the other strand is read from the end, which a single step has not seen.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError(
            "step",
            expected="a causal backbone",
            got="a reverse-complement equivariant one",
            remedy="Use the two-sweep stream of seqkit.inference, or rc_equivariant=False.",
        )

    def initial_state(self, batch: int) -> StrandState:
        """Zeros for ``batch`` sequences on both strands."""
        return StrandState(super().initial_state(batch), super().initial_state(batch))
