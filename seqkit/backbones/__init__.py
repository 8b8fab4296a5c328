"""Mixers, stacks and heads: the networks, free of data, training and files other than their own weights."""

from seqkit.backbones.attention import Attention
from seqkit.backbones.backbone import Backbone
from seqkit.backbones.bidirectional import Bidirectional
from seqkit.backbones.config import BackboneConfig
from seqkit.backbones.equivariant import reverse_complement_hidden
from seqkit.backbones.heads import LanguageHead, PooledHead, PositionHead
from seqkit.backbones.layout import parse_layout
from seqkit.backbones.load import adapt_upstream_keys, load_backbone, load_weights, save_backbone
from seqkit.backbones.loss import chunked_cross_entropy, sequence_cross_entropy
from seqkit.backbones.mamba1 import Mamba1
from seqkit.backbones.mamba2 import Mamba2
from seqkit.backbones.mamba3 import Mamba3
from seqkit.backbones.norm import RMSNorm
from seqkit.backbones.parameters import parameter_groups
from seqkit.backbones.s4d import S4D
from seqkit.backbones.stack import Stack
from seqkit.backbones.state import (
    AttentionState,
    BidirectionalState,
    Mamba1State,
    Mamba2State,
    Mamba3State,
    S4DState,
    StackState,
    StrandState,
)

__all__ = [
    "S4D",
    "Attention",
    "AttentionState",
    "Backbone",
    "BackboneConfig",
    "Bidirectional",
    "BidirectionalState",
    "LanguageHead",
    "Mamba1",
    "Mamba1State",
    "Mamba2",
    "Mamba2State",
    "Mamba3",
    "Mamba3State",
    "PooledHead",
    "PositionHead",
    "RMSNorm",
    "S4DState",
    "Stack",
    "StackState",
    "StrandState",
    "adapt_upstream_keys",
    "chunked_cross_entropy",
    "load_backbone",
    "load_weights",
    "parameter_groups",
    "parse_layout",
    "reverse_complement_hidden",
    "save_backbone",
    "sequence_cross_entropy",
]
