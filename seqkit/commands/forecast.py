"""``seqkit fit --task forecast``: from a table of series to a run folder."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from seqkit import configs
from seqkit.commands.arguments import model_presets, parse
from seqkit.commands.forecast_model import TASK, ForecastConfig, build_task, shape_of
from seqkit.commands.forecast_report import measure, print_summary, write_report
from seqkit.commands.forecast_trained import TrainedForecast
from seqkit.commands.run_folder import METRICS, open_run, write_manifest
from seqkit.commands.trainer import last_checkpoint, make_trainer
from seqkit.data.series_data import SeriesData, batches, load_series
from seqkit.data.series_modules import SeriesDataModule
from seqkit.errors import InputError
from seqkit.tasks.forecast import ForecastTask

ALIASES = {
    "table": "data.table",
    "series": "data.table",
    "columns": "data.columns",
    "freq": "data.freq",
    "lookback": "data.lookback",
    "horizon": "data.horizon",
    "future": "data.future",
    "past": "data.past",
    "static": "data.static",
    "time-zone": "data.time_zone",
    "batch-size": "data.batch_size",
    "workers": "data.workers",
    "device": "trainer.device",
    "precision": "trainer.precision",
}
_CLOSED_FORM_WINDOWS = 20_000
"""Windows that the closed-form start reads, at even distances where there are more."""
_CALIBRATION_WINDOWS = 4_000


class Trained(NamedTuple):
    """A trained task and how training went.

    Attributes:
        task: With the weights that were best on validation, calibrated.
        linear: The same before training: the ridge solution with its calibrated residuals, the baseline.
        best_epoch: Epoch of the kept weights; -1 where none was better than the start.
        penalty: Penalty of the ridge.
    """

    task: ForecastTask
    linear: ForecastTask
    best_epoch: int
    penalty: float


def fit(argv: Sequence[str]) -> int:
    """Train, measure and report; the entry of ``seqkit fit --task forecast``."""
    config, own, resolved = parse(
        f"seqkit fit --task {TASK}",
        ForecastConfig,
        model_presets(argv),
        aliases=ALIASES,
        defaults=configs.path("task", TASK),
        flags=("resume", "overwrite"),
        options=("out",),
    )
    folder = open_run(own["out"], TASK, resolved, resume=own["resume"], overwrite=own["overwrite"])
    print_summary(folder, train_and_evaluate(config, folder))
    return 0


def train_and_evaluate(config: ForecastConfig, folder: Path) -> dict[str, Any]:
    """One run: train, calibrate on the validation windows, report on the test windows.

    Returns:
        The contents of ``metrics.json``; read back when the run is finished already.
    """
    if (folder / METRICS).exists():
        return json.loads((folder / METRICS).read_text())
    data = load_series(config.data, mix=config.net.mix)
    config = replace(config, data=data.config)
    write_manifest(folder, seed=config.seed, inputs={"table": data.config.table}, device=config.trainer.device)
    trained = train(config, data, folder)
    measured = measure(trained, data, config=config)
    metrics = write_report(folder, config, data, trained, measured)
    TrainedForecast.of(trained.task, config, data).save(folder)
    return metrics


def train(config: ForecastConfig, data: SeriesData, folder: Path, *, progress: bool = True) -> Trained:
    """Train on the training windows, keep what is best on the validation windows, calibrate there.

    Args:
        config: Settings, sizes filled in.
        data: Series.
        folder: Gets checkpoints and the history.
        progress: Whether people see a progress bar.
    """
    task, ridge = start(config, data)
    carried = config.net.context == "carried"
    validation = data.windows("validation")
    held_out = data.evaluation_chunks("validation") if carried else validation
    module = SeriesDataModule(
        train=data.training_chunks(config.seed) if carried else data.windows("train"),
        validation=held_out,
        batch_size=config.data.batch_size,
        draws=config.data.windows_per_epoch,
        workers=config.data.workers,
        seed=config.seed,
    )
    linear = copy.deepcopy(task)
    # Without held-out windows there is nothing to choose an epoch by: training runs to its end.
    monitor, before = ("val/loss", validation_loss(linear, data)) if len(validation) else ("train/loss", math.inf)
    trainer = make_trainer(
        folder, config.trainer, monitor=monitor, mode="min", clip_norm=config.optim.clip_norm, progress=progress
    )
    trainer.fit(task, module, ckpt_path=last_checkpoint(folder), weights_only=True)
    kept = trainer.checkpoint_callback
    best = torch.load(kept.best_model_path, map_location="cpu", weights_only=True)
    better = float(kept.best_model_score) < before
    task.load_state_dict(best["state_dict"] if better else linear.state_dict())
    for model in (task, linear):
        model.cpu().eval()
        model.calibrate(data.evaluation("validation", carried=carried, most=_CALIBRATION_WINDOWS))
    return Trained(task, linear, best["epoch"] if better else -1, ridge.penalty)


def start(config: ForecastConfig, data: SeriesData):
    """The task of a run before training, on its closed-form start, and the ridge solution.

    Raises:
        InputError: Values below zero were given to a head of counts.
    """
    task = build_task(config, shape_of(data))
    least = float(np.nanmin(data.panel.y, initial=0.0))
    if task.net.head.counts and least < 0:
        raise InputError(
            "y", expected="counts, 0 or more, for net.head negative-binomial", got=f"{least:g}",
            remedy="Take net.head quantile.",
        )  # fmt: skip
    windows = {part: data.windows(part) for part in ("train", "validation")}
    passes = [lambda w=w: batches(w, 512, _CLOSED_FORM_WINDOWS) for w in windows.values()]
    if config.tokens.kind == "bins":
        task.net.encoder.fit_bins(torch.cat([batch["z"].flatten() for batch in passes[0]()]))
    return task, task.start(*passes)


@torch.no_grad()
def validation_loss(task: ForecastTask, data: SeriesData) -> float:
    """Mean validation loss as training would log it."""
    task.eval()
    carried = task.net.config.context == "carried"
    sums = sum(task.validation_sums(batch) for batch in data.evaluation("validation", carried=carried))
    return float(sums[0] / sums[1].clamp(min=1))
