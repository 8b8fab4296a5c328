"""How well scores separate the classes: ROC and precision-recall curves, and the confusion at a threshold.

Shape letters: N rows, C classes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike, NDArray
from sklearn import metrics

from seqkit.report.figures import COLOURS, MUTED, new_figure, save, say, style


def plot_ranking(path: str | os.PathLike, labels: ArrayLike, scores: Mapping[str, ArrayLike]) -> list[Path]:
    """ROC and precision-recall curves of several methods on the same rows.

    Args:
        path: Where to write; PNG and SVG.
        labels: (N,) of 0, 1 or NaN.
        scores: Scores (N,) by the method's name, any monotone scale. The first is drawn thickest.

    Returns:
        The files written.
    """
    y_N = np.asarray(labels, dtype=float)
    known = ~np.isnan(y_N)
    y_N = y_N[known]
    lines = len(scores) + 1
    with style():
        ratios = {"height_ratios": (4.6, 0.21 * lines)}
        figure, cells = new_figure(9.6, 5.0 + 0.21 * lines, nrows=2, ncols=2, gridspec_kw=ratios)
        roc, precision = cells[0]
        roc.set(title="ROC (area)", xlabel="false positive rate", ylabel="true positive rate")
        title = "Precision and recall (average precision)"
        precision.set(title=title, xlabel="recall", ylabel="precision")
        if len(np.unique(y_N)) < 2:
            say(roc, "undefined: rows of one class only")
            say(precision, "undefined: rows of one class only")
        else:
            for i, (name, values) in enumerate(scores.items()):
                _draw_curves(roc, precision, y_N, np.asarray(values, dtype=float)[known], name, i)
            _draw_chance(roc, precision, float(y_N.mean()))
        for axes, below in cells.T:
            axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.02), aspect="equal")
            axes.grid(color="#dddddd", linewidth=0.6)
            below.set_axis_off()
            handles, names = axes.get_legend_handles_labels()
            below.legend(handles, names, loc="upper left", borderaxespad=0, handlelength=2.6)
        return save(figure, path)


def plot_confusion(
    path: str | os.PathLike, labels: ArrayLike, calls: ArrayLike, names: Sequence[str], *, title: str = ""
) -> list[Path]:
    """Confusion matrix: counts, and shares of each true class as shading.

    Args:
        path: Where to write; PNG and SVG.
        labels: (N,) class numbers or NaN.
        calls: (N,) called class numbers.
        names: Of the C classes.
        title: Such as the threshold and where it was chosen.
    """
    y_N, called_N = np.asarray(labels, dtype=float), np.asarray(calls)
    known = ~np.isnan(y_N)
    count_CC = np.zeros((len(names), len(names)), dtype=int)
    np.add.at(count_CC, (y_N[known].astype(int), called_N[known].astype(int)), 1)
    share_CC = count_CC / np.maximum(count_CC.sum(axis=1, keepdims=True), 1)
    side = 2.6 + 0.7 * len(names)
    with style():
        figure, axes = new_figure(side + 0.8, side)
        axes.imshow(share_CC, cmap="Blues", vmin=0, vmax=1)
        for (i, j), share in np.ndenumerate(share_CC):
            colour = "white" if share > 0.55 else "black"
            axes.text(j, i, f"{count_CC[i, j]:,}\n{share:.0%}", ha="center", va="center", color=colour)
        ticks = range(len(names))
        inches = max(map(len, names)) * 0.09
        turn = 30 if inches > (side - 1.1) / len(names) else 0
        axes.set_xticks(ticks, names, rotation=turn, ha="right" if turn else "center")
        axes.set_yticks(ticks, names)
        axes.set(xlabel="called", ylabel="true", title=title)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        return save(figure, path)


def _draw_curves(roc: Axes, precision: Axes, y_N: NDArray, s_N: NDArray, name: str, i: int) -> None:
    look = {
        "color": COLOURS[i % len(COLOURS)],
        "linewidth": 2.4 if i == 0 else 1.3,
        "linestyle": ("-", (0, (6, 2)), (0, (2, 1)), "-.")[(i // 2) % 4] if i else "-",
        "zorder": 3 if i == 0 else 2,
    }
    false_rate, true_rate, _ = metrics.roc_curve(y_N, s_N)
    area = metrics.roc_auc_score(y_N, s_N)
    roc.plot(false_rate, true_rate, label=f"{name} ({_short(area)})", **look)
    hits, recall, _ = metrics.precision_recall_curve(y_N, s_N)
    area = metrics.average_precision_score(y_N, s_N)
    # The last point (recall 0, precision 1) is a convention and no threshold of the scores; the steps' area is the
    # average precision when the first threshold's precision reaches back to recall 0.
    hits[-1] = hits[-2]
    precision.plot(recall, hits, drawstyle="steps-post", label=f"{name} ({_short(area)})", **look)


def _draw_chance(roc: Axes, precision: Axes, prevalence: float) -> None:
    look = {"color": MUTED, "linewidth": 1, "linestyle": (0, (1, 2))}
    roc.plot([0, 1], [0, 1], label="chance (.500)", **look)
    precision.axhline(prevalence, label=f"chance ({_short(prevalence)})", **look)


def _short(value: float) -> str:
    return f"{value:.3f}".removeprefix("0")
