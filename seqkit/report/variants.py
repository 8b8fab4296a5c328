"""Variant scores by consequence class and along the gene. Shape letters: N variants."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike, NDArray

from seqkit.report.figures import MUTED, NEGATIVE, POSITIVE, new_figure, save, style

FOLDED_GAP = 60  # bases without a variant, beyond which the axis is cut
CUT_WIDTH = 40.0  # what a cut takes on the axis, in bases
MOST_BLOCKS = 60  # beyond that the variants are scattered rather than in blocks, and nothing is cut
_LOOKS = {
    np.nan: {"color": MUTED, "marker": "s"},
    0: {"color": NEGATIVE, "marker": "o"},
    1: {"color": POSITIVE, "marker": "^"},
}


def plot_by_consequence(
    path: str | os.PathLike,
    consequences: ArrayLike,
    scores: ArrayLike,
    labels: ArrayLike,
    *,
    threshold: float | None = None,
    names: tuple[str, str] = ("negative", "positive"),
) -> list[Path]:
    """Scores of each consequence class: one point per variant, median and quartiles as a box.

    Args:
        path: Where to write; PNG and SVG.
        consequences: (N,) names of classes.
        scores: (N,) probabilities.
        labels: (N,) of 0, 1 or NaN (drawn grey).
        threshold: Drawn as a line.
        names: Of the labels 0 and 1.
    """
    kind_N, s_N, y_N = np.asarray(consequences, dtype=str), np.asarray(scores, float), np.asarray(labels, float)
    kinds = sorted(set(kind_N.tolist()), key=lambda kind: float(np.median(s_N[kind_N == kind])))
    rng = np.random.default_rng(0)  # spreads the points only
    with style():
        figure, axes = new_figure(8.4, 1.6 + 0.55 * len(kinds))
        for row, kind in enumerate(kinds):
            at = kind_N == kind
            height_N = row + rng.uniform(-0.3, 0.3, at.sum())
            _draw_points(axes, s_N[at], height_N, y_N[at])
            axes.boxplot(
                s_N[at], positions=[row], orientation="horizontal", widths=0.72, showfliers=False, whis=0,
                showcaps=False, boxprops={"linewidth": 1.1, "zorder": 4}, whiskerprops={"linewidth": 0},
                medianprops={"color": "black", "linewidth": 2, "zorder": 5},
            )  # fmt: skip
        _mark_threshold(axes.axvline, threshold)
        totals = [f"{kind or 'unknown'}  (n = {(kind_N == kind).sum():,})" for kind in kinds]
        axes.set_yticks(range(len(kinds)), totals)
        axes.set(xlabel="probability", xlim=(-0.02, 1.02), ylim=(-0.6, len(kinds) - 0.4))
        axes.tick_params(axis="y", length=0)
        _legend_above(axes, y_N, names)
        return save(figure, path)


def plot_along_gene(
    path: str | os.PathLike,
    positions: ArrayLike,
    scores: ArrayLike,
    labels: ArrayLike,
    *,
    exons: Sequence[tuple[int, int, str]] = (),
    threshold: float | None = None,
    names: tuple[str, str] = ("negative", "positive"),
) -> list[Path]:
    """Score over position, with stretches that hold no variant cut out of the axis.

    Args:
        path: Where to write; PNG and SVG.
        positions: (N,) 0-based positions on one contig.
        scores: (N,) probabilities.
        labels: (N,) of 0, 1 or NaN (drawn grey).
        exons: (start, end, name), 0-based half-open, drawn as boxes below the points.
        threshold: Drawn as a line.
        names: Of the labels 0 and 1.
    """
    position_N, s_N, y_N = np.asarray(positions), np.asarray(scores, float), np.asarray(labels, float)
    starts, ends = _blocks(position_N)
    offset = np.concatenate([[0.0], np.cumsum(ends - starts + CUT_WIDTH)])
    with style():
        figure, axes = new_figure(min(16.0, max(7.0, 4.0 + offset[-1] / 160)), 4.2)
        _draw_points(axes, _fold(position_N, starts, offset), s_N, y_N)
        for start, end, name in exons:
            _draw_exon(axes, start, end, name, starts, ends, offset)
        for cut in offset[1:-1]:
            axes.axvline(cut - CUT_WIDTH / 2, color="#cccccc", linewidth=0.8, linestyle=(0, (2, 2)), zorder=0)
        _mark_threshold(axes.axhline, threshold)
        _mark_positions(axes, starts, ends, offset)
        axes.set(ylabel="probability")
        axes.set_yticks(np.linspace(0, 1, 6))
        if exons:
            axes.text(-0.012, -0.085, "exon", transform=axes.get_yaxis_transform(), ha="right", va="center")
        axes.set(xlim=(-CUT_WIDTH, offset[-1]), ylim=(-0.2 if exons else -0.04, 1.04))
        _legend_above(axes, y_N, names)
        return save(figure, path)


def _blocks(position_N: NDArray) -> tuple[NDArray, NDArray]:
    """Start and end (half-open) of the runs of positions with no gap wider than the fold."""
    at = np.unique(position_N)
    if len(at) == 0:
        return np.zeros(0), np.zeros(0)
    breaks = np.flatnonzero(np.diff(at) > FOLDED_GAP)
    if len(breaks) >= MOST_BLOCKS:
        breaks = breaks[:0]
    return at[np.r_[0, breaks + 1]], at[np.r_[breaks, len(at) - 1]] + 1


def _fold(position: NDArray, starts: NDArray, offset: NDArray) -> NDArray:
    """Place on the cut axis of positions that lie in a block."""
    block = np.searchsorted(starts, position, side="right") - 1
    return offset[block] + position - starts[block]


def _mark_positions(axes: Axes, starts: NDArray, ends: NDArray, offset: NDArray) -> None:
    if len(starts) == 1:
        at = np.unique(np.linspace(starts[0], ends[0] - 1, 5).astype(int))
        places, label = offset[0] + at - starts[0], "position (1-based)"
    else:
        every = max(1, int(np.ceil(len(starts) / 24)))
        at, places, label = starts[::every], offset[:-1][::every], "first position of each block (1-based)"
    texts = [f"{position + 1:,}" for position in at]
    axes.set_xticks(places, texts, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_xlabel(label)


def _draw_exon(axes: Axes, start: int, end: int, name: str, starts: NDArray, ends: NDArray, offset: NDArray) -> None:
    for i in np.flatnonzero((starts < end) & (ends > start)):
        left, right = max(start, starts[i]), min(end, ends[i])
        at = offset[i] + left - starts[i]
        axes.add_patch(Rectangle((at, -0.11), right - left, 0.055, facecolor="#444444", linewidth=0))
        axes.text(at + (right - left) / 2, -0.125, name, ha="center", va="top", fontsize=8, color="#444444")


def _draw_points(axes: Axes, x_N: NDArray, height_N: NDArray, y_N: NDArray) -> None:
    for order, (value, look) in enumerate(_LOOKS.items()):
        at = np.isnan(y_N) if np.isnan(value) else y_N == value
        axes.scatter(x_N[at], height_N[at], s=9, alpha=0.55, linewidths=0, rasterized=True, zorder=order, **look)


def _mark_threshold(line, threshold: float | None) -> None:
    if threshold is not None:
        line(threshold, color="black", linewidth=1, linestyle=(0, (4, 2)), label=f"threshold {threshold:.2f}", zorder=1)


def _legend_above(axes: Axes, y_N: NDArray, names: tuple[str, str]) -> None:
    handles = [axes.scatter([], [], s=24, linewidths=0, label=name, **_LOOKS[i]) for i, name in enumerate(names)]
    if np.isnan(y_N).any():
        handles.append(axes.scatter([], [], s=24, linewidths=0, label="no label", **_LOOKS[np.nan]))
    lines = [line for line in axes.lines if not line.get_label().startswith("_")]
    axes.legend(handles=handles + lines, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=4, borderaxespad=0.2)
