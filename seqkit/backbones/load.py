"""Saving and loading a backbone as a folder, and the key names of published checkpoints."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor

from seqkit.backbones.backbone import Backbone
from seqkit.backbones.config import BackboneConfig
from seqkit.errors import CheckpointError
from seqkit.files import atomic, write_json

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"

_UPSTREAM_KEYS = (
    (re.compile(r"backbone\.embeddings?\.weight"), "embed.tokens.weight"),
    (re.compile(r"backbone\.norm_f\.weight"), "stack.norm.weight"),
    (re.compile(r"backbone\.layers\.(\d+)\.norm\.weight"), r"stack.blocks.\1.norm.weight"),
    (re.compile(r"backbone\.layers\.(\d+)\.mixer\.(.+)"), r"stack.blocks.\1.mixer.\2"),
    (re.compile(r"lm_head\.weight"), "lm_head.weight"),
)


def save_backbone(folder: str | Path, backbone: Backbone) -> None:
    """Write ``config.json`` and ``model.safetensors``.

    Each file is written under a temporary name and renamed, the settings last: a folder with a ``config.json`` has its
    weights.

    Args:
        folder: Where to; made if absent. Files of these names are replaced.
        backbone: What to save.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in backbone.state_dict().items()}
    with atomic(folder / WEIGHTS_FILE) as temporary:
        safetensors.torch.save_file(weights, temporary, metadata={"format": "pt"})
    write_json(folder / CONFIG_FILE, backbone.config.to_dict())


def load_backbone(folder: str | Path) -> Backbone:
    """Read what :func:`save_backbone` wrote. No code from the folder runs.

    Args:
        folder: A folder with ``config.json`` and ``model.safetensors``.

    Returns:
        The backbone on the CPU, in training mode, in the dtypes of the file.

    Raises:
        CheckpointError: A file is missing or unreadable, or the weights do not fit the settings.
        ConfigError: The settings hold an unknown key or a value out of range.
    """
    folder = Path(folder)
    config_path, weights_path = folder / CONFIG_FILE, folder / WEIGHTS_FILE
    for path in (config_path, weights_path):
        if not path.is_file():
            raise CheckpointError(str(path), expected="a file", got="nothing", remedy="Was the folder copied whole?")
    try:
        settings = json.loads(config_path.read_text(encoding="utf-8"))
        weights = safetensors.torch.load_file(weights_path)
    except (ValueError, safetensors.SafetensorError) as error:
        raise CheckpointError(str(folder), expected="an intact checkpoint", got=str(error)) from error
    backbone = Backbone(BackboneConfig.from_dict(settings))
    load_weights(backbone, weights)
    return backbone


def load_weights(backbone: Backbone, weights: Mapping[str, Tensor]) -> None:
    """Copy weights into a backbone, every one of them and no others.

    Args:
        backbone: Receives the weights; its matrices take the file's dtype, parameters that stay float32 do.
        weights: From our names to tensors, as from :func:`adapt_upstream_keys`.

    Raises:
        CheckpointError: A name is missing or unknown, or a shape differs.
    """
    own = backbone.state_dict()
    missing, unknown = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    if missing or unknown:
        got = f"{len(missing)} missing (first: {missing[:1]}) and {len(unknown)} unknown (first: {unknown[:1]})"
        raise CheckpointError("weights", expected="the names that the settings imply", got=got)
    for name, tensor in weights.items():
        if tensor.shape != own[name].shape:
            expected, got = str(tuple(own[name].shape)), str(tuple(tensor.shape))
            raise CheckpointError(name, expected=f"shape {expected}", got=f"shape {got}")
    matrix = next((t.dtype for name, t in weights.items() if name.endswith("in_proj.weight")), None)
    if matrix is not None:
        backbone.to(matrix)
    backbone.load_state_dict(dict(weights))


def start_from(backbone: Backbone, trained: Backbone) -> None:
    """Give a backbone the weights of a trained one; input channels that the trained one lacks keep their own.

    Args:
        backbone: Receives the weights; apart from its input channels of the trained one's architecture.
        trained: Is not changed.

    Raises:
        CheckpointError: The architectures differ.
    """
    own, theirs = backbone.state_dict(), trained.state_dict()
    differing = {name for name in own.keys() ^ theirs.keys() if not name.startswith("embed.channels.")}
    differing |= {name for name in own.keys() & theirs.keys() if own[name].shape != theirs[name].shape}
    if differing:
        got = f"{len(differing)} that differ (first: {min(differing)})"
        raise CheckpointError("init", expected="weights of one architecture", got=got)
    backbone.load_state_dict(own | {name: tensor for name, tensor in theirs.items() if name in own})


def adapt_upstream_keys(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of a published Mamba or Mamba-2 language model to ours.

    Understands the names of state-spaces checkpoints (``backbone.embedding``) and of Hugging Face ``mamba`` and
    ``mamba2`` models (``backbone.embeddings``); the blocks' own names are the same as ours. Values are not touched.

    Args:
        weights: The published state dict.

    Returns:
        The same tensors under a backbone's names. ``lm_head.weight`` is left out: it is the embedding (tied) in these
        models, or for a head of the caller's.

    Raises:
        CheckpointError: A name is none of these; names it.
    """
    renamed = {}
    for name, tensor in weights.items():
        ours = next((p.sub(target, name) for p, target in _UPSTREAM_KEYS if p.fullmatch(name)), None)
        if ours is None:
            raise CheckpointError(
                name, expected="a weight of a state-spaces or Hugging Face mamba or mamba2 model", got="an unknown name"
            )
        renamed[ours] = tensor
    renamed.pop("lm_head.weight", None)
    return renamed
