"""The report of a forecasting run: one HTML page with its table, plots and how it was made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seqkit import __version__
from seqkit.commands.run_folder import MANIFEST
from seqkit.report.page import write_page
from seqkit.report.table import Table

PAGE = "report.html"
CAPTIONS = {
    "fan": "Forecasts from three test cutoffs: history, medians with their intervals, and what came.",
    "horizon": "Mean absolute error by step ahead on the test windows.",
    "coverage": "Share of test values below each quantile against its level; right is on the diagonal.",
    "backtest": "All test cutoffs of the first series over what came.",
    "training": "Training and validation loss; the line marks the epoch whose weights were kept.",
}


def write_run_page(folder: Path, plots: Path, table: Table, metrics: Mapping[str, Any]) -> None:
    """Write ``report.html`` into a run folder whose plots are drawn."""
    rows = ", ".join(f"{part} {count:,}" for part, count in metrics["rows"].items())
    details = {"seqkit": __version__, "series": f"{metrics['series']:,}", "rows": rows, "split": metrics["split"]}
    if metrics["notes"]:
        details["what was done to the rows"] = "; ".join(metrics["notes"])
    if (folder / MANIFEST).is_file():
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        details |= {
            "date": manifest["date"],
            "command": " ".join(manifest["command"]),
            "seed": str(manifest["seed"]),
            "platform": manifest["platform"],
            "versions": ", ".join(f"{name} {number}" for name, number in manifest["versions"].items() if number),
        }
        for name, entry in manifest["inputs"].items():
            details[name] = f"{Path(entry['path']).name}, sha256 {entry['sha256']}"
    write_page(
        folder / PAGE,
        title="Forecasts of numeric series",
        lead="Our model beside simple methods on the same test windows, in the units of the data.",
        tables=[table],
        figures=[(plots / f"{name}.png", caption) for name, caption in CAPTIONS.items()],
        details=details,
    )
