"""What is to be run: a model, a batch, a precision, training or prediction."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from seqkit.backbones import BackboneConfig
from seqkit.errors import ConfigError

PRECISIONS = ("32-true", "bf16-mixed", "bf16-true")


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One training step, or one forward pass, of a language model.

    Attributes:
        model: Architecture of the backbone.
        length: Tokens L of a sequence.
        batch: Sequences B.
        precision: 32-true, bf16-mixed or bf16-true, as Lightning names them.
        training: Whether gradients and an AdamW step belong to it.
    """

    model: BackboneConfig
    length: int
    batch: int = 1
    precision: str = "bf16-true"
    training: bool = True

    def __post_init__(self):
        for name in ("length", "batch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name}", expected="at least 1", got=str(getattr(self, name)))
        if self.precision not in PRECISIONS:
            raise ConfigError("--precision", expected=" or ".join(PRECISIONS), got=self.precision)

    @property
    def tokens(self) -> int:
        """Of all sequences."""
        return self.batch * self.length

    @property
    def strands(self) -> int:
        """How often a block runs for one sequence."""
        return 2 if self.model.rc_equivariant else 1

    @property
    def directions(self) -> int:
        """Scans of a block."""
        return 2 if self.model.bidirectional else 1

    @property
    def weight_dtype(self) -> torch.dtype:
        """Of the large weights; small parameters stay float32."""
        return torch.bfloat16 if self.precision == "bf16-true" else torch.float32

    @property
    def activation_bytes(self) -> int:
        """Of one number between two layers."""
        return 4 if self.precision == "32-true" else 2

    @property
    def tokens_at_once(self) -> int:
        """Tokens whose inner activations exist together: a slab, or a chunk of the sequence, of every row."""
        longest = min(self.length, self.model.sequence_chunk or self.length)
        scans_only = "attention" not in self.model.blocks
        return self.batch * (min(longest, self.model.slab or longest) if scans_only else longest)

    def with_model(self, **settings) -> Workload:
        """The same with other settings of the model."""
        return replace(self, model=replace(self.model, **settings))
