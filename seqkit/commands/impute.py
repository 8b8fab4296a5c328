"""``seqkit fit``, ``predict`` and ``test`` with ``--task impute``."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from seqkit import configs
from seqkit.commands.arguments import parse
from seqkit.commands.forecast_predict import write_frame
from seqkit.commands.impute_measure import POINTS, RUNS, best_season, measure
from seqkit.commands.impute_report import print_summary, write_report
from seqkit.commands.impute_trained import TASK, ImputeConfig, TrainedImputer, build_task, check_level, sized
from seqkit.commands.run_folder import METRICS, open_run, write_manifest
from seqkit.commands.trainer import last_checkpoint, make_trainer, torch_device
from seqkit.data.masked_series import MaskedWindows
from seqkit.data.series import Panel
from seqkit.data.series_modules import SeriesDataModule
from seqkit.data.series_splits import split_by_time
from seqkit.errors import ConfigError
from seqkit.tasks.impute import LEVELS, ImputeTask
from seqkit.tasks.series_baselines import conformal_quantiles
from seqkit.tokenizers.numeric import SeriesScaler

ALIASES = {
    "table": "data.table",
    "series": "data.table",
    "columns": "data.columns",
    "freq": "data.freq",
    "time-zone": "data.time_zone",
    "batch-size": "data.batch_size",
    "device": "trainer.device",
    "precision": "trainer.precision",
}
_WINDOWS = 1 << 20
"""Windows that training draws from; each is another one."""
_VALIDATION_WINDOWS = 128


@dataclass(frozen=True, kw_only=True)
class FillConfig:
    """What to fill, with what, and where the result goes.

    Attributes:
        ckpt: Run folder of ``seqkit fit --task impute``.
        table: Series in long format; the run's own by default.
        columns: Which columns hold id, time, target, where they are not those of training.
        level: Percentages of the intervals, among 50, 80, 90 and 95; those of the run by default.
        out: Result of predict; CSV, TSV, Parquet or Arrow by suffix, ``-`` for CSV on stdout. Folder of test.
        task: Checked against the checkpoint's.
        device: auto, cpu, cuda or cuda:N.
    """

    ckpt: str = ""
    table: str | None = None
    columns: dict[str, str] | None = None
    level: tuple[float, ...] | None = None
    out: str = "-"
    task: str | None = None
    device: str = "auto"


def fit(argv: Sequence[str]) -> int:
    """Train, measure and report; the entry of ``seqkit fit --task impute``."""
    config, own, resolved = parse(
        f"seqkit fit --task {TASK}", ImputeConfig, argv, aliases=ALIASES, defaults=configs.path("task", TASK),
        flags=("resume", "overwrite"), options=("out",),
    )  # fmt: skip
    folder = open_run(own["out"], TASK, resolved, resume=own["resume"], overwrite=own["overwrite"])
    done = (folder / METRICS).exists()
    print_summary(folder, json.loads((folder / METRICS).read_text()) if done else train_and_evaluate(config, folder))
    return 0


def train_and_evaluate(config: ImputeConfig, folder: Path) -> dict[str, Any]:
    """One run: train, calibrate on hidden values of the validation rows, measure on those of the test rows.

    Returns:
        The contents of ``metrics.json``, written last.
    """
    panel = config.data.read(config.data.source)
    config, seasons = sized(config, panel)
    settings = config.data
    split = split_by_time(panel, lookback=1, horizon=1, validation=settings.validation, test=settings.test)
    write_manifest(folder, seed=config.seed, inputs={"table": settings.source}, device=config.trainer.device)
    known_N = np.full(len(panel.y), np.nan)
    for begin, end in split.bounds["train"]:
        known_N[begin:end] = panel.y[begin:end]
    scaler = SeriesScaler("series").fit(known_N, panel.offsets, panel.ids)
    task, best_epoch = train(config, seasons, panel, split.bounds, scaler, folder)
    trained = TrainedImputer(config, task, seasons, scaler, np.zeros(len(LEVELS)))
    season = best_season(trained, panel, split.bounds["validation"])
    trained = calibrated(trained, panel, split.bounds["validation"], season)
    found = {kind: measure(trained, panel, split.bounds["test"], kind, season=season) for kind in (POINTS, RUNS)}
    trained.save(folder)
    rows = {part: int(np.diff(bounds, axis=1).sum()) for part, bounds in split.bounds.items()}
    about = {"rows": rows, "split": split.description, "best_epoch": best_epoch, "season": season}
    return write_report(folder, trained, panel, found, about)


def train(
    config: ImputeConfig, seasons: tuple[int, ...], panel: Panel, bounds: Mapping[str, NDArray], scaler: SeriesScaler,
    folder: Path,
) -> tuple[ImputeTask, int]:  # fmt: skip
    """Train on windows of the training rows; the task with the weights of the best validation loss, and their epoch."""
    loc_S, scale_S = scaler.tables(panel.y, panel.offsets, panel.ids)
    z_N = (panel.y - loc_S[panel.series_of_row]) / scale_S[panel.series_of_row]
    before_S2 = np.stack([panel.offsets[:-1], bounds["validation"][:, 1]], axis=1)
    names = ("window", "longest", "vary")
    cut = {name: getattr(config.mask, name) for name in names} | {"seasons": seasons, "seed": config.seed}
    module = SeriesDataModule(
        train=MaskedWindows(z_N, bounds["train"], bounds["train"], count=_WINDOWS, **cut),
        validation=MaskedWindows(z_N, bounds["validation"], before_S2, count=_VALIDATION_WINDOWS, **cut),
        batch_size=config.data.batch_size, draws=config.data.windows_per_epoch, seed=config.seed,
    )  # fmt: skip
    task = build_task(config, seasons)
    trainer = make_trainer(folder, config.trainer, monitor="val/loss", mode="min", clip_norm=config.optim.clip_norm)
    trainer.fit(task, module, ckpt_path=last_checkpoint(folder), weights_only=True)
    best = torch.load(trainer.checkpoint_callback.best_model_path, map_location="cpu", weights_only=True)
    task.load_state_dict(best["state_dict"])
    return task.cpu().eval(), best["epoch"]


def calibrated(trained: TrainedImputer, panel: Panel, region_S2: NDArray, season: int) -> TrainedImputer:
    """The model with every quantile but the median moved to leave its share of hidden values of a region below it."""
    scale_S = trained.scaler.tables(panel.y, panel.offsets, panel.ids)[1]
    scores = []
    for kind in (POINTS, RUNS):
        hidden = measure(trained, panel, region_S2, kind, season=season, until_S=region_S2[:, 1])
        scale_M = scale_S[panel.series_of_row[hidden.row_M]]
        scores.append((hidden.y_M[:, None] - hidden.quantile_MQ) / scale_M[:, None])
    pooled_MQ = np.concatenate(scores)
    shift = [conformal_quantiles(pooled_MQ[:, [q]], [level])[0, 0] for q, level in enumerate(LEVELS)]
    shift[len(LEVELS) // 2] = 0.0
    return replace(trained, shift_Q=np.array(shift))


def predict(argv: Sequence[str]) -> int:
    """Fill every gap of a table."""
    config, _, _ = parse(f"seqkit predict --task {TASK}", FillConfig, argv, aliases={"series": "table"})
    trained, panel = open_both(config)
    for note in panel.notes:
        print(f"seqkit predict: {note}", file=sys.stderr)
    write_frame(trained.fill(panel, trained.config.level), config.out)
    return 0


def test(argv: Sequence[str]) -> int:
    """Hide known values of a table and measure what the model and the simple methods say of them."""
    config, own, resolved = parse(
        f"seqkit test --task {TASK}", FillConfig, argv, aliases={"series": "table"}, flags=("overwrite",)
    )
    if config.table is None:
        raise ConfigError("--table", expected="series whose values training has not seen", got="none")
    trained, panel = open_both(config)
    place = str(Path(config.ckpt) / "test") if config.out == "-" else config.out
    folder = open_run(place, TASK, resolved, resume=False, overwrite=own["overwrite"])
    whole_S2 = np.stack([panel.offsets[:-1], panel.offsets[1:]], axis=1)
    season = best_season(trained, panel, whole_S2)
    found = {kind: measure(trained, panel, whole_S2, kind, season=season) for kind in (POINTS, RUNS)}
    about = {"rows": {"test": len(panel.y)}, "split": "all rows of the table", "season": season}
    print_summary(folder, write_report(folder, trained, panel, found, about))
    return 0


def open_both(config: FillConfig) -> tuple[TrainedImputer, Panel]:
    """The run of ``--ckpt`` on its device, and the series to fill."""
    if not config.ckpt:
        raise ConfigError("--ckpt", expected="a run folder", got="none")
    if config.task not in (None, TASK):
        raise ConfigError("--task", expected=f"{TASK}, the checkpoint's", got=config.task, remedy="Drop it.")
    device = torch_device(config.device)
    trained = TrainedImputer.load(config.ckpt)
    trained.task.to(device)
    if config.level is not None:
        check_level(config.level)
        trained = replace(trained, config=replace(trained.config, level=config.level))
    data = trained.config.data
    if config.columns is not None:
        data = replace(data, columns=config.columns)
    return trained, data.read(config.table or data.source)
