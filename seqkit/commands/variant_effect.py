"""``seqkit fit --task variant-effect``: from variants and a reference to a run folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from seqkit import configs
from seqkit.backbones import Backbone, BackboneConfig
from seqkit.backbones.load import start_from
from seqkit.commands.arguments import model_presets, parse
from seqkit.commands.backbone import trained_backbone
from seqkit.commands.run_folder import METRICS, open_run, write_manifest
from seqkit.commands.trainer import TrainerConfig, last_checkpoint, make_trainer, torch_device
from seqkit.commands.variant_plots import print_summary
from seqkit.commands.variant_report import evaluate
from seqkit.data.modules import VariantDataModule
from seqkit.data.splits import Split
from seqkit.data.variant_effect import VariantDataConfig, VariantEffectData, load_variant_effect
from seqkit.errors import ConfigError
from seqkit.estimate.advice import within_memory
from seqkit.estimate.workload import PRECISIONS, Workload
from seqkit.tasks.base import OptimConfig
from seqkit.tasks.export import WEIGHTS, save_model
from seqkit.tasks.variant_effect import MONITOR, VariantEffectTask, VariantLossConfig
from seqkit.tasks.variant_net import FeatureInputs, VariantEffectNet, VariantHeadConfig
from seqkit.tokenizers.dna import DNATokenizer

TASK = "variant-effect"
FLAGS = {"batch": lambda windows: f"--batch-size {max(1, windows // 4)}", "length": "--window {}".format}

ALIASES = {
    "fasta": "data.fasta",
    "variants": "data.variants",
    "table": "data.variants",
    "gff": "data.gff",
    "label": "data.label",
    "positive": "data.positive",
    "features": "data.features",
    "sources": "data.sources",
    "circular": "data.circular",
    "columns": "data.columns",
    "compare": "data.compare",
    "window": "data.window",
    "strand": "data.strand",
    "max-mismatch": "data.max_mismatch",
    "batch-size": "data.batch_size",
    "workers": "data.workers",
    "device": "trainer.device",
    "precision": "trainer.precision",
}


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """Everything that decides a variant-effect run.

    Attributes:
        task: variant-effect.
        init: Run folder of ``fit --task pretrain``, or a folder with a saved backbone, whose architecture and weights
            the backbone starts with; of ``model`` only ``dropout`` is then read.
        seed: Seed of weights, shuffling and dropout.
        data: Variants, reference, annotation, windows and split.
        model: Architecture of the backbone.
        head: The head on the difference of the two windows.
        loss: Class weights and penalties.
        optim: Optimiser and schedule.
        trainer: Epochs, device, precision.
    """

    task: str = TASK
    init: str | None = None
    seed: int = 0
    data: VariantDataConfig = field(default_factory=VariantDataConfig)
    model: BackboneConfig = field(default_factory=lambda: BackboneConfig(d_model=64, layout="mamba2*2"))
    head: VariantHeadConfig = field(default_factory=VariantHeadConfig)
    loss: VariantLossConfig = field(default_factory=VariantLossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)


def fit(argv: Sequence[str]) -> int:
    """Train, evaluate and report; the entry of ``seqkit fit --task variant-effect``."""
    config, own, resolved = parse(
        f"seqkit fit --task {TASK}",
        FitConfig,
        model_presets(argv),
        aliases=ALIASES,
        defaults=configs.path("task", TASK),
        flags=("resume", "overwrite", "cross-validate"),
        options=("out", "seeds"),
    )
    config = with_pretrained(config, argv)
    folder = open_run(own["out"], TASK, resolved, resume=own["resume"], overwrite=own["overwrite"])
    if own["cross-validate"]:
        from seqkit.commands.cross_validate import cross_validate

        return cross_validate(config, folder, own["seeds"])
    data = load_variant_effect(config.data)
    step = largest_step(config.model, config.data, config.trainer.precision, training=True)
    with within_memory(step, torch_device(config.trainer.device), "--window", FLAGS):
        metrics = train_and_evaluate(config, data, data.split(), folder)
    print_summary(folder, metrics)
    return 0


def largest_step(model: BackboneConfig, data: VariantDataConfig, precision: str, *, training: bool) -> Workload:
    """Reference and alternate windows of a batch, on both strands."""
    known = precision if precision in PRECISIONS else "bf16-mixed"  # 16-mixed takes the same memory
    return Workload(model=model, length=data.window, batch=4 * data.batch_size, precision=known, training=training)


def with_pretrained(config: FitConfig, argv: Sequence[str]) -> FitConfig:
    """The config with the architecture of the pretrained backbone, where one is named.

    Raises:
        ConfigError: An architecture is asked for beside it.
        CheckpointError: There is no such backbone.
    """
    if config.init is None:
        return config
    asked = [a for a in argv if a.startswith("--model") and not a.startswith("--model.dropout")]
    if asked:
        raise ConfigError(asked[0], expected="no architecture beside --init", got=f"both, --init {config.init}",
                          remedy="Drop one; the pretrained backbone has its own.")  # fmt: skip
    return replace(config, model=replace(trained_backbone(Path(config.init)).config, dropout=config.model.dropout))


def train_and_evaluate(config: FitConfig, data: VariantEffectData, split: Split, folder: Path) -> dict[str, Any]:
    """One run: train on a split, calibrate on its validation rows, report on its test rows.

    Returns:
        The contents of ``metrics.json``; read back when the run is finished already.
    """
    if (folder / METRICS).exists():
        return json.loads((folder / METRICS).read_text())
    write_manifest(folder, seed=config.seed, inputs=data.inputs | init_input(config), device=config.trainer.device)
    task = build_task(config, data, split)
    module = VariantDataModule(
        train=data.windows(split.train),
        validation=data.windows(split.validation),
        batch_size=config.data.batch_size,
        workers=config.data.workers,
        seed=config.seed,
    )
    monitor, mode = MONITOR[data.kind]
    trainer = make_trainer(folder, config.trainer, monitor=monitor, mode=mode, clip_norm=config.optim.clip_norm)
    trainer.fit(task, module, ckpt_path=last_checkpoint(folder), weights_only=True)
    best = torch.load(trainer.checkpoint_callback.best_model_path, map_location="cpu", weights_only=True)
    task.load_state_dict(best["state_dict"])
    metrics, calibration = evaluate(task, data, split, folder, seed=config.seed, best_epoch=best["epoch"])
    save_model(folder, task, describe(config, data, calibration))
    return metrics


def init_input(config: FitConfig) -> dict[str, str | None]:
    """The file with the pretrained weights, for the manifest."""
    return {"init": None if config.init is None else str(Path(config.init) / WEIGHTS)}


def build_task(config: FitConfig, data: VariantEffectData, split: Split) -> VariantEffectTask:
    """The task of a run with its network, its statistics taken from the training rows."""
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        net = build_net(config.model, config.head, data.layout())
        if config.init is not None:
            start_from(net.sequence.backbone, trained_backbone(Path(config.init)))
        task = VariantEffectTask(net, kind=data.kind, loss=config.loss, optim=config.optim, seed=config.seed)
    task.fit_statistics(torch.from_numpy(data.features[split.train]), torch.from_numpy(data.labels[split.train]))
    return task


def build_net(model: BackboneConfig, head: VariantHeadConfig, layout: dict[str, Any]) -> VariantEffectNet:
    """Network for windows of a given layout.

    Args:
        model: Architecture; its ``n_channels`` is set to the annotation's.
        head: Sizes of the head.
        layout: :meth:`seqkit.data.variant_effect.VariantEffectData.layout` of the data.
    """
    permutation = torch.tensor(layout["channel_complement"], dtype=torch.long)
    channels = {"n_channels": len(permutation), "channel_complement": tuple(layout["channel_complement"]) or None}
    settings = asdict(model) | channels
    return VariantEffectNet(
        Backbone(BackboneConfig(**settings)),
        FeatureInputs(layout["n_annotation"], layout["n_columns"], layout["modifiers"]),
        n_outputs=layout["n_outputs"],
        head=head,
        complement=torch.from_numpy(DNATokenizer().complement).long() if layout["both_strands"] else None,
        channel_complement=permutation,
    )


def describe(config: FitConfig, data: VariantEffectData, calibration: dict[str, Any]) -> dict[str, Any]:
    """What ``predict`` and ``test`` need to rebuild the model and its windows."""
    return {
        "task": TASK,
        "kind": data.kind,
        "label_names": data.label_names,
        "class_names": data.class_names,
        "feature_names": data.feature_names,
        "layout": data.layout(),
        "data": config.data,
        "model": config.model,
        "head": config.head,
        "loss": config.loss,
        "calibration": calibration,
    }
