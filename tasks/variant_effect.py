"""The variant-effect objective: loss, validation metrics and predictions of a :class:`VariantEffectNet`.

Legend: B alleles, K outputs, T label columns, M ensemble members.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from seqkit.errors import ConfigError
from seqkit.tasks.base import OptimConfig, SequenceTask, masked_mean
from seqkit.tasks.metrics import AllRows, validation_metrics
from seqkit.tasks.variant_net import Standardise, VariantEffectNet

MONITOR = {
    "binary": ("val/auprc", "max"),
    "multiclass": ("val/loss", "min"),
    "continuous": ("val/loss", "min"),
}
CLASS_WEIGHTS = ("none", "balanced")


@dataclass(frozen=True, kw_only=True)
class VariantLossConfig:
    """Loss of the variant-effect task: cross-entropy for classes, squared error for values, plus penalties.

    Attributes:
        class_weights: none, or balanced (inverse class frequency in the training rows).
        wide_penalty: Penalty on the sum of squares of the head's linear part.
        deep_penalty: Penalty on the sum of squares of the head's hidden layer.
    """

    class_weights: str = "none"
    wide_penalty: float = 0.07
    deep_penalty: float = 0.01

    def __post_init__(self):
        if self.class_weights not in CLASS_WEIGHTS:
            raise ConfigError("loss.class_weights", expected=" or ".join(CLASS_WEIGHTS), got=self.class_weights)
        if self.wide_penalty < 0 or self.deep_penalty < 0:
            raise ConfigError(
                "loss", expected="penalties of 0 or more", got=f"{self.wide_penalty}, {self.deep_penalty}"
            )


class VariantEffectTask(SequenceTask):
    """Trains a :class:`VariantEffectNet` on binary, multi-class or continuous labels.

    Args:
        net: The network; K = 1 per binary column, number of classes, or number of columns.
        kind: binary, multiclass or continuous.
        loss: Loss settings.
        optim: Optimiser settings.
        seed: Seed of the run.
    """

    def __init__(self, net: VariantEffectNet, *, kind: str, loss: VariantLossConfig, optim: OptimConfig, seed: int):
        super().__init__(net, optim, seed)
        self.kind = kind
        self.loss_config = loss
        n_outputs = net.head.bias.shape[-1]
        self.register_buffer("class_weight", torch.ones(2 if kind == "binary" else n_outputs))
        self.label_scale = Standardise(n_outputs if kind == "continuous" else 0)
        self.validation = AllRows()

    def fit_statistics(self, features_BF: Tensor, labels_BT: Tensor) -> None:
        """Take feature and label statistics and class weights from the training rows."""
        self.net.features.fit(features_BF)
        if self.kind == "continuous":
            self.label_scale.fit(labels_BT)
        elif self.loss_config.class_weights == "balanced":
            known = labels_BT[~labels_BT.isnan()].long()
            count = torch.bincount(known, minlength=len(self.class_weight)).clamp(min=1)
            self.class_weight.copy_(len(known) / (len(self.class_weight) * count))

    def head_parameters(self) -> list[nn.Parameter]:
        """The feature head, which its penalty keeps small."""
        return list(self.net.head.parameters())

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        """Mean loss of the members plus the penalties."""
        loss = self.loss(self.net(batch), batch["label"])
        self.log("train/loss", loss, on_step=False, on_epoch=True, batch_size=len(batch["label"]), prog_bar=True)
        return loss + self.penalty()

    def loss(self, outputs_MBK: Tensor, labels_BT: Tensor) -> Tensor:
        """Loss over known labels; every member answers for itself."""
        valid_BT = ~labels_BT.isnan()
        target_BT = labels_BT.nan_to_num(0.0)
        members = len(outputs_MBK)
        if self.kind == "multiclass":
            target_B = target_BT[:, 0].long()
            each_MB = functional.cross_entropy(
                outputs_MBK.transpose(1, 2),
                target_B.expand(members, -1),
                weight=self.class_weight,
                reduction="none",
            )
            return masked_mean(each_MB, valid_BT[:, 0].expand(members, -1))
        target_MBT = target_BT.expand(members, -1, -1)
        valid_MBT = valid_BT.expand(members, -1, -1)
        if self.kind == "continuous":
            error = outputs_MBK - (target_MBT - self.label_scale.mean) / self.label_scale.scale
            return masked_mean(error.square(), valid_MBT)
        each_MBT = functional.binary_cross_entropy_with_logits(outputs_MBK, target_MBT, reduction="none")
        return masked_mean(each_MBT, valid_MBT, self.class_weight[target_MBT.long()])

    def penalty(self) -> Tensor:
        """Squared weights of the head, as a mean over members so that each keeps its own objective."""
        head = self.net.head
        wide = head.wide.square().sum()
        deep = head.enter.square().sum() + head.leave.square().sum()
        return (self.loss_config.wide_penalty * wide + self.loss_config.deep_penalty * deep) / len(head.wide)

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """Keep outputs and labels; metrics need all rows at once."""
        self.validation.update(self.net(batch).transpose(0, 1), batch["label"])

    def on_validation_epoch_end(self) -> None:
        """Log the loss and the metrics of the label kind over all validation rows."""
        outputs_BMK, labels_BT = self.validation.compute()
        outputs_MBK = outputs_BMK.transpose(0, 1)
        self.validation.reset()
        self.log("val/loss", self.loss(outputs_MBK, labels_BT))
        scores = self.decide(outputs_MBK).cpu().numpy()
        if self.kind != "multiclass" and scores.shape[1] == 1:
            scores = scores[:, 0]
        labels = labels_BT.cpu().numpy()
        metrics = validation_metrics(self.kind, labels[:, 0] if labels.shape[1] == 1 else labels, scores)
        self.log_dict({f"val/{name}": value for name, value in metrics.items()}, prog_bar=True)

    def score(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Logits (binary, multi-class) or values in label units (continuous) of a batch.

        Returns:
            ``index`` (B,), ``outputs`` (B, K), and ``as_given``, ``other`` (B, K): the two orientations, NaN where the
            other one was not read because the allele's strand is known.
        """
        as_given_MBK, other_MBK = self.net.orientations(batch)
        as_given_BK = self.pooled(as_given_MBK.float())
        if other_MBK is None:
            other_BK, outputs_BK = torch.full_like(as_given_BK, torch.nan), as_given_BK
        else:
            stranded_B1 = batch["stranded"][:, None]
            other_BK = self.pooled(other_MBK.float()).masked_fill(stranded_B1, torch.nan)
            outputs_BK = torch.where(stranded_B1, as_given_BK, (as_given_BK + other_BK) / 2)
        return {"index": batch["index"], "outputs": outputs_BK, "as_given": as_given_BK, "other": other_BK}

    def pooled(self, outputs_MBK: Tensor) -> Tensor:
        """Mean over members, (B, K), in label units where labels are continuous, free of the class weights' shift."""
        mean_BK = outputs_MBK.mean(0)
        if self.kind == "continuous":
            return mean_BK * self.label_scale.scale + self.label_scale.mean
        if self.kind == "multiclass":
            return mean_BK - self.class_weight.log()
        return mean_BK - (self.class_weight[1] / self.class_weight[0]).log()

    def decide(self, outputs_MBK: Tensor) -> Tensor:
        """Probabilities or values (B, K) of member outputs."""
        pooled_BK = self.pooled(outputs_MBK)
        if self.kind == "binary":
            return pooled_BK.sigmoid()
        return pooled_BK.softmax(-1) if self.kind == "multiclass" else pooled_BK
