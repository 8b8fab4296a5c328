"""``seqkit predict`` and ``seqkit test`` with a forecasting run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl

from seqkit.commands.arguments import parse
from seqkit.commands.forecast_follow import follow
from seqkit.commands.forecast_frames import forecast_rows, interval_levels
from seqkit.commands.forecast_memory import forecast_from, remember
from seqkit.commands.forecast_report import OURS, adaptive, measure_task, print_summary, write_measured
from seqkit.commands.forecast_trained import TrainedForecast
from seqkit.commands.run_folder import open_run
from seqkit.commands.trainer import torch_device
from seqkit.errors import ConfigError
from seqkit.files import atomic

STDOUT = "-"
_WRITERS = {".csv": "write_csv", ".parquet": "write_parquet", ".arrow": "write_ipc"}


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """What to forecast, with what, and where the result goes.

    Attributes:
        ckpt: Run folder of ``seqkit fit --task forecast``.
        table: Series up to now, in long format; - is CSV from stdin.
        future: Table of known-future rows, where the model has such covariates.
        out: Result; .csv, .tsv, .parquet or .arrow by suffix; - is CSV on stdout.
        task: Checked against the checkpoint's.
        columns: Which columns hold id, time, target, where they are not those of training.
        horizon: Steps ahead; the model's by default, and at most that.
        level: Percentages of the intervals; those of the run by default.
        state: File that --follow goes on from where it exists, and saves to.
        device: auto, cpu, cuda or cuda:N.
    """

    ckpt: str | None = None
    table: str | None = None
    future: str | None = None
    state: str | None = None
    out: str | None = None
    task: str | None = None
    columns: dict[str, str] | None = None
    horizon: int | None = None
    level: tuple[float, ...] | None = None
    device: str = "auto"


@dataclass(frozen=True, kw_only=True)
class TestConfig:
    """What to measure a forecasting run on.

    Attributes:
        ckpt: Run folder.
        table: Series in long format; the test rows the run was made with by default.
        task: Checked against the checkpoint's.
        columns: Which columns hold id, time, target, where they are not those of training.
        level: Percentages of the intervals; those of the run by default.
        device: auto, cpu, cuda or cuda:N.
    """

    ckpt: str | None = None
    table: str | None = None
    task: str | None = None
    columns: dict[str, str] | None = None
    level: tuple[float, ...] | None = None
    device: str = "auto"


def predict(argv: Sequence[str]) -> int:
    """Forecast what comes behind the last row of every series."""
    config, own, _ = parse(
        "seqkit predict --task forecast", PredictConfig, argv, aliases={"series": "table"}, flags=("follow",)
    )
    if own["follow"]:
        if config.out not in (None, STDOUT):
            raise ConfigError("--out", expected="- with --follow, which writes to stdout", got=config.out)
        return follow(open_trained(config), config, sys.stdin, sys.stdout)
    if config.state is not None:
        raise ConfigError("--state", expected="--follow beside it", got="none", remedy="Add --follow, or drop it.")
    if not config.out:
        raise ConfigError("--out", expected="a file to write, or -", got="none")
    if config.table is None:
        raise ConfigError("--table", expected="a table of series, or -", got="none")
    trained = open_trained(config)
    horizon = trained.horizon(config.horizon)
    level = config.level or trained.config.level
    source = pl.read_csv(sys.stdin.buffer, try_parse_dates=True) if config.table == STDOUT else config.table
    panel = trained.read(source, columns=config.columns)
    future = None if config.future is None else trained.read_future(config.future, columns=config.columns)
    levels = interval_levels(level)
    longer, quantiles = forecast_from(trained, remember(trained, panel), levels, future)
    frame = forecast_rows(longer, quantiles, levels, level, name=OURS, horizon=horizon)
    for note in panel.notes:
        print(f"seqkit predict: {note}", file=sys.stderr)
    write_frame(frame, config.out)
    print(f"{len(panel)} series, {horizon} steps each; written to {config.out}", file=sys.stderr)
    return 0


def test(argv: Sequence[str]) -> int:
    """Measure forecasts at rolling cutoffs, beside the seasonal naive forecast on the same windows."""
    config, own, resolved = parse(
        "seqkit test --task forecast", TestConfig, argv, aliases={"series": "table"}, flags=("overwrite",),
        options=("out",),
    )  # fmt: skip
    trained = open_trained(config)
    data = trained.data(config.table, columns=config.columns)
    out = own["out"] or str(Path(config.ckpt) / "test")
    folder = open_run(out, "forecast", resolved, resume=False, overwrite=own["overwrite"])
    level = config.level or trained.config.level
    measured = adaptive(measure_task(trained.task, data, level=level), trained.config)
    metrics = write_measured(folder, replace(trained.config, level=level), data, measured)
    print_summary(folder, metrics)
    return 0


def open_trained(config: PredictConfig | TestConfig) -> TrainedForecast:
    """The run of ``--ckpt`` on its device."""
    if not config.ckpt:
        raise ConfigError("--ckpt", expected="a run folder", got="none")
    if config.task not in (None, "forecast"):
        raise ConfigError("--task", expected="forecast, the checkpoint's", got=config.task, remedy="Drop it.")
    trained = TrainedForecast.load(config.ckpt)
    trained.task.to(torch_device(config.device))
    return trained


def write_frame(frame: pl.DataFrame, out: str) -> None:
    """Write a table by its suffix, whole or not at all; - is CSV on stdout."""
    if out == STDOUT:
        sys.stdout.write(frame.write_csv())
        return
    suffix = Path(out).suffix
    if suffix not in (*_WRITERS, ".tsv"):
        raise ConfigError("--out", expected=".csv, .tsv, .parquet or .arrow", got=out)
    with atomic(out) as temporary:
        if suffix == ".tsv":
            frame.write_csv(temporary, separator="\t")
        else:
            getattr(frame, _WRITERS[suffix])(temporary)
