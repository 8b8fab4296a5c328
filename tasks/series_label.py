"""One answer for a whole series: a class or a number, from a pooled stack that reads both ways.

Series of different lengths stand end to end in one packed sequence; no step of one reaches another and none is padding.

Legend: L rows of a batch, B series, C channels, D width, K outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from seqkit.backbones import Backbone, BackboneConfig
from seqkit.backbones.parameters import Linear
from seqkit.errors import ConfigError
from seqkit.tasks.base import OptimConfig, SequenceTask, masked_mean
from seqkit.tasks.random_kernels import RandomKernels

KINDS = ("classes", "number")


@dataclass(frozen=True, kw_only=True)
class LabelNetConfig:
    """What stands around the backbone.

    Attributes:
        stem: Steps of the convolution in front of the backbone, odd.
        dropout: On the pooled features.
        kernels: Random convolutions (:mod:`seqkit.tasks.random_kernels`) whose ridge the network starts from; 0 for a
            network that starts from nothing.
    """

    stem: int = 9
    dropout: float = 0.1
    kernels: int = 1000

    def __post_init__(self):
        if self.stem < 1 or self.stem % 2 == 0:
            raise ConfigError("net.stem", expected="an odd number of steps", got=str(self.stem))
        if not 0 <= self.dropout < 1:
            raise ConfigError("net.dropout", expected="in [0, 1)", got=str(self.dropout))
        if self.kernels < 0:
            raise ConfigError("net.kernels", expected="0 or more", got=str(self.kernels))


class SeriesLabelNet(nn.Module):
    """Stem, backbone, mean and maximum over each series, one linear layer.

    Args:
        model: Architecture; its inputs are set to the stem's channels. Bidirectional or causal.
        config: Stem and dropout.
        channels: Values C of a step.
        outputs: K.
    """

    def __init__(self, model: BackboneConfig, config: LabelNetConfig, channels: int, outputs: int):
        super().__init__()
        self.config, width = config, model.d_model
        self.stem = nn.Conv1d(2 * channels, width, config.stem, padding=config.stem // 2)
        self.backbone = Backbone(replace(model, vocab_size=0, n_channels=width))
        self.dropout = nn.Dropout(config.dropout)
        self.output = Linear(2 * self.backbone.hidden_width, outputs, bias=True)
        if config.kernels:  # nothing is added to the start at first
            nn.init.zeros_(self.output.weight)
            nn.init.zeros_(self.output.bias)

    def forward(self, z_LC: Tensor, cu_seqlens: Tensor) -> Tensor:
        """Answers (B, K) of packed series.

        Args:
            z_LC: Scaled values, NaN where missing.
            cu_seqlens: (B + 1,) int32 bounds; no series is empty.
        """
        lengths_B = cu_seqlens.diff().long()
        channels = self._stem(torch.cat([z_LC.nan_to_num(0.0), z_LC.isnan().to(z_LC)], dim=1), lengths_B)
        hidden_LD = self.backbone(channels=channels[None], cu_seqlens=cu_seqlens)[0][0].float()
        pooled = [torch.segment_reduce(hidden_LD, how, lengths=lengths_B, axis=0) for how in ("mean", "max")]
        return self.output(self.dropout(torch.cat(pooled, dim=1)))

    def _stem(self, x_LC: Tensor, lengths_B: Tensor) -> Tensor:
        """Convolve every series on its own: zeros of half a stem stand between neighbours."""
        gap = self.config.stem // 2
        at_L = torch.arange(len(x_LC), device=x_LC.device)
        at_L = at_L + gap * torch.repeat_interleave(torch.arange(len(lengths_B), device=x_LC.device), lengths_B)
        spread = x_LC.new_zeros(len(x_LC) + gap * len(lengths_B), x_LC.shape[1]).index_copy(0, at_L, x_LC)
        return self.stem(spread.T[None])[0].T[at_L]


class SeriesLabelTask(SequenceTask):
    """Cross-entropy of classes, or squared error of a scaled number.

    Args:
        net: Network.
        optim: Optimiser.
        seed: Of dropout.
        kind: classes or number.
        weight_K: Weight of each class in the training loss; ones for numbers.
        centre: Mean of the training labels that are numbers.
        spread: Their standard deviation.
        kernels: What the network starts from, if anything.
    """

    def __init__(
        self, net: SeriesLabelNet, optim: OptimConfig, seed: int, *, kind: str, weight_K: Tensor,
        centre: float = 0.0, spread: float = 1.0, kernels: RandomKernels | None = None,
    ):  # fmt: skip
        super().__init__(net, optim, seed)
        if kind not in KINDS:
            raise ConfigError("kind", expected=" or ".join(KINDS), got=repr(kind))
        self.kind, self.centre, self.spread, self.kernels = kind, centre, spread, kernels
        self.register_buffer("weight_K", weight_K.float(), persistent=False)

    def outputs(self, batch: Mapping[str, Tensor]) -> Tensor:
        """(B, K) answers of the network, added to those it starts from where there are any."""
        answer_BK = self.net(batch["z"], batch["cu_seqlens"])
        return answer_BK + batch["start"] if "start" in batch else answer_BK

    def losses(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Loss (B,), whether there is a label, and the weight of each series."""
        answer_BK = self.outputs(batch)
        target_B = batch["target"]
        valid_B = ~target_B.isnan()
        if self.kind == "classes":
            class_B = target_B.nan_to_num(0.0).long()
            loss_B = functional.cross_entropy(answer_BK.float(), class_B, reduction="none")
            return loss_B, valid_B, self.weight_K[class_B]
        z_B = (target_B.nan_to_num(0.0) - self.centre) / self.spread
        return (answer_BK[:, 0].float() - z_B).square(), valid_B, torch.ones_like(z_B)

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        """Weighted mean loss of the labelled series."""
        loss_B, valid_B, weight_B = self.losses(batch)
        loss = masked_mean(loss_B, valid_B, weight_B)
        self.log("train/loss", loss, on_step=False, on_epoch=True, batch_size=len(loss_B), prog_bar=True)
        return loss

    def on_validation_epoch_start(self) -> None:
        """Begin the sums of the epoch."""
        self.sums = torch.zeros(2, dtype=torch.float64)

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """Add to the sums: batches need not be of one size."""
        loss_B, valid_B, weight_B = self.losses(batch)
        total = (loss_B * weight_B)[valid_B].double().sum()
        self.sums += torch.stack([total, weight_B[valid_B].double().sum()]).cpu()

    def on_validation_epoch_end(self) -> None:
        """Log the weighted mean loss."""
        self.log("val/loss", (self.sums[0] / self.sums[1].clamp(min=1e-12)).float(), prog_bar=True)

    @torch.no_grad()
    def answer(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Probabilities (B, K) of the classes, or predicted numbers (B,) in the units of the label."""
        answer_BK = self.outputs(batch).double()
        if self.kind == "classes":
            return answer_BK.softmax(dim=1)
        return answer_BK[:, 0] * self.spread + self.centre


def balanced_weights(count_K: Tensor) -> Tensor:
    """Weight of each class, inverse to its number of training series; 1 on average over the series, 0 for no series."""
    present = count_K > 0
    weight_K = count_K.sum() / (present.sum() * count_K.clamp(min=1))
    return torch.where(present, weight_K, 0.0)
