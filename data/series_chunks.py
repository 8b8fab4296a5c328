"""Long series as contiguous chunks, so that a state can be carried from one to the next.

Training reads several lanes side by side, each a run of segments that follow each other; a batch holds the next chunk
of every lane. Evaluation reads every series from its beginning. In both, memory depends on chunk, lookback and the
number of lanes, not on how long a series is.

Legend: B lanes, C channels, L lookback, T steps of a chunk, H horizon, K cutoffs in a chunk, S series.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from seqkit.data.modules import EpochSampler
from seqkit.data.series_windows import ScaledPanel, WindowIndex
from seqkit.errors import InputError


class ChunkReader:
    """Chunks of a panel as batches.

    A batch is a dict of tensors: ``y`` float64 (B, C, L + T + H), the chunk with the lookback before and the horizon
    behind it, NaN where missing or out of bounds; ``loc`` and ``scale`` float64 (B, C, L + T), by which value = z *
    scale + loc as known at each step; ``fresh`` bool (B,), whether the state starts anew; ``at`` int64 (B, K), steps of
    the chunk before each cutoff, 0 for none; ``index`` int64 (B, K), -1 for none; covariates as in windows.

    Args:
        data: The series, scaled.
        lookback: L.
        horizon: H.
        chunk: T.
    """

    def __init__(self, data: ScaledPanel, *, lookback: int, horizon: int, chunk: int):
        self.data, self.lookback, self.horizon, self.chunk = data, lookback, horizon, chunk

    def batch(
        self, series_B: NDArray, start_B: NDArray, stop_B: NDArray, end_B: NDArray, fresh_B: NDArray, at_BK: NDArray,
        index_BK: NDArray,
    ) -> dict[str, torch.Tensor]:  # fmt: skip
        """The chunks that begin at flat rows.

        Args:
            series_B: Series of each lane.
            start_B: First row.
            stop_B: Row behind the last one that is read; what a chunk holds beyond is missing.
            end_B: Row behind the last one that may be a target.
            fresh_B: Whether the state starts anew.
            at_BK: Steps before each cutoff, 0 for none.
            index_BK: Numbers of the cutoffs, -1 for none.
        """
        panel, encoded = self.data.panel, self.data.encoded
        first_B = panel.offsets[series_B]
        rows_BT = start_B[:, None] + np.arange(-self.lookback, self.chunk + self.horizon)
        inside_BT = (rows_BT >= first_B[:, None]) & (rows_BT < end_B[:, None])
        known = self.lookback + self.chunk
        safe_BT = np.clip(rows_BT, 0, len(panel.y) - 1)
        y, loc, scale = self._values(series_B, safe_BT, inside_BT, known)
        batch = {"y": y, "loc": loc, "scale": scale, "fresh": fresh_B, "at": at_BK, "index": index_BK}
        batch["read"] = np.clip(stop_B - start_B, 0, self.chunk)
        for name, values, until in (("future", encoded.future_NF, None), ("past", encoded.past_NP, known)):
            if values is not None:
                batch[name] = np.where(inside_BT[:, :until, None], values[safe_BT[:, :until]], np.float32(0.0))
        if encoded.step_N is not None:
            batch["step"] = np.where(inside_BT, encoded.step_N[safe_BT], np.float32(1.0))
        if encoded.static_SK is not None:
            batch["static"] = encoded.static_SK[series_B]
        return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in batch.items()}

    def _values(self, series_B: NDArray, rows_BT: NDArray, inside_BT: NDArray, known: int):
        """Values, and centre and spread as known at each row, channel by channel."""
        panel, offsets = self.data.panel, self.data.panel.offsets
        series_BC = series_B[:, None]
        if self.data.channels:
            series_BC = np.broadcast_to(np.arange(len(panel)), (len(series_B), len(panel)))
        move_BC1 = (offsets[series_BC] - offsets[series_B][:, None])[..., None]
        rows_BCT = np.where(inside_BT[:, None], rows_BT[:, None] + move_BC1, 0)
        y = np.where(inside_BT[:, None], panel.y[rows_BCT], np.nan)
        loc, scale = self.data.scaling(
            np.broadcast_to(series_BC[..., None], (*series_BC.shape, known)), rows_BCT[..., :known]
        )
        return y, loc, scale


class TrainingChunks(Dataset):
    """Chunks of training rows, lane by lane; item ``epoch * len + k`` is the k-th batch of an epoch.

    Cutoffs differ from epoch to epoch and depend on (seed, epoch, k) alone.

    Args:
        reader: Makes the batches.
        bounds: (S, 2) first row and end of each series' training rows.
        lanes: Lanes B, at most; long series are cut to fill them.
        cutoffs: Cutoffs in a chunk, K.
        seed: Of the cutoffs.
    """

    def __init__(self, reader: ChunkReader, bounds: NDArray, *, lanes: int, cutoffs: int, seed: int = 0):
        self.reader, self.seed, self.cutoffs = reader, seed, min(cutoffs, reader.chunk)
        self.end_S = bounds[:, 1]
        bounds = bounds[:1] if reader.data.channels else bounds
        self.lanes = _lanes(bounds, lanes, reader.chunk)
        self.steps_B = [
            np.cumsum([-(-(stop - start) // reader.chunk) for _, start, stop in lane]) for lane in self.lanes
        ]

    def __len__(self) -> int:
        return max(int(steps[-1]) for steps in self.steps_B)

    def __getitem__(self, item: int) -> dict[str, torch.Tensor]:
        epoch, step = divmod(item, len(self))
        chunk, horizon = self.reader.chunk, self.reader.horizon
        places = [self._place(lane, steps, step) for lane, steps in zip(self.lanes, self.steps_B, strict=True)]
        series_B, start_B, stop_B, fresh_B = (np.array(column) for column in zip(*places, strict=True))
        end_B = self.end_S[series_B]
        # A cutoff leaves at least one target.
        most_B = np.clip(np.minimum(stop_B, end_B - 1) - start_B, 0, chunk)
        rng = np.random.default_rng([self.seed, epoch, step])
        at_BK = np.zeros((len(places), self.cutoffs), dtype=np.int64)
        for lane, most in enumerate(most_B):
            chosen = rng.permutation(int(most))[: self.cutoffs] + 1
            at_BK[lane, : len(chosen)] = chosen
        index_BK = np.where(at_BK > 0, 0, -1)
        return self.reader.batch(
            series_B, start_B, stop_B, np.minimum(end_B, stop_B + horizon), fresh_B, at_BK, index_BK
        )

    def __getitems__(self, items: Sequence[int]) -> dict[str, torch.Tensor]:
        """One item, a batch already."""
        (item,) = items
        return self[item]

    def _place(self, lane: list[tuple[int, int, int]], steps: NDArray, step: int) -> tuple[int, int, int, bool]:
        """Series, first row, end of the segment and whether it begins, at a step of a lane."""
        number = int(np.searchsorted(steps, step, side="right"))
        if number == len(lane):
            series, _, stop = lane[-1]
            return series, stop, stop, True
        series, start, stop = lane[number]
        within = step - (int(steps[number - 1]) if number else 0)
        return series, start + within * self.reader.chunk, stop, within == 0


class ChunkSampler(EpochSampler):
    """The batches of an epoch in their order, numbered on from epoch to epoch."""

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.epoch * self.rows, (self.epoch + 1) * self.rows))


class EvaluationChunks(Dataset):
    """Every series from its beginning to its last cutoff, with the windows of an index as cutoffs.

    Args:
        reader: Makes the batches.
        index: Which cutoffs.
        lanes: Series read side by side.
    """

    def __init__(self, reader: ChunkReader, index: WindowIndex, *, lanes: int):
        self.reader, self.lanes = reader, lanes
        self.series_W, self.cutoff_W = index.locate(np.arange(len(index)))
        offsets = reader.data.panel.offsets
        if (self.cutoff_W == offsets[self.series_W]).any():
            raise InputError("cutoff", expected="at least one row before every cutoff", got="none")
        self.groups = []
        used = np.unique(self.series_W)
        for place in range(0, len(used), lanes):
            series = used[place : place + lanes]
            longest = max(int(self.cutoff_W[self.series_W == s].max() - offsets[s]) for s in series)
            self.groups.append((series, -(-longest // reader.chunk)))
        self.ends = np.cumsum([steps for _, steps in self.groups])

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def __getitem__(self, item: int) -> dict[str, torch.Tensor]:
        group = int(np.searchsorted(self.ends, item, side="right"))
        series_B, steps = self.groups[group]
        step = item - (int(self.ends[group]) - steps)
        offsets, chunk = self.reader.data.panel.offsets, self.reader.chunk
        end_B = offsets[series_B + 1]
        start_B = np.minimum(offsets[series_B] + step * chunk, end_B)
        found = []
        for series, start in zip(series_B, start_B, strict=True):
            apart = self.cutoff_W - start
            found.append(np.flatnonzero((self.series_W == series) & (apart > 0) & (apart <= chunk)))
        most = max(1, max(len(windows) for windows in found))
        at_BK, index_BK = np.zeros((len(found), most), dtype=np.int64), np.full((len(found), most), -1, dtype=np.int64)
        for lane, windows in enumerate(found):
            at_BK[lane, : len(windows)] = self.cutoff_W[windows] - start_B[lane]
            index_BK[lane, : len(windows)] = windows
        fresh_B = np.full(len(series_B), step == 0)
        return self.reader.batch(series_B, start_B, end_B, end_B, fresh_B, at_BK, index_BK)

    def __getitems__(self, items: Sequence[int]) -> dict[str, torch.Tensor]:
        """One item, a batch already."""
        (item,) = items
        return self[item]


def _lanes(bounds: NDArray, lanes: int, chunk: int) -> list[list[tuple[int, int, int]]]:
    """Segments (series, first row, end) of each lane, so that lanes are about as long as each other."""
    total = int((bounds[:, 1] - bounds[:, 0]).sum())
    share = max(chunk, -(-total // lanes))
    share = -(-share // chunk) * chunk
    segments = [
        (series, row, min(row + share, int(stop)))
        for series, (start, stop) in enumerate(bounds)
        for row in range(int(start), int(stop), share)
    ]
    filled: list[list[tuple[int, int, int]]] = [[] for _ in range(min(lanes, len(segments)))]
    load = np.zeros(len(filled), dtype=np.int64)
    for segment in sorted(segments, key=lambda s: (s[1] - s[2], s)):
        lane = int(load.argmin())
        filled[lane].append(segment)
        load[lane] += segment[2] - segment[1]
    return filled
