"""What a run that fills gaps prints, draws and stores: our values beside simple ones for the same hidden ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from seqkit.commands.forecast_frames import at_level, sides
from seqkit.commands.forecast_report import stamps
from seqkit.commands.impute_measure import RUNS, Hidden, figures
from seqkit.commands.impute_trained import TASK, TrainedImputer
from seqkit.commands.run_folder import METRICS
from seqkit.commands.run_page import show_tables, write_run_page
from seqkit.commands.trainer import HISTORY
from seqkit.data.series import Panel
from seqkit.files import atomic, write_json
from seqkit.report.series import Fan, plot_fans
from seqkit.report.table import Table
from seqkit.report.training import plot_training
from seqkit.tasks.impute import LEVELS

PLOTS, FILLED = "plots", "filled.parquet"
CAPTIONS = {
    "gaps": "Runs of known values that were hidden: what was filled in with its intervals, and what had been there.",
    "training": "Training and validation loss; the line marks the epoch whose weights were kept.",
}
_FANS = 3


def write_report(
    folder: Path, trained: TrainedImputer, panel: Panel, found: Mapping[str, Hidden], about: Mapping[str, Any]
) -> dict[str, Any]:
    """The filled table, plots and metrics into a folder, ``metrics.json`` last; its contents."""
    config = trained.config
    metrics = {
        "task": TASK,
        "units": "those of the data",
        "series": len(panel),
        "missing": int(np.isnan(panel.y).sum()),
        "run": config.mask.run,
        "share": config.mask.share,
        "hidden": {kind: len(hidden.y_M) for kind, hidden in found.items()},
        **about,
        "notes": list(panel.notes),
        "results": {kind: figures(hidden, config.level) for kind, hidden in found.items()},
    }
    with atomic(folder / FILLED) as temporary:
        trained.fill(panel, config.level).write_parquet(temporary)
    plots = folder / PLOTS
    plots.mkdir(exist_ok=True)
    plot_fans(plots / "gaps", gap_fans(panel, found[RUNS], config.level))
    if (folder / HISTORY).exists():
        plot_training(
            plots / "training", folder / HISTORY, panels={"loss": ("train/loss", "val/loss")},
            best_epoch=about["best_epoch"],
        )  # fmt: skip
    write_run_page(
        folder, title="Gaps of numeric series", lead=f"{metrics['missing']:,} missing values filled from both sides.",
        tables=[summary_table(metrics, kind) for kind in metrics["results"]],
        figures={plots / name: caption for name, caption in CAPTIONS.items()},
        details={
            "series": f"{metrics['series']:,}",
            "hidden values": metrics["split"],
            "what was done to the rows": "; ".join(metrics["notes"]),
        },
    )  # fmt: skip
    write_json(folder / METRICS, metrics)
    return metrics


def gap_fans(panel: Panel, hidden: Hidden, level: tuple[float, ...]) -> list[Fan]:
    """Up to three hidden runs with what was filled in and what had been there."""
    edges = np.diff(np.concatenate([[0], hidden.first_N.astype(int), [0]]))
    runs = list(zip(np.flatnonzero(edges == 1), np.flatnonzero(edges == -1), strict=True))
    chosen = np.unique(np.linspace(0, len(runs) - 1, min(_FANS, len(runs))).round().astype(int))
    levels, fans = np.array(LEVELS), []
    for begin, end in (runs[i] for i in chosen):
        series = panel.series_of_row[begin]
        end = min(end, panel.offsets[series + 1])
        before = slice(max(begin - 2 * (end - begin), panel.offsets[series]), begin)
        rows, quantiles = slice(begin, end), hidden.quantile_NQ[begin:end]
        intervals = {p: tuple(at_level(quantiles, levels, side) for side in sides(p)) for p in level}
        fans.append(Fan(
            f"{panel.ids[series]}, hidden from {panel.ds[int(begin)]}", stamps(panel.ds[before]), panel.y[before],
            stamps(panel.ds[rows]), at_level(quantiles, levels, 0.5), intervals, panel.y[rows],
        ))  # fmt: skip
    return fans


def print_summary(folder: Path, metrics: Mapping[str, Any]) -> None:
    """The tables at the end of a run: on stdout, and as Markdown in the run folder."""
    show_tables(folder, [summary_table(metrics, kind) for kind in metrics["results"]], metrics["notes"])
    print(f"{metrics['missing']:,} missing values filled in {folder / FILLED}; run folder: {folder}")


def summary_table(metrics: Mapping[str, Any], kind: str) -> Table:
    """Figures of every method for one kind of hidden values."""
    results = metrics["results"][kind]
    first = next(iter(results.values()))
    coverages = [key for key in first if key.startswith("coverage")]
    headings = ("method", "MAE", "RMSE", *(f"{key.removeprefix('coverage_')} % interval holds" for key in coverages))
    rows = [
        (
            name,
            f"{row['mae']:.4g}",
            f"{row['rmse']:.4g}",
            *(f"{row[key]:.1%}" if key in row else "" for key in coverages),
        )
        for name, row in results.items()
    ]
    what = f"runs of {metrics['run']} steps" if kind == RUNS else "single points"
    title = f"{what} hidden, {metrics['share']:.0%} of the known values a draw: {metrics['hidden'][kind]:,} in all"
    return Table(title, headings, tuple(rows), metrics["split"] + ".")
