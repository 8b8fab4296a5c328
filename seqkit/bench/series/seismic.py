"""One series of 936,001 seismic samples: one step ahead over the last fifth, trained on what lies before."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from numpy.typing import NDArray

from seqkit.bench.series import files
from seqkit.bench.series.rows import Row, timed
from seqkit.tasks.series_linear import fit_autoregression
from seqkit.tasks.series_metrics import mse

FILES = (files.SEISMIC,)
ORDERS = (2, 32)


def load(folder: Path) -> tuple[NDArray, int]:
    """The z-scored series and its first test sample."""
    series = files.seismic(folder)
    test = len(series) * 4 // 5
    return (series - series[:test].mean()) / series[:test].std(), test


def autoregression(z: NDArray, test: int, order: int) -> dict[str, float]:
    """Error and log likelihood of every test sample given all before it."""
    model = fit_autoregression(z[:test], order)
    likelihood = model.log_likelihood(z[test - order :], start=order)
    return {"mse": mse(z[test:], model.one_step(z[test - order :])[order:]), "log_likelihood": likelihood}


def baselines(folder: Path) -> Iterator[Row]:
    """Last value and autoregressions."""
    z, test = load(folder)
    yield timed("seismic 1", "last value", lambda: {"mse": mse(z[test:], z[test - 1 : -1])})
    for order in ORDERS:
        yield timed("seismic 1", f"AR({order})", autoregression, z, test, order)
