"""Missing values from what stands on both sides of them.

A stack that reads both ways says at every step how much to trust each of a few simple fills, and how far the quantiles
lie apart. The median is a weighted mean of the fills, at first their plain mean: it never leaves the range they span,
also where a series is unlike all that was trained on.

Legend: B windows, W steps, F channels, K simple fills, Q quantile levels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from seqkit.backbones import Backbone, BackboneConfig
from seqkit.tasks.base import OptimConfig, SequenceTask, masked_mean

LEVELS = (0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.975)
"""Quantile levels, symmetric around the median: intervals of 50, 80, 90 and 95 percent."""
_MIDDLE = len(LEVELS) // 2
_FIRST_STEP = -2.0


class ImputeNet(nn.Module):
    """Quantiles of every step.

    Args:
        model: Architecture; its inputs are set to the channels.
        channels: F.
        fills: K, the last of the channels.
    """

    def __init__(self, model: BackboneConfig, channels: int, fills: int):
        super().__init__()
        self.fills = fills
        self.backbone = Backbone(replace(model, vocab_size=0, n_channels=channels))
        self.output = nn.Linear(self.backbone.hidden_width, fills + len(LEVELS) - 1)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, channels_BWF: Tensor) -> Tensor:
        """Quantiles (B, W, Q), rising, on the scale of the channels."""
        answer_BWO = self.output(self.backbone(channels=channels_BWF)[0]).float()
        trust_BWK, raw_BWQ = answer_BWO.split([self.fills, len(LEVELS) - 1], dim=-1)
        middle_BW1 = (trust_BWK.softmax(dim=-1) * channels_BWF[..., -self.fills :]).sum(dim=-1, keepdim=True)
        step_BWQ = functional.softplus(raw_BWQ + _FIRST_STEP)
        below = -step_BWQ[..., :_MIDDLE].flip(-1).cumsum(-1).flip(-1)
        above = step_BWQ[..., _MIDDLE:].cumsum(-1)
        return torch.cat([middle_BW1 + below, middle_BW1, middle_BW1 + above], dim=-1)


class ImputeTask(SequenceTask):
    """Pinball loss of hidden values.

    Args:
        net: Network.
        optim: Optimiser.
        seed: Of dropout.
    """

    def __init__(self, net: ImputeNet, optim: OptimConfig, seed: int):
        super().__init__(net, optim, seed)
        self.register_buffer("levels", torch.tensor(LEVELS), persistent=False)

    def losses(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Loss (B, W) and whether a value was hidden there."""
        quantile_BWQ = self.net(batch["channels"])
        valid_BW = ~batch["target"].isnan()
        error_BWQ = batch["target"].nan_to_num(0.0)[..., None] - quantile_BWQ
        return torch.maximum(self.levels * error_BWQ, (self.levels - 1) * error_BWQ).mean(-1), valid_BW

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        """Mean loss over hidden values."""
        loss = masked_mean(*self.losses(batch))
        self.log("train/loss", loss, on_step=False, on_epoch=True, batch_size=len(batch["target"]), prog_bar=True)
        return loss

    def on_validation_epoch_start(self) -> None:
        """Begin the sums of the epoch."""
        self.sums = torch.zeros(2, dtype=torch.float64)

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """Add to the sums: windows hide different numbers of values."""
        loss_BW, valid_BW = self.losses(batch)
        self.sums += torch.stack([loss_BW[valid_BW].double().sum(), valid_BW.sum().double()]).cpu()

    def on_validation_epoch_end(self) -> None:
        """Log the mean loss."""
        self.log("val/loss", (self.sums[0] / self.sums[1].clamp(min=1)).float(), prog_bar=True)


@torch.no_grad()
def read_in_windows(net: ImputeNet, channels_TF: Tensor, window: int) -> Tensor:
    """Quantiles (T, Q) of a series of any length, from windows that overlap by half; the outer quarters are not used.

    Args:
        net: Network, in evaluation mode.
        channels_TF: Channels of the whole series.
        window: W; memory grows with it, not with T.
    """
    length, hop, edge = len(channels_TF), max(window // 2, 1), window // 4
    out = channels_TF.new_empty(length, len(LEVELS))
    for begin in range(0, length, hop):
        first = max(min(begin - edge, length - window), 0)
        last = min(first + window, length)
        found = net(channels_TF[None, first:last])[0]
        end = min(begin + hop, length)
        out[begin:end] = found[begin - first : end - first]
    return out
