"""Plot of series with their anomaly scores below."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import polars as pl

from seqkit.report.figures import COLOURS, MUTED, new_figure, save, style

_MOST = 4
_POINTS = 20_000


def plot_scores(
    path: str | os.PathLike, scores: pl.DataFrame, thresholds: Mapping[str, float], starts: Mapping[str, int]
) -> list[Path]:
    """Values above, scores with their threshold below, rows taken as normal in grey; the first four series.

    Args:
        path: File without or with suffix.
        scores: Columns ``unique_id``, ``ds``, ``y``, ``score``, ``anomaly``.
        thresholds: By series.
        starts: Rows of each series that were taken as normal.
    """
    names = list(thresholds)[:_MOST]
    with style():
        figure, axes = new_figure(10.0, 3.6 * len(names), nrows=2 * len(names), squeeze=False)
        for place, name in enumerate(names):
            rows = scores.filter(pl.col("unique_id") == name)
            values, below = axes[2 * place, 0], axes[2 * place + 1, 0]
            until = rows["ds"][max(starts[name] - 1, 0)]
            every = -(-len(rows) // _POINTS)
            thin = rows.gather_every(every)
            values.plot(thin["ds"], thin["y"], color=COLOURS[0], linewidth=0.7)
            odd = rows.filter("anomaly")
            values.scatter(odd["ds"], odd["y"], color=COLOURS[1], s=6, zorder=3, label="anomaly")
            values.set_title(name, loc="left")
            below.plot(thin["ds"], thin["score"], color="#000000", linewidth=0.7)
            below.axhline(thresholds[name], color=COLOURS[1], linewidth=1.0)
            below.set_title("score", loc="left", fontsize=9)
            for panel in (values, below):
                panel.axvspan(rows["ds"][0], until, color=MUTED, alpha=0.15)
        return save(figure, path)
