"""Plots of forecasts: fans, errors by horizon, coverage and backtests.

Legend: H horizon, Q levels, W windows.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from seqkit.report.figures import COLOURS, MUTED, new_figure, save, style

_GRID = {"color": "#dddddd", "linewidth": 0.6}


class Fan(NamedTuple):
    """One forecast with what came before and after.

    Attributes:
        title: Series and cutoff.
        past_x: (L,) stamps before the cutoff.
        past: (L,) values.
        x: (H,) stamps of the forecast.
        centre: (H,) medians.
        intervals: Percentage to lower and upper bounds (H,).
        actual: (H,) what came, NaN where unknown; None for nothing known.
    """

    title: str
    past_x: NDArray
    past: NDArray
    x: NDArray
    centre: NDArray
    intervals: Mapping[float, tuple[NDArray, NDArray]]
    actual: NDArray | None = None


def plot_fans(path: str | os.PathLike, fans: Sequence[Fan]) -> list[Path]:
    """Fan charts below each other: history, medians, and intervals that shade towards the median."""
    with style():
        figure, axes = new_figure(9.0, 0.6 + 2.6 * len(fans), nrows=len(fans), squeeze=False)
        for panel, fan in zip(axes[:, 0], fans, strict=True):
            panel.plot(fan.past_x, fan.past, color=MUTED, linewidth=1.1, label="history")
            if fan.actual is not None:
                panel.plot(fan.x, fan.actual, color="#000000", linewidth=1.2, label="what came")
            _shade(panel, fan.x, fan.intervals)
            panel.plot(fan.x, fan.centre, color=COLOURS[0], linewidth=1.6, label="median")
            panel.set_title(fan.title, loc="left")
            panel.grid(**_GRID)
            _few_dates(panel)
        _legend_below(figure, axes[0, 0])
        return save(figure, path)


def plot_horizon_error(path: str | os.PathLike, errors: Mapping[str, NDArray], *, unit: str = "") -> list[Path]:
    """Mean absolute error by step ahead, (H,) for each method."""
    with style():
        figure, axes = new_figure(6.0, 3.6)
        for colour, (name, error_H) in zip(COLOURS, errors.items(), strict=False):
            axes.plot(np.arange(1, len(error_H) + 1), error_H, color=colour, linewidth=1.6, label=name)
        axes.set(xlabel="steps ahead", ylabel=f"mean absolute error{f' ({unit})' if unit else ''}")
        axes.set_ylim(bottom=0)
        axes.grid(**_GRID)
        axes.legend()
        return save(figure, path)


def plot_numbers(path: str | os.PathLike, truth: NDArray, predicted: NDArray) -> list[Path]:
    """Predicted against true numbers, (S,) each; right is on the diagonal."""
    with style():
        figure, axes = new_figure(4.6, 4.4)
        ends = [min(truth.min(), predicted.min()), max(truth.max(), predicted.max())]
        axes.plot(ends, ends, color=MUTED, linewidth=1, linestyle=(0, (3, 3)))
        axes.scatter(truth, predicted, color=COLOURS[0], s=12)
        axes.set(xlabel="true", ylabel="predicted")
        return save(figure, path)


def plot_coverage(path: str | os.PathLike, levels: NDArray, below: Mapping[str, NDArray]) -> list[Path]:
    """Share of values below each quantile against its level, (Q,) for each method; right is on the diagonal."""
    with style():
        figure, axes = new_figure(4.6, 4.4)
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (3, 3)))
        for number, (name, share_Q) in enumerate(below.items()):
            axes.plot(levels, share_Q, color=COLOURS[number % 7], marker="os^D"[number % 4], markersize=4, label=name)
        axes.set(xlabel="quantile level", ylabel="share of values below", xlim=(0, 1), ylim=(0, 1))
        axes.grid(**_GRID)
        axes.legend(loc="upper left")
        return save(figure, path)


def plot_backtest(
    path: str | os.PathLike, x: NDArray, actual: NDArray, forecasts: Sequence[Fan], *, title: str = ""
) -> list[Path]:
    """What came, with the forecasts of all cutoffs over it."""
    with style():
        figure, axes = new_figure(11.0, 3.8)
        axes.plot(x, actual, color="#000000", linewidth=0.9, label="what came")
        for number, fan in enumerate(forecasts):
            _shade(axes, fan.x, fan.intervals, label=number == 0)
            axes.plot(fan.x, fan.centre, color=COLOURS[0], linewidth=1.2, label="median" if number == 0 else None)
            axes.axvline(fan.x[0], color=MUTED, linewidth=0.4)
        axes.set_title(title, loc="left")
        axes.grid(**_GRID)
        _legend_below(figure, axes)
        _few_dates(axes)
        return save(figure, path)


def _shade(axes, x: NDArray, intervals: Mapping[float, tuple[NDArray, NDArray]], *, label: bool = True) -> None:
    for place, level in enumerate(sorted(intervals, reverse=True)):
        low, high = intervals[level]
        name = f"{level:g} %" if label else None
        axes.fill_between(x, low, high, color=COLOURS[0], alpha=0.18 + 0.1 * place, linewidth=0, label=name)


def _legend_below(figure, axes) -> None:
    # Curves and fans fill their panels; inside, the names would lie on them.
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower left", ncols=5, fontsize=8)


def _few_dates(axes) -> None:
    if np.issubdtype(np.asarray(axes.lines[0].get_xdata(orig=True)).dtype, np.datetime64):
        from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

        locator = AutoDateLocator(minticks=3, maxticks=8)
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
