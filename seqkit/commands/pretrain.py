"""``seqkit fit --task pretrain``: from a genome to a language model of DNA and its held-out figures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from seqkit import configs
from seqkit.backbones import BackboneConfig
from seqkit.commands.arguments import model_presets, parse
from seqkit.commands.pretrain_curve import LearningCurve, Rehearsal
from seqkit.commands.pretrain_measure import as_trained, each_span, hidden_bits, mean_bits, sample_spans, window_bits
from seqkit.commands.pretrain_report import evaluate, print_summary
from seqkit.commands.run_folder import METRICS, open_run, write_manifest
from seqkit.commands.trainer import (
    CHECKPOINTS,
    HISTORY,
    LAST,
    last_checkpoint,
    quiet_lightning,
    quiet_trainer,
    torch_device,
)
from seqkit.data.pretrain import GenomeData, GenomeDataConfig, load_genome
from seqkit.data.stages import StagedBatches, StagesConfig
from seqkit.errors import ConfigError
from seqkit.estimate.advice import within_memory
from seqkit.estimate.workload import PRECISIONS, Workload
from seqkit.files import atomic
from seqkit.tasks.base import OptimConfig
from seqkit.tasks.budget import Budget, seconds_of
from seqkit.tasks.export import save_model
from seqkit.tasks.language_model import LanguageModel
from seqkit.tasks.objectives import ObjectiveConfig
from seqkit.tasks.pretrain import PretrainTask

TASK = "pretrain"

ALIASES = {
    "fasta": "data.fasta",
    "held-out": "data.held_out",
    "objective": "objective.name",
    "length": "stages.length",
    "max-time": "trainer.max_time",
    "device": "trainer.device",
    "precision": "trainer.precision",
}


@dataclass(frozen=True, kw_only=True)
class StepTrainerConfig:
    """How long and where to train.

    Attributes:
        max_steps: Optimiser steps; null where max_time alone ends the run.
        max_time: Time of training with the measurements on the way, HH:MM:SS; rate and window lengths follow whichever
            of steps and time is further. Given on the command line without max_steps, it alone ends the run.
        curve_points: Rows of the learning curve.
        curve_bases: Held-out bases measured for each row.
        checkpoint_seconds: Time between checkpoints.
        device: auto, cpu, cuda, or cuda:N.
        precision: 32-true, bf16-mixed or bf16-true.
        threads: CPU threads for torch; 0 leaves torch's choice.
    """

    max_steps: int | None = 1000
    max_time: str | None = None
    curve_points: int = 20
    curve_bases: int = 1 << 20
    checkpoint_seconds: float = 60.0
    device: str = "auto"
    precision: str = "32-true"
    threads: int = 0

    def __post_init__(self):
        for name in ("max_steps", "curve_points", "curve_bases"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"trainer.{name}", expected="1 or more", got=str(value))
        if self.precision not in PRECISIONS:
            raise ConfigError("trainer.precision", expected=" or ".join(PRECISIONS), got=self.precision)

    def budget(self) -> Budget:
        """Steps and seconds of a run."""
        return Budget(self.max_steps, seconds_of(self.max_time))


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Everything that decides a pretraining run.

    Attributes:
        task: pretrain.
        seed: Seed of weights, windows, strands and masks.
        data: Genome and held-out regions.
        stages: Lengths of the windows over the run.
        objective: What is asked and how answers count.
        model: Architecture of the backbone.
        optim: Optimiser and schedule.
        trainer: Steps, time, device, precision.
    """

    task: str = TASK
    seed: int = 0
    data: GenomeDataConfig = field(default_factory=GenomeDataConfig)
    stages: StagesConfig = field(default_factory=StagesConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    model: BackboneConfig = field(default_factory=lambda: BackboneConfig(d_model=128, layout="mamba2*3"))
    optim: OptimConfig = field(default_factory=OptimConfig)
    trainer: StepTrainerConfig = field(default_factory=StepTrainerConfig)


def fit(argv: Sequence[str]) -> int:
    """Train, measure and report; the entry of ``seqkit fit --task pretrain``."""
    config, own, resolved = parse(
        f"seqkit fit --task {TASK}",
        PretrainConfig,
        model_presets(time_alone(argv)),
        aliases=ALIASES,
        defaults=configs.path("task", TASK),
        flags=("resume", "overwrite"),
        options=("out",),
    )
    data = load_genome(config.data)
    task = build_task(config)
    folder = open_run(own["out"], TASK, resolved, resume=own["resume"], overwrite=own["overwrite"])
    flags = {
        "batch": lambda windows: f"--stages.tokens_at_once {windows * config.stages.length}",
        "length": "--length {}".format,
    }
    with within_memory(largest_step(config), torch_device(config.trainer.device), "--length", flags):
        metrics = train_and_evaluate(config, data, task, folder)
    print_summary(folder, metrics)
    return 0


def time_alone(argv: Sequence[str]) -> list[str]:
    """The arguments, with the default number of steps lifted where a time is asked for and no steps are."""
    names = {argument.partition("=")[0].replace("-", "_") for argument in argv if argument.startswith("--")}
    if names & {"__max_time", "__trainer.max_time"} and "__trainer.max_steps" not in names:
        return [*argv, "--trainer.max_steps=null"]
    return list(argv)


def largest_step(config: PretrainConfig) -> Workload:
    """The pass that takes most memory: windows of the final length, as many as go at once."""
    length = config.stages.length
    batch = max(1, min(config.stages.tokens_at_once, config.stages.step_tokens(length)) // length)
    return Workload(model=config.model, length=length, batch=batch, precision=config.trainer.precision)


def build_task(config: PretrainConfig) -> PretrainTask:
    """The task of a run with its network.

    Raises:
        ConfigError: Objective and backbone do not go together.
    """
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        net = LanguageModel(config.model)
    return PretrainTask(
        net, objective=config.objective, optim=config.optim, seed=config.seed, budget=config.trainer.budget(),
        tokens_at_once=config.stages.tokens_at_once,
    )  # fmt: skip


def train_and_evaluate(config: PretrainConfig, data: GenomeData, task: PretrainTask, folder: Path) -> dict[str, Any]:
    """One run; its ``metrics.json``, read back when the run is finished already."""
    if (folder / METRICS).exists():
        return json.loads((folder / METRICS).read_text())
    write_manifest(folder, seed=config.seed, inputs={"fasta": data.config.fasta}, device=config.trainer.device)
    batches = StagedBatches(
        config.stages,
        lambda length: data.windows(length, config.seed),
        extra=int(config.objective.is_causal),
        first_step=lambda: trainer.global_step,
        progress=task.budget.progress,
    )
    trainer = make_trainer(config, data, task, folder, batches)
    trainer.fit(task, batches, ckpt_path=last_checkpoint(folder), weights_only=True)
    with atomic(folder / CHECKPOINTS / LAST) as temporary:
        trainer.save_checkpoint(temporary)
    seconds = round(task.budget.seconds, 1)
    training = {"steps": trainer.global_step, "tokens": task.tokens, "seconds": seconds}
    metrics = evaluate(
        task, data, folder, lengths=config.stages.lengths[::-1], precision=config.trainer.precision,
        seed=config.seed, training=training, counted=data,
    )  # fmt: skip
    save_model(folder, task.net, describe(config, data))
    return metrics


def make_trainer(
    config: PretrainConfig, data: GenomeData, task: PretrainTask, folder: Path, batches: StagedBatches
) -> lightning.Trainer:
    """The trainer of a run with its rehearsal, its curve and its checkpoints."""
    quiet_lightning()
    if config.trainer.threads:
        torch.set_num_threads(config.trainer.threads)
    length = config.stages.length
    sample = sample_spans(data.split.held_out, length + 1, config.trainer.curve_bases)

    def held_out_bits() -> float:
        measure = window_bits(task, length, 0) if config.objective.is_causal else hidden_bits(task, length)
        with as_trained(task, config.trainer.precision):
            return mean_bits(each_span(data.genome, sample, measure, None))

    curve = LearningCurve(
        folder / HISTORY, budget=task.budget, points=config.trainer.curve_points, measure=held_out_bits
    )
    checkpoints = ModelCheckpoint(
        dirpath=folder / CHECKPOINTS,
        filename=Path(LAST).stem,
        train_time_interval=timedelta(seconds=config.trainer.checkpoint_seconds),
        enable_version_counter=False,
    )
    return quiet_trainer(
        folder, [Rehearsal(batches, held_out_bits), curve, checkpoints], device=config.trainer.device,
        precision=config.trainer.precision,
        max_epochs=-1, max_steps=config.trainer.max_steps or -1,
    )  # fmt: skip


def describe(config: PretrainConfig, data: GenomeData) -> dict[str, Any]:
    """What ``test`` and later tasks need to build the model again."""
    return {
        "task": TASK,
        "model": config.model,
        "objective": config.objective,
        "data": data.config,
        "lengths": list(config.stages.lengths[::-1]),
        "precision": config.trainer.precision,
    }
