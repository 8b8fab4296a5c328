"""The plots of a variant-effect run folder, and its table on the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from seqkit.commands.trainer import HISTORY
from seqkit.report.ranking import plot_confusion, plot_ranking
from seqkit.report.reliability import plot_reliability
from seqkit.report.table import Table, cell, show
from seqkit.report.training import plot_training
from seqkit.report.variants import plot_along_gene, plot_by_consequence

if TYPE_CHECKING:
    from seqkit.commands.variant_report import Method
    from seqkit.data.splits import Split
    from seqkit.data.variant_effect import VariantEffectData

PLOTS = "plots"
LEFT_OUT = ("brier", "log_loss", "ece")


def draw(folder: Path, data: VariantEffectData, split: Split, methods_of: Mapping[str, list[Method]]) -> None:
    """Write every plot the label kind allows into ``plots/``."""
    plots = folder / PLOTS
    plots.mkdir(exist_ok=True)
    if (folder / HISTORY).exists():
        panels = {"loss": ("train/loss", "val/loss")}
        if data.kind == "binary":
            panels["validation"] = ("val/auroc", "val/auprc")
        plot_training(plots / "training", folder / HISTORY, panels=panels)
    if data.kind != "binary":
        return
    for column, (label, methods) in enumerate(methods_of.items()):
        suffix = f"-{column}" if len(methods_of) > 1 else ""
        truth = data.labels[split.test, column]
        ours = methods[0]
        threshold = ours.threshold
        plot_ranking(plots / f"ranking{suffix}", truth, {m.name: m.test for m in methods})
        plot_reliability(plots / f"reliability{suffix}", truth, {ours.name: ours.test})
        called = (ours.test >= threshold).astype(float)
        positive = data.positive_name(label)
        names = [f"not {positive}", positive]
        plot_confusion(
            plots / f"confusion{suffix}", truth, called, names, title=f"threshold {threshold:.2f} (validation)"
        )
        if data.consequences is not None:
            consequences = data.consequences["consequence"].to_numpy()[split.test]
            plot_by_consequence(
                plots / f"consequence{suffix}", consequences, ours.test, truth, threshold=threshold, names=tuple(names)
            )
        if len(set(data.contigs[split.test])) == 1:
            plot_along_gene(
                plots / f"gene{suffix}", data.positions[split.test] - 1, ours.test, truth,
                exons=data.exons(split.test), threshold=threshold, names=tuple(names),
            )  # fmt: skip


def print_summary(folder: Path, metrics: dict[str, Any]) -> None:
    """The table at the end of a run, on stdout."""
    for label, figures in metrics["results"].items():
        show(summary_table(metrics, label, figures))
    print(f"run folder: {folder}")


def summary_table(metrics: dict[str, Any], label: str, figures: Mapping[str, Mapping[str, Any]]) -> Table:
    """Test figures with 95 % intervals of every method on one label."""
    ours = next(iter(figures.values()))
    names = [name for name in ours if name != "threshold" and name not in LEFT_OUT]
    rows = []
    for method, values in figures.items():
        cells = [_cell(values[name]) if name in values else "" for name in names]
        rows.append((method, *cells))
    count = metrics["rows"]
    title = (
        f"{label}: {count['test']} test rows, split by {metrics['split']['name']} ({metrics['split']['description']})"
    )
    note = f"trained on {count['train']}, validated on {count['validation']} rows; 95 % bootstrap intervals by position"
    if metrics["kind"] == "binary":
        note += "; MCC at the threshold chosen on validation"
    if all(name in ours for name in LEFT_OUT):
        note += (
            f"; {next(iter(figures))}: Brier {ours['brier']['value']:.3f}, calibration error {ours['ece']['value']:.3f}"
        )
    return Table(title, ("method", *(name.upper() if len(name) < 6 else name for name in names)), tuple(rows), note)


def _cell(estimate: Mapping[str, Any]) -> str:
    numbers = (np.nan if estimate[key] is None else estimate[key] for key in ("value", "low", "high"))
    return cell(*numbers)
