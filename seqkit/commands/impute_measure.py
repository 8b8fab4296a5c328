"""Filled gaps measured: known values are hidden, and every method fills them from the same rest.

Legend: N rows of all series, S series, M hidden values of all draws, Q quantile levels.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from seqkit.commands.forecast_frames import at_level, sides
from seqkit.commands.impute_trained import TrainedImputer
from seqkit.data.masked_series import hide_points, hide_runs
from seqkit.data.series import Panel
from seqkit.errors import InputError
from seqkit.tasks.impute import LEVELS
from seqkit.tasks.impute_baselines import both_seasons, last_value, seasonal_naive
from seqkit.tasks.series_metrics import coverage, mae, mse
from seqkit.tokenizers.gaps import interpolated

OURS, POINTS, RUNS = "seqkit", "points", "runs"


class Hidden(NamedTuple):
    """What every method said about hidden values.

    Attributes:
        row_M: Rows.
        y_M: What was hidden.
        quantile_MQ: Ours.
        simple: By name, (M,).
        first_N: Rows hidden in the first draw, for the plot.
        quantile_NQ: Ours for all rows in the first draw.
    """

    row_M: NDArray
    y_M: NDArray
    quantile_MQ: NDArray
    simple: dict[str, NDArray]
    first_N: NDArray
    quantile_NQ: NDArray


def hidden_rows(panel: Panel, region_S2: NDArray, trained: TrainedImputer, kind: str, draw: int) -> NDArray:
    """(N,) bool: rows of the region that a draw hides, the same for all methods and every run of the seed.

    Raises:
        InputError: There is no known value to hide.
    """
    mask, hidden_N = trained.config.mask, np.zeros(len(panel.y), bool)
    rng = np.random.default_rng([trained.config.seed, 17, draw])
    for begin, end in region_S2:
        known_T = ~np.isnan(panel.y[begin:end])
        if known_T.sum() < 2:
            continue
        runs = kind == RUNS
        hidden_N[begin:end] = (
            hide_runs(known_T, mask.share, mask.run, rng) if runs else hide_points(known_T, mask.share, rng)
        )
    if not hidden_N.any():
        raise InputError("y", expected="two known values or more to hide some of", got="fewer in every series")
    return hidden_N


def simple_fills(panel: Panel, y_N: NDArray, season: int) -> dict[str, NDArray]:
    """Values (N,) of the methods without a model."""
    methods = {"linear interpolation": interpolated, "last value": last_value}
    if season > 1:
        methods[f"seasonal naive, {season} steps"] = lambda y_T: seasonal_naive(y_T, season)
        methods[f"mean of both seasons, {season} steps"] = lambda y_T: both_seasons(y_T, season)
    pieces = [y_N[begin:end] for begin, end in pairwise(panel.offsets)]
    return {name: np.concatenate([method(piece) for piece in pieces]) for name, method in methods.items()}


def measure(
    trained: TrainedImputer, panel: Panel, region_S2: NDArray, kind: str, *, season: int, until_S: NDArray | None = None
) -> Hidden:
    """Hide values of a region, several times over, and fill them.

    Args:
        trained: The model.
        panel: The series.
        region_S2: First row and end of what may be hidden, by series.
        kind: points or runs.
        season: Of the seasonal methods.
        until_S: End of what may be known, by series; all of it by default.
    """
    view_N = panel.y.copy()
    if until_S is not None:
        for end, last in zip(until_S, panel.offsets[1:], strict=True):
            view_N[end:last] = np.nan
    rows, ours, simple, first = [], [], [], None
    for draw in range(trained.config.mask.repeats):
        hidden_N = hidden_rows(panel, region_S2, trained, kind, draw)
        y_N = np.where(hidden_N, np.nan, view_N)
        quantile_NQ = trained.quantiles(panel, y_N)
        first = first or (hidden_N, quantile_NQ)
        rows.append(np.flatnonzero(hidden_N))
        ours.append(quantile_NQ[hidden_N])
        simple.append({name: value[hidden_N] for name, value in simple_fills(panel, y_N, season).items()})
    row_M = np.concatenate(rows)
    joined = {name: np.concatenate([one[name] for one in simple]) for name in simple[0]}
    return Hidden(row_M, panel.y[row_M], np.concatenate(ours), joined, *first)


def figures(hidden: Hidden, level: tuple[float, ...]) -> dict[str, dict[str, float]]:
    """MAE and RMSE of every method in the units of the data, and the share that our intervals hold."""
    levels = np.array(LEVELS)
    centre = {OURS: at_level(hidden.quantile_MQ, levels, 0.5), **hidden.simple}
    found = {
        name: {"mae": float(mae(hidden.y_M, value)), "rmse": float(np.sqrt(mse(hidden.y_M, value)))}
        for name, value in centre.items()
    }
    for percent in level:
        low, high = (at_level(hidden.quantile_MQ, levels, side) for side in sides(percent))
        found[OURS][f"coverage_{percent:g}"] = float(coverage(hidden.y_M, low, high))
    return found


def best_season(trained: TrainedImputer, panel: Panel, region_S2: NDArray) -> int:
    """The season whose naive filling has the smallest error on hidden runs of a region; 1 without seasons."""
    if len(trained.seasons) < 2:
        return trained.seasons[0] if trained.seasons else 1
    hidden_N = hidden_rows(panel, region_S2, trained, RUNS, 0)
    y_N = np.where(hidden_N, np.nan, panel.y)

    def error(season: int) -> float:
        filled = [seasonal_naive(y_N[begin:end], season) for begin, end in pairwise(panel.offsets)]
        return float(mae(panel.y[hidden_N], np.concatenate(filled)[hidden_N]))

    return min(trained.seasons, key=error)
