"""Intervals that follow their own misses: wider after values beyond them, narrower after days within.

Calibration on held-out rows promises coverage as long as what comes resembles them. Here every quantile carries the
logarithm of a factor of its distance from the median, which grows with each value beyond the quantile and shrinks with
each value within, by amounts that balance at the promised share m. The amounts are in units of sqrt(m (1 - m)), the
spread of a miss, so that rare misses move the outer quantiles in time. Over T horizons the share of misses differs from
m by (last - first logarithm) sqrt(m (1 - m)) / (rate T), whatever the series does, and nothing later than a forecast
enters it.

Legend: S series, W windows, H horizon, Q quantile levels.

Reference: Gibbs and Candes 2021, Adaptive conformal inference under distribution shift (the rule, on levels);
Angelopoulos et al. 2023, Conformal PID control for time series prediction (the rule, on the width itself).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

WIDEST = 6.0
"""Bound on the logarithm: a factor of 400 either way."""


class Watch(NamedTuple):
    """Forecasts under way, and how wide the next ones will be.

    Attributes:
        width_SQ: Logarithm of the factor of each quantile's distance from the median.
        pending_SHQ: Quantiles as they were given out, from the row after which each forecast was made.
        seen_S: Rows that have come since.
    """

    width_SQ: NDArray
    pending_SHQ: NDArray
    seen_S: NDArray


def widened(quantiles: NDArray, levels_Q: NDArray, width: NDArray, floor: float = -np.inf) -> NDArray:
    """Quantiles (..., H, Q) at other distances from their median, rising.

    Args:
        quantiles: (..., H, Q), the median among them.
        levels_Q: Their levels.
        width: (..., Q) logarithms of the factors; the median's does not matter.
        floor: Least value that a quantile may have.
    """
    median = quantiles[..., [np.abs(levels_Q - 0.5).argmin()]]
    return np.sort(median + (quantiles - median) * np.exp(width)[..., None, :], axis=-1).clip(min=floor)


def followed(width_Q: NDArray, levels_Q: NDArray, given_NQ: NDArray, y_N: NDArray, step: float) -> NDArray:
    """The widths after N values that quantiles were given for; a missing value changes nothing.

    Args:
        width_Q: Logarithms so far.
        levels_Q: Levels of the quantiles.
        given_NQ: Quantiles that were given out, widened.
        y_N: What came.
        step: How much a value counts: the rate over the horizon.
    """
    side_Q = np.sign(levels_Q - 0.5)
    known = ~np.isnan(y_N)
    beyond_NQ = (y_N[known, None] - given_NQ[known]) * side_Q > 0
    miss_Q = np.minimum(levels_Q, 1 - levels_Q)
    move_Q = (beyond_NQ - miss_Q).sum(0) / np.sqrt(miss_Q * (1 - miss_Q))
    return np.clip(np.where(side_Q == 0, 0.0, width_Q + step * move_Q), -WIDEST, WIDEST)


def adapted(
    quantiles_WHQ: NDArray, y_WH: NDArray, levels_Q: NDArray, series_W: NDArray, cutoff_W: NDArray, rate: float,
    floor: float = -np.inf,
) -> NDArray:  # fmt: skip
    """Quantiles of a backtest as they would have been given out one after the other, series by series.

    A window counts for those whose cutoff is at or behind its last row, so that no forecast sees what it forecasts.
    Windows that begin within a horizon that is being counted are widened, but not counted.

    Args:
        quantiles_WHQ: Calibrated quantiles, the median among them.
        y_WH: What came, NaN where missing.
        levels_Q: Levels.
        series_W: Series of each window.
        cutoff_W: Row of each window's first target.
        rate: How much a horizon counts; 0.5 widens an 80 % interval by e to 1.5 where all of it lies beyond one side.
        floor: Least value that a quantile may have.
    """
    horizon, answer = y_WH.shape[1], np.empty_like(quantiles_WHQ)
    for series in np.unique(series_W):
        width, pending = np.zeros(len(levels_Q)), None
        members = np.flatnonzero(series_W == series)
        for window in members[np.argsort(cutoff_W[members], kind="stable")]:
            if pending is not None and cutoff_W[window] >= cutoff_W[pending] + horizon:
                width = followed(width, levels_Q, answer[pending], y_WH[pending], rate / horizon)
                pending = None
            answer[window] = widened(quantiles_WHQ[window], levels_Q, width, floor)
            pending = window if pending is None else pending
    return answer


def watch_rows(watch: Watch, values: Sequence[NDArray], levels_Q: NDArray, rate: float) -> Watch:
    """Compare new rows with the forecasts under way; rows behind their horizon are not compared.

    Args:
        watch: Forecasts under way; stays as it is.
        values: New rows of each of its series.
        levels_Q: Levels of its quantiles.
        rate: As for :func:`adapted`.
    """
    horizon = watch.pending_SHQ.shape[1]
    width_SQ = watch.width_SQ.copy()
    for place, y in enumerate(values):
        given = watch.pending_SHQ[place, watch.seen_S[place] :][: len(y)]
        width_SQ[place] = followed(width_SQ[place], levels_Q, given, y[: len(given)], rate / horizon)
    return Watch(width_SQ, watch.pending_SHQ, watch.seen_S + np.array([len(y) for y in values], dtype=np.int64))
