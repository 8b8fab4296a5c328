"""``seqkit predict`` and ``seqkit test`` with a run on labelled series."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl

from seqkit.commands.arguments import parse
from seqkit.commands.forecast_predict import write_frame
from seqkit.commands.run_folder import open_run
from seqkit.commands.series_label import targets
from seqkit.commands.series_label_report import print_summary, write_report
from seqkit.commands.series_label_trained import TrainedLabels
from seqkit.commands.trainer import torch_device
from seqkit.data.labelled_series import LabelledSeries, read_labelled, with_labels
from seqkit.errors import ConfigError
from seqkit.tasks.series_label_baselines import Answer

_ALIASES = {"series": "table"}


@dataclass(frozen=True, kw_only=True)
class SeriesLabelInput:
    """What to answer, with what, and where the result goes.

    Attributes:
        ckpt: Run folder.
        table: Series in long format or the UCR layout; the run's own by default.
        labels: Table of labels, for test.
        label: Column of the label, for test; the run's own by default.
        out: Result of predict; CSV, TSV, Parquet or Arrow by suffix, ``-`` for CSV on stdout. Folder of test.
        task: Checked against the checkpoint's.
        device: auto, cpu, cuda or cuda:N.
    """

    ckpt: str = ""
    table: str | None = None
    labels: str | None = None
    label: str | None = None
    out: str = "-"
    task: str | None = None
    device: str = "auto"


def predict(argv: Sequence[str]) -> int:
    """Answer every series of a table."""
    config, _, _ = parse("seqkit predict", SeriesLabelInput, argv, aliases=_ALIASES)
    trained, data = open_both(config, labelled=False)
    for note in data.notes:
        print(f"seqkit predict: {note}", file=sys.stderr)
    write_frame(trained.frame(data.ids, trained.answer(data)), config.out)
    return 0


def test(argv: Sequence[str]) -> int:
    """Measure a run on the labelled series of a table, beside the answer that is the same for all."""
    config, own, resolved = parse("seqkit test", SeriesLabelInput, argv, aliases=_ALIASES, flags=("overwrite",))
    if config.table is None:
        raise ConfigError("--table", expected="labelled series that training has not seen", got="none")
    trained, data = open_both(config, labelled=True)
    kind, classes = trained.config.kind, list(trained.classes)
    target_S, _ = targets(data.labels, kind, config.label or trained.config.data.label, classes)
    place = str(Path(config.ckpt) / "test") if config.out == "-" else config.out
    folder = open_run(place, trained.config.task, resolved, resume=False, overwrite=own["overwrite"])
    found = trained.answer(data)
    ours = Answer("seqkit", found.argmax(axis=1).astype(float) if classes else found, 0.0)
    same = Answer("majority" if classes else "mean", np.full(len(target_S), trained.usual), 0.0)
    frame = trained.frame(data.ids, found)
    truth = data.labels.cast(pl.String) if classes else data.labels
    about = {
        "task": trained.config.task, "series": {"test": len(data.ids)},
        "lengths": [int(data.lengths.min()), int(data.lengths.max())], "channels": data.values_NC.shape[1],
        "synthetic": False, "notes": list(data.notes),
    }  # fmt: skip
    frame = frame.with_columns(truth.alias("label"))
    print_summary(folder, write_report(folder, [ours, same], target_S, frame, classes=classes, about=about))
    return 0


def open_both(config: SeriesLabelInput, *, labelled: bool) -> tuple[TrainedLabels, LabelledSeries]:
    """The run of ``--ckpt`` on its device, and the series to answer."""
    if not config.ckpt:
        raise ConfigError("--ckpt", expected="a run folder", got="none")
    device = torch_device(config.device)
    trained = TrainedLabels.load(config.ckpt)
    if config.task not in (None, trained.config.task):
        raise ConfigError(
            "--task", expected=f"{trained.config.task}, the checkpoint's", got=config.task, remedy="Drop it."
        )
    trained.task.to(device)
    settings = trained.config.data
    settings = replace(settings, labels=config.labels, label=config.label or settings.label, split=None)
    source = config.table or settings.table
    data = read_labelled(settings, source, seed=trained.config.seed, labelled=labelled)
    return trained, with_labels(data) if labelled else data
