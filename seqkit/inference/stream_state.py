"""Where a causal stream stands, as a small object and as a file that another process goes on from.

The file is safetensors: tensors named by their place in the state, and in the header, as JSON text, the format's
version, the position and a fingerprint of the model. Nothing in it runs when it is read.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor
from torch.utils._pytree import keystr, tree_flatten_with_path, tree_leaves, tree_unflatten

from seqkit.backbones import Backbone
from seqkit.errors import CheckpointError
from seqkit.files import atomic

FORMAT = "seqkit-stream-state"
VERSION = 1
_CHANGES_NOTHING = ("checkpoint", "dropout", "slab")


@dataclass(frozen=True)
class StreamState:
    """Where a causal stream stands.

    Attributes:
        position: Positions read so far, per row.
        inner: State of the backbone behind them.
    """

    position: int
    inner: Any

    @property
    def nbytes(self) -> int:
        """Size of all tensors in it."""
        return sum(leaf.nbytes for leaf in tree_leaves(self.inner) if isinstance(leaf, Tensor))


def fingerprint(model: Backbone) -> str:
    """Digest of a backbone's mathematics: settings that change a result, and every weight, on whatever device."""
    settings = {name: value for name, value in model.config.to_dict().items() if name not in _CHANGES_NOTHING}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_state(path: str | Path, state: StreamState, model: Backbone) -> None:
    """Write a state as one file, whole or not at all.

    Args:
        path: File; one of this name is replaced.
        state: From :func:`seqkit.inference.stream.stream`.
        model: The backbone that the state belongs to.
    """
    named = [(keystr(key), leaf) for key, leaf in tree_flatten_with_path(state.inner)[0]]
    tensors = {name: leaf.detach().cpu().contiguous().clone() for name, leaf in named if leaf is not None}
    header = {
        "format": FORMAT, "version": VERSION, "position": state.position, "model": fingerprint(model),
        "batch": next(iter(tensors.values())).shape[0],
    }  # fmt: skip
    with atomic(path) as temporary:
        safetensors.torch.save_file(tensors, temporary, metadata={FORMAT: json.dumps(header)})


def load_state(path: str | Path, model: Backbone) -> StreamState:
    """Read what :func:`save_state` wrote, onto the model's device.

    Args:
        path: The file.
        model: The backbone that goes on.

    Raises:
        CheckpointError: The file is damaged, of another version, or belongs to another model.
    """
    header, tensors = _read(Path(path))
    if header["version"] != VERSION:
        raise CheckpointError(str(path), expected=f"version {VERSION}", got=f"version {header['version']}")
    if header["model"] != fingerprint(model):
        raise CheckpointError(
            str(path), expected="a state of this model", got="one of another",
            remedy="Settings, weights and dtypes must be those that the state was saved with.",
        )  # fmt: skip
    keyed, spec = tree_flatten_with_path(model.initial_state(header["batch"]))
    names = [keystr(key) for key, _ in keyed]
    missing = [name for name, (_, leaf) in zip(names, keyed, strict=True) if leaf is not None and name not in tensors]
    if missing or not tensors.keys() <= set(names):
        raise CheckpointError(str(path), expected="the tensors of the model's state", got=f"{sorted(tensors)[:3]} ...")
    device = next(model.parameters()).device
    leaves = [tensors[name].to(device) if name in tensors else None for name in names]
    return StreamState(header["position"], tree_unflatten(leaves, spec))


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not path.is_file():
        raise CheckpointError(str(path), expected="a stream's state", got="no such file")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get(FORMAT, "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (ValueError, OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(str(path), expected="an intact stream's state", got=str(error)) from error
    if not isinstance(header, dict) or not {"version", "position", "model", "batch"} <= header.keys():
        raise CheckpointError(str(path), expected="a stream's state", got="a file without its header")
    return header, tensors
