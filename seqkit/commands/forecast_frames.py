"""Forecasts as long frames with the columns people know: ``name``, ``name-lo-80``, ``name-hi-80``.

Legend: S series, W windows, H horizon, Q quantile levels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from seqkit.data.series import Panel
from seqkit.errors import ConfigError


def sides(percent: float) -> tuple[float, float]:
    """Quantile levels of the bounds of a central interval."""
    return 0.5 - percent / 200, 0.5 + percent / 200


def interval_levels(level: Sequence[float], more: Sequence[float] = ()) -> NDArray:
    """(Q,) rising quantile levels: the median, the bounds of intervals, and further ones.

    Raises:
        ConfigError: A percentage is not between 0 and 100.
    """
    for percent in level:
        if not 0 < percent < 100:
            raise ConfigError("level", expected="percentages between 0 and 100, such as 80, 95", got=str(percent))
    bounds = [bound for percent in level for bound in sides(percent)]
    return np.array(sorted({round(float(q), 6) for q in (*bounds, *more, 0.5)}))


def at_level(quantiles: NDArray, levels: NDArray, wanted: float) -> NDArray:
    """The quantile of (..., Q) at one of its levels."""
    return quantiles[..., int(np.argmin(np.abs(levels - wanted)))]


def interval_columns(name: str, quantiles: NDArray, levels: NDArray, level: Sequence[float]) -> dict[str, NDArray]:
    """``name``, then ``name-lo-95``, ``name-lo-80``, ``name-hi-80``, ``name-hi-95`` from (..., Q) quantiles."""
    columns = {name: at_level(quantiles, levels, 0.5)}
    columns |= {f"{name}-lo-{p:g}": at_level(quantiles, levels, sides(p)[0]) for p in sorted(level, reverse=True)}
    return columns | {f"{name}-hi-{p:g}": at_level(quantiles, levels, sides(p)[1]) for p in sorted(level)}


def named(panel: Panel, series_N: NDArray) -> dict[str, pl.Series]:
    """The id column of rows of these series; none where the frame that came in held one series and named none."""
    if panel.roles.id is None:
        return {}
    return {panel.roles.id: pl.Series(panel.ids, dtype=pl.String)[series_N]}


def forecast_rows(
    panel: Panel, quantiles: NDArray, levels: NDArray, level: Sequence[float], *, name: str, horizon: int
) -> pl.DataFrame:
    """Long frame of what comes behind every series, under the names of the frame that came in; no id where it had none.

    Args:
        panel: The series with the rows to come at their ends.
        quantiles: (S, H, Q); the first ``horizon`` of H are kept.
        levels: (Q,).
        level: Percentages of the intervals.
        name: Of the forecast's column.
        horizon: Steps ahead.
    """
    ahead = panel.offsets[1:, None] - quantiles.shape[1] + np.arange(horizon)
    columns = named(panel, np.repeat(np.arange(len(panel)), horizon)) | {panel.roles.time: panel.ds[ahead.reshape(-1)]}
    flat = quantiles[:, :horizon].reshape(-1, quantiles.shape[-1])
    return pl.DataFrame(columns | interval_columns(name, flat, levels, level))
