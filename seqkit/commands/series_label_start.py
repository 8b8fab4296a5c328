"""What the network of a run on labelled series starts from: a ridge on random convolutions of the training series.

Legend: S series, F features, K outputs, V validation series.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from seqkit.data.labelled_series import LabelledSeries, PackedSeries
from seqkit.tasks.series_label import SeriesLabelTask
from seqkit.tasks.series_label_baselines import Answer

if TYPE_CHECKING:
    from seqkit.commands.series_label import SeriesLabelConfig

START = "random convolutions, ridge"


class Start(NamedTuple):
    """Features, targets and answers of all series.

    Attributes:
        features_SF: Of all series.
        target_SK: +1 and -1 for classes, else scaled numbers.
        weight_S: Weights of the series.
        answer_SK: Answers; None, as all else, where the network starts from nothing.
    """

    features_SF: NDArray | None = None
    target_SK: NDArray | None = None
    weight_S: NDArray | None = None
    answer_SK: NDArray | None = None

    @classmethod
    def of(
        cls, task: SeriesLabelTask, config: SeriesLabelConfig, data: LabelledSeries, target_S: NDArray, train: NDArray
    ) -> Start:
        """Fit the task's kernels on the training series."""
        if task.kernels is None:
            return cls()
        classes = task.kind == "classes"
        weight_S = np.ones(len(target_S))
        target_SK = ((target_S - task.centre) / task.spread)[:, None]
        if classes:
            class_S = target_S.astype(int)
            weight_S = task.weight_K.numpy()[class_S].astype(float)
            target_SK = 2.0 * (class_S[:, None] == np.arange(len(task.weight_K))) - 1
        features_SF = task.kernels.features(data.all_series())
        known = (features_SF, target_SK, weight_S)
        return cls(*known, task.kernels.begin(*known, train, classes=classes, seed=config.seed))

    def alone(self, task: SeriesLabelTask, test: NDArray) -> list[Answer]:
        """The start's own answers to the test series, to see what the network adds; none where there is no start."""
        if task.kernels is None:
            return []
        answer_EK = self.answer_SK[test]
        found_E = answer_EK.argmax(axis=1) if task.kind == "classes" else answer_EK[:, 0] * task.spread + task.centre
        return [Answer(START, found_E.astype(float), 0.0)]

    def refit(self, task: SeriesLabelTask, known: NDArray) -> None:
        """Fit the kernels' ridge to more series, once nothing is chosen any more; the answers change in place."""
        if task.kernels is not None:
            task.kernels.fit(self.features_SF[known], self.target_SK[known], self.weight_S[known])
            self.answer_SK[:] = task.kernels.scores(self.features_SF)


@torch.no_grad()
def losses_of(task: SeriesLabelTask, packed: PackedSeries, size: int) -> NDArray:
    """(V,) weighted losses of the series of a set."""
    found = []
    for begin in range(0, len(packed), size):
        loss_B, _, weight_B = task.losses(packed.__getitems__(range(begin, min(begin + size, len(packed)))))
        found.append((loss_B * weight_B).double().numpy())
    return np.concatenate(found)
