"""The pretraining task: steps of equal numbers of tokens, gradients accumulated over what fits at once.

Legend: B batch, L tokens, D channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from seqkit.backbones.loss import IGNORED, sequence_cross_entropy
from seqkit.errors import ConfigError
from seqkit.tasks.base import OptimConfig, SequenceTask, global_sum
from seqkit.tasks.budget import Budget, cosine_after_warmup
from seqkit.tasks.language_model import LanguageModel
from seqkit.tasks.objectives import ObjectiveConfig, Question, ask


class PretrainTask(SequenceTask):
    """Trains a :class:`LanguageModel`.

    Args:
        net: The network.
        objective: What is asked.
        optim: Optimiser settings; the rate follows the budget, not the step.
        seed: Seed of the run; what is hidden depends on (seed, step).
        budget: Steps and seconds of the run.
        tokens_at_once: Tokens of one pass, at least one row.

    Attributes:
        last_loss: Loss of the last step, in nats an answer.
        tokens: Tokens read so far.

    Raises:
        ConfigError: A causal objective for a backbone that sees both sides.
    """

    def __init__(
        self,
        net: LanguageModel,
        *,
        objective: ObjectiveConfig,
        optim: OptimConfig,
        seed: int,
        budget: Budget,
        tokens_at_once: int,
    ):
        super().__init__(net, optim, seed)
        self.automatic_optimization = False  # one step is several passes that share a denominator
        if objective.is_causal:
            net.backbone.require_causal("a causal objective")
        elif net.backbone.is_causal:
            raise ConfigError(
                "model.bidirectional", expected="true for a masked objective", got="false",
                remedy="A causal backbone would tell hidden bases from their left alone; use objective.name causal.",
            )  # fmt: skip
        self.objective, self.budget, self.tokens_at_once = objective, budget, tokens_at_once
        self.last_loss, self.tokens = torch.zeros(()), 0

    def lr_factor(self) -> Callable[[int], float]:
        """Share of the peak rate at a step, by the share of the budget that is used."""
        return lambda step: cosine_after_warmup(self.budget.progress(step + 1), self.optim.warmup)

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """One optimiser step over all windows of the batch."""
        optimizer, schedule = self.optimizers(), self.lr_schedulers()
        question = self.ask(batch["ids"], batch["soft"], self.seed * 1_000_003 + self.global_step)
        count, ranks = global_sum((question.target_BL != IGNORED).sum())
        loss = torch.zeros((), device=self.device)
        for part in self.passes(question):
            nats = self.nats(part) / count.clamp(min=1)
            self.manual_backward(nats * ranks)
            loss += nats.detach()
        self.clip_gradients(optimizer, self.optim.clip_norm, "norm")
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        self.last_loss, self.tokens = loss, self.tokens + question.input_BL.numel() * ranks

    def passes(self, question: Question) -> Iterator[Question]:
        """The rows of a question, as many at a time as ``tokens_at_once`` allows."""
        rows = max(1, self.tokens_at_once // question.input_BL.shape[1])
        for low in range(0, len(question.input_BL), rows):
            yield Question(*(None if t is None else t[low : low + rows] for t in question))

    def rehearse(self, batch: Mapping[str, Tensor]) -> None:
        """Run the first pass of a batch forward and backward, and forget it."""
        question = self.ask(batch["ids"].to(self.device), batch["soft"].to(self.device), self.seed)
        self.nats(next(self.passes(question))).backward()
        self.zero_grad(set_to_none=True)

    def ask(self, ids: Tensor, soft: Tensor | None, seed: int) -> Question:
        """The question of a batch; see :func:`seqkit.tasks.objectives.ask`."""
        return ask(self.objective, ids, soft, torch.Generator(ids.device).manual_seed(seed))

    def nats(self, question: Question) -> Tensor:
        """Sum of the weighted cross-entropy of all answers."""
        net, weight_BL = self.net, question.weight_BL
        return sequence_cross_entropy(
            net.backbone, net.head, question.input_BL, question.target_BL, weight_BL=weight_BL
        )[0]

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        """Store how much is used."""
        checkpoint["seconds"], checkpoint["tokens"] = self.budget.seconds, self.tokens

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        """Go on with the time that is left."""
        self.budget.resume(checkpoint["seconds"])
        self.tokens = checkpoint["tokens"]
