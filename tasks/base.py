"""What every task shares: optimiser groups, schedule, and randomness that a resumed run repeats."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import lightning
import torch
from torch import Tensor, nn

from seqkit.backbones import parameter_groups
from seqkit.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW with linear warm-up and cosine decay.

    Attributes:
        lr: Peak learning rate.
        head_lr: Peak learning rate of the parameters that :meth:`SequenceTask.head_parameters` names.
        weight_decay: Decoupled weight decay of matrices; norms, biases, A_log, D and dt biases get none.
        warmup: Share of all steps over which the rate rises from zero, 0 to 1.
        clip_norm: Largest gradient norm.
        beta2: Decay of the mean of squared gradients; nearer to 0.9 for runs of few steps.
    """

    lr: float = 1e-3
    head_lr: float = 1e-2
    weight_decay: float = 0.05
    warmup: float = 0.1
    clip_norm: float = 1.0
    beta2: float = 0.999

    def __post_init__(self):
        for name in ("lr", "head_lr", "clip_norm"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"optim.{name}", expected="a number above 0", got=str(getattr(self, name)))
        if not 0 <= self.warmup <= 1:
            raise ConfigError("optim.warmup", expected="a share from 0 to 1", got=str(self.warmup))
        if not 0 < self.beta2 < 1:
            raise ConfigError("optim.beta2", expected="a number between 0 and 1", got=str(self.beta2))


class SequenceTask(lightning.LightningModule):
    """Base of the tasks: owns optimiser and schedule; the network knows nothing of Lightning.

    Args:
        net: The network.
        optim: Optimiser settings.
        seed: Seed of the run; dropout depends on (seed, step) alone.
    """

    def __init__(self, net: nn.Module, optim: OptimConfig, seed: int):
        super().__init__()
        self.net = net
        self.optim = optim
        self.seed = seed

    def configure_optimizers(self):
        """AdamW over decayed and undecayed groups, its rate scaled by :meth:`lr_factor`."""
        head = {id(parameter) for parameter in self.head_parameters()}
        groups = []
        for group in parameter_groups(self.net, self.optim.weight_decay):
            for lr, wanted in ((self.optim.lr, False), (self.optim.head_lr, True)):
                chosen = [p for p in group["params"] if (id(p) in head) == wanted]
                if chosen:
                    groups.append({**group, "params": chosen, "lr": lr})
        optimizer = torch.optim.AdamW(groups, lr=self.optim.lr, betas=(0.9, self.optim.beta2))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.lr_factor())
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def lr_factor(self) -> Callable[[int], float]:
        """From a step to the share of the peak learning rate: :func:`warmup_cosine` over the trainer's steps."""
        total = int(self.trainer.estimated_stepping_batches)
        warmup = max(1, round(self.optim.warmup * total))
        return lambda step: warmup_cosine(step, warmup, total)

    def head_parameters(self) -> list[nn.Parameter]:
        """Parameters that learn at ``head_lr``: none, unless the task has a head with a penalty of its own."""
        return []

    def on_train_batch_start(self, batch, batch_idx: int) -> None:
        """Seed dropout by (seed, step), so that a run resumed at an epoch repeats the unbroken one."""
        torch.manual_seed(self.seed * 1_000_003 + self.global_step)


def warmup_cosine(step: int, warmup: int, total: int) -> float:
    """Factor of the peak learning rate: linear rise over ``warmup`` steps, then half a cosine to zero at ``total``."""
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return 0.5 * (1 + math.cos(math.pi * progress))


def global_sum(count: Tensor) -> tuple[Tensor, int]:
    """A number added up over all ranks, and how many ranks there are."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return count, 1
    torch.distributed.all_reduce(count)
    return count, torch.distributed.get_world_size()


def masked_mean(loss: Tensor, valid: Tensor, weight: Tensor | None = None) -> Tensor:
    """Sum of ``loss`` over valid entries divided by their number over all ranks.

    Args:
        loss: Any shape; finite everywhere (a NaN under the mask would still reach the gradient as 0 * NaN).
        valid: Bool, same shape.
        weight: Optional factor per entry, same shape; does not enter the count.
    """
    count, ranks = global_sum(valid.sum().to(loss.dtype))
    kept = torch.where(valid, loss if weight is None else loss * weight, 0.0)
    # Gradients are averaged over ranks afterwards, so the global sum needs the factor.
    return kept.sum() * ranks / count.clamp(min=1)
