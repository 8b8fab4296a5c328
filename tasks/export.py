"""A trained task as two files that load without running code: ``model.json`` and ``model.safetensors``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from seqkit.errors import CheckpointError
from seqkit.files import atomic, write_json

DESCRIPTION = "model.json"
WEIGHTS = "model.safetensors"
FORMAT = 1


def save_model(folder: Path, module: torch.nn.Module, description: Mapping[str, Any]) -> None:
    """Write weights and description of a trained network.

    Args:
        folder: Existing folder.
        module: Network whose ``state_dict`` is stored.
        description: Plain values (dataclasses are turned into dicts) from which the network can be built again.
    """
    plain = {key: asdict(value) if is_dataclass(value) else value for key, value in description.items()}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    with atomic(folder / WEIGHTS) as temporary:
        save_file(tensors, temporary)
    write_json(folder / DESCRIPTION, {"format": FORMAT, **plain})


def read_description(folder: Path) -> dict[str, Any]:
    """The description of an exported model.

    Raises:
        CheckpointError: No model lies there, or one of another format.
    """
    path = folder / DESCRIPTION
    if not path.is_file():
        raise CheckpointError(
            "--ckpt",
            expected=f"a finished run with {DESCRIPTION}",
            got=str(folder),
            remedy="Finish it with fit --resume.",
        )
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(str(path), expected="JSON", got=f"something else ({error})") from error
    if description.get("format") != FORMAT:
        raise CheckpointError(str(path), expected=f"format {FORMAT}", got=f"format {description.get('format')}")
    return description


def load_weights(folder: Path, module: torch.nn.Module) -> None:
    """Fill a network with the stored weights.

    Raises:
        CheckpointError: The file is truncated, or its tensors do not fit the network.
    """
    try:
        module.load_state_dict(read_weights(folder))
    except RuntimeError as error:
        raise _unfit(folder / WEIGHTS, error) from error


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The stored weights by name.

    Raises:
        CheckpointError: The file is absent or truncated.
    """
    try:
        return load_file(folder / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise _unfit(folder / WEIGHTS, error) from error


def _unfit(path: Path, error: Exception) -> CheckpointError:
    first = " ".join(str(error).split())[:200]
    return CheckpointError(str(path), expected="weights of the model in model.json", got=first)
