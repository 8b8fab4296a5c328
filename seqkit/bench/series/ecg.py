"""MIT-BIH record 100: one step ahead at every test sample, and 250 samples (0.7 s) ahead from 520 origins.

Samples 0-454,999 train, to 519,999 validation, to 649,999 test; z-scores by training mean and deviation.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from seqkit.backbones import BackboneConfig
from seqkit.bench.series import files
from seqkit.bench.series.one_step import OneStep, one_step_metrics
from seqkit.bench.series.rows import LEVELS, RATES, Row, adaptive, distribution_metrics, point_metrics, timed
from seqkit.bench.series.train import Settings, WindowSet, forecast, train
from seqkit.tasks.base import OptimConfig
from seqkit.tasks.next_step import NextStepConfig
from seqkit.tasks.next_step_fit import ChunkConfig
from seqkit.tasks.series_baselines import conformal_quantiles, seasonal_naive, seasonal_naive_quantiles
from seqkit.tasks.series_encoder import TokenConfig
from seqkit.tasks.series_linear import LinearMap, fit_autoregression, fit_linear, windows
from seqkit.tasks.series_metrics import mse
from seqkit.tasks.series_net import ForecastNetConfig

FILES = ("100.dat",)
LEADS = ("MLII", "V5")
VALIDATION, TEST = 455_000, 520_000
HORIZON, LOOKBACK = 250, 1000
ORDERS = (2, 8, 32, 128)
STRIDE = 10  # between training windows of the ridge: neighbours differ by 3 ms
BEAT = 292  # samples between beats in the training part, on average


def load(folder: Path) -> NDArray:
    """Both leads, z-scored: (2, 650000)."""
    series = files.ecg(folder)
    known = series[:, :VALIDATION]
    return (series - known.mean(1, keepdims=True)) / known.std(1, keepdims=True)


def origins(z_T: NDArray, lookback: int) -> tuple[NDArray, NDArray]:
    """Histories (520, L) and futures (520, 250) of one lead."""
    starts = np.arange(TEST, len(z_T) - HORIZON + 1, HORIZON)
    return (
        np.stack([z_T[s - lookback : s] for s in starts]),
        np.stack([z_T[s : s + HORIZON] for s in starts]),
    )


def ridge_quantiles(z_T: NDArray, model: LinearMap, x: NDArray) -> NDArray:
    """Conformal quantiles of the ridge from validation windows."""
    blocks = list(windows(z_T[VALIDATION - LOOKBACK : TEST], LOOKBACK, HORIZON, HORIZON // 5))
    residuals = np.concatenate([y - model.predict(history) for history, y in blocks])
    return model.predict(x)[..., None] + conformal_quantiles(residuals, LEVELS)


def one_step_autoregression(series: NDArray, order: int) -> dict[str, float]:
    """Error and log likelihood of every test sample given all before it."""
    model, start = fit_autoregression(series[:VALIDATION], order), TEST - order
    likelihood = model.log_likelihood(series[start:], start=order)
    return {"mse": mse(series[TEST:], model.one_step(series[start:])[order:]), "log_likelihood": likelihood}


def recursive(series: NDArray, order: int, x: NDArray, y: NDArray) -> dict[str, float]:
    """An autoregression fed with its own forecasts."""
    return point_metrics(y, fit_autoregression(series[:VALIDATION], order).forecast(x, HORIZON))


def direct_ridge(series: NDArray, x: NDArray, y: NDArray, rate: float) -> dict[str, float]:
    """One linear map from a thousand samples to the horizon, with conformal quantiles."""
    validation = series[VALIDATION - LOOKBACK : TEST]
    options = {"kind": "linear", "stride": STRIDE, "validation_CT": validation}
    model = fit_linear(series[:VALIDATION], LOOKBACK, HORIZON, **options)
    quantiles = adaptive(y, ridge_quantiles(series, model, x), rate)
    return point_metrics(y, model.predict(x)) | distribution_metrics(y, quantiles)


def seasonal(x: NDArray, y: NDArray, rate: float) -> dict[str, float]:
    """The last beat's length again, with the quantiles of such errors."""
    quantiles = adaptive(y, seasonal_naive_quantiles(x, HORIZON, BEAT, LEVELS), rate)
    return point_metrics(y, seasonal_naive(x, HORIZON, BEAT)) | distribution_metrics(y, quantiles)


def baselines(folder: Path) -> Iterator[Row]:
    """Last value, mean, autoregressions, seasonal naive, ridge."""
    for lead, series in zip(LEADS, load(folder), strict=True):
        protocol, truth = f"ECG {lead} 1", series[TEST:]
        yield timed(
            protocol, "last value", lambda truth, before: {"mse": mse(truth, before)}, truth, series[TEST - 1 : -1]
        )
        yield timed(protocol, "train mean", lambda truth: {"mse": mse(truth, 0 * truth)}, truth)
        for order in ORDERS:
            yield timed(protocol, f"AR({order})", one_step_autoregression, series, order)
        protocol, (x, y) = f"ECG {lead} {HORIZON}", origins(series, LOOKBACK)
        yield timed(protocol, "last value", point_metrics, y, np.repeat(x[:, -1:], HORIZON, 1))
        yield timed(protocol, "train mean", point_metrics, y, np.zeros_like(y))
        for order in ORDERS:
            yield timed(protocol, f"AR({order})", recursive, series, order, x, y)
        for kind, rate in RATES.items():
            yield timed(protocol, f"seasonal naive {BEAT}{kind}", seasonal, x, y, rate)
            yield timed(protocol, f"ridge {LOOKBACK}{kind}", direct_ridge, series, x, y, rate)


ONE_STEP = OneStep(
    model=BackboneConfig(d_model=24, layout="s4d*2", d_state=16, expand=1, vocab_size=0, n_channels=2),
    net=NextStepConfig(lags=128, noise="student-t", centre="square"),
    chunks=ChunkConfig(streams=16, chunk=512, epochs=8),
    optim=OptimConfig(lr=5e-3),
)


AHEAD = Settings(
    model=BackboneConfig(d_model=48, layout="s4d*2", d_state=16, dropout=0.05, vocab_size=0, n_channels=1),
    tokens=TokenConfig(kind="patch", patch=10),
    net=ForecastNetConfig(head="quantile", norm="none", dropout=0.05),
    optim=OptimConfig(lr=2e-3),
    epochs=14,
    batch=128,
    windows=10_000,
)
"""Two blocks on patches of 28 ms over the ridge of a thousand samples, which cannot move a beat."""


def parts(series: NDArray) -> tuple[WindowSet, WindowSet, WindowSet]:
    """Windows of training, validation and test; test windows are the origins."""
    sizes = (LOOKBACK, HORIZON)
    return (
        WindowSet([series[:VALIDATION]], *sizes, stride=STRIDE // 2),
        WindowSet([series[VALIDATION - LOOKBACK : TEST]], *sizes, stride=HORIZON // 10),
        WindowSet([series[TEST - LOOKBACK :]], *sizes, stride=HORIZON),
    )


def ahead_metrics(series: NDArray, seed: int, device: str) -> dict[str, dict[str, float]]:
    """Errors from every origin, intervals fixed and adaptive; the squared error is that of the distribution's mean."""
    training, validation, test = parts(series)
    mean, _, quantiles = forecast([train(AHEAD, training, validation, seed, device)], test, LEVELS)
    truth = origins(series, LOOKBACK)[1]
    return {
        kind: point_metrics(truth, mean) | distribution_metrics(truth, adaptive(truth, quantiles, rate))
        for kind, rate in RATES.items()
    }


def models(folder: Path, device: str, seeds: Sequence[int]) -> Iterator[Row]:
    """One step ahead with carried memory, from AR(128) on; 250 samples from windows, from the ridge on."""
    for lead, series in zip(LEADS, load(folder), strict=True):
        for seed in seeds:
            arguments = (ONE_STEP, series, VALIDATION, TEST, seed, device)
            yield timed(f"ECG {lead} 1", "seqkit", one_step_metrics, *arguments, seed=seed)
            begun = time.perf_counter()
            found = ahead_metrics(series, seed, device)
            seconds = time.perf_counter() - begun
            for kind, metrics in found.items():
                yield Row(f"ECG {lead} {HORIZON}", f"seqkit{kind}", metrics, seconds, seed)
