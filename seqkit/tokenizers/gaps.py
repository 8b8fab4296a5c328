"""What is known around missing values: the channels that a model of gaps reads, and the simplest ways to fill them.

Legend: T steps of a series, F channels, K simple fills.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_FAR = 6.0


def interpolated(z_T: NDArray) -> NDArray:
    """Gaps filled by straight lines, at the ends by the nearest value; 0 where nothing is known."""
    known = np.flatnonzero(~np.isnan(z_T))
    return np.interp(np.arange(len(z_T)), known, z_T[known]) if len(known) else np.zeros(len(z_T))


def shifted(z_T: NDArray, steps: int) -> NDArray:
    """What stood ``steps`` before each step (behind it where negative), NaN outside the series."""
    out = np.full(len(z_T), np.nan)
    if abs(steps) < len(z_T):
        out[max(steps, 0) : len(z_T) + min(steps, 0)] = z_T[max(-steps, 0) : len(z_T) - max(steps, 0)]
    return out


def seasonal_neighbours(z_T: NDArray, season: int) -> NDArray:
    """Mean of the values a season before and behind, of one where the other is missing; NaN where both are."""
    sides = np.stack([shifted(z_T, season), shifted(z_T, -season)])
    known = ~np.isnan(sides)
    count = known.sum(axis=0)
    return np.where(count > 0, np.where(known, sides, 0.0).sum(axis=0) / np.maximum(count, 1), np.nan)


def simple_fills(n_seasons: int) -> int:
    """Number K of the channels, the last ones, that are fills of their own."""
    return 1 + 2 * n_seasons


def gap_channels(z_T: NDArray, seasons: Sequence[int]) -> NDArray:
    """(T, F) float32 channels, F = 5 + 3 a season, none of them missing.

    Value (0 in a gap), whether it is missing, logarithms of the distances to the last and the next known value, for
    every season whether it has no neighbours; then K fills: the straight line through the gap, and for every season the
    mean of its neighbours and that mean plus the straight line through the known departures from it (the first line
    where there are no neighbours).
    """
    missing_T = np.isnan(z_T)
    steps = np.arange(len(z_T))
    last = np.maximum.accumulate(np.where(missing_T, -len(z_T) - 2, steps))
    following = np.minimum.accumulate(np.where(missing_T, 2 * len(z_T) + 1, steps)[::-1])[::-1]
    columns = [np.where(missing_T, 0.0, z_T), missing_T]
    columns += [np.minimum(np.log1p(distance), _FAR) / _FAR for distance in (steps - last, following - steps)]
    fills = [interpolated(z_T)]
    for season in seasons:
        mean_T = seasonal_neighbours(z_T, season)
        none_T = np.isnan(mean_T)
        columns.append(none_T)
        fills.append(np.where(none_T, fills[0], mean_T))
        fills.append(np.where(none_T, fills[0], mean_T + interpolated(z_T - mean_T)))
    return np.stack([*columns, *fills], axis=1).astype(np.float32)
