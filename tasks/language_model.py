"""A backbone with scores for every token. Legend: B batch, L length, V vocabulary."""

from __future__ import annotations

from torch import Tensor, nn

from seqkit.backbones import Backbone, BackboneConfig
from seqkit.backbones.heads import LanguageHead


class LanguageModel(nn.Module):
    """Logits of the next token (causal backbone) or of a hidden one.

    Args:
        config: Architecture of the backbone; its ``vocab_size`` holds all token ids.
    """

    def __init__(self, config: BackboneConfig):
        super().__init__()
        self.backbone = Backbone(config)
        complement = config.token_complement if config.rc_equivariant else None
        self.head = LanguageHead(config.d_model, config.vocab_size, complement=complement)

    def forward(self, ids_BL: Tensor) -> Tensor:
        """Logits (B, L, V) of token ids (B, L) of any integer type."""
        return self.head(self.backbone(ids_BL)[0])
