"""A backbone for verbs that read sequences and nothing else: from a run, a folder, or a preset with random weights."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
import yaml

from seqkit import configs
from seqkit.backbones import Backbone, BackboneConfig, load_backbone, load_weights
from seqkit.backbones.load import CONFIG_FILE
from seqkit.errors import CheckpointError, ConfigError
from seqkit.tasks.export import WEIGHTS, read_description, read_weights

_PREFIX = "backbone."
_TASK = "pretrain"


def open_backbone(ckpt: str | None, preset: str | None, seed: int) -> Backbone:
    """The backbone that ``--ckpt`` or ``--model`` names, in evaluation mode on the CPU.

    Args:
        ckpt: Folder of a finished ``fit --task pretrain``, or one that ``save_backbone`` wrote.
        preset: Name of a model preset, or a YAML file; the weights are then random.
        seed: Of random weights.

    Raises:
        ConfigError: Neither or both are given, or the model reads more than sequences.
        CheckpointError: The folder holds no such model.
    """
    if (ckpt is None) == (preset is None):
        got = "neither" if ckpt is None else "both"
        raise ConfigError("--ckpt", expected="a run or a folder, or --model for random weights", got=got)
    backbone = _random(preset, seed) if ckpt is None else trained_backbone(Path(ckpt))
    if not backbone.config.vocab_size or backbone.config.n_channels:
        raise ConfigError("--ckpt", expected="a model that reads bases alone", got="one with other input channels")
    return backbone.eval()


def trained_backbone(folder: Path) -> Backbone:
    """The backbone of a finished ``fit --task pretrain``, or of a folder that ``save_backbone`` wrote.

    Raises:
        CheckpointError: The folder holds no such model.
    """
    if not folder.is_dir():
        raise CheckpointError("--ckpt", expected="a run or a folder with a backbone", got=f"{folder}, which is none")
    if (folder / CONFIG_FILE).is_file():
        return load_backbone(folder)
    description = read_description(folder)
    if description["task"] != _TASK:
        raise CheckpointError("--ckpt", expected=f"a {_TASK} run", got=f"a {description['task']} run")
    backbone = Backbone(BackboneConfig.from_dict(description["model"]))
    weights = read_weights(folder)
    own = {name.removeprefix(_PREFIX): tensor for name, tensor in weights.items() if name.startswith(_PREFIX)}
    if not own:
        raise CheckpointError(str(folder / WEIGHTS), expected=f"weights named {_PREFIX}...", got=f"{min(weights)} ...")
    load_weights(backbone, own)
    return backbone


def _random(preset: str, seed: int) -> Backbone:
    path = Path(preset) if Path(preset).is_file() else configs.path("model", preset)
    warnings.warn(f"--model {preset} has random weights; --ckpt names trained ones", stacklevel=2)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Backbone(BackboneConfig.from_dict(yaml.safe_load(path.read_text(encoding="utf-8"))))
