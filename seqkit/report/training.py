"""Curves of a training run."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from seqkit.report.figures import COLOURS, MUTED, new_figure, save, say, style


def plot_training(
    path: str | os.PathLike,
    history: str | os.PathLike | Iterable[Mapping[str, object]],
    *,
    panels: Mapping[str, tuple[str, ...]],
    best_epoch: float | None = None,
) -> list[Path]:
    """Metrics over epochs, one panel for each group of metrics that share a scale.

    Args:
        path: Where to write; PNG and SVG.
        history: A metrics CSV with a header, or rows as mappings; each with ``epoch`` and any of the metrics. Empty
            and NaN entries are left out; of several rows of an epoch the last entry counts.
        panels: Names of metrics by title of the panel, such as ``{"loss": ("train_loss", "val_loss")}``.
        best_epoch: Marked with a line.

    Returns:
        The files written.
    """
    rows = _read(history)
    with style():
        figure, axes = new_figure(1.2 + 4.0 * len(panels), 3.6, ncols=len(panels), squeeze=False)
        for panel, (title, names) in zip(axes[0], panels.items(), strict=True):
            drawn = [_draw(panel, rows, name, i) for i, name in enumerate(names)]
            panel.set(title=title, xlabel="epoch")
            panel.grid(color="#dddddd", linewidth=0.6)
            panel.xaxis.get_major_locator().set_params(integer=True)
            if not any(drawn):
                say(panel, "nothing was logged")
                continue
            if best_epoch is not None:
                panel.axvline(best_epoch, color=MUTED, linewidth=1, linestyle=(0, (2, 2)), label="kept")
            panel.legend()
        return save(figure, path)


def _draw(panel, rows: list[Mapping[str, object]], name: str, i: int) -> bool:
    points: dict[float, float] = {}
    for row in rows:
        epoch, value = _number(row.get("epoch")), _number(row.get(name))
        if not math.isnan(epoch) and not math.isnan(value):
            points[epoch] = value
    if points:
        epochs = sorted(points)
        values = [points[epoch] for epoch in epochs]
        panel.plot(epochs, values, color=COLOURS[i], marker="os^D"[i % 4], markersize=3.5, linewidth=1.6, label=name)
    return bool(points)


def _number(entry: object) -> float:
    return float(entry) if entry not in (None, "") else math.nan


def _read(history: str | os.PathLike | Iterable[Mapping[str, object]]) -> list[Mapping[str, object]]:
    if isinstance(history, str | os.PathLike):
        with open(history, newline="", encoding="utf-8") as handle:
            return list(csv.DictReader(handle))
    return list(history)
