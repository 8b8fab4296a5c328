"""NAB nyc_taxi: 48 half-hours ahead from every 48th row of the last fifth, no refit.

The part from row 8,256 on holds two labelled windows, so errors there are partly of days that nothing foretold.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from seqkit.bench.series import files
from seqkit.bench.series.rows import LEVELS, RATES, Row, adaptive, distribution_metrics, timed
from seqkit.tasks import series_metrics as metrics
from seqkit.tasks.series_baselines import (
    conformal_quantiles,
    naive,
    seasonal_naive,
    seasonal_naive_quantiles,
)
from seqkit.tasks.series_linear import fit_linear, windows

FILES = ("nyc_taxi.csv", files.WINDOWS)
HORIZON, DAY, WEEK = 48, 48, 336
VALIDATION, TEST = 6_600, 8_256


class Origins(NamedTuple):
    """Known past of each origin (43, TEST - rows), what followed (43, 48), and the mean daily change before."""

    past: list[NDArray]
    future: NDArray
    scale: float

    def each(self, method: Callable[..., NDArray], *arguments) -> NDArray:
        """``method(past, HORIZON, *arguments)`` at every origin."""
        return np.concatenate([method(past[None], HORIZON, *arguments) for past in self.past])


def load(folder: Path) -> tuple[NDArray, Origins]:
    """The series and its 43 test origins."""
    _, y, _ = files.nab(folder, "nyc_taxi")
    origins = range(TEST, len(y) - HORIZON + 1, HORIZON)
    future = np.stack([y[o : o + HORIZON] for o in origins])
    return y, Origins([y[:o] for o in origins], future, float(metrics.seasonal_scale(y[:TEST], DAY)))


def scored(origins: Origins, forecast: NDArray, quantiles: NDArray | None = None) -> dict[str, float]:
    """Errors in rides; MASE in units of the mean daily change before the test part."""
    y = origins.future
    found = {
        "mae": metrics.mae(y, forecast),
        "rmse": metrics.mse(y, forecast) ** 0.5,
        "smape": metrics.smape(y, forecast),
        "mase": metrics.mae(y, forecast) / origins.scale,
    }
    return found if quantiles is None else found | distribution_metrics(y, quantiles)


def seasonal(origins: Origins, season: int, rate: float) -> dict[str, float]:
    """What was seen a season ago, with the quantiles of such errors."""
    quantiles = adaptive(origins.future, origins.each(seasonal_naive_quantiles, season, LEVELS), rate)
    return scored(origins, origins.each(seasonal_naive, season), quantiles)


def four_weeks(past: NDArray, horizon: int) -> NDArray:
    """Mean of the same hours of the last four weeks."""
    return np.stack([past[:, past.shape[1] - k * WEEK :][:, :horizon] for k in (1, 2, 3, 4)]).mean(0)


def ridge(y: NDArray, origins: Origins, lookback: int, rate: float) -> dict[str, float]:
    """NLinear ridge fitted before the test part, conformal by the windows that chose its penalty."""
    first = fit_linear(y[:VALIDATION], lookback, HORIZON, validation_CT=y[VALIDATION - lookback : TEST])
    model = fit_linear(y[:TEST], lookback, HORIZON, penalties=[first.penalty])
    blocks = list(windows(y[VALIDATION - lookback : TEST], lookback, HORIZON))
    residuals = np.concatenate([truth - first.predict(x) for x, truth in blocks])
    forecast = model.predict(np.stack([past[-lookback:] for past in origins.past]))
    quantiles = forecast[..., None] + conformal_quantiles(residuals, LEVELS)
    return scored(origins, forecast, adaptive(origins.future, quantiles, rate))


def baselines(folder: Path) -> Iterator[Row]:
    """Naive, daily, weekly, mean of four weeks, and ridge at one and two weeks; intervals fixed and adaptive."""
    y, origins = load(folder)
    yield timed("NAB taxi", "naive", lambda: scored(origins, origins.each(naive)))
    for season, (kind, rate) in product((DAY, WEEK), RATES.items()):
        yield timed("NAB taxi", f"seasonal naive {season}{kind}", seasonal, origins, season, rate)
    yield timed("NAB taxi", "mean of four weeks", lambda: scored(origins, origins.each(four_weeks)))
    for lookback, (kind, rate) in product((WEEK, 2 * WEEK), RATES.items()):
        yield timed("NAB taxi", f"nlinear ridge {lookback}{kind}", ridge, y, origins, lookback, rate)


SETTINGS: dict[str, dict[str, Any]] = {"trainer": {"threads": 1}}
"""Beyond the defaults of :class:`seqkit.Forecaster`, calendar among them."""
PERCENT = (95, 80, 60, 40, 20)
"""Intervals that hold the levels."""


def model_quantiles(times: NDArray, y: NDArray, seed: int, device: str) -> tuple[NDArray, NDArray]:
    """Median (43, 48) and quantiles of a forecaster, trained and calibrated on the rows the ridge chose its penalty on.

    Args:
        times: Seconds.
        y: The whole series.
        seed: Of the model.
        device: Where to train.
    """
    import polars as pl

    from seqkit import Forecaster

    frame = pl.DataFrame({"ds": pl.Series(times * 1000).cast(pl.Datetime("ms")), "y": y})
    model = Forecaster(h=HORIZON, freq="30m", lookback=WEEK, seed=seed, device=device, **SETTINGS)
    origins = (len(y) - TEST) // HORIZON
    rows = model.cross_validation(frame, n_windows=origins, level=PERCENT, val_size=TEST - VALIDATION)
    names = [f"seqkit-lo-{p}" for p in PERCENT] + ["seqkit"] + [f"seqkit-hi-{p}" for p in reversed(PERCENT)]
    quantiles = rows.select(names).to_numpy().reshape(origins, HORIZON, len(LEVELS))
    return quantiles[..., len(LEVELS) // 2], quantiles


def models(folder: Path, device: str, seeds: Sequence[int]) -> Iterator[Row]:
    """The forecaster as it comes; intervals fixed and adaptive."""
    y, origins = load(folder)
    times = files.nab(folder, "nyc_taxi")[0]
    for seed in seeds:
        begun = time.perf_counter()
        median, quantiles = model_quantiles(times, y, seed, device)
        seconds = time.perf_counter() - begun
        for kind, rate in RATES.items():
            found = scored(origins, median, adaptive(origins.future, quantiles, rate))
            yield Row("NAB taxi", f"seqkit{kind}", found, seconds, seed)
