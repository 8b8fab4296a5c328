"""Where a causal stream stands, as a small object and as a file (:mod:`seqkit.inference.state_file`)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from seqkit.backbones import Backbone
from seqkit.errors import CheckpointError
from seqkit.inference import state_file

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
    return state_file.digest(settings, model.state_dict())


def save_state(path: str | Path, state: StreamState, model: Backbone) -> None:
    """Write a state as one file, whole or not at all.

    Args:
        path: File; one of this name is replaced.
        state: From :func:`seqkit.inference.stream.stream`.
        model: The backbone that the state belongs to.
    """
    tensors = state_file.flattened(state.inner)
    header = {
        "format": FORMAT, "version": VERSION, "position": state.position, "model": fingerprint(model),
        "batch": next(iter(tensors.values())).shape[0],
    }  # fmt: skip
    state_file.write(path, FORMAT, header, tensors)


def load_state(path: str | Path, model: Backbone) -> StreamState:
    """Read what :func:`save_state` wrote, onto the model's device.

    Args:
        path: The file.
        model: The backbone that goes on.

    Raises:
        CheckpointError: The file is damaged, of another version, or belongs to another model.
    """
    expected = {"version": VERSION, "model": fingerprint(model), "keys": ("position", "batch")}
    header, tensors = state_file.read(path, FORMAT, what="a stream's state", **expected)
    inner = model.initial_state(header["batch"])
    if not tensors.keys() <= state_file.flattened(inner).keys():
        raise CheckpointError(str(path), expected="the tensors of the model's state", got=f"{sorted(tensors)[:3]} ...")
    return StreamState(header["position"], state_file.restored(tensors, inner, path))
