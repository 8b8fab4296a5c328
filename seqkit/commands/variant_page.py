"""The report of a variant-effect run: one HTML page with its tables, thresholds and plots."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seqkit import __version__
from seqkit.commands.run_page import PAGE, how_made
from seqkit.commands.variant_plots import PLOTS, summary_table
from seqkit.report.page import write_page
from seqkit.report.thresholds import TARGET, operating_points, threshold_for, threshold_table

if TYPE_CHECKING:
    from seqkit.commands.variant_report import Method
    from seqkit.data.splits import Split
    from seqkit.data.variant_effect import VariantEffectData

CAPTIONS = {
    "ranking": "ROC and precision-recall curves on the test rows, beside the simple methods.",
    "reliability": "Calibration: observed share of positives against the predicted probability, on the test rows.",
    "confusion": "Calls at the threshold with the best MCC on the validation rows.",
    "consequence": "Scores by predicted consequence; box: median and quartiles.",
    "gene": "Scores along the gene; stretches without a variant are cut out of the axis.",
    "training": "Training and validation curves; the line marks the epoch whose weights were kept.",
}


def write_run_page(
    folder: Path,
    data: VariantEffectData,
    split: Split,
    methods_of: Mapping[str, list[Method]],
    metrics: Mapping[str, Any],
) -> None:
    """Write ``report.html`` into a run folder whose plots are drawn."""
    tables = []
    for column, (label, figures) in enumerate(metrics["results"].items()):
        tables.append(summary_table(metrics, label, figures))
        if data.kind == "binary":
            tables.append(label_thresholds(data, split, column, methods_of[label][0]))
    plots = sorted((folder / PLOTS).glob("*.png"), key=lambda p: (list(CAPTIONS).index(_kind(p)), p.name))
    write_page(
        folder / PAGE,
        title=f"Variant effects: {', '.join(metrics['results'])}",
        lead=f"{metrics['rows']['test']:,} test variants, split by {metrics['split']['description']}.",
        tables=tables,
        figures=[(path, CAPTIONS[_kind(path)]) for path in plots],
        details=details(folder, metrics),
    )


def label_thresholds(data: VariantEffectData, split: Split, column: int, ours: Method):
    """The table of thresholds of one label: chosen on validation rows, measured on test rows."""
    truth = data.labels[split.validation, column]
    thresholds = {
        "best MCC": ours.threshold,
        f"{TARGET:.0%} sensitivity": threshold_for(truth, ours.validation, sensitivity=TARGET),
        f"{TARGET:.0%} specificity": threshold_for(truth, ours.validation, specificity=TARGET),
        "even odds": 0.5,
    }
    known = {name: value for name, value in thresholds.items() if value is not None and not math.isnan(value)}
    points = operating_points(data.labels[split.test, column], ours.test, known)
    return threshold_table(
        points,
        title=f"{data.label_names[column]}: what a call at a threshold means",
        note="Thresholds were chosen on the validation rows where there are any; shares on the test rows, with "
        "Wilson's 95 % intervals; LR+ and LR- are the likelihood ratios of a call and of no call.",
    )


def details(folder: Path, metrics: Mapping[str, Any]) -> dict[str, str]:
    """How the run was made, for the end of the page."""
    rows, found = metrics["rows"], {"seqkit": __version__}
    found["rows"] = ", ".join(f"{part} {count:,}" for part, count in rows.items())
    found["alleles by status"] = ", ".join(f"{name} {count:,}" for name, count in metrics["alleles_by_status"].items())
    return found | how_made(folder)


def _kind(path: Path) -> str:
    """Which plot a file holds: ``ranking-1.png`` is a ranking."""
    stem = path.stem.split("-")[0]
    return stem if stem in CAPTIONS else "training"
