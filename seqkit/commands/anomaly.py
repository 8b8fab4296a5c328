"""``seqkit fit``, ``predict`` and ``test`` with ``--task anomaly``."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from seqkit import configs
from seqkit.commands.anomaly_trained import TASK, AnomalyConfig, TrainedDetectors, series_of
from seqkit.commands.arguments import parse
from seqkit.commands.forecast_predict import write_frame
from seqkit.commands.run_folder import METRICS, open_run, write_manifest
from seqkit.commands.run_page import write_run_page
from seqkit.commands.trainer import torch_device
from seqkit.data.series import Panel
from seqkit.errors import ConfigError, InputError
from seqkit.files import atomic, write_json
from seqkit.report.anomaly import plot_scores
from seqkit.report.table import Table
from seqkit.tasks.anomaly_metrics import event_curve, event_point, recall_at, volume_under_surface, windows_of

ALIASES = {
    "table": "data.table",
    "series": "data.table",
    "columns": "data.columns",
    "freq": "data.freq",
    "time-zone": "data.time_zone",
}
SCORES = "scores.parquet"
BUDGETS = (1.0, 2.0, 4.0)
_MONTH = 30 * 86_400 * 10**9
_LONGEST_BUFFER = 100


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """What to score, with what, and where the result goes.

    Attributes:
        ckpt: Run folder of ``seqkit fit --task anomaly``.
        table: Series in long format, from where the run's series began; the run's own by default.
        out: Result of predict; CSV, TSV, Parquet or Arrow by suffix, ``-`` for CSV on stdout.
        label: Column that is 1 inside anomalies, for test.
        task: Checked against the checkpoint's.
        device: auto, cpu, cuda or cuda:N.
    """

    ckpt: str = ""
    table: str | None = None
    out: str = "-"
    label: str | None = None
    task: str | None = None
    device: str = "auto"


def fit(argv: Sequence[str]) -> int:
    """Fit detectors; the entry of ``seqkit fit --task anomaly``."""
    config, own, resolved = parse(
        f"seqkit fit --task {TASK}", AnomalyConfig, argv, aliases=ALIASES, defaults=configs.path("task", TASK),
        flags=("resume", "overwrite"), options=("out",),
    )  # fmt: skip
    folder = open_run(own["out"], TASK, resolved, resume=own["resume"], overwrite=own["overwrite"])
    if not (folder / METRICS).exists():
        train(config, folder)
    print_summary(folder)
    return 0


def train(config: AnomalyConfig, folder: Path) -> None:
    """Fit, score the whole table, write the run folder; ``metrics.json`` last."""
    panel = config.data.read(config.data.source)
    write_manifest(folder, seed=config.seed, inputs={"table": config.data.source}, device=config.device)
    trained = TrainedDetectors.fit(config, panel, torch_device(config.device))
    trained.save(folder)
    scores = trained.score(panel)
    with atomic(folder / SCORES) as temporary:
        scores.write_parquet(temporary)
    starts = {name: config.normal_rows(len(y_T)) for name, y_T in series_of(panel)}
    plot_scores(folder / "scores.png", scores, {n: d.threshold for n, d in trained.detectors.items()}, starts)
    found = {}
    for name, detector in trained.detectors.items():
        rows = scores.filter(pl.col("unique_id") == name)[starts[name] :]
        found[name] = {
            "season": detector.season, "smooth": detector.smooth, "threshold": detector.threshold,
            "normal_rows": starts[name], "scored_rows": len(rows), "anomalous_rows": int(rows["anomaly"].sum()),
        }  # fmt: skip
    metrics = {"series": found, "notes": list(panel.notes)}
    write_run_page(
        folder, title="Anomalies of numeric series",
        lead="Surprise of a one-step model; rows above the highest score of the stretch taken as normal are anomalous.",
        tables=[summary_table(metrics)], figures={folder / "scores": "Series, scores and thresholds."},
        details={"what was done to the rows": "; ".join(panel.notes)},
    )  # fmt: skip
    write_json(folder / METRICS, metrics)


def summary_table(metrics: Mapping[str, Any]) -> Table:
    """What each detector reads, and how many rows are anomalous."""
    rows = [
        (
            name, f"changes over {row['season']} steps" if row["season"] else "values", f"{row['normal_rows']:,}",
            f"{row['scored_rows']:,}", f"{row['anomalous_rows']:,}", f"{row['threshold']:.4g}",
        )
        for name, row in metrics["series"].items()
    ]  # fmt: skip
    columns = ("series", "read as", "rows taken as normal", "later rows", "anomalous", "threshold")
    return Table("Detectors", columns, tuple(rows))


def print_summary(folder: Path) -> None:
    """One line a series."""
    for name, row in json.loads((folder / METRICS).read_text())["series"].items():
        season = f"changes over {row['season']} steps" if row["season"] else "values"
        print(
            f"{name}: {season}, {row['normal_rows']} rows taken as normal; "
            f"{row['anomalous_rows']} of {row['scored_rows']} later rows score above all of them"
        )
    print(f"scores in {folder / SCORES}, plot in {folder / 'scores.png'}")


def predict(argv: Sequence[str]) -> int:
    """Score every row of a table."""
    config, _, _ = parse(f"seqkit predict --task {TASK}", ScoreConfig, argv, aliases={"series": "table"})
    trained, panel = open_both(config)
    for note in panel.notes:
        print(f"seqkit predict: {note}", file=sys.stderr)
    write_frame(trained.score(panel), config.out)
    return 0


def test(argv: Sequence[str]) -> int:
    """Measure scores against a label column: windows found, false events, areas over ranges."""
    config, own, resolved = parse(
        f"seqkit test --task {TASK}", ScoreConfig, argv, aliases={"series": "table"}, flags=("overwrite",),
    )  # fmt: skip
    if config.label is None:
        raise ConfigError("--label", expected="the column that is 1 inside anomalies", got="none")
    trained, panel = open_both(config)
    folder = Path(config.out) if config.out != "-" else Path(config.ckpt) / "test"
    folder = open_run(str(folder), TASK, resolved, resume=False, overwrite=own["overwrite"])
    metrics = measure(trained, panel, config.label)
    write_json(folder / METRICS, metrics)
    for name, row in metrics.items():
        print(f"{name}: " + ", ".join(f"{key} {value:.3g}" for key, value in row.items()))
    return 0


def open_both(config: ScoreConfig) -> tuple[TrainedDetectors, Panel]:
    """The run of ``--ckpt`` on its device, and the series to score."""
    if not config.ckpt:
        raise ConfigError("--ckpt", expected="a run folder", got="none")
    if config.task not in (None, TASK):
        raise ConfigError("--task", expected=f"{TASK}, the checkpoint's", got=config.task, remedy="Drop it.")
    trained = TrainedDetectors.load(config.ckpt, torch_device(config.device))
    data = trained.config.data
    exogenous = (config.label,) if config.label else ()
    return trained, data.read(config.table or data.source, exogenous)


def measure(trained: TrainedDetectors, panel: Panel, label: str) -> dict[str, Any]:
    """Metrics of every series that has labelled rows behind its normal stretch.

    Raises:
        InputError: No series has one.
    """
    scores, labels = trained.score(panel), panel.exogenous[label].fill_null(0).cast(pl.Boolean).to_numpy()
    step = panel.frequency.nanoseconds if panel.frequency else None
    day = max(round(86_400e9 / step), 1) if step else 1
    found = {}
    for name, begin, end in zip(panel.ids, panel.offsets[:-1], panel.offsets[1:], strict=True):
        score, start = scores["score"].to_numpy()[begin:end], trained.config.normal_rows(int(end - begin))
        windows = [(b, e) for b, e in windows_of(labels[begin:end]) if e > start]
        if windows:
            counting = {"gap": day, "steps_per_month": _MONTH / step if step else len(score), "start": start}
            found[name] = _measured(score, windows, trained.detectors[name].threshold, counting)
    if not found:
        raise InputError(label, expected="a labelled row behind the rows taken as normal", got="none")
    return found


def _measured(score: np.ndarray, windows: list, threshold: float, counting: dict) -> dict[str, float]:
    point = event_point(score, windows, threshold, **counting)
    curve, start = event_curve(score, windows, **counting), counting["start"]
    later = [(max(begin - start, 0), end - start) for begin, end in windows]
    area = volume_under_surface(score[start:], later, min(counting["gap"], _LONGEST_BUFFER))
    return {
        "windows": len(windows), "recall": point.recall, "false_events": point.false_events,
        "false_per_month": point.false_per_month,
        **{f"recall_at_{budget:g}_a_month": recall_at(curve, budget) for budget in BUDGETS},
        "vus_roc": area.roc, "vus_pr": area.pr,
    }  # fmt: skip
