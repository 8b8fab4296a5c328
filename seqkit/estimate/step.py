"""The step that is estimated: a language model over random tokens, forward and, in training, backward."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from seqkit.backbones import Backbone, LanguageHead, sequence_cross_entropy
from seqkit.estimate.workload import Workload


class Step:
    """Model and input of a workload, in the default dtype.

    Args:
        workload: What is to be run.
    """

    def __init__(self, workload: Workload):
        config = workload.model
        self.workload = workload
        self.backbone = Backbone(config).train(workload.training)
        self.head = None
        if config.vocab_size:
            complement = config.token_complement if config.rc_equivariant else None
            self.head = LanguageHead(
                config.d_model, config.vocab_size, complement=complement, tied=self.backbone.embed.tokens
            )

    def run(self, between: Callable[[], None] = lambda: None) -> None:
        """Forward, what lies ``between``, backward."""
        config, rows = self.workload.model, (self.workload.batch, self.workload.length)
        with torch.set_grad_enabled(self.workload.training):
            ids = torch.zeros(rows, dtype=torch.int64) if config.vocab_size else None
            channels = torch.zeros(*rows, config.n_channels) if config.n_channels else None
            loss = self._loss(ids, channels)
            between()
            if self.workload.training:
                loss.backward()

    def _loss(self, ids: Tensor | None, channels: Tensor | None) -> Tensor:
        if self.workload.training and channels is None:
            return sequence_cross_entropy(self.backbone, self.head, ids, ids)[0]
        hidden, _ = self.backbone(ids, channels=channels)
        return hidden.sum()
