"""A finished run, opened again for ``predict`` and ``test``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from seqkit.backbones import BackboneConfig
from seqkit.commands.variant_effect import TASK, build_net
from seqkit.data.variant_effect import VariantDataConfig
from seqkit.errors import CheckpointError, ConfigError
from seqkit.tasks.base import OptimConfig
from seqkit.tasks.export import load_weights, read_description
from seqkit.tasks.variant_effect import VariantEffectTask, VariantLossConfig
from seqkit.tasks.variant_net import VariantHeadConfig


@dataclass(frozen=True)
class TrainedVariantEffect:
    """A trained model with what it was trained on.

    Attributes:
        task: The network in evaluation mode.
        description: Contents of ``model.json``.
        data: Data settings of the training run, the bundled set filled in.
    """

    task: VariantEffectTask
    description: dict[str, Any]
    data: VariantDataConfig

    def data_for(self, given: VariantDataConfig) -> VariantDataConfig:
        """Training settings with new inputs in their place.

        Raises:
            ConfigError: Another reference is named without its annotation, though the model uses one.
        """
        settings = replace(
            self.data, batch_size=given.batch_size, workers=given.workers, max_mismatch=given.max_mismatch
        )  # fmt: skip
        if given.variants is not None:
            settings = replace(settings, variants=given.variants, columns=given.columns, block=None, compare=None)
        if given.circular is not None:
            settings = replace(settings, circular=given.circular)
        if given.sources:
            settings = replace(settings, sources={**(settings.sources or {}), **given.sources})
        if given.fasta is not None:
            settings = replace(settings, fasta=given.fasta)
        if given.gff is not None:
            return replace(settings, gff=given.gff)
        if self.data.gff and given.fasta and Path(given.fasta).resolve() != Path(self.data.fasta).resolve():
            raise ConfigError(
                "--gff", expected=f"the annotation of {given.fasta}", got="none",
                remedy="The model was fitted with annotation; name the GFF3 or GTF of this reference.",
            )  # fmt: skip
        return settings


def load_trained(ckpt: str | None, named_task: str | None = None) -> TrainedVariantEffect:
    """Open a run folder.

    Args:
        ckpt: Run folder.
        named_task: What ``--task`` says, if anything.

    Raises:
        CheckpointError: No finished run lies there, or it is damaged.
        ConfigError: ``--ckpt`` is missing or ``--task`` contradicts it.
    """
    if not ckpt:
        raise ConfigError("--ckpt", expected="a run folder", got="none")
    folder = Path(ckpt)
    if not folder.is_dir():
        raise CheckpointError("--ckpt", expected="a run folder", got=f"{ckpt}, which is none")
    description = read_description(folder)
    if description["task"] != TASK:
        raise CheckpointError("--ckpt", expected=f"a {TASK} run", got=f"a {description['task']} run")
    if named_task not in (None, description["task"]):
        raise ConfigError(
            "--task", expected=f"{description['task']}, the checkpoint's", got=named_task, remedy="Drop it."
        )
    net = build_net(
        BackboneConfig.from_dict(description["model"]), VariantHeadConfig(**description["head"]), description["layout"]
    )
    loss = VariantLossConfig(**description["loss"])
    task = VariantEffectTask(net, kind=description["kind"], loss=loss, optim=OptimConfig(), seed=0)
    load_weights(folder, task)
    return TrainedVariantEffect(task.eval(), description, VariantDataConfig(**description["data"]).resolved())
