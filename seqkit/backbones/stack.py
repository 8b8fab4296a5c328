"""Residual stacks of mixers.

Legend: B batch, L length, D channels, S sequences.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from seqkit.backbones.attention import Attention
from seqkit.backbones.bidirectional import Bidirectional
from seqkit.backbones.config import BackboneConfig
from seqkit.backbones.mamba1 import Mamba1
from seqkit.backbones.mamba2 import Mamba2
from seqkit.backbones.mamba3 import Mamba3
from seqkit.backbones.mixer import ScanCore
from seqkit.backbones.norm import ResidualNorm, RMSNorm
from seqkit.backbones.offload import HostCopies
from seqkit.backbones.recompute import BlockInput
from seqkit.backbones.s4d import S4D
from seqkit.backbones.state import StackState


def build_mixer(name: str, config: BackboneConfig) -> nn.Module:
    """Make one mixer.

    Args:
        name: ``mamba1``, ``mamba2``, ``mamba3``, ``s4d`` or ``attention``.
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
    options = {key: getattr(config, key) for key in ("expand", "dt_min", "dt_max")}
    options |= {"dt_init_floor": min(1e-4, config.dt_min), "slab": config.slab}
    if name == "mamba1":
        kind = Mamba1
        options |= {"d_state": config.d_state or 16, "dt_rank": config.dt_rank or "auto"}
    elif name == "s4d":
        kind = S4D
        options["d_state"] = config.d_state or 64
    else:
        kind = Mamba2 if name == "mamba2" else Mamba3
        options |= {"d_state": config.d_state or 64, "headdim": config.headdim, "ngroups": config.ngroups}
        options["norm_eps"] = config.norm_eps
    if name == "mamba3":
        options |= {key: getattr(config, key) for key in ("mimo_rank", "rope_fraction", "outproj_norm")}
        options |= {"pairing": config.rotary_pairing, "decay": config.decay_form}
    elif name != "s4d":
        options["d_conv"] = config.d_conv
    mixer = Bidirectional(kind, config.d_model, **options) if config.bidirectional else kind(config.d_model, **options)
    for core in mixer.modules():
        if isinstance(core, ScanCore):
            core.recompute = config.checkpoint
    return mixer


class Block(nn.Module):
    """Residual norm, mixer, dropout.

    Args:
        mixer: Any mixer of width D.
        config: Settings: width, dropout, norm, precision of the residual stream.
    """

    def __init__(self, mixer: nn.Module, config: BackboneConfig):
        super().__init__()
        self.norm = ResidualNorm(config.d_model, config.norm_eps, in_fp32=config.residual_in_fp32)
        self.mixer = mixer
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        y_BLD: Tensor,
        stream_BLD: Tensor | None,
        state: Any,
        cu_seqlens: Tensor | None,
        reverse: bool,
        step_size: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Any]:
        """Add the last block's output to the stream; return what this block adds, the stream, the next state."""
        x_BLD, stream_BLD = self.norm(y_BLD, stream_BLD)
        time = {} if step_size is None else {"step_size": step_size}
        y_BLD, state = self.mixer(x_BLD, state, cu_seqlens=cu_seqlens, reverse=reverse, **time)
        return self.dropout(y_BLD), stream_BLD, state

    def recompute(
        self,
        y_BLD: Tensor,
        stream_BLD: Tensor | None,
        state: Any,
        cu_seqlens: Tensor | None,
        reverse: bool,
        copies: HostCopies | None,
    ) -> tuple[Tensor, Tensor, Any]:
        """As :meth:`forward`, but nothing of the stream's width is kept for the backward pass beside the sum."""
        kept = BlockInput(self.norm, copies)
        if self._runs_again(y_BLD):
            stream_BLD = self.norm.add(y_BLD, stream_BLD)
            with nullcontext() if copies is None else kept.keeping_sum(stream_BLD):  # checkpoint keeps it by itself
                y_BLD, state = checkpoint(
                    self._from_sum, stream_BLD, y_BLD.dtype, state, cu_seqlens, reverse, use_reentrant=False
                )
            return y_BLD, stream_BLD, state
        with kept.keeping_sum(y_BLD):
            x_BLD, stream_BLD = self.norm(y_BLD, stream_BLD)
        with kept.keeping_no_input(x_BLD):
            y_BLD, state = self.mixer(x_BLD, state, cu_seqlens=cu_seqlens, reverse=reverse)
        return y_BLD, stream_BLD, state

    def _runs_again(self, y_BLD: Tensor) -> bool:
        """Whether the mixer keeps more than its input, dropout a mask, or a compiler cannot see who keeps what."""
        masked = self.training and self.dropout.p > 0
        core = self.mixer.left if isinstance(self.mixer, Bidirectional) else self.mixer
        keeps_input = isinstance(core, ScanCore) and core.takes_slabs(y_BLD)
        return masked or not keeps_input or torch.compiler.is_compiling()

    def _from_sum(
        self, stream_BLD: Tensor, dtype: torch.dtype, state: Any, cu_seqlens: Tensor | None, reverse: bool
    ) -> tuple[Tensor, Any]:
        x_BLD = RMSNorm.forward(self.norm, stream_BLD).to(dtype)
        y_BLD, state = self.mixer(x_BLD, state, cu_seqlens=cu_seqlens, reverse=reverse)
        return self.dropout(y_BLD), state

    def step(self, y_BD: Tensor, stream_BD: Tensor | None, state: Any) -> tuple[Tensor, Tensor, Any]:
        """The same for one position per sequence."""
        x_BD, stream_BD = self.norm(y_BD, stream_BD)
        y_BD, state = self.mixer.step(x_BD, state)
        return self.dropout(y_BD), stream_BD, state


class Stack(nn.Module):
    """Blocks on a residual stream, and a final norm.

    Args:
        config: Settings.
    """

    def __init__(self, config: BackboneConfig):
        super().__init__()
        self.recompute, self.offload = config.checkpoint, config.offload
        self.blocks = nn.ModuleList(Block(build_mixer(name, config), config) for name in config.blocks)
        self.norm = ResidualNorm(config.d_model, config.norm_eps, in_fp32=config.residual_in_fp32)
        for block in self.blocks:
            # The variance of a sum of n independent outputs stays that of one.
            block.mixer.out_proj.init_scale = len(self.blocks) ** -0.5
            block.mixer.out_proj.reset_parameters()

    def forward(
        self,
        x_BLD: Tensor,
        state: StackState | None = None,
        *,
        cu_seqlens: Tensor | None = None,
        reverse: bool = False,
        step_size: Tensor | None = None,
    ) -> tuple[Tensor, StackState]:
        """Run all blocks.

        Args:
            x_BLD: Embedded input (B, L, D).
            state: States of the blocks; None for zeros.
            cu_seqlens: (S + 1,) int32 bounds of packed segments (B = 1).
            reverse: Mirror every mixer.
            step_size: (B, L) distances between positions, for mixers that read time; nothing is then recomputed.

        Returns:
            Normalised hidden states (B, L, D) in the blocks' dtype, and the next states.
        """
        y_BLD, stream_BLD, after = x_BLD, None, []
        states = [None] * len(self.blocks) if state is None else state.blocks
        recompute = self.recompute and torch.is_grad_enabled() and step_size is None
        copies = HostCopies(x_BLD.device) if recompute and self.offload else None
        for block, before in zip(self.blocks, states, strict=True):
            inputs = (y_BLD, stream_BLD, before, cu_seqlens, reverse)
            y_BLD, stream_BLD, out = block.recompute(*inputs, copies) if recompute else block(*inputs, step_size)
            after.append(out)
        if copies is None:
            return self.norm(y_BLD, stream_BLD)[0], StackState(tuple(after))
        with BlockInput(self.norm, copies, stay=True).keeping_sum(y_BLD):
            return self.norm(y_BLD, stream_BLD)[0], StackState(tuple(after))

    def step(self, x_BD: Tensor, state: StackState) -> tuple[Tensor, StackState]:
        """Advance one position per sequence."""
        y_BD, stream_BD, after = x_BD, None, []
        for block, before in zip(self.blocks, state.blocks, strict=True):
            y_BD, stream_BD, out = block.step(y_BD, stream_BD, before)
            after.append(out)
        return self.norm(y_BD, stream_BD)[0], StackState(tuple(after))

    def initial_state(self, batch: int) -> StackState:
        """Zeros for ``batch`` sequences."""
        return StackState(tuple(block.mixer.initial_state(batch) for block in self.blocks))
