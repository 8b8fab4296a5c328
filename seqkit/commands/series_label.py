"""``seqkit fit`` with the tasks ``series-classify`` and ``series-regress``: from labelled series to a run folder."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from seqkit import configs
from seqkit.backbones import BackboneConfig
from seqkit.commands.arguments import parse
from seqkit.commands.fit import task_of
from seqkit.commands.run_folder import METRICS, open_run, write_manifest
from seqkit.commands.series_label_report import print_summary, write_report
from seqkit.commands.series_label_start import Start, losses_of
from seqkit.commands.series_label_trained import CLASSIFY, REGRESS, TrainedLabels, answers
from seqkit.commands.trainer import TrainerConfig, last_checkpoint, make_trainer
from seqkit.data.labelled_series import (
    LabelledSeries,
    LabelledSeriesConfig,
    PackedSeries,
    fit_scaler,
    joined,
    read_labelled,
    scaled,
    split_series,
    with_labels,
)
from seqkit.data.series_modules import SeriesDataModule
from seqkit.data.synthetic_series import SYNTHETIC_NUMBER
from seqkit.errors import ConfigError, InputError
from seqkit.tasks.base import OptimConfig
from seqkit.tasks.random_kernels import RandomKernels
from seqkit.tasks.series_baselines import conformal_quantiles
from seqkit.tasks.series_label import LabelNetConfig, SeriesLabelNet, SeriesLabelTask, balanced_weights
from seqkit.tasks.series_label_baselines import Answer, simple_answers

ALIASES = {
    "table": "data.table",
    "series": "data.table",
    "test-table": "data.test_table",
    "labels": "data.labels",
    "label": "data.label",
    "channels": "data.channels",
    "columns": "data.columns",
    "split": "data.split",
    "class-weights": "class_weights",
    "freq": "data.freq",
    "batch-size": "data.batch_size",
    "device": "trainer.device",
    "precision": "trainer.precision",
}
_MOST_CLASSES = 100


@dataclass(frozen=True, kw_only=True)
class SeriesLabelConfig:
    """Everything that decides a run on labelled series.

    Attributes:
        task: series-classify or series-regress.
        seed: Seed of the split, weights, order and dropout.
        class_weights: balanced, none, or a weight for each class by name.
        data: Series, labels and split.
        model: Architecture of the backbone.
        net: What stands around it.
        optim: Optimiser and schedule.
        trainer: Epochs, device, precision.
    """

    task: str = CLASSIFY
    seed: int = 0
    class_weights: dict[str, float] | str = "balanced"
    data: LabelledSeriesConfig = field(default_factory=LabelledSeriesConfig)
    model: BackboneConfig = field(default_factory=lambda: BackboneConfig(d_model=32, layout="mamba2"))
    net: LabelNetConfig = field(default_factory=LabelNetConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)

    def __post_init__(self):
        if self.task not in (CLASSIFY, REGRESS):
            raise ConfigError("task", expected=f"{CLASSIFY} or {REGRESS}", got=repr(self.task))
        if isinstance(self.class_weights, str) and self.class_weights not in ("balanced", "none"):
            raise ConfigError("class_weights", expected="balanced, none or {class: weight}", got=self.class_weights)

    @property
    def kind(self) -> str:
        """Kind of label as the tasks name it."""
        return "classes" if self.task == CLASSIFY else "number"


def fit(argv: Sequence[str]) -> int:
    """Train, measure and report; the entry of both tasks."""
    task = task_of(argv)
    config, own, resolved = parse(
        f"seqkit fit --task {task}", SeriesLabelConfig, argv, aliases=ALIASES, defaults=configs.path("task", task),
        flags=("resume", "overwrite"), options=("out",),
    )  # fmt: skip
    folder = open_run(own["out"], config.task, resolved, resume=own["resume"], overwrite=own["overwrite"])
    if (folder / METRICS).exists():
        metrics = json.loads((folder / METRICS).read_text())
    else:
        metrics = train_and_evaluate(config, folder)
    print_summary(folder, metrics)
    return 0


def train_and_evaluate(config: SeriesLabelConfig, folder: Path) -> dict[str, Any]:
    """One run: split by series, train, choose the epoch on validation, measure on the test series.

    Returns:
        The contents of ``metrics.json``, written last.
    """
    data = load(config)
    target_S, classes = targets(data.labels, config.kind, config.data.label)
    part_S = split_series(data, config.data, config.seed, target_S if classes else None)
    train, validation, test = (np.flatnonzero(part_S == part) for part in range(3))
    if classes and len(np.unique(target_S[train])) < 2:
        raise InputError(config.data.label, expected="two classes in the training series", got="one")
    names = ("table", "test_table", "labels")
    inputs = {name: getattr(config.data, name) for name in names}
    write_manifest(folder, seed=config.seed, inputs=inputs, device=config.trainer.device)
    scalers = fit_scaler(data, train, config.data.scaler)
    task = build_task(config, data, target_S[train], classes)
    start = Start.of(task, config, data, target_S, train)
    z_NC = scaled(data, scalers)
    sets = [PackedSeries(z_NC, data.offsets, target_S, m, start.answer_SK) for m in (train, validation, test)]
    best_epoch = run_training(task, config, sets[0], sets[1], folder)
    held_out = answers(task, sets[1], config.data.batch_size)
    start.refit(task, np.concatenate([train, validation]))
    half_width = None
    if not classes:
        residual = np.abs(held_out - target_S[validation])
        half_width = float(conformal_quantiles(residual[:, None], [0.9])[0, 0])
    usual = float(np.bincount(target_S[train].astype(int)).argmax() if classes else target_S[train].mean())
    trained = TrainedLabels(config, task, tuple(classes), tuple(scalers), usual, half_width)
    found = answers(task, sets[2], config.data.batch_size)
    simple = simple_answers(data.all_series(), target_S, np.concatenate([train, validation]), test, config.kind)
    ours = Answer("seqkit", found.argmax(axis=1).astype(float) if classes else found, 0.0)
    trained.save(folder)
    frame = trained.frame([data.ids[s] for s in test], found)
    truth = data.labels[test].cast(pl.String) if classes else data.labels[test]
    return write_report(
        folder, [ours, *start.alone(task, test), *simple], target_S[test],
        frame.with_columns(truth.alias("label")), classes=classes,
        about={
            "task": config.task,
            "series": {"train": len(train), "validation": len(validation), "test": len(test)},
            "lengths": [int(data.lengths.min()), int(data.lengths.max())],
            "channels": data.values_NC.shape[1],
            "best_epoch": best_epoch,
            "synthetic": config.data.table is None,
            "notes": list(data.notes),
        },
    )  # fmt: skip


def load(config: SeriesLabelConfig) -> LabelledSeries:
    """The labelled series of a run, those of a test table behind the others."""
    settings = config.data
    if settings.table is None and config.kind == "number":
        settings = replace(settings, label=SYNTHETIC_NUMBER)
    data = read_labelled(settings, settings.table, seed=config.seed)
    if config.data.test_table:
        data = joined(data, read_labelled(config.data, config.data.test_table))
    return with_labels(data)


def targets(labels: pl.Series, kind: str, name: str, known: Sequence[str] = ()) -> tuple[NDArray, list[str]]:
    """Labels as numbers, and the names of the classes (none for numbers).

    Args:
        labels: (S,) without nulls.
        kind: classes or number.
        name: Of the column, for messages.
        known: Classes of a trained model; found from the labels where there are none.

    Raises:
        InputError: They are not what the kind asks for.
    """
    if kind == "number":
        if not labels.dtype.is_numeric():
            raise InputError(name, expected="numbers", got=f"{labels.dtype}", remedy=f"Say --task {CLASSIFY}.")
        values = labels.cast(pl.Float64).to_numpy()
        if not np.isfinite(values).all():
            raise InputError(name, expected="finite numbers", got=str(values[~np.isfinite(values)][0]))
        return values, []
    text = labels.cast(pl.String)
    classes = list(known) or sorted(text.unique().to_list())
    if not 2 <= len(classes) <= _MOST_CLASSES:
        raise InputError(name, expected=f"2 to {_MOST_CLASSES} classes", got=str(len(classes)))
    new = text.filter(~text.is_in(classes))
    if len(new):
        raise InputError(name, expected=f"a class of the run: {', '.join(classes)[:80]}", got=new[0])
    return text.replace_strict(classes, list(range(len(classes))), return_dtype=pl.Float64).to_numpy(), classes


def build_task(config: SeriesLabelConfig, data: LabelledSeries, target_T: NDArray, classes: list[str]):
    """The task of a run before training; the same weights for the same seed."""
    outputs = max(len(classes), 1)
    weight_K = torch.ones(outputs)
    if classes and config.class_weights == "balanced":
        weight_K = balanced_weights(torch.bincount(torch.from_numpy(target_T.astype(np.int64)), minlength=outputs))
    elif classes and config.class_weights != "none":
        odd = set(config.class_weights) ^ set(classes)
        if odd or min(config.class_weights.values()) < 0:
            got = ", ".join(sorted(odd)) if odd else "a negative one"
            raise ConfigError("class_weights", expected=f"one weight for each of {', '.join(classes)}", got=got)
        weight_K = torch.tensor([config.class_weights[name] for name in classes])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        net = SeriesLabelNet(config.model, config.net, data.values_NC.shape[1], outputs)
    kernels, scale = None, {}
    if config.net.kernels:
        sizes = (data.values_NC.shape[1], outputs, config.net.kernels)
        kernels = RandomKernels(*sizes, length=int(np.median(data.lengths)), seed=config.seed)
    if not classes:
        scale = {"centre": float(target_T.mean()), "spread": float(target_T.std()) or 1.0}
    return SeriesLabelTask(
        net, config.optim, config.seed, kind=config.kind, weight_K=weight_K, kernels=kernels, **scale
    )


def run_training(
    task: SeriesLabelTask, config: SeriesLabelConfig, train: PackedSeries, validation: PackedSeries, folder: Path
) -> int:
    """Train, leave the weights of the best validation loss in the task; the epoch they come from, -1 for the start.

    Where there is a start, a network is kept only if it gains more on the validation series than the standard error of
    that gain.
    """
    before, size = copy.deepcopy(task.state_dict()), config.data.batch_size
    begun = losses_of(task.eval(), validation, size)
    task.train()
    module = SeriesDataModule(train=train, validation=validation, batch_size=config.data.batch_size, seed=config.seed)
    trainer = make_trainer(folder, config.trainer, monitor="val/loss", mode="min", clip_norm=config.optim.clip_norm)
    trainer.fit(task, module, ckpt_path=last_checkpoint(folder), weights_only=True)
    best = torch.load(trainer.checkpoint_callback.best_model_path, map_location="cpu", weights_only=True)
    task.load_state_dict(best["state_dict"])
    task.cpu().eval()
    if task.kernels is None:
        return best["epoch"]
    gain_V = begun - losses_of(task, validation, size)
    if gain_V.mean() > gain_V.std(ddof=min(1, len(gain_V) - 1)) / len(gain_V) ** 0.5:
        return best["epoch"]
    task.load_state_dict(before)
    return -1
