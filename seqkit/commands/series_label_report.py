"""What a run on labelled series prints, draws and stores: our answers beside simple ones on the same series."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from sklearn.metrics import f1_score

from seqkit.commands.run_folder import METRICS
from seqkit.commands.run_page import show_tables, write_run_page
from seqkit.commands.trainer import HISTORY
from seqkit.files import atomic, write_json
from seqkit.report.ranking import plot_confusion
from seqkit.report.series import plot_numbers
from seqkit.report.table import Table, cell
from seqkit.report.thresholds import wilson
from seqkit.report.training import plot_training
from seqkit.tasks.metrics import mae, r2, rmse
from seqkit.tasks.series_label_baselines import Answer

PLOTS, PREDICTIONS = "plots", "predictions.parquet"
CAPTIONS = {
    "confusion": "Classes of the test series, and what they were taken for.",
    "numbers": "Numbers of the test series against what was predicted.",
    "training": "Training and validation loss; the line marks the epoch whose weights were kept.",
}
_HEADINGS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "mae": "MAE",
    "rmse": "RMSE",
    "r2": "R²",
}


def figures(answer_E: NDArray, target_E: NDArray, classes: Sequence[str]) -> dict[str, Any]:
    """Metrics of one method; accuracy with its 95 % interval (Wilson)."""
    if not classes:
        return {name: float(f(target_E, answer_E)) for name, f in (("mae", mae), ("rmse", rmse), ("r2", r2))}
    right = answer_E == target_E
    present = np.unique(target_E)
    return {
        "accuracy": float(right.mean()),
        "accuracy_95": list(wilson(int(right.sum()), len(right))),
        "balanced_accuracy": float(np.mean([right[target_E == c].mean() for c in present])),
        "macro_f1": float(f1_score(target_E, answer_E, labels=present, average="macro", zero_division=0)),
    }


def write_report(
    folder: Path, answers: Sequence[Answer], target_E: NDArray, frame: pl.DataFrame, *, classes: Sequence[str],
    about: Mapping[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """Predictions, plots and metrics into a folder, ``metrics.json`` last; its contents.

    Args:
        folder: Run folder.
        answers: Of every method, ours first.
        target_E: Class numbers, or values.
        frame: Our answers with their series.
        classes: Names; none for numbers.
        about: What else belongs into the metrics.
    """
    metrics = {**about, "classes": list(classes)}
    metrics["results"] = {one.name: figures(one.answer_E, target_E, classes) for one in answers}
    with atomic(folder / PREDICTIONS) as temporary:
        frame.write_parquet(temporary)
    plots = folder / PLOTS
    plots.mkdir(exist_ok=True)
    if classes:
        plot_confusion(plots / "confusion", target_E, answers[0].answer_E.astype(int), classes)
    else:
        plot_numbers(plots / "numbers", target_E, answers[0].answer_E)
    if (folder / HISTORY).exists():
        plot_training(
            plots / "training", folder / HISTORY, panels={"loss": ("train/loss", "val/loss")},
            best_epoch=about["best_epoch"] if about["best_epoch"] >= 0 else None,
        )  # fmt: skip
    write_run_page(
        folder, title=f"{'A class' if classes else 'A number'} for whole series",
        lead="Our model beside simple methods on the same test series.", tables=[summary_table(metrics)],
        figures={plots / name: caption for name, caption in CAPTIONS.items()},
        details={
            "series": ", ".join(f"{part} {count:,}" for part, count in metrics["series"].items()),
            "channels": str(metrics["channels"]),
            "classes": ", ".join(classes),
            "what was done to the rows": "; ".join(metrics["notes"]),
        },
    )  # fmt: skip
    write_json(folder / METRICS, metrics)
    return metrics


def print_summary(folder: Path, metrics: Mapping[str, Any]) -> None:
    """The table at the end of a run: on stdout, and as Markdown in the run folder."""
    show_tables(folder, [summary_table(metrics)], metrics["notes"])
    print(f"run folder: {folder}")


def summary_table(metrics: Mapping[str, Any]) -> Table:
    """Test figures of every method."""
    first = next(iter(metrics["results"].values()))
    keys = [key for key in _HEADINGS if key in first]
    rows = [(method, *(_cell(key, values) for key in keys)) for method, values in metrics["results"].items()]
    shortest, longest = metrics["lengths"]
    series = metrics["series"]
    length = f"{shortest}" if shortest == longest else f"{shortest} to {longest}"
    title = f"{metrics['task']}: {series['test']} test series of {length} steps"
    note = ""
    if "train" in series:
        note = (
            f"Trained on {series['train']} series, {kept(metrics['best_epoch'])} kept by {series['validation']}; "
            "simple methods learn from both."
        )
    if metrics["synthetic"]:
        note += " Synthetic series made from the seed."
    return Table(title, ("method", *(_HEADINGS[key] for key in keys)), tuple(rows), note.strip())


def kept(epoch: int) -> str:
    """What a run ended with, in words."""
    return f"epoch {epoch}" if epoch >= 0 else "the start (random convolutions and ridge)"


def _cell(key: str, values: Mapping[str, Any]) -> str:
    value = values[key]
    if value is None or np.isnan(value):
        return "undefined"
    return cell(value, *values["accuracy_95"]) if key == "accuracy" else f"{value:.4g}"
