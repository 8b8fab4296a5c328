"""Numbers to model input: scaling that can be undone, and tokens per step, per patch or per bin.

Missing values are NaN from end to end; tokens carry a mask beside the value, so that a missing one is not a zero.

Legend: N rows of all series, S series, B batch, L steps, P steps in a patch, K bins.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqkit.errors import ConfigError, ShapeError

SCALINGS = ("none", "global", "series", "running")
_LEAST_SCALE = 1e-8
Sums = tuple[float, float, float]
"""Number, sum and sum of squares of the values of a series so far."""
NOTHING: Sums = (0, 0.0, 0.0)
_EARLY = 8
"""Weight, in observations, of the prior of the running scaler: its first values are not divided by almost nothing."""


class SeriesScaler:
    """Centre and spread that turn values into numbers around zero, and back.

    ``global`` is one mean and standard deviation for all series, ``series`` one per series, both from the training
    rows; ``running`` takes, at every row, those of the series so far, including the row: it follows a drifting level
    and can be continued one value at a time.

    Args:
        kind: none, global, series or running.
    """

    def __init__(self, kind: str = "series"):
        if kind not in SCALINGS:
            raise ConfigError("scaler", expected=" or ".join(SCALINGS), got=repr(kind))
        self.kind = kind
        self.loc, self.scale = 0.0, 1.0
        self.by_series: dict[str, tuple[float, float]] = {}

    def fit(self, y: NDArray, offsets: NDArray, ids: list[str]) -> SeriesScaler:
        """Take centre and spread from training rows.

        Args:
            y: (N,) values, NaN where missing.
            offsets: (S + 1,) bounds of the series.
            ids: Names of the series.
        """
        observed = y[~np.isnan(y)]
        if self.kind in ("global", "running") and len(observed):
            self.loc, self.scale = float(observed.mean()), _spread(observed.std(), observed.mean())
        if self.kind == "series":
            self.by_series |= {
                name: _moments(y[start:stop]) for name, start, stop in zip(ids, offsets[:-1], offsets[1:], strict=True)
            }
        return self

    def tables(
        self, y: NDArray, offsets: NDArray, ids: list[str], before: Mapping[str, Sums] | None = None
    ) -> tuple[NDArray, NDArray]:
        """Centre and spread for the rows of a panel.

        Args:
            y: (N,) values; those of series that ``fit`` has not met give their own centre.
            offsets: (S + 1,) bounds.
            ids: Names.
            before: By name, the sums of the rows that came before those of the panel, for ``running``.

        Returns:
            Two float64 arrays, (N,) for ``running`` and (S,) otherwise.
        """
        if self.kind == "running":
            sums = [
                self.sums(y[a:b], (before or {}).get(name, NOTHING))
                for name, (a, b) in zip(ids, pairwise(offsets), strict=True)
            ]
            return self._running(*(np.concatenate(parts) for parts in zip(*sums, strict=True)))
        if self.kind != "series":
            return np.full(len(ids), self.loc), np.full(len(ids), self.scale)
        pairs = [
            self.by_series.get(name) or _moments(y[a:b])
            for name, a, b in zip(ids, offsets[:-1], offsets[1:], strict=True)
        ]
        return np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs])

    def sums(self, y: NDArray, before: Sums = NOTHING) -> tuple[NDArray, NDArray, NDArray]:
        """Number, sum and sum of squares of the prescaled values so far, (N,) each, for one series.

        Args:
            y: (N,) values that follow each other.
            before: What ``sums`` gave for the row before the first.
        """
        seen = ~np.isnan(y)
        z = np.where(seen, (y - self.loc) / self.scale, 0.0)
        return tuple(first + np.cumsum(part) for first, part in zip(before, (seen, z, z * z), strict=True))

    def _running(self, count: NDArray, total: NDArray, squares: NDArray) -> tuple[NDArray, NDArray]:
        """Mean and deviation of the values so far, with the prior's weight."""
        weight = count + _EARLY
        mean = total / weight
        variance = (squares + _EARLY) / weight - mean * mean
        return self.loc + self.scale * mean, self.scale * np.sqrt(np.maximum(variance, _LEAST_SCALE))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"kind": self.kind, "loc": self.loc, "scale": self.scale, "by_series": self.by_series}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SeriesScaler:
        """Undo :meth:`to_dict`."""
        scaler = cls(values["kind"])
        scaler.loc, scaler.scale = float(values["loc"]), float(values["scale"])
        scaler.by_series = {name: (float(a), float(b)) for name, (a, b) in values["by_series"].items()}
        return scaler


def _spread(deviation: float, mean: float) -> float:
    """A spread to divide by: 1 for a constant series, whatever rounding left of its deviation."""
    return float(deviation) if deviation > _LEAST_SCALE * max(1.0, abs(mean)) else 1.0


def _moments(y: NDArray) -> tuple[float, float]:
    observed = y[~np.isnan(y)]
    if not len(observed):
        return 0.0, 1.0
    return float(observed.mean()), _spread(observed.std(), observed.mean())


class StepTokens:
    """One token per step: the value (0 where missing) and whether it was observed."""

    width, patch = 2, 1

    def encode(self, z_BL: Tensor) -> Tensor:
        """(B, L) with NaN to (B, L, 2)."""
        observed = ~z_BL.isnan()
        return torch.stack([z_BL.nan_to_num(0.0), observed.to(z_BL.dtype)], dim=-1)

    def decode(self, tokens: Tensor) -> Tensor:
        """Exactly what was encoded, NaN where missing."""
        return torch.where(tokens[..., 1] > 0, tokens[..., 0], torch.nan)


class PatchTokens:
    """One token per ``patch`` steps, counted from the last step; a first patch that is not full is missing in part.

    Args:
        patch: Steps P in a token.
    """

    def __init__(self, patch: int):
        if patch < 1:
            raise ConfigError("patch", expected="1 or more", got=str(patch))
        self.patch, self.width = patch, 2 * patch

    def encode(self, z_BL: Tensor) -> Tensor:
        """(B, L) with NaN to (B, ceil(L / P), 2 P): the values of a patch, then their mask."""
        lacking = -z_BL.shape[-1] % self.patch
        padded = torch.nn.functional.pad(z_BL, (lacking, 0), value=torch.nan)
        patches = padded.unflatten(-1, (-1, self.patch))
        return torch.cat([patches.nan_to_num(0.0), (~patches.isnan()).to(z_BL.dtype)], dim=-1)

    def decode(self, tokens: Tensor, length: int) -> Tensor:
        """The last ``length`` steps exactly as encoded, NaN where missing."""
        value, mask = tokens.split(self.patch, dim=-1)
        return torch.where(mask > 0, value, torch.nan).flatten(-2)[..., -length:]


class QuantileBins:
    """Ids of bins that hold equal shares of the training values; id 0 is a missing value.

    Args:
        n_bins: Bins K; fewer remain where values repeat.
    """

    def __init__(self, n_bins: int = 256):
        if n_bins < 2:
            raise ConfigError("n_bins", expected="2 or more", got=str(n_bins))
        self.n_bins = n_bins
        self.edges = torch.linspace(-3.0, 3.0, n_bins - 1, dtype=torch.float64)
        self.centres = torch.zeros(n_bins, dtype=torch.float64)
        self._centre(torch.linspace(-3.0, 3.0, 4 * n_bins, dtype=torch.float64))

    @property
    def vocab_size(self) -> int:
        """Ids in use: one for missing values and one per bin."""
        return len(self.edges) + 2

    def fit(self, z: Tensor) -> QuantileBins:
        """Choose the edges between bins from training values of any shape."""
        values = z.double().flatten()
        values = values[values.isfinite()]
        if len(values) < 2:
            raise ShapeError("z", expected="at least 2 observed values", got=str(len(values)))
        order = values.sort().values
        rank = torch.arange(1, self.n_bins, dtype=torch.float64) / self.n_bins * (len(order) - 1)
        self.edges = order[rank.round().long()].unique()
        self._centre(order)
        return self

    def encode(self, z: Tensor) -> Tensor:
        """Values of any shape to int64 ids of the same shape."""
        ids = torch.bucketize(z.double().nan_to_num(0.0), self.edges, right=True) + 1
        return torch.where(z.isnan(), 0, ids)

    def decode(self, ids: Tensor) -> Tensor:
        """The median training value of each id's bin, NaN for id 0; off by no more than :meth:`error`."""
        value = self.centres[(ids - 1).clamp(min=0)]
        return torch.where(ids == 0, torch.nan, value)

    def error(self) -> float:
        """Largest error of a round trip, for values between the first and the last edge: the widest bin."""
        return float(self.edges.diff().max()) if len(self.edges) > 1 else 0.0

    def _centre(self, sorted_values: Tensor) -> None:
        ids = torch.bucketize(sorted_values, self.edges, right=True)
        middle = torch.cat([self.edges[:1], (self.edges[1:] + self.edges[:-1]) / 2, self.edges[-1:]])
        count = torch.bincount(ids, minlength=len(self.edges) + 1)
        start = count.cumsum(0) - count
        median = sorted_values[(start + count // 2).clamp(max=len(sorted_values) - 1)]
        self.centres = torch.where(count > 0, median, middle)
