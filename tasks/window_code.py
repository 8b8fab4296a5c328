"""Reconstruction: the last window of a series through a narrow code, and what does not come back.

The code is linear, its directions those along which windows of a normal stretch vary most. What is unlike all that was
seen there does not fit through it, also where every single step could have been expected from the one before.

Legend: T steps of a series, N windows, W steps of a window, K numbers of a code.

Reference: Jolliffe 2002, Principal component analysis, chapter 10 (residuals of components that are left out).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch import nn

_AT_ONCE = 65_536
"""Windows that are reconstructed at a time."""


class WindowCode(nn.Module):
    """A code of windows.

    Args:
        size: K.
        window: W.
    """

    def __init__(self, size: int, window: int):
        super().__init__()
        self.register_buffer("centre_W", torch.zeros(window, dtype=torch.float64))
        self.register_buffer("direction_KW", torch.zeros(size, window, dtype=torch.float64))

    @classmethod
    def fit(cls, z_T: NDArray, window: int, size: int) -> WindowCode:
        """The code that loses least of the windows of a series; missing values count as 0.

        Args:
            z_T: Scaled values, at least two windows of them.
            window: W.
            size: K, below W.
        """
        window_NW = sliding_window_view(np.nan_to_num(z_T), window)
        covariance_WW = np.cov(window_NW, rowvar=False).reshape(window, window)
        _, direction_WW = np.linalg.eigh(covariance_WW)
        code = cls(size, window)
        code.centre_W.copy_(torch.from_numpy(window_NW.mean(axis=0)))
        code.direction_KW.copy_(torch.from_numpy(direction_WW[:, ::-1][:, :size].T.copy()))
        return code

    def errors(self, z_T: NDArray) -> NDArray:
        """(T,) mean squared error of the window that ends at each step; NaN before the first whole one.

        Missing values count as 0 to the code and not at all to the error; a window without a known value has none.
        """
        centre_W, direction_KW = self.centre_W.cpu().numpy(), self.direction_KW.cpu().numpy()
        window = len(centre_W)
        error_T = np.full(len(z_T), np.nan)
        for begin in range(0, len(z_T) - window + 1, _AT_ONCE):
            part_T = z_T[begin : begin + _AT_ONCE + window - 1]
            window_NW = sliding_window_view(np.nan_to_num(part_T), window) - centre_W
            left_NW = window_NW - window_NW @ direction_KW.T @ direction_KW
            known_NW = ~np.isnan(sliding_window_view(part_T, window))
            count_N = known_NW.sum(axis=1)
            found_N = (left_NW**2 * known_NW).sum(axis=1) / np.maximum(count_N, 1)
            end = begin + window - 1
            error_T[end : end + len(found_N)] = np.where(count_N > 0, found_N, np.nan)
        return error_T
