"""A forecaster's memory as one file that another process goes on from.

The file is safetensors: values and stamps as tensors, and in the header, as JSON text, the format's version, names,
types, covariates and a fingerprint of the model. Nothing in it runs when it is read.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import safetensors
import safetensors.torch
import torch
from torch.utils._pytree import keystr, tree_flatten_with_path, tree_unflatten

from seqkit.commands.forecast_memory import Carried, Memory
from seqkit.commands.forecast_trained import TrainedForecast
from seqkit.data.frequency import Frequency
from seqkit.data.series import Panel
from seqkit.data.series_frames import Roles
from seqkit.errors import CheckpointError
from seqkit.files import atomic
from seqkit.tasks.adaptive import Watch

FORMAT = "seqkit-forecast-memory"
VERSION = 1


def fingerprint(trained: TrainedForecast) -> str:
    """Digest of everything that a forecast depends on besides the series: weights, calibration, scaler, covariates."""
    scaler = trained.scaler.to_dict() | {"by_series": None}  # series may join
    digest = hashlib.sha256(json.dumps([scaler, trained.encoder.to_dict(), str(trained.frequency)]).encode())
    for name, tensor in sorted(trained.task.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


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
        for key, leaf in tree_flatten_with_path(memory.carried.state)[0]:
            tensors[f"state{keystr(key)}"] = leaf.detach().cpu().contiguous().clone()
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
    with atomic(path) as temporary:
        safetensors.torch.save_file(tensors, temporary, metadata={FORMAT: json.dumps(header)})


def load_memory(path: Path, trained: TrainedForecast) -> tuple[Memory, dict[str, Any]]:
    """Read what :func:`save_memory` wrote for this model.

    Returns:
        The memory, and the header.

    Raises:
        CheckpointError: The file is damaged, of another version, or belongs to another model.
    """
    header, tensors = _read(path)
    if header["version"] != VERSION:
        raise CheckpointError(str(path), expected=f"version {VERSION}", got=f"version {header['version']}")
    if header["model"] != fingerprint(trained):
        raise CheckpointError(str(path), expected="a memory of this model", got="one of another")
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
    keyed, spec = tree_flatten_with_path(trained.task.net.encoder.backbone.initial_state(len(hidden)))
    names = [f"state{keystr(key)}" for key, _ in keyed]
    if not tensors.keys() >= set(names):
        raise CheckpointError(str(path), expected="the tensors of the model's state", got=f"{sorted(tensors)[:3]} ...")
    return Carried(hidden, tree_unflatten([tensors[name].to(device) for name in names], spec))


def _read(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    if not path.is_file():
        raise CheckpointError(str(path), expected="a forecaster's memory", got="no such file")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get(FORMAT, "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (ValueError, OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(str(path), expected="an intact forecaster's memory", got=str(error)) from error
    if not isinstance(header, dict) or not {"version", "model", "ids"} <= header.keys():
        raise CheckpointError(str(path), expected="a forecaster's memory", got="a file without its header")
    return header, tensors


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
