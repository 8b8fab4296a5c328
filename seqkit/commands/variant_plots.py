"""The plots of a variant-effect run folder, and its table on the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from seqkit.commands.run_page import show_tables
from seqkit.commands.trainer import HISTORY
from seqkit.report.ranking import plot_confusion, plot_ranking
from seqkit.report.reliability import plot_reliability
from seqkit.report.table import Table, metric_table
from seqkit.report.training import plot_training
from seqkit.report.variants import plot_along_gene, plot_by_consequence
from seqkit.tasks.metrics import Estimate

if TYPE_CHECKING:
    from seqkit.commands.variant_report import Method
    from seqkit.data.splits import Split
    from seqkit.data.variant_effect import VariantEffectData

PLOTS = "plots"
LEFT_OUT = ("brier", "log_loss", "ece")


def draw(
    folder: Path,
    data: VariantEffectData,
    split: Split,
    methods_of: Mapping[str, list[Method]],
    outputs: NDArray,
    best_epoch: int | None,
) -> None:
    """Write every plot the label kind allows into ``plots/``.

    Args:
        folder: Run folder.
        data: The table.
        split: Rows of the parts.
        methods_of: Methods by label, ours first.
        outputs: (V + E, K) our outputs before calibration, test rows last.
        best_epoch: Epoch of the kept weights.
    """
    plots = folder / PLOTS
    plots.mkdir(exist_ok=True)
    if (folder / HISTORY).exists():
        panels = {"loss": ("train/loss", "val/loss")}
        if data.kind == "binary":
            panels["validation"] = ("val/auroc", "val/auprc")
        plot_training(plots / "training", folder / HISTORY, panels=panels, best_epoch=best_epoch)
    if data.kind != "binary":
        return
    for column, (label, methods) in enumerate(methods_of.items()):
        suffix = f"-{column}" if len(methods_of) > 1 else ""
        truth = data.labels[split.test, column]
        ours = methods[0]
        threshold = ours.threshold
        plot_ranking(plots / f"ranking{suffix}", truth, {m.name: m.test for m in methods})
        before = 1 / (1 + np.exp(-outputs[-len(truth) :, column]))
        plot_reliability(plots / f"reliability{suffix}", truth, {"calibrated": ours.test, "before calibration": before})
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
    """The table at the end of a run: on stdout, and as Markdown in the run folder."""
    show_tables(folder, [summary_table(metrics, label, figures) for label, figures in metrics["results"].items()])
    print(f"run folder: {folder}")


def summary_table(metrics: dict[str, Any], label: str, figures: Mapping[str, Mapping[str, Any]]) -> Table:
    """Test figures with 95 % intervals of every method on one label."""
    estimates = {
        method: {name: estimate(value) for name, value in values.items() if name != "threshold"}
        for method, values in figures.items()
    }
    ours = next(iter(estimates.values()))
    shown = {name: name.upper() if len(name) < 6 else name for name in ours if name not in LEFT_OUT}
    count, split = metrics["rows"], metrics["split"]
    positive = metrics["positive"].get(label, label)
    what = label if positive == label else f"{label} {positive} against the rest"
    title = f"{what}: {count['test']} test rows, split by {split['name']} ({split['description']})"
    note = "95 % bootstrap intervals by position"
    if count["train"]:
        note = f"trained on {count['train']}, validated on {count['validation']} rows; {note}"
    if metrics["kind"] == "binary":
        note += "; MCC at the threshold chosen on validation"
    if all(name in ours for name in LEFT_OUT):
        first = next(iter(estimates))
        note += f"; {first}: Brier {ours['brier'].value:.3f}, calibration error {ours['ece'].value:.3f}"
    return metric_table(estimates, shown, title=title, note=note + ".")


def estimate(stored: Mapping[str, Any]) -> Estimate:
    """An estimate as ``metrics.json`` holds it, null for what is undefined."""
    return Estimate(**{key: np.nan if value is None else value for key, value in stored.items()})
