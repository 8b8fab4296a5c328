"""What a forecasting run prints, draws and stores: our model beside simple ones on the same test windows.

Legend: W windows (of one channel each), H horizon, Q quantile levels.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from seqkit.commands.forecast_frames import at_level, interval_columns, interval_levels, sides
from seqkit.commands.run_folder import METRICS
from seqkit.commands.run_page import show_tables, write_run_page
from seqkit.commands.trainer import HISTORY
from seqkit.data.series_data import SeriesData
from seqkit.data.series_windows import SeriesWindows
from seqkit.files import atomic, write_json
from seqkit.report.series import Fan, plot_backtest, plot_coverage, plot_fans, plot_horizon_error
from seqkit.report.table import Table
from seqkit.report.training import plot_training
from seqkit.tasks.adaptive import adapted
from seqkit.tasks.forecast import ForecastTask, conformal_shift
from seqkit.tasks.series_metrics import coverage, mae, mase, mse, pinball, seasonal_scale

if TYPE_CHECKING:
    from seqkit.commands.forecast import Trained
    from seqkit.commands.forecast_model import ForecastConfig

OURS, LINEAR, SEASONAL = "seqkit", "linear (ridge)", "seasonal naive"
PLOTS, PREDICTIONS = "plots", "predictions.parquet"
CAPTIONS = {
    "fan": "Forecasts from three test cutoffs: history, medians with their intervals, and what came.",
    "horizon": "Mean absolute error by step ahead on the test windows.",
    "coverage": "Share of test values below each quantile against its level; right is on the diagonal.",
    "backtest": "All test cutoffs of the first series over what came.",
    "training": "Training and validation loss; the line marks the epoch whose weights were kept.",
}
_FANS, _BACKTEST = 3, 60
"""Fans drawn, and most cutoffs of a backtest plot."""


class Measured(NamedTuple):
    """Forecasts of all methods on the test windows.

    Attributes:
        y_WH: What came, NaN where missing.
        levels_Q: Quantile levels, the median among them.
        quantiles: Method to (W, H, Q).
        series_W: Series of each window.
        cutoff_W: Flat row of each window's first target.
        scale_W: Mean absolute seasonal difference of the series' training rows, for MASE.
        season: Season of the naive forecast, in steps.
    """

    y_WH: NDArray
    levels_Q: NDArray
    quantiles: dict[str, NDArray]
    series_W: NDArray
    cutoff_W: NDArray
    scale_W: NDArray
    season: int


def measure(trained: Trained, data: SeriesData, *, config: ForecastConfig) -> Measured:
    """Forecast the test windows with the model, the linear start and the seasonal naive method."""
    measured = measure_task(trained.task, data, level=config.level)
    linear = forecast_windows(trained.linear, data, measured.levels_Q)
    seasonal = measured.quantiles.pop(SEASONAL)
    measured.quantiles.update({LINEAR: linear, SEASONAL: seasonal})
    return adaptive(measured, config)


def adaptive(measured: Measured, config: ForecastConfig) -> Measured:
    """Every method's intervals as they follow their misses over the test windows, where the run adapts them."""
    if not config.adapt:
        return measured
    at = (measured.y_WH, measured.levels_Q, measured.series_W, measured.cutoff_W, config.adapt, config.floor)
    return measured._replace(quantiles={name: adapted(given, *at) for name, given in measured.quantiles.items()})


def measure_task(task: ForecastTask, data: SeriesData, *, level: tuple[float, ...]) -> Measured:
    """Forecast the test windows with a model and the seasonal naive method."""
    levels = interval_levels(level, task.levels.tolist())
    test, validation = data.windows("test"), data.windows("validation")
    season = best_season(data, validation)
    naive = seasonal_windows(data, test, season)[..., None]
    if len(validation):
        score = torch.from_numpy(targets(data, validation) - seasonal_windows(data, validation, season))
        shift = conformal_shift(score.unsqueeze(-1).expand(*score.shape, len(levels)), torch.from_numpy(levels)).numpy()
    else:
        shift = np.zeros((data.config.horizon, len(levels)))
    quantiles = {OURS: forecast_windows(task, data, levels), SEASONAL: naive + shift}
    series_W, cutoff_W = places(data, test)
    scale_S = training_scale(data, season)
    return Measured(targets(data, test), levels, quantiles, series_W, cutoff_W, scale_S[series_W], season)


@torch.no_grad()
def forecast_windows(task: ForecastTask, data: SeriesData, levels: NDArray) -> NDArray:
    """Calibrated quantiles (W, H, Q) of the test windows, channel by channel."""
    task.eval()
    device = next(task.parameters()).device
    wanted = torch.from_numpy(levels).to(device)
    values = None
    for batch in data.evaluation("test", carried=task.net.config.context == "carried"):
        forecast, windows = task.answer({name: value.to(device) for name, value in batch.items()})
        part = task.finish(forecast, windows, wanted).cpu().numpy()
        if values is None:
            values = np.full((len(data.windows("test")), *part.shape[1:]), np.nan)
        values[windows["index"].cpu().numpy()] = part
    return values.reshape(-1, *values.shape[2:])


def places(data: SeriesData, windows: SeriesWindows) -> tuple[NDArray, NDArray]:
    """Series and cutoff row (W,) of windows, channel by channel."""
    series, cutoff = windows.index.locate(np.arange(len(windows)))
    if not data.scaled.channels:
        return series, cutoff
    channels = np.arange(len(data.panel))
    rows = cutoff[:, None] + data.panel.offsets[channels]
    return np.tile(channels, len(windows)), rows.reshape(-1)


def targets(data: SeriesData, windows: SeriesWindows) -> NDArray:
    """(W, H) values behind the cutoffs, in the units of the data."""
    _, cutoff = places(data, windows)
    return data.panel.y[cutoff[:, None] + np.arange(data.config.horizon)]


def seasonal_windows(data: SeriesData, windows: SeriesWindows, season: int) -> NDArray:
    """(W, H) values one season before, two seasons where the horizon is longer, and so on.

    A missing value, or one before the beginning of the series, is replaced by the last one that is known.
    """
    series, cutoff = places(data, windows)
    steps = np.arange(data.config.horizon)
    rows = cutoff[:, None] + steps - season * (steps // season + 1)
    y, first = data.panel.y, data.panel.offsets[series][:, None]
    value = np.where(rows >= first, y[np.maximum(rows, 0)], np.nan)
    return np.where(
        np.isnan(value), filled_forward(y, data.panel.offsets)[np.maximum(cutoff - 1, first[:, 0])][:, None], value
    )


def filled_forward(y: NDArray, offsets: NDArray) -> NDArray:
    """Values with the last known one of the series in the place of a missing one; 0 where there is none yet."""
    row = np.where(np.isnan(y), -1, np.arange(len(y)))
    last = np.maximum.accumulate(row)
    first = np.repeat(offsets[:-1], np.diff(offsets))
    return np.where(last >= first, y[np.maximum(last, 0)], 0.0)


def best_season(data: SeriesData, validation: SeriesWindows) -> int:
    """The season of the frequency with the smallest mean absolute error on the validation windows."""
    seasons = data.panel.frequency.seasons if data.panel.frequency else (1,)
    if len(seasons) == 1 or not len(validation):
        return seasons[0]
    y = targets(data, validation)
    return min(seasons, key=lambda m: np.nanmean(np.abs(y - seasonal_windows(data, validation, m))))


def training_scale(data: SeriesData, season: int) -> NDArray:
    """(S,) mean absolute seasonal difference of the training rows; NaN where a series is no longer than a season."""
    parts = [data.panel.y[start:stop] for start, stop in data.split.bounds["train"]]
    return np.array([seasonal_scale(y, season) if len(y) > season else np.nan for y in parts])


def figures(measured: Measured, method: str, level: tuple[float, ...]) -> dict[str, float]:
    """Metrics of one method in the units of the data; MASE and coverage have none."""
    q_WHQ, y_WH, levels_Q = measured.quantiles[method], measured.y_WH, measured.levels_Q
    centre_WH = at_level(q_WHQ, levels_Q, 0.5)
    found = {
        "mae": mae(y_WH, centre_WH),
        "rmse": np.sqrt(mse(y_WH, centre_WH)),
        "mase": mase(y_WH, centre_WH, measured.scale_W),
        "pinball": pinball(y_WH, q_WHQ, levels_Q),
    }
    for percent in level:
        low_WH, high_WH = (at_level(q_WHQ, levels_Q, side) for side in sides(percent))
        found[f"coverage_{percent:g}"] = coverage(y_WH, low_WH, high_WH)
    return {name: float(value) for name, value in found.items()}


def write_report(
    folder: Path, config: ForecastConfig, data: SeriesData, trained: Trained, measured: Measured
) -> dict[str, Any]:
    """Metrics, forecasts and plots of a run, into its folder; returns the contents of ``metrics.json``."""
    return write_measured(
        folder, config, data, measured, {"best_epoch": trained.best_epoch, "penalty": trained.penalty}
    )


def write_measured(
    folder: Path, config: ForecastConfig, data: SeriesData, measured: Measured, more: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Metrics, forecasts and plots of test windows, into a folder; ``more`` joins the metrics."""
    results = {method: figures(measured, method, config.level) for method in measured.quantiles}
    panel = data.panel
    metrics = {
        "task": config.task,
        "units": "those of the data; mase: of the seasonal naive error in training",
        "series": len(panel),
        "rows": {part: int(np.diff(data.split.bounds[part], axis=1).sum()) for part in ("train", "validation", "test")},
        "windows": {part: len(data.windows(part)) for part in ("train", "validation", "test")},
        "frequency": str(panel.frequency) if panel.frequency else None,
        "lookback": data.config.lookback,
        "horizon": data.config.horizon,
        "season": measured.season,
        "split": data.split.description,
        "notes": list(panel.notes),
        **(more or {}),
        "results": results,
    }
    frame = forecast_frame(data, measured, config.level)
    with atomic(folder / PREDICTIONS) as temporary:
        frame.write_parquet(temporary)
    draw(folder, config, data, measured, metrics.get("best_epoch"))
    write_run_page(
        folder, title="Forecasts of numeric series",
        lead="Our model beside simple methods on the same test windows, in the units of the data.",
        tables=[summary_table(metrics)],
        figures={folder / PLOTS / name: caption for name, caption in CAPTIONS.items()},
        details={
            "series": f"{metrics['series']:,}",
            "rows": ", ".join(f"{part} {count:,}" for part, count in metrics["rows"].items()),
            "split": metrics["split"],
            "what was done to the rows": "; ".join(metrics["notes"]),
        },
    )  # fmt: skip
    write_json(folder / METRICS, metrics)
    return metrics


def forecast_frame(data: SeriesData, measured: Measured, level: tuple[float, ...]) -> pl.DataFrame:
    """Long frame of the test forecasts: id, cutoff, stamp, value, and each method with its intervals."""
    panel, horizon = data.panel, measured.y_WH.shape[1]
    rows = (measured.cutoff_W[:, None] + np.arange(horizon)).reshape(-1)
    columns = {
        "unique_id": pl.Series(panel.ids)[np.repeat(measured.series_W, horizon)],
        "ds": panel.ds[rows],
        "cutoff": panel.ds[np.repeat(np.maximum(measured.cutoff_W - 1, 0), horizon)],
        "y": measured.y_WH.reshape(-1),
    }
    for method, quantiles in measured.quantiles.items():
        columns |= interval_columns(method, quantiles.reshape(-1, quantiles.shape[-1]), measured.levels_Q, level)
    return pl.DataFrame(columns)


def draw(folder: Path, config: ForecastConfig, data: SeriesData, measured: Measured, best_epoch: int | None) -> None:
    """Every plot of a run, into ``plots/``."""
    plots = folder / PLOTS
    plots.mkdir(exist_ok=True)
    fans = [fan(data, measured, window, config.level) for window in range(len(measured.y_WH))]
    chosen = np.unique(np.linspace(0, len(fans) - 1, min(_FANS, len(fans))).round().astype(int))
    plot_fans(plots / "fan", [fans[i] for i in chosen])
    medians = {m: at_level(q, measured.levels_Q, 0.5) for m, q in measured.quantiles.items()}
    errors = {m: np.nanmean(np.abs(measured.y_WH - q), axis=0) for m, q in medians.items()}
    plot_horizon_error(plots / "horizon", errors)
    known = ~np.isnan(measured.y_WH)
    below = {m: (measured.y_WH[..., None] <= q)[known].mean(axis=0) for m, q in measured.quantiles.items()}
    plot_coverage(plots / "coverage", measured.levels_Q, below)
    first = [f for f, s in zip(fans, measured.series_W, strict=True) if s == measured.series_W[0]][:_BACKTEST]
    start, stop = data.split.bounds["test"][measured.series_W[0]]
    x = stamps(data.panel.ds[int(start) : int(stop)])
    plot_backtest(plots / "backtest", x, data.panel.y[start:stop], first, title=data.panel.ids[measured.series_W[0]])
    if (folder / HISTORY).exists():
        panels = {"loss": ("train/loss", "val/loss")}
        plot_training(plots / "training", folder / HISTORY, panels=panels, best_epoch=best_epoch)


def fan(data: SeriesData, measured: Measured, window: int, level: tuple[float, ...]) -> Fan:
    """One test window as a fan chart of our forecast."""
    panel, cutoff = data.panel, int(measured.cutoff_W[window])
    horizon = measured.y_WH.shape[1]
    start = max(int(panel.offsets[measured.series_W[window]]), cutoff - max(2 * horizon, 48))
    columns = interval_columns(OURS, measured.quantiles[OURS][window], measured.levels_Q, level)
    intervals = {p: (columns[f"{OURS}-lo-{p:g}"], columns[f"{OURS}-hi-{p:g}"]) for p in level}
    name = panel.ids[measured.series_W[window]]
    return Fan(
        f"{name}, from {panel.ds[cutoff]}", stamps(panel.ds[start:cutoff]), panel.y[start:cutoff],
        stamps(panel.ds[cutoff : cutoff + horizon]), columns[OURS], intervals, measured.y_WH[window],
    )  # fmt: skip


def stamps(ds: pl.Series) -> NDArray:
    """Stamps as numpy holds them, by the wall clock of their zone."""
    if getattr(ds.dtype, "time_zone", None):
        ds = ds.dt.replace_time_zone(None)
    return ds.to_numpy()


def print_summary(folder: Path, metrics: Mapping[str, Any]) -> None:
    """The table at the end of a run: on stdout, and as Markdown in the run folder."""
    show_tables(folder, [summary_table(metrics)], metrics["notes"])
    print(f"run folder: {folder}")


def summary_table(metrics: Mapping[str, Any]) -> Table:
    """Test figures of every method."""
    first = next(iter(metrics["results"].values()))
    headings = {"mae": "MAE", "rmse": "RMSE", "mase": "MASE", "pinball": "pinball"}
    headings |= {
        key: f"{key.removeprefix('coverage_')} % interval holds" for key in first if key.startswith("coverage")
    }
    rows = []
    for method, values in metrics["results"].items():
        name = f"{method}, {metrics['season']} steps" if method == SEASONAL else method
        rows.append((name, *(_cell(key, values[key]) for key in headings)))
    windows = metrics["windows"]
    title = (
        f"{metrics['horizon']} steps ahead of {metrics['lookback']}, every {metrics['frequency'] or 'row'}: "
        f"{windows['test']} test windows"
    )
    note = metrics["split"]
    if "best_epoch" in metrics:
        kept = f"epoch {metrics['best_epoch']}" if metrics["best_epoch"] >= 0 else "the linear start"
        note += (
            f"; trained on {windows['train']} windows, intervals calibrated on {windows['validation']}; kept: {kept}"
        )
    return Table(title, ("method", *headings.values()), tuple(rows), note + ".")


def _cell(key: str, value: float | None) -> str:
    if value is None or np.isnan(value):
        return "undefined"
    return f"{value:.1%}" if key.startswith("coverage") else f"{value:.4g}" if abs(value) < 100 else f"{value:,.1f}"
