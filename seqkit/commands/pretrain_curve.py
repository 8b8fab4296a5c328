"""What happens beside the steps of a pretraining run: a rehearsal before the first, the learning curve on the way."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
from lightning.pytorch.callbacks import Callback

from seqkit.data.stages import StagedBatches
from seqkit.files import write_text
from seqkit.tasks.budget import Budget

HELD_OUT = "held_out_bits"
COLUMNS = ("step", "tokens", "seconds", "length", "learning_rate", "train_bits", HELD_OUT)


class Rehearsal(Callback):
    """On a GPU, one pass over windows of every length before the clock starts, and one held-out measurement.

    Kernels are compiled then, in which time the rate would have risen and fallen unused; and memory that is too short
    for the last stage shows in the first minute of the run.

    Args:
        batches: Of the run.
        measure: As for :class:`LearningCurve`.
    """

    def __init__(self, batches: StagedBatches, measure: Callable[[], float]):
        self.batches, self.measure = batches, measure

    def on_train_start(self, trainer, pl_module) -> None:
        """Rehearse; weights, figures and random numbers of the run stay as they are."""
        if pl_module.device.type == "cuda":
            self.rehearse(trainer, pl_module)

    def rehearse(self, trainer, pl_module) -> None:
        """As :meth:`on_train_start`, on any device."""
        for batch in self.batches.each_length():
            with trainer.precision_plugin.forward_context():
                pl_module.rehearse(batch)
        self.measure()


class LearningCurve(Callback):
    """Measures at equal shares of the budget, rewrites the CSV each time, and ends the run when the budget is used.

    Args:
        path: CSV file with the columns ``step``, ``tokens``, ``seconds`` (since the start, pauses left out),
            ``length``, ``learning_rate``, ``train_bits`` (mean loss since the row before) and ``held_out_bits``.
        budget: Of the run.
        points: Number of rows.
        measure: Held-out bits of the model as it is.
    """

    def __init__(self, path: Path, *, budget: Budget, points: int, measure: Callable[[], float]):
        self.path, self.budget, self.points = path, budget, points
        self.measure = measure
        self.rows: list[dict[str, float]] = []
        self._point, self._steps, self._loss = 0, 0, torch.zeros(())

    def on_train_start(self, trainer, pl_module) -> None:
        """Start the clock."""
        self.budget.start()
        trainer.should_stop = self.budget.progress(trainer.global_step) >= 1

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        """Keep the loss; at a point of the curve, measure."""
        self._loss, self._steps = self._loss.to(pl_module.device) + pl_module.last_loss, self._steps + 1
        progress = self.budget.progress(trainer.global_step)
        # Rounding must not lose the last of several points.
        point = math.floor(progress * self.points + 1e-9)
        if point > self._point:
            self._point = point
            self._record(trainer, pl_module, batch["ids"].shape[1])
        trainer.should_stop = progress >= 1

    def _record(self, trainer, pl_module, bases: int) -> None:
        held_out = self.measure()
        self.rows.append(
            {
                "step": trainer.global_step,
                "tokens": pl_module.tokens,
                "seconds": round(self.budget.seconds, 3),
                "length": bases - pl_module.objective.is_causal,
                "learning_rate": pl_module.optimizers().param_groups[0]["lr"],
                "train_bits": float(self._loss) / self._steps / math.log(2),
                HELD_OUT: held_out,
            }
        )
        self._steps, self._loss = 0, torch.zeros(())
        lines = [",".join(str(row[name]) for name in COLUMNS) for row in self.rows]
        write_text(self.path, "\n".join([",".join(COLUMNS), *lines]) + "\n")

    def state_dict(self) -> dict:
        """Plain values, so that the checkpoint loads without running code."""
        return {"rows": self.rows, "point": self._point, "steps": self._steps, "loss": float(self._loss)}

    def load_state_dict(self, state_dict: dict) -> None:
        """Go on from the checkpoint."""
        self.rows, self._point = list(state_dict["rows"]), state_dict["point"]
        self._steps, self._loss = state_dict["steps"], torch.tensor(state_dict["loss"])
