"""Gaps filled without a model, from the same known values.

Legend: T steps of a series.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from seqkit.tokenizers.gaps import interpolated, seasonal_neighbours, shifted


def last_value(y_T: NDArray) -> NDArray:
    """Gaps filled with the last known value; before the first known one with that."""
    known = np.flatnonzero(~np.isnan(y_T))
    if not len(known):
        return np.zeros(len(y_T))
    before = np.searchsorted(known, np.arange(len(y_T)), side="right") - 1
    return y_T[known[np.maximum(before, 0)]]


def seasonal_naive(y_T: NDArray, season: int) -> NDArray:
    """Gaps filled with the value a season before, or two, and so on; then with later ones; then by straight lines."""
    filled_T = y_T.copy()
    for sign in (1, -1):
        for steps in range(season, len(y_T), season):
            gaps = np.isnan(filled_T)
            if not gaps.any():
                return filled_T
            filled_T[gaps] = shifted(y_T, sign * steps)[gaps]
    return np.where(np.isnan(filled_T), interpolated(y_T), filled_T)


def both_seasons(y_T: NDArray, season: int) -> NDArray:
    """Gaps filled with the mean of the values a season before and behind, else as :func:`seasonal_naive` does."""
    mean_T = np.where(np.isnan(y_T), seasonal_neighbours(y_T, season), y_T)
    return np.where(np.isnan(mean_T), seasonal_naive(y_T, season), mean_T)
