"""Whether probabilities mean what they say. Shape letters: N rows, K bins."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from seqkit.report.figures import COLOURS, MUTED, new_figure, save, style

BINS = 10
NORMAL_95 = 1.96


def plot_reliability(path: str | os.PathLike, labels: ArrayLike, probabilities: Mapping[str, ArrayLike]) -> list[Path]:
    """Observed frequency over predicted probability in ten bins, with the histogram of the predictions below.

    Args:
        path: Where to write; PNG and SVG.
        labels: (N,) of 0, 1 or NaN.
        probabilities: (N,) in [0, 1] by name, such as before and after calibration; bars are 95 % Wilson intervals.

    Returns:
        The files written.
    """
    y_N = np.asarray(labels, dtype=float)
    known = ~np.isnan(y_N)
    with style():
        figure, (diagram, histogram) = new_figure(5.2, 6.4, nrows=2, sharex=True, gridspec_kw={"height_ratios": (3, 1)})
        diagram.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (1, 2)), label="perfect")
        edges = np.linspace(0, 1, BINS + 1)
        for i, (name, values) in enumerate(probabilities.items()):
            p_N = np.asarray(values, dtype=float)[known]
            colour, marker = COLOURS[i % len(COLOURS)], "os^Dv"[i % 5]
            mean_K, low_K, observed_K, high_K = _bins(y_N[known], p_N)
            bars = np.stack([observed_K - low_K, high_K - observed_K])
            diagram.errorbar(
                mean_K, observed_K, yerr=bars, color=colour, marker=marker, markersize=5, linewidth=1.6,
                elinewidth=0.9, capsize=2, label=name,
            )  # fmt: skip
            histogram.hist(p_N, bins=edges, histtype="step", color=colour, linewidth=1.6)
        diagram.set(ylabel="observed frequency", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        diagram.legend(loc="upper left")
        diagram.grid(color="#dddddd", linewidth=0.6)
        histogram.set(xlabel="predicted probability", ylabel="rows")
        return save(figure, path)


def _bins(y_N: NDArray, p_N: NDArray) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """Mean prediction, lower bound, frequency and upper bound of the bins that hold rows.

    Reference: Wilson 1927, the score interval.
    """
    bin_N = np.minimum((p_N * BINS).astype(int), BINS - 1)
    count_K = np.bincount(bin_N, minlength=BINS)
    used = count_K > 0
    n_K = count_K[used]
    mean_K = np.bincount(bin_N, weights=p_N, minlength=BINS)[used] / n_K
    observed_K = np.bincount(bin_N, weights=y_N, minlength=BINS)[used] / n_K
    z2 = NORMAL_95**2
    centre_K = (observed_K + z2 / (2 * n_K)) / (1 + z2 / n_K)
    half_K = NORMAL_95 * np.sqrt(observed_K * (1 - observed_K) / n_K + z2 / (4 * n_K**2)) / (1 + z2 / n_K)
    return mean_K, np.minimum(centre_K - half_K, observed_K), observed_K, np.maximum(centre_K + half_K, observed_K)
