"""A trained model of whole series: saved, opened again, asked for answers.

Legend: S series, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from seqkit.backbones import BackboneConfig
from seqkit.data.labelled_series import LabelledSeries, LabelledSeriesConfig, PackedSeries, scaled
from seqkit.errors import CheckpointError, InputError
from seqkit.tasks.base import OptimConfig
from seqkit.tasks.export import load_weights, read_description, save_model
from seqkit.tasks.random_kernels import RandomKernels
from seqkit.tasks.series_label import LabelNetConfig, SeriesLabelNet, SeriesLabelTask
from seqkit.tokenizers.numeric import SeriesScaler

if TYPE_CHECKING:
    from seqkit.commands.series_label import SeriesLabelConfig

CLASSIFY, REGRESS = "series-classify", "series-regress"


@dataclass(frozen=True)
class TrainedLabels:
    """A trained model and how it reads series.

    Attributes:
        config: Settings of the run; of a loaded one its data, model and net.
        task: In evaluation mode.
        classes: Names, in the order of the outputs; none for numbers.
        scalers: One a channel.
        usual: Number of the most frequent class of the training series, or their mean.
        half_width: Of the 90 % interval of a number, from the validation series.
    """

    config: SeriesLabelConfig
    task: SeriesLabelTask
    classes: tuple[str, ...]
    scalers: tuple[SeriesScaler, ...]
    usual: float
    half_width: float | None

    def answer(self, data: LabelledSeries) -> NDArray:
        """Probabilities (S, K), or numbers (S,).

        Raises:
            InputError: The series have another number of channels than those of training.
        """
        if data.values_NC.shape[1] != len(self.scalers):
            raise InputError(
                "channels", expected=f"{len(self.scalers)}, as in training", got=str(data.values_NC.shape[1])
            )
        every = np.arange(len(data.ids))
        kernels = self.task.kernels
        start_SK = None if kernels is None else kernels.scores(kernels.features(data.all_series()))
        unknown_S = np.full(len(every), np.nan)
        packed = PackedSeries(scaled(data, self.scalers), data.offsets, unknown_S, every, start_SK)
        return answers(self.task, packed, self.config.data.batch_size)

    def frame(self, ids: Sequence[str], found: NDArray) -> pl.DataFrame:
        """Answers as a table: class and probabilities, or number and 90 % interval."""
        if self.classes:
            called = pl.Series(self.classes)[found.argmax(axis=1)]
            chances = {f"p_{name}": found[:, k] for k, name in enumerate(self.classes)}
            return pl.DataFrame({"unique_id": list(ids), "prediction": called, **chances})
        low, high = found - self.half_width, found + self.half_width
        return pl.DataFrame({"unique_id": list(ids), "prediction": found, "lo-90": low, "hi-90": high})

    def save(self, folder: Path) -> None:
        """Write ``model.json`` and ``model.safetensors``."""
        config = self.config
        save_model(folder, self.task, {
            "task": config.task, "seed": config.seed, "data": config.data, "model": config.model, "net": config.net,
            "classes": list(self.classes), "scalers": [scaler.to_dict() for scaler in self.scalers],
            "centre": self.task.centre, "spread": self.task.spread, "usual": self.usual, "half_width": self.half_width,
        })  # fmt: skip

    @classmethod
    def load(cls, folder: str | Path) -> TrainedLabels:
        """Read what :meth:`save` wrote. No code from the folder runs.

        Raises:
            CheckpointError: No such model lies there, or it is damaged.
        """
        from seqkit.commands.series_label import SeriesLabelConfig

        described = read_description(Path(folder))
        if described["task"] not in (CLASSIFY, REGRESS):
            raise CheckpointError("--ckpt", expected=f"a {CLASSIFY} or {REGRESS} run", got=f"a {described['task']} run")
        given = described["data"]
        channels = None if given["channels"] is None else tuple(given["channels"])
        config = SeriesLabelConfig(
            task=described["task"], seed=described["seed"], net=LabelNetConfig(**described["net"]),
            data=LabelledSeriesConfig(**{**given, "channels": channels}),
            model=BackboneConfig.from_dict(described["model"]),
        )  # fmt: skip
        scalers = tuple(SeriesScaler.from_dict(values) for values in described["scalers"])
        outputs = max(len(described["classes"]), 1)
        kernels = None
        if config.net.kernels:  # drawn anew here, overwritten by those that were saved
            kernels = RandomKernels(len(scalers), outputs, config.net.kernels, length=1, seed=config.seed)
        task = SeriesLabelTask(
            SeriesLabelNet(config.model, config.net, len(scalers), outputs), OptimConfig(), config.seed,
            kind=config.kind, weight_K=torch.ones(outputs), centre=described["centre"], spread=described["spread"],
            kernels=kernels,
        )  # fmt: skip
        load_weights(Path(folder), task)
        named = tuple(described["classes"]), scalers, described["usual"], described["half_width"]
        return cls(config, task.eval(), *named)


def answers(task: SeriesLabelTask, packed: PackedSeries, size: int) -> NDArray:
    """Answers of a set in its order: (S, K) probabilities or (S,) numbers."""
    device = next(task.parameters()).device
    parts = []
    for begin in range(0, len(packed), size):
        batch = packed.__getitems__(range(begin, min(begin + size, len(packed))))
        parts.append(task.answer({name: value.to(device) for name, value in batch.items()}).cpu())
    return torch.cat(parts).numpy()
