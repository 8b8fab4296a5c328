"""Embedding and stack as one module.

Legend: B batch, L length, C float channels, D channels (2D for both strands of an equivariant backbone).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from seqkit.backbones.config import BackboneConfig
from seqkit.backbones.embed import Embedding
from seqkit.backbones.equivariant import EquivariantEmbedding, EquivariantStack
from seqkit.backbones.slabs import run_in_pieces
from seqkit.backbones.stack import Stack
from seqkit.errors import ConfigError


class Backbone(nn.Module):
    """Hidden states of tokens, of numbers, or of both.

    Args:
        config: Settings.

    Example:
        >>> import torch
        >>> backbone = Backbone(BackboneConfig(d_model=64, layout="mamba2*2"))
        >>> hidden, state = backbone(torch.randint(7, 11, (2, 100)))
        >>> hidden.shape
        torch.Size([2, 100, 64])
    """

    def __init__(self, config: BackboneConfig):
        super().__init__()
        self.config = config
        if config.rc_equivariant:
            self.embed = EquivariantEmbedding(config)
            self.stack = EquivariantStack(config)
        else:
            self.embed = Embedding(config.d_model, vocab_size=config.vocab_size, n_channels=config.n_channels)
            self.stack = Stack(config)

    @property
    def is_causal(self) -> bool:
        """Whether a hidden state depends on nothing behind its position."""
        return not (self.config.bidirectional or self.config.rc_equivariant)

    @property
    def hidden_width(self) -> int:
        """Width of the hidden states: ``d_model``, twice that when equivariant."""
        return self.config.d_model * (2 if self.config.rc_equivariant else 1)

    def require_causal(self, purpose: str) -> None:
        """Refuse a use that needs hidden states blind to what follows.

        Args:
            purpose: What the caller wants, for the message.

        Raises:
            ConfigError: The backbone is bidirectional or equivariant; either would see the answer.
        """
        if not self.is_causal:
            setting = "rc_equivariant" if self.config.rc_equivariant else "bidirectional"
            raise ConfigError(
                setting,
                expected=f"false for {purpose}",
                got="true",
                remedy="Such a backbone sees the next token; use a masked objective or a causal backbone.",
            )

    def require_time(self) -> None:
        """Refuse uneven distances between positions where a block cannot read them.

        Raises:
            ConfigError: The layout holds such a block, both sides are read, or blocks are to be computed again.
        """
        if set(self.config.blocks) - {"mamba1", "mamba2", "s4d"}:
            raise ConfigError(
                "layout", expected="mamba1, mamba2 and s4d for irregular times, whose steps can differ",
                got=self.config.layout,
            )  # fmt: skip
        self.require_causal("irregular times")
        if self.config.checkpoint or self.config.sequence_chunk is not None:
            raise ConfigError(
                "checkpoint",
                expected="false, and no sequence_chunk, for irregular times",
                got="a setting that cuts memory",
            )

    def forward(
        self,
        ids_BL: Tensor | None = None,
        *,
        channels: Tensor | None = None,
        state: Any = None,
        cu_seqlens: Tensor | None = None,
        step_size: Tensor | None = None,
    ) -> tuple[Tensor, Any]:
        """Run a batch, a chunk of one, or packed segments.

        Args:
            ids_BL: Token ids (B, L) of any integer type; None when ``vocab_size`` is 0.
            channels: Float channels (B, L, C) when ``n_channels`` is C.
            state: State returned for the chunk before; None at the start.
            cu_seqlens: (S + 1,) int32 bounds of packed segments (B = 1); the state then has S rows.
            step_size: (B, L) distance of each position from the one before, in units of the usual one, where
                positions are not evenly spaced.

        Returns:
            Hidden states (B, L, D) and the state to continue from.

        Raises:
            ConfigError: ``step_size`` is given and a block cannot read it.
        """
        if step_size is not None:
            self.require_time()
            return self.stack(self.embed(ids_BL, channels), state, cu_seqlens=cu_seqlens, step_size=step_size)
        if self.takes_chunks(ids_BL if channels is None else channels):
            return self.run_in_chunks(
                lambda hidden_BLD: hidden_BLD, ids_BL, channels, state=state, cu_seqlens=cu_seqlens, parameters=()
            )
        return self.stack(self.embed(ids_BL, channels), state, cu_seqlens=cu_seqlens)

    def takes_chunks(self, x_BL: Tensor) -> bool:
        """Whether a sequence (B, L, ...) is longer than ``sequence_chunk``."""
        return self.config.sequence_chunk is not None and x_BL.shape[1] > self.config.sequence_chunk

    def run_in_chunks(
        self,
        answer: Callable[..., Tensor],
        ids_BL: Tensor | None,
        channels_BLC: Tensor | None,
        *more: Tensor,
        state: Any,
        cu_seqlens: Tensor | None,
        parameters: Sequence[Tensor],
    ) -> tuple[Tensor, Any]:
        """Run embedding, stack and what follows on ``sequence_chunk`` positions at a time.

        Args:
            answer: From hidden states (B, l, D) and pieces of ``more`` to (B, l, K).
            ids_BL: As for :meth:`forward`.
            channels_BLC: As for :meth:`forward`.
            more: Tensors (B, L, ...) cut like the input.
            state: As for :meth:`forward`.
            cu_seqlens: As for :meth:`forward`.
            parameters: What ``answer`` uses.

        Returns:
            Answers (B, L, K) and the state to continue from.
        """
        given = [x for x in (ids_BL, channels_BLC) if x is not None]

        def run(pieces: Sequence[Tensor], before: Any, bounds: Tensor | None) -> tuple[Tensor, Any]:
            ids = None if ids_BL is None else pieces[0]
            channels = None if channels_BLC is None else pieces[len(given) - 1]
            hidden_BLD, after = self.stack(self.embed(ids, channels), before, cu_seqlens=bounds)
            return answer(hidden_BLD, *pieces[len(given) :]), after

        if state is None:
            state = self.initial_state(len(given[0]) if cu_seqlens is None else len(cu_seqlens) - 1)
        return run_in_pieces(
            run,
            [*given, *more],
            state,
            size=self.config.sequence_chunk,
            cu_seqlens=cu_seqlens,
            parameters=list(dict.fromkeys((*self.parameters(), *parameters))),
            truncate=self.config.truncate,
            random=self.training and self.config.dropout > 0,
        )

    def step(self, ids_B: Tensor | None, state: Any, *, channels: Tensor | None = None) -> tuple[Tensor, Any]:
        """Advance one position per sequence.

        Args:
            ids_B: Token ids (B,); None when ``vocab_size`` is 0.
            state: State so far, from ``initial_state`` or ``forward``.
            channels: Float channels (B, C) when ``n_channels`` is C.

        Returns:
            Hidden state (B, D) and the next state.

        Raises:
            ConfigError: The backbone is not causal.
        """
        self.require_causal("step (a two-sweep stream of seqkit.inference reads both sides)")
        return self.stack.step(self.embed(ids_B, channels), state)

    def initial_state(self, batch: int) -> Any:
        """The state before the first position of ``batch`` sequences."""
        return self.stack.initial_state(batch)
