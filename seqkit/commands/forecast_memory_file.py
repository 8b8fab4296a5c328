"""A forecaster's memory as a file (:mod:`seqkit.inference.state_file`) that another process goes on from.

Values, stamps and the backbone's state are tensors; names, types and covariates stand in the header.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from seqkit.commands.forecast_memory import Carried, Memory
from seqkit.commands.forecast_trained import TrainedForecast
from seqkit.data.frequency import Frequency
from seqkit.data.series import Panel
from seqkit.data.series_frames import Roles
from seqkit.inference import state_file
from seqkit.tasks.adaptive import Watch

FORMAT = "seqkit-forecast-memory"
VERSION = 1


def fingerprint(trained: TrainedForecast) -> str:
    """Digest of everything that a forecast depends on besides the series: weights, calibration, scaler, covariates."""
    scaler = trained.scaler.to_dict() | {"by_series": None}  # series may join
    settings = [scaler, trained.encoder.to_dict(), str(trained.frequency)]
    return state_file.digest(settings, trained.task.state_dict())


def save_memory(path: Path, memory: Memory, trained: TrainedForecast, **more: Any) -> None:
    """Write a memory, whole or not at all; ``more`` plain values join the header."""
    panel = memory.panel
    tensors = {
        "y": torch.from_numpy(panel.y.copy()),
        "offsets": torch.from_numpy(panel.offsets.copy()),
        "ds": torch.from_numpy(panel.ds.to_physical().cast(pl.Int64).to_numpy().copy()),
    }
    if memory.carried is not None:
        tensors["hidden"] = memory.carried.hidden_SD.detach().cpu().contiguous()
        tensors |= state_file.flattened(memory.carried.state, "state")
    if memory.watch is not None:
        tensors |= {f"watch.{name}": torch.from_numpy(part.copy()) for name, part in memory.watch._asdict().items()}
    header = {
        "version": VERSION,
        "model": fingerprint(trained),
        "ids": panel.ids,
        "roles": list(panel.roles),
        "time": _time_type(panel.ds),
        "frequency": str(panel.frequency) if panel.frequency is not None else None,
        "exogenous": {name: panel.exogenous[name].to_list() for name in panel.exogenous.columns},
        "before": memory.before,
        "rows": memory.rows,
        "scaler": trained.scaler.to_dict(),
        **more,
    }
    state_file.write(path, FORMAT, header, tensors)


def load_memory(path: Path, trained: TrainedForecast) -> tuple[Memory, dict[str, Any]]:
    """Read what :func:`save_memory` wrote for this model.

    Returns:
        The memory, and the header.

    Raises:
        CheckpointError: The file is damaged, of another version, or belongs to another model.
    """
    expected = {"version": VERSION, "model": fingerprint(trained), "keys": ("ids",)}
    header, tensors = state_file.read(path, FORMAT, what="a forecaster's memory", **expected)
    trained.scaler.by_series.update({k: tuple(v) for k, v in header["scaler"]["by_series"].items()})
    ds = _stamps(tensors["ds"], header["time"])
    frequency = None if header["frequency"] is None else Frequency.parse(header["frequency"])
    panel = Panel(
        header["ids"], tensors["offsets"].numpy().astype(np.int64), ds, tensors["y"].numpy(), frequency,
        pl.DataFrame(header["exogenous"]), Roles(*header["roles"]),
    )  # fmt: skip
    before = {name: tuple(sums) for name, sums in header["before"].items()}
    watch = None
    if trained.config.adapt:
        watch = Watch(*(tensors[f"watch.{name}"].numpy() for name in Watch._fields))
    return Memory(panel, before, header["rows"], _carried(path, tensors, trained), watch), header


def _carried(path: Path, tensors: dict[str, torch.Tensor], trained: TrainedForecast) -> Carried | None:
    if not trained.carries:
        return None
    device = next(trained.task.parameters()).device
    hidden = tensors["hidden"].to(device)
    template = trained.task.net.encoder.backbone.initial_state(len(hidden))
    return Carried(hidden, state_file.restored(tensors, template, path, "state"))


def _time_type(ds: pl.Series) -> list[str | None]:
    if isinstance(ds.dtype, pl.Datetime):
        return ["datetime", ds.dtype.time_unit, ds.dtype.time_zone]
    return ["date" if ds.dtype == pl.Date else "integer", None, None]


def _stamps(physical: torch.Tensor, kind: list[str | None]) -> pl.Series:
    name, unit, zone = kind
    ds = pl.Series("ds", physical.numpy())
    if name == "datetime":
        return ds.cast(pl.Datetime(unit, zone))
    return ds.cast(pl.Int32).cast(pl.Date) if name == "date" else ds
