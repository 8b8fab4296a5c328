"""The curve of a language model: held-out and training bits over tokens."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from pathlib import Path

from matplotlib.ticker import EngFormatter

from seqkit.report.figures import COLOURS, MUTED, new_figure, save, say, style

_LINES = {"held_out_bits": "held out", "train_bits": "training"}
_DASHES = ((0, (6, 2)), ":", "-.", (0, (1, 3)))


def plot_learning(
    path: str | os.PathLike, history: str | os.PathLike, bars: Mapping[str, float], *, unit: str = "bits per base"
) -> list[Path]:
    """Bits over tokens, with a line for each simple model.

    Args:
        path: Where to write; PNG and SVG.
        history: CSV with the columns ``tokens``, ``length``, ``train_bits`` and ``held_out_bits``.
        bars: Bits of the simple models by name.
        unit: Label of the axis.

    Returns:
        The files written.
    """
    with open(history, newline="", encoding="utf-8") as handle:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(handle)]
    with style():
        figure, axes = new_figure(7.2, 4.2)
        if not rows:
            say(axes, "nothing was measured")
        tokens = [row["tokens"] for row in rows]
        for i, (name, label) in enumerate(_LINES.items()):
            bits = [row[name] for row in rows]
            axes.plot(tokens, bits, color=COLOURS[i], marker="os"[i], markersize=3.5, label=label)
        for i, (name, value) in enumerate(bars.items()):
            label = f"{name} ({value:.3f})"
            axes.axhline(value, color=MUTED, linewidth=1, linestyle=_DASHES[i % len(_DASHES)], label=label)
        _mark_stages(axes, rows)
        axes.set(xlabel="tokens", ylabel=unit, title="Learning curve")
        axes.xaxis.set_major_formatter(EngFormatter())
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.legend(fontsize=8)
        return save(figure, path)


def _mark_stages(axes, rows: list[dict[str, float]]) -> None:
    """A tick at the top wherever the windows grew."""
    for before, row in zip([None, *rows], rows, strict=False):
        if before is None or before["length"] != row["length"]:
            axes.annotate(
                f"{int(row['length']):,}", (row["tokens"], 1), xycoords=("data", "axes fraction"), fontsize=8,
                color=MUTED, ha="center", va="bottom",
            )  # fmt: skip
