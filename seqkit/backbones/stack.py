"""Residual stacks of mixers.

Legend: B batch, L length, D channels, S sequences.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from seqkit.backbones.attention import Attention
from seqkit.backbones.bidirectional import Bidirectional
from seqkit.backbones.config import BackboneConfig
from seqkit.backbones.mamba1 import Mamba1
from seqkit.backbones.mamba2 import Mamba2
from seqkit.backbones.norm import RMSNorm
from seqkit.backbones.state import StackState


def build_mixer(name: str, config: BackboneConfig) -> nn.Module:
    """Make one mixer.

    Args:
        name: ``mamba1``, ``mamba2`` or ``attention``.
        config: Settings; those of other mixers are not read.

    Returns:
        A module with ``forward``, ``step`` and ``initial_state``.
    """
    if name == "attention":
        return Attention(
            config.d_model,
            headdim=config.attention_headdim,
            causal=not config.bidirectional,
            rope_base=config.rope_base,
        )
    options = {key: getattr(config, key) for key in ("d_conv", "expand", "dt_min", "dt_max")}
    options["dt_init_floor"] = min(1e-4, config.dt_min)
    if name == "mamba1":
        kind = Mamba1
        options |= {"d_state": config.d_state or 16, "dt_rank": config.dt_rank}
    else:
        kind = Mamba2
        options |= {"d_state": config.d_state or 64, "headdim": config.headdim, "ngroups": config.ngroups}
        options["norm_eps"] = config.norm_eps
    return Bidirectional(kind, config.d_model, **options) if config.bidirectional else kind(config.d_model, **options)


class Block(nn.Module):
    """Norm, mixer, dropout; the caller adds the residual.

    Args:
        mixer: Any mixer of width D.
        d_model: Width D.
        dropout: Probability of dropping an output element.
        norm_eps: Added to the norm's mean square.
    """

    def __init__(self, mixer: nn.Module, d_model: int, *, dropout: float = 0.0, norm_eps: float = 1e-5):
        super().__init__()
        self.norm = RMSNorm(d_model, eps=norm_eps)
        self.mixer = mixer
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BLD: Tensor, state: Any, cu_seqlens: Tensor | None, reverse: bool) -> tuple[Tensor, Any]:
        """Return what to add to (B, L, D), and the next state."""
        y_BLD, state = self.mixer(self.norm(x_BLD), state, cu_seqlens=cu_seqlens, reverse=reverse)
        return self.dropout(y_BLD), state

    def step(self, x_BD: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Return what to add to (B, D), and the next state."""
        y_BD, state = self.mixer.step(self.norm(x_BD), state)
        return self.dropout(y_BD), state


class Stack(nn.Module):
    """Blocks on a residual stream, and a final norm.

    Args:
        config: Settings.
    """

    def __init__(self, config: BackboneConfig):
        super().__init__()
        self.residual_in_fp32, self.recompute = config.residual_in_fp32, config.checkpoint
        names = config.blocks
        self.blocks = nn.ModuleList(
            Block(build_mixer(name, config), config.d_model, dropout=config.dropout, norm_eps=config.norm_eps)
            for name in names
        )
        self.norm = RMSNorm(config.d_model, eps=config.norm_eps)
        for block in self.blocks:
            # The variance of a sum of n independent outputs stays that of one.
            block.mixer.out_proj.init_scale = len(names) ** -0.5
            block.mixer.out_proj.reset_parameters()

    def forward(
        self,
        x_BLD: Tensor,
        state: StackState | None = None,
        *,
        cu_seqlens: Tensor | None = None,
        reverse: bool = False,
    ) -> tuple[Tensor, StackState]:
        """Run all blocks.

        Args:
            x_BLD: Embedded input (B, L, D).
            state: States of the blocks; None for zeros.
            cu_seqlens: (S + 1,) int32 bounds of packed segments (B = 1).
            reverse: Mirror every mixer.

        Returns:
            Normalised hidden states (B, L, D) in the input's dtype, and the next states.
        """
        dtype = x_BLD.dtype
        x_BLD = self._residual(x_BLD)
        states = [None] * len(self.blocks) if state is None else state.blocks
        after = []
        for block, before in zip(self.blocks, states, strict=True):
            if self.recompute and torch.is_grad_enabled():
                y_BLD, out = checkpoint(block, x_BLD, before, cu_seqlens, reverse, use_reentrant=False)
            else:
                y_BLD, out = block(x_BLD, before, cu_seqlens, reverse)
            x_BLD = x_BLD + y_BLD
            after.append(out)
        return self.norm(x_BLD).to(dtype), StackState(tuple(after))

    def step(self, x_BD: Tensor, state: StackState) -> tuple[Tensor, StackState]:
        """Advance one position per sequence."""
        dtype = x_BD.dtype
        x_BD = self._residual(x_BD)
        after = []
        for block, before in zip(self.blocks, state.blocks, strict=True):
            y_BD, out = block.step(x_BD, before)
            x_BD = x_BD + y_BD
            after.append(out)
        return self.norm(x_BD).to(dtype), StackState(tuple(after))

    def initial_state(self, batch: int) -> StackState:
        """Zeros for ``batch`` sequences."""
        return StackState(tuple(block.mixer.initial_state(batch) for block in self.blocks))

    def _residual(self, x: Tensor) -> Tensor:
        return x.to(torch.promote_types(x.dtype, torch.float32)) if self.residual_in_fp32 else x
