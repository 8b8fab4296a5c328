"""``seqkit test`` of a pretraining run: its held-out part again, or any other sequence."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from seqkit.backbones import BackboneConfig
from seqkit.commands.arguments import parse
from seqkit.commands.pretrain import TASK
from seqkit.commands.pretrain_report import evaluate, print_summary
from seqkit.commands.run_folder import open_run
from seqkit.commands.trainer import torch_device
from seqkit.data.pretrain import GenomeData, GenomeDataConfig, load_genome, whole_genome
from seqkit.errors import CheckpointError, ConfigError, InputError
from seqkit.tasks.base import OptimConfig
from seqkit.tasks.budget import Budget
from seqkit.tasks.export import load_weights, read_description
from seqkit.tasks.language_model import LanguageModel
from seqkit.tasks.objectives import ObjectiveConfig
from seqkit.tasks.pretrain import PretrainTask

ALIASES = {"fasta": "data.fasta", "held-out": "data.held_out"}


@dataclass(frozen=True, kw_only=True)
class PretrainTestConfig:
    """What to measure a language model on.

    Attributes:
        ckpt: Run folder of ``seqkit fit --task pretrain``.
        task: Checked against the checkpoint's.
        length: Bases of a window; by default those of the run's windows.
        device: auto, cpu, cuda or cuda:N.
        precision: 32-true or bf16-mixed; by default that of the run.
        data: Another genome, of which the held-out regions count, or all of it; without one, the run's held-out part.
    """

    ckpt: str | None = None
    task: str | None = None
    length: int | None = None
    device: str = "auto"
    precision: str | None = None
    data: GenomeDataConfig = field(default_factory=GenomeDataConfig)


def test(argv: Sequence[str]) -> int:
    """Measure, write metrics and report, print the table."""
    config, own, resolved = parse(
        "seqkit test", PretrainTestConfig, argv, aliases=ALIASES, flags=("overwrite",), options=("out",)
    )
    task, description = load_language_model(config.ckpt)
    if config.task not in (None, TASK):
        raise ConfigError("--task", expected=f"{TASK}, the checkpoint's", got=config.task, remedy="Drop it.")
    task.to(torch_device(config.device))
    trained_on = training_genome(description, needed=config.data.fasta is None)
    folder = open_run(own["out"] or str(Path(config.ckpt) / "test"), TASK, resolved, resume=False,
                      overwrite=own["overwrite"])  # fmt: skip
    lengths = (config.length,) if config.length else description["lengths"]
    metrics = evaluate(
        task, measured(config.data, trained_on), folder, lengths=lengths,
        precision=config.precision or description["precision"], seed=0, training={}, counted=trained_on,
    )  # fmt: skip
    print_summary(folder, metrics)
    return 0


def training_genome(description: Mapping[str, Any], needed: bool) -> GenomeData | None:
    """What the run was made with, or None with a warning where its file is gone and not needed.

    Raises:
        InputError: The file is needed and cannot be read.
    """
    try:
        return load_genome(GenomeDataConfig(**description["data"]))
    except InputError as error:
        if needed:
            raise
        warnings.warn(f"{error} Markov models of the training part are left out.", stacklevel=2)
        return None


def measured(given: GenomeDataConfig, trained_on: GenomeData | None) -> GenomeData:
    """The sequence to measure on.

    Raises:
        ConfigError: Regions of the training genome were named that the model has learnt from.
    """
    if given.fasta is None and given.held_out is None:
        return trained_on
    if given.fasta is None:
        raise ConfigError(
            "--held-out", expected="--fasta beside it, or neither", got="none",
            remedy="Without --fasta the run's own held-out part is measured; all else it has learnt from.",
        )  # fmt: skip
    return load_genome(given) if given.held_out else whole_genome(given)


def load_language_model(ckpt: str | None) -> tuple[PretrainTask, dict]:
    """The trained model of a run folder in evaluation mode, and the contents of its ``model.json``.

    Raises:
        ConfigError: ``--ckpt`` is missing.
        CheckpointError: No finished pretraining run lies there, or it is damaged.
    """
    if not ckpt:
        raise ConfigError("--ckpt", expected="a run folder", got="none")
    folder = Path(ckpt)
    if not folder.is_dir():
        raise CheckpointError("--ckpt", expected="a run folder", got=f"{ckpt}, which is none")
    description = read_description(folder)
    if description["task"] != TASK:
        raise CheckpointError("--ckpt", expected=f"a {TASK} run", got=f"a {description['task']} run")
    net = LanguageModel(BackboneConfig.from_dict(description["model"]))
    load_weights(folder, net)
    task = PretrainTask(
        net, objective=ObjectiveConfig(**description["objective"]), optim=OptimConfig(), seed=0, budget=Budget(1),
        tokens_at_once=1,
    )  # fmt: skip
    return task.eval(), description
