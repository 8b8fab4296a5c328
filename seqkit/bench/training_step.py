"""One training step of the DNA model, as a user would build it: forward, loss, backward, AdamW.

Bidirectional and reverse-complement equivariant unless causal, recompute by block, slabs inside a block, cross-entropy
in chunks over 8 tokens, weights in one precision with small parameters in float32.
"""

from __future__ import annotations

import gc
from dataclasses import asdict, dataclass

import torch

from seqkit.backbones import Backbone, BackboneConfig, LanguageHead, chunked_cross_entropy, parameter_groups

VOCABULARY = 8
COMPLEMENT = (0, 1, 2, 6, 5, 4, 3, 7)  # three specials, A C G T, N


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One row of the table.

    Attributes:
        mixer: mamba1, mamba2, mamba3 or attention.
        batch: Sequences B.
        length: Tokens L of each.
        d_model: Width, per strand.
        layers: Blocks.
        causal: One direction and one strand, next-token targets; otherwise both of each.
        residual: Precision of the residual stream, float32 or bfloat16.
        dtype: Of weights and activations.
        slab: Tokens a scan block takes at a time.
        offload: Whether block inputs wait in host memory.
    """

    mixer: str
    batch: int
    length: int
    d_model: int = 256
    layers: int = 8
    causal: bool = False
    residual: str = "float32"
    dtype: str = "bfloat16"
    slab: int = 65_536
    offload: bool = False

    @property
    def tokens(self) -> int:
        """Of one step."""
        return self.batch * self.length

    @property
    def strands(self) -> int:
        """How often every block runs."""
        return 1 if self.causal else 2

    def config(self) -> BackboneConfig:
        """The backbone."""
        return BackboneConfig(
            d_model=self.d_model,
            layout=f"{self.mixer}*{self.layers}",
            vocab_size=VOCABULARY,
            complement=COMPLEMENT,
            bidirectional=not self.causal,
            rc_equivariant=not self.causal,
            residual_in_fp32=self.residual == "float32",
            checkpoint=True,
            slab=self.slab,
            offload=self.offload,
        )

    def row(self) -> dict:
        """For the JSON line."""
        return asdict(self)


class TrainingStep:
    """Model, optimiser and one random batch.

    Args:
        setting: What to build.
        device: Where.
        seed: Of weights and tokens.
    """

    def __init__(self, setting: Setting, device: str, seed: int = 0):
        torch.manual_seed(seed)
        self.setting, self.device = setting, device
        dtype = getattr(torch, setting.dtype)
        self.backbone = Backbone(setting.config()).to(device=device, dtype=dtype)
        head = LanguageHead(setting.d_model, VOCABULARY, complement=COMPLEMENT, tied=self.backbone.embed.tokens)
        self.head = head.to(device)
        self.optimizer = torch.optim.AdamW(parameter_groups(self.backbone, 0.05), lr=1e-4)
        ids = torch.randint(3, 7, (setting.batch, setting.length + 1), device=device)
        self.ids, self.target = ids[:, :-1], ids[:, 1:] if setting.causal else ids[:, :-1]

    @property
    def parameters(self) -> int:
        """Number of trained values."""
        return sum(p.numel() for p in self.backbone.parameters())

    def loss(self) -> torch.Tensor:
        """Mean cross-entropy; the graph behind it holds what the backward pass needs."""
        hidden, _ = self.backbone(self.ids)
        loss, count = chunked_cross_entropy(hidden, self.head, self.target)
        return loss / count

    def run(self) -> None:
        """The whole step."""
        self.optimizer.zero_grad(set_to_none=True)
        self.loss().backward()
        self.optimizer.step()

    def evaluate(self) -> None:
        """A forward pass that keeps nothing, with its loss."""
        with torch.no_grad():
            self.loss()


def free_memory(device: str) -> None:
    """Give back what earlier rows left behind."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
