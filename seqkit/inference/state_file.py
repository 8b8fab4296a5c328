"""States as files that another process goes on from: what they have in common, whatever the state.

A file is safetensors: tensors under names, and in the header, as JSON text, the format's version, a fingerprint of the
model and more plain values. Nothing in it runs when it is read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor
from torch.utils._pytree import keystr, tree_flatten_with_path, tree_unflatten

from seqkit.errors import CheckpointError
from seqkit.files import atomic


def digest(settings: Any, weights: Mapping[str, Tensor]) -> str:
    """Digest of plain settings and of every weight, on whatever device."""
    found = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, tensor in sorted(weights.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def flattened(state: Any, prefix: str = "") -> dict[str, Tensor]:
    """Tensors of a state, named by their place in it."""
    named = [(prefix + keystr(key), leaf) for key, leaf in tree_flatten_with_path(state)[0]]
    return {name: leaf.detach().cpu().contiguous().clone() for name, leaf in named if leaf is not None}


def restored(tensors: Mapping[str, Tensor], template: Any, path: str | Path, prefix: str = "") -> Any:
    """A state of the shape of ``template``, on its device, from named tensors.

    Raises:
        CheckpointError: A tensor of the template is not there.
    """
    keyed, spec = tree_flatten_with_path(template)
    names = [prefix + keystr(key) for key, _ in keyed]
    if any(leaf is not None and name not in tensors for name, (_, leaf) in zip(names, keyed, strict=True)):
        raise CheckpointError(str(path), expected="the tensors of the model's state", got=f"{sorted(tensors)[:3]} ...")
    leaves = [
        tensors[name].to(leaf.device) if leaf is not None else None
        for name, (_, leaf) in zip(names, keyed, strict=True)
    ]
    return tree_unflatten(leaves, spec)


def write(path: str | Path, kind: str, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write a state, whole or not at all; ``header`` holds ``version`` and ``model``, the fingerprint."""
    with atomic(path) as temporary:
        safetensors.torch.save_file(dict(tensors), temporary, metadata={kind: json.dumps(dict(header))})


def read(
    path: str | Path, kind: str, *, what: str, version: int, model: str, keys: Iterable[str] = ()
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors of a file that :func:`write` made.

    Args:
        path: The file.
        kind: Name of the format.
        what: A file of this kind in words, for messages: "a stream's state".
        version: The only version that is read.
        model: Fingerprint that the file must have.
        keys: Further entries that its header must have.

    Raises:
        CheckpointError: The file is damaged, of another format or version, or belongs to another model.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(str(path), expected=what, got="no such file")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get(kind, "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (ValueError, OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(str(path), expected=f"{what}, intact", got=str(error)) from error
    if not isinstance(header, dict) or not {"version", "model", *keys} <= header.keys():
        raise CheckpointError(str(path), expected=what, got="a file without its header")
    if header["version"] != version:
        raise CheckpointError(str(path), expected=f"version {version}", got=f"version {header['version']}")
    if header["model"] != model:
        raise CheckpointError(
            str(path), expected=f"{what} of this model", got="one of another",
            remedy="Settings, weights and dtypes must be those that it was saved with.",
        )  # fmt: skip
    return header, tensors
