"""One series of 936,001 seismic samples: one step ahead over the last fifth, trained on what lies before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from numpy.typing import NDArray

from seqkit.backbones import BackboneConfig
from seqkit.bench.series import files
from seqkit.bench.series.one_step import OneStep, one_step_metrics
from seqkit.bench.series.rows import Row, timed
from seqkit.tasks.base import OptimConfig
from seqkit.tasks.next_step import NextStepConfig
from seqkit.tasks.next_step_fit import ChunkConfig
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


ONE_STEP = OneStep(
    model=BackboneConfig(d_model=24, layout="s4d*2", d_state=16, expand=1, vocab_size=0, n_channels=2),
    net=NextStepConfig(lags=32, noise="student-t", centre="square"),
    chunks=ChunkConfig(streams=16, chunk=512, epochs=6),
    optim=OptimConfig(lr=5e-3),
)


def models(folder: Path, device: str, seeds: Sequence[int]) -> Iterator[Row]:
    """One step ahead with carried memory, from AR(32) on; the last tenth before the test part chooses the pass."""
    z, test = load(folder)
    for seed in seeds:
        arguments = (ONE_STEP, z, test * 9 // 10, test, seed, device)
        yield timed("seismic 1", "seqkit", one_step_metrics, *arguments, seed=seed)
