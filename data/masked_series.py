"""Windows of series in which known values are hidden, at random points or in runs, for a model to fill in.

Legend: N rows of all series, S series, T steps, B windows, W steps of a window, F channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from seqkit.errors import ConfigError, InputError
from seqkit.tokenizers.gaps import gap_channels


@dataclass(frozen=True, kw_only=True)
class MaskConfig:
    """What is hidden.

    Attributes:
        window: Steps W that the model reads at a time.
        longest: Steps of the longest run hidden in training; none takes two of ``run``.
        vary: Share of the training windows whose level and size are moved away from those of the weeks around them.
        run: Steps of the runs hidden to measure; none takes the shortest season, or 24.
        share: Share of the known values hidden to measure, below 1.
        repeats: Draws of what is hidden to measure.
    """

    window: int = 336
    longest: int | None = None
    vary: float = 0.5
    run: int | None = None
    share: float = 0.1
    repeats: int = 5

    def __post_init__(self):
        for name in ("window", "longest", "run", "repeats"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"mask.{name}", expected="1 or more", got=str(value))
        if self.window < 8:
            raise ConfigError("mask.window", expected="8 steps or more", got=str(self.window))
        if not 0 <= self.vary <= 1:
            raise ConfigError("mask.vary", expected="a share from 0 to 1", got=str(self.vary))
        if not 0 < self.share < 1:
            raise ConfigError("mask.share", expected="a share above 0 and below 1", got=str(self.share))


def hide_points(known_T: NDArray, share: float, rng: np.random.Generator) -> NDArray:
    """(T,) bool: a share of the known steps, at least one of them where there is one."""
    steps = np.flatnonzero(known_T)
    hidden_T = np.zeros(len(known_T), bool)
    hidden_T[rng.permutation(steps)[: max(round(share * len(steps)), 1)]] = True
    return hidden_T


def hide_runs(known_T: NDArray, share: float, length: int, rng: np.random.Generator) -> NDArray:
    """(T,) bool: runs of ``length`` steps until a share of the known steps is hidden; a run's gaps are not counted."""
    hidden_T = np.zeros(len(known_T), bool)
    wanted = max(round(share * known_T.sum()), 1)
    for _ in range(4 * len(known_T)):
        start = int(rng.integers(0, max(len(known_T) - length, 0) + 1))
        hidden_T[start : start + length] |= known_T[start : start + length]
        if hidden_T.sum() >= wanted:
            break
    return hidden_T


def training_mask(known_T: NDArray, longest: int, rng: np.random.Generator) -> NDArray:
    """(T,) bool: points of a share of 5 to 50 %, or runs of one length up to ``longest`` that cover as much."""
    share = rng.uniform(0.05, 0.5)
    if rng.random() < 0.5:
        return hide_points(known_T, share, rng)
    length = round(np.exp(rng.uniform(0, np.log(longest))))
    return hide_runs(known_T, share, length, rng)


class MaskedWindows(Dataset):
    """Windows with hidden values; where one begins and what it hides depend on (seed, number) alone.

    A batch holds ``channels`` (B, W, F) and ``target`` (B, W) with NaN wherever nothing was hidden. Steps outside a
    series are missing.

    Args:
        z_N: Scaled values, NaN where missing.
        region_S2: First row and end of what windows are cut from, by series.
        visible_S2: Rows that may be known to them.
        window: W.
        longest: Longest run hidden.
        seasons: Seasons whose neighbours are channels.
        vary: Share of the windows whose level and size are moved away from those of their seasons.
        seed: Of everything drawn.
        count: Number of windows.

    Raises:
        InputError: No series has a known value in its region.
    """

    def __init__(
        self, z_N: NDArray, region_S2: NDArray, visible_S2: NDArray, *, window: int, longest: int,
        seasons: Sequence[int], vary: float, seed: int, count: int,
    ):  # fmt: skip
        known = np.array([(~np.isnan(z_N[begin:end])).sum() for begin, end in region_S2], float)
        if not known.sum():
            raise InputError("y", expected="known values to learn from", got="none in this part of the series")
        self.z_N, self.region_S2, self.visible_S2 = z_N, region_S2, visible_S2
        self.window, self.longest, self.seasons = window, longest, tuple(seasons)
        self.vary, self.seed, self.count, self.chance_S = vary, seed, count, known / known.sum()

    def __len__(self) -> int:
        return self.count

    def __getitems__(self, numbers: Sequence[int]) -> dict[str, torch.Tensor]:
        """One batch; a negative number is a filler, without targets."""
        parts = [self._window(number if number >= 0 else -1 - number) for number in numbers]
        channels, target = (torch.from_numpy(np.stack(part)) for part in zip(*parts, strict=True))
        target[torch.tensor([number < 0 for number in numbers])] = torch.nan
        return {"channels": channels, "target": target}

    def _window(self, number: int) -> tuple[NDArray, NDArray]:
        """Channels (W, F) and targets (W,) of one window."""
        rng = np.random.default_rng([self.seed, 13, number])
        series = int(rng.choice(len(self.chance_S), p=self.chance_S))
        begin, end = self.region_S2[series]
        start = int(rng.integers(begin, max(end - self.window, begin) + 1))
        stop = min(start + self.window, end)
        reach = max(self.seasons, default=0)
        first, last = max(start - reach, self.visible_S2[series, 0]), min(stop + reach, self.visible_S2[series, 1])
        z_T = self.z_N[first:last].copy()
        inside = slice(start - first, stop - first)
        if rng.random() < self.vary:
            # A holiday is unlike the weeks around it: what stands near a gap then tells more than its seasons.
            z_T[inside] = rng.uniform(0.4, 1.2) * z_T[inside] + rng.normal(scale=0.4)
        hidden_T = training_mask(~np.isnan(z_T[inside]), self.longest, rng)
        target = np.full(self.window, np.nan, np.float32)
        target[: stop - start][hidden_T] = z_T[inside][hidden_T]
        z_T[inside][hidden_T] = np.nan
        found = gap_channels(z_T, self.seasons)[inside]
        channels = np.zeros((self.window, found.shape[1]), np.float32)
        channels[:, 1] = 1.0
        channels[: stop - start] = found
        return channels, target
