"""Windows over series by index arithmetic: a lookback that ends at a cutoff, and the horizon behind it.

Legend: N rows of all series, S series, B windows, C channels, L lookback, H horizon; F known-future, P past and K
static covariates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from seqkit.data.covariates import Encoded
from seqkit.data.series import Panel
from seqkit.errors import ConfigError, InputError
from seqkit.tokenizers.numeric import SeriesScaler, Sums


class WindowIndex:
    """All cutoffs of a part of a panel, numbered without being listed.

    A cutoff is the row of the first target step. The lookback before it may reach out of its part, and before the
    beginning of its series, where it holds missing values; the horizon stays inside the part.

    Args:
        offsets: (S + 1,) bounds of the series.
        first_S: (S,) first cutoff of each series, a flat row.
        last_S: (S,) last cutoff of each series; before the first one where it has none.
        stride: Rows between two cutoffs.
    """

    def __init__(self, offsets: NDArray, first_S: NDArray, last_S: NDArray, *, stride: int = 1):
        if stride < 1:
            raise ConfigError("stride", expected="1 or more", got=str(stride))
        self.offsets, self.first_S, self.stride = offsets, first_S, stride
        count_S = np.maximum((last_S - first_S) // stride + 1, 0)
        self.ends_S = np.cumsum(count_S)

    def __len__(self) -> int:
        return int(self.ends_S[-1])

    def locate(self, windows: NDArray) -> tuple[NDArray, NDArray]:
        """Series (B,) and cutoff (B,) of windows."""
        series_B = np.searchsorted(self.ends_S, windows, side="right")
        start_S = np.concatenate([[0], self.ends_S[:-1]])
        return series_B, self.first_S[series_B] + (windows - start_S[series_B]) * self.stride


class ScaledPanel:
    """A panel with the scaler that the model reads it through, and its covariates as numbers.

    Args:
        panel: The series.
        scaler: Fitted on training rows.
        encoded: Covariates of the panel's rows.
        channels: Whether the series of an aligned panel are the channels of one.
        before: Sums of the rows before the panel's, by series, for a running scaler.
    """

    def __init__(
        self, panel: Panel, scaler: SeriesScaler, encoded: Encoded, *, channels: bool = False,
        before: Mapping[str, Sums] | None = None,
    ):  # fmt: skip
        if channels and not panel.aligned:
            raise InputError(
                "mix", expected="series that share all stamps", got="series that do not",
                remedy="Fill them to one grid, or set mix=false.",
            )  # fmt: skip
        self.panel, self.scaler, self.encoded, self.channels = panel, scaler, encoded, channels
        self.loc, self.scale = scaler.tables(panel.y, panel.offsets, panel.ids, before)

    def scaling(self, series_B: NDArray, row_B: NDArray) -> tuple[NDArray, NDArray]:
        """Centre and spread (B,) as known at a row, which for a running scaler counts up to that row."""
        at = row_B if self.scaler.kind == "running" else series_B
        return self.loc[at], self.scale[at]


class SeriesWindows(Dataset):
    """Windows as model input; asked for several it answers with one batch.

    A batch is a dict of tensors: ``z`` float32 (B, C, L) and ``target`` float32 (B, C, H), scaled, NaN where missing;
    ``loc`` and ``scale`` float64 (B, C), by which value = z * scale + loc; ``index`` and ``series`` int64 (B,). Where
    there are covariates: ``future`` (B, L + H, F), ``past`` (B, L, P), ``static`` (B, K). Where times are irregular:
    ``step`` (B, L + H), distance to the row before in units of the usual one. C is 1 unless channels are mixed.

    A negative window number ``-1 - i`` stands for window i as a filler: its targets are NaN and its ``index`` is -1.

    Args:
        data: The series, scaled.
        index: Which windows.
        lookback: L.
        horizon: H.
    """

    def __init__(self, data: ScaledPanel, index: WindowIndex, *, lookback: int, horizon: int):
        self.data, self.index, self.lookback, self.horizon = data, index, lookback, horizon

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, window: int) -> dict[str, torch.Tensor]:
        return {name: value[0] for name, value in self.__getitems__([window]).items()}

    def __getitems__(self, windows: Sequence[int]) -> dict[str, torch.Tensor]:
        """One batch of windows; see the class for its keys."""
        windows = np.asarray(windows, dtype=np.int64)
        filler = windows < 0
        windows = np.where(filler, -1 - windows, windows)
        series_B, cutoff_B = self.index.locate(windows)
        batch = self.at(series_B, cutoff_B)
        batch["target"][torch.from_numpy(filler)] = torch.nan
        batch["index"] = torch.from_numpy(np.where(filler, -1, windows))
        return batch

    def at(self, series_B: NDArray, cutoff_B: NDArray) -> dict[str, torch.Tensor]:
        """The windows at cutoffs, whether or not the index holds them; targets past the end are missing."""
        panel, encoded = self.data.panel, self.data.encoded
        past_BL = cutoff_B[:, None] + np.arange(-self.lookback, 0)
        ahead_BH = cutoff_B[:, None] + np.arange(self.horizon)
        inside_BL = past_BL >= panel.offsets[series_B][:, None]
        z, target, loc, scale = self._values(series_B, cutoff_B, past_BL, ahead_BH, inside_BL)
        batch = {"z": z, "target": target, "loc": torch.from_numpy(loc), "scale": torch.from_numpy(scale)}
        rows_BL = np.where(inside_BL, past_BL, 0)
        rows_BT = np.concatenate([rows_BL, np.minimum(ahead_BH, len(panel.y) - 1)], axis=1)
        inside_BT = np.concatenate([inside_BL, ahead_BH < panel.offsets[series_B + 1][:, None]], axis=1)
        for name, values, rows, inside in (
            ("future", encoded.future_NF, rows_BT, inside_BT),
            ("past", encoded.past_NP, rows_BL, inside_BL),
        ):
            if values is not None:
                batch[name] = torch.from_numpy(np.where(inside[..., None], values[rows], np.float32(0.0)))
        if encoded.step_N is not None:
            batch["step"] = torch.from_numpy(np.where(inside_BT, encoded.step_N[rows_BT], np.float32(1.0)))
        if encoded.static_SK is not None:
            batch["static"] = torch.from_numpy(encoded.static_SK[series_B])
        batch["series"] = torch.from_numpy(series_B)
        return batch

    def _values(self, series_B, cutoff_B, past_BL, ahead_BH, inside_BL):
        """Scaled values of the lookback and the horizon, channel by channel, with their scaling."""
        panel, offsets = self.data.panel, self.data.panel.offsets
        series_BC = series_B[:, None]
        if self.data.channels:  # all series are channels of the first, at the same distance from their beginnings
            series_BC = np.broadcast_to(np.arange(len(panel)), (len(series_B), len(panel)))
        move_BC = offsets[series_BC] - offsets[series_B][:, None]
        known_BC = np.maximum(cutoff_B[:, None] + move_BC - 1, offsets[series_BC])
        loc_BC, scale_BC = self.data.scaling(series_BC, known_BC)
        inside_BCL = np.broadcast_to(inside_BL[:, None], (*series_BC.shape, self.lookback))
        ahead_BCH = ahead_BH[:, None] + move_BC[..., None]
        within_BCH = ahead_BCH < offsets[series_BC + 1][..., None]
        scaled = []
        for rows, held in ((past_BL[:, None] + move_BC[..., None], inside_BCL), (ahead_BCH, within_BCH)):
            value = np.where(held, panel.y[np.where(held, rows, 0)], np.nan)
            scaled.append(torch.from_numpy(((value - loc_BC[..., None]) / scale_BC[..., None]).astype(np.float32)))
        return *scaled, loc_BC, scale_BC
