"""Splits of series by time: training rows first, then validation, then test, with a gap between them.

Legend: N rows of all series, S series, H horizon, L lookback.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from seqkit.data.series import Panel
from seqkit.data.series_windows import WindowIndex
from seqkit.errors import ConfigError, InputError


@dataclass(frozen=True)
class TimeSplit:
    """Rows of the parts, in flat numbers; targets of a part never leave it, lookbacks reach back before it.

    Attributes:
        offsets: (S + 1,) bounds of the series.
        bounds: Part to (S, 2) first row and end of each series.
        lookback: L.
        horizon: H.
        description: In words.
    """

    offsets: NDArray
    bounds: dict[str, NDArray]
    lookback: int
    horizon: int
    description: str

    def rows(self, part: str) -> NDArray:
        """(M,) flat rows of a part."""
        return np.concatenate([np.arange(a, b) for a, b in self.bounds[part]])

    def windows(self, part: str, *, stride: int = 1, series: int | None = None) -> WindowIndex:
        """Cutoffs whose horizon lies inside a part.

        Args:
            part: train, validation or test.
            stride: Rows between two cutoffs.
            series: Only the windows of this one.
        """
        start_S, stop_S = self.bounds[part].T
        last_S = stop_S - self.horizon
        first_S = start_S
        if part == "train":
            # A series shorter than a lookback still gives windows, whose beginnings are missing values.
            first_S = np.minimum(start_S + self.lookback, np.maximum(last_S, start_S + 1))
        if series is not None:
            last_S = np.where(np.arange(len(last_S)) == series, last_S, first_S - 1)
        return WindowIndex(self.offsets, first_S, last_S, stride=stride)


def split_by_time(
    panel: Panel, *, lookback: int, horizon: int, validation: float = 0.2, test: float = 0.2, gap: int = 0
) -> TimeSplit:
    """Cut every series into training, validation and test rows.

    Args:
        panel: The series.
        lookback: L, at least 1.
        horizon: H, at least 1.
        validation: Share of a series' rows below 1, or a number of rows; 0 for none. A part has at least H rows.
        test: The same for the test rows.
        gap: Rows left out before validation and test, against values that look ahead.

    Raises:
        InputError: No series is long enough to train on.
    """
    for name, value in (("lookback", lookback), ("horizon", horizon)):
        if value < 1:
            raise ConfigError(name, expected="1 or more", got=str(value))
    for name, value in (("validation", validation), ("test", test), ("gap", gap)):
        if value < 0 or (value >= 1 and value != int(value)):
            raise ConfigError(name, expected="a share below 1 or a number of rows", got=str(value))
    lengths = panel.lengths
    sizes = {name: _rows(value, lengths, horizon) for name, value in (("test", test), ("validation", validation))}
    end_S = panel.offsets[1:]
    bounds = {}
    for name in ("test", "validation"):
        start_S = np.maximum(end_S - sizes[name], panel.offsets[:-1])
        bounds[name] = np.stack([start_S, end_S], axis=1)
        end_S = np.maximum(np.where(sizes[name] > 0, start_S - gap, start_S), panel.offsets[:-1])
    bounds["train"] = np.stack([panel.offsets[:-1], end_S], axis=1)
    split = TimeSplit(panel.offsets, bounds, lookback, horizon, _describe(validation, test, gap))
    if not len(split.windows("train")):
        longest = int(lengths.argmax())
        raise InputError(
            "table",
            expected=f"a series with more than {horizon} training rows (the horizon), after {split.description}",
            got=f"{int((end_S - panel.offsets[:-1])[longest])} in the longest, {panel.ids[longest]!r} "
            f"of {lengths[longest]} rows",
            remedy="Shorten the horizon, or the validation and test parts.",
        )
    return split


def _rows(size: float, lengths: NDArray, horizon: int) -> NDArray:
    if not size:
        return np.zeros_like(lengths)
    return np.maximum((lengths * size).astype(np.int64) if size < 1 else np.full_like(lengths, int(size)), horizon)


def _describe(validation: float, test: float, gap: int) -> str:
    parts = [f"{v:.0%}" if 0 < v < 1 else f"{int(v)} rows" for v in (test, validation)]
    return f"the last {parts[0]} for the test, {parts[1]} before for validation" + (f", gap {gap}" if gap else "")
