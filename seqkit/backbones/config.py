"""Settings of a backbone."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from seqkit.backbones.layout import parse_layout
from seqkit.errors import ConfigError

DNA_COMPLEMENT = (*range(7), 10, 9, 8, 7, 11, 13, 12, 14, 15, 17, 16, 21, 20, 19, 18, 22, 23)
"""Complement of each DNA token id; special tokens, the gap and the unused id 23 are their own."""

PAIRINGS = ("adjacent", "halves", None)
DECAY_FORMS = ("heavy-tail", "softplus")


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """Everything that decides the shape and the mathematics of a backbone.

    Attributes:
        d_model: Width of the hidden states, per strand when ``rc_equivariant``.
        layout: Blocks from first to last: mamba1, mamba2, mamba3, s4d, attention, with counts and groups, for example
            "mamba2*4" or "(mamba2*7 attention)*2".
        vocab_size: Rows of the token embedding; 24 holds the 23 DNA ids; 0 for numeric input only.
        n_channels: Float input channels per position, added to the embedding; 0 for none.
        bidirectional: Whether every position sees both sides.
        rc_equivariant: Whether reverse-complementing the input only reverses the hidden states and swaps their halves.
        complement: Complement of each token id, for ``rc_equivariant``; None means DNA's.
        channel_complement: Where each float channel goes when the strand changes, as a permutation that undoes
            itself; None leaves every channel in place.
        dropout: Probability of dropping an element of a block's output.
        d_state: State size per channel (mamba1, s4d: even there) or head (mamba2, mamba3); None means 16 for mamba1 and
            64 for others.
        d_conv: Taps of the convolution before a scan; mamba3 and s4d have none.
        expand: Inner width of a Mamba block over d_model.
        headdim: Head size of mamba2 and mamba3; divides expand * d_model.
        ngroups: Groups of mamba2 or mamba3 heads that share B and C.
        dt_rank: Rank of mamba1's time step; None means ceil(d_model / 16).
        dt_min: Smallest initial time step; a channel forgets over about 1 / dt positions, so long contexts want
            about 1 / length.
        dt_max: Largest initial time step.
        mimo_rank: Rank of mamba3's multi-input, multi-output form; None for the plain one.
        rope_fraction: Share of mamba3's states that rotate, in (0, 1].
        rotary_pairing: Which of mamba3's states rotate together: "adjacent" or "halves"; None means adjacent without
            a rank and halves with one.
        decay_form: Form of mamba3's decay rate: "heavy-tail" or "softplus".
        outproj_norm: Whether mamba3 normalises every head before the gate.
        attention_headdim: Head size of attention; even, divides d_model.
        rope_base: Base of the rotary wavelengths of attention.
        norm_eps: Added to the mean square in every norm.
        residual_in_fp32: Whether the residual stream stays float32 when weights are half precision.
        checkpoint: Whether blocks recompute their activations in the backward pass, for less memory: each keeps one
            tensor as wide as the residual stream.
        offload: Whether those tensors wait for the backward pass in pinned host memory; needs ``checkpoint``. On a CPU
            they are there anyway.
        slab: Positions that a Mamba block takes at a time, forward and backward, when a sequence is longer;
            nothing wider than d_model then exists for the whole length. None takes every sequence at once. A
            bidirectional block runs one sweep of slabs a direction.
        sequence_chunk: Positions that all blocks of a causal backbone take at a time when a sequence is longer: only
            the states between chunks are kept, gradients are those of the whole sequence. None takes every sequence
            at once. Attention is refused: its state is the whole past.
        truncate: Whether no gradient passes from a chunk to the one before it.
    """

    d_model: int
    layout: str
    vocab_size: int = 24
    n_channels: int = 0
    bidirectional: bool = False
    rc_equivariant: bool = False
    complement: tuple[int, ...] | None = None
    channel_complement: tuple[int, ...] | None = None
    dropout: float = 0.0
    d_state: int | None = None
    d_conv: int = 4
    expand: int = 2
    headdim: int = 64
    ngroups: int = 1
    dt_rank: int | None = None
    dt_min: float = 1e-3
    dt_max: float = 0.1
    mimo_rank: int | None = None
    rope_fraction: float = 0.5
    rotary_pairing: str | None = None
    decay_form: str = "heavy-tail"
    outproj_norm: bool = False
    attention_headdim: int = 64
    rope_base: float = 10_000.0
    norm_eps: float = 1e-5
    residual_in_fp32: bool = True
    checkpoint: bool = False
    offload: bool = False
    slab: int | None = 131_072
    sequence_chunk: int | None = None
    truncate: bool = False

    def __post_init__(self) -> None:
        for name in ("d_model", "d_conv", "expand", "headdim", "ngroups", "attention_headdim"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        for name in ("d_state", "dt_rank", "mimo_rank", "slab", "sequence_chunk"):
            value = getattr(self, name)
            self._require(name, value is None or value >= 1, "at least 1, or none")
        self._require("vocab_size", self.vocab_size >= 0, "at least 0")
        self._require("n_channels", self.n_channels >= 0, "at least 0")
        self._require("n_channels", self.vocab_size + self.n_channels > 0, "some input: tokens or channels")
        self._require("dropout", 0 <= self.dropout < 1, "in [0, 1)")
        self._require("dt_min", 0 < self.dt_min <= self.dt_max, f"in (0, dt_max={self.dt_max}]")
        self._require("rope_fraction", 0 < self.rope_fraction <= 1, "in (0, 1]")
        self._require("rotary_pairing", self.rotary_pairing in PAIRINGS, "adjacent, halves, or none")
        self._require("decay_form", self.decay_form in DECAY_FORMS, "one of " + ", ".join(DECAY_FORMS))
        self._require("offload", self.checkpoint or not self.offload, "false without checkpoint")
        self._require("truncate", self.sequence_chunk or not self.truncate, "false without sequence_chunk")
        self._check_blocks(parse_layout(self.layout))
        self._check_involution("complement", self.vocab_size)
        self._check_involution("channel_complement", self.n_channels)

    @property
    def blocks(self) -> tuple[str, ...]:
        """Mixer name of each block, first block first."""
        return parse_layout(self.layout)

    @property
    def token_complement(self) -> tuple[int, ...]:
        """Complement of each id below ``vocab_size``; ids beyond the DNA alphabet are their own."""
        if self.complement is not None:
            return self.complement
        return tuple(
            DNA_COMPLEMENT[token] if token < len(DNA_COMPLEMENT) else token for token in range(self.vocab_size)
        )

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> BackboneConfig:
        """Build from plain values, as YAML and JSON hold them.

        Args:
            settings: Field names to values; lists stand for tuples.

        Raises:
            ConfigError: A key is unknown (the nearest one is named) or a value is out of range.
        """
        known = [field.name for field in fields(cls)]
        for key in settings:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
                raise ConfigError(
                    key, expected="a field of BackboneConfig", got="an unknown key", remedy=f"Did you mean {near}?"
                )
        values = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
        missing = {"d_model", "layout"} - values.keys()
        if missing:
            raise ConfigError(min(missing), expected="a value", got="nothing")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values, for JSON and YAML."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    def _require(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise ConfigError(name, expected=expected, got=str(getattr(self, name)))

    def _check_blocks(self, blocks: tuple[str, ...]) -> None:
        both_sides = self.bidirectional or self.rc_equivariant
        if self.sequence_chunk and (both_sides or "attention" in blocks):
            raise ConfigError(
                "sequence_chunk",
                expected="none for " + ("a backbone that sees both sides" if both_sides else "a layout with attention"),
                got=str(self.sequence_chunk),
                remedy="Use checkpoint and slab, which go block by block.",
            )
        if "mamba2" in blocks or "mamba3" in blocks:
            inner = self.expand * self.d_model
            self._require("headdim", inner % self.headdim == 0, f"a divisor of expand * d_model = {inner}")
            heads = inner // self.headdim
            self._require("ngroups", heads % self.ngroups == 0, f"a divisor of the {heads} heads")
        if "s4d" in blocks:
            fits = self.d_state is None or self.d_state % 2 == 0
            self._require("d_state", fits, "an even number for s4d, two for each mode")
        if "attention" in blocks:
            fits = self.attention_headdim % 2 == 0 and self.d_model % self.attention_headdim == 0
            self._require("attention_headdim", fits, f"an even divisor of d_model = {self.d_model}")

    def _check_involution(self, name: str, size: int) -> None:
        table = getattr(self, name)
        if table is not None:
            fits = len(table) == size and all(0 <= t < size and table[t] == i for i, t in enumerate(table))
            self._require(name, fits, f"a permutation of 0..{size - 1} that undoes itself")
