"""``seqkit test`` of a variant-effect run: measure it on labelled input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from seqkit.commands.arguments import parse
from seqkit.commands.run_folder import open_run
from seqkit.commands.trained import TrainedVariantEffect, load_trained
from seqkit.commands.trainer import torch_device
from seqkit.commands.variant_effect import ALIASES, TASK
from seqkit.commands.variant_plots import print_summary
from seqkit.commands.variant_report import Method, decide, measure, score_rows, write_report
from seqkit.data.splits import Split
from seqkit.data.variant_effect import VariantDataConfig, VariantEffectData, load_variant_effect
from seqkit.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class TestConfig:
    """What to measure a run on.

    Attributes:
        ckpt: Run folder of ``seqkit fit``.
        task: Checked against the checkpoint's.
        device: auto, cpu, cuda or cuda:N.
        data: Labelled variants and their reference; without variants, the test rows the run was made with.
    """

    ckpt: str | None = None
    task: str | None = None
    device: str = "auto"
    data: VariantDataConfig = field(default_factory=VariantDataConfig)


INPUT_ALIASES = (
    "fasta",
    "variants",
    "gff",
    "columns",
    "sources",
    "label",
    "positive",
    "compare",
    "max-mismatch",
    "batch-size",
)
NOTHING = np.zeros(0, dtype=np.int64)
TEST_ALIASES = {name: ALIASES[name] for name in INPUT_ALIASES}


def test(argv: Sequence[str]) -> int:
    """Score labelled rows, write metrics, predictions and plots, print the table."""
    config, own, resolved = parse(
        "seqkit test", TestConfig, argv, aliases=TEST_ALIASES, flags=("overwrite",), options=("out",)
    )
    trained = load_trained(config.ckpt, config.task)
    trained.task.to(torch_device(config.device))
    data, split = labelled(trained, config.data)
    out = own["out"] or str(Path(config.ckpt) / "test")
    folder = open_run(out, TASK, resolved, resume=False, overwrite=own["overwrite"])
    metrics = measure_run(trained, data, split, folder)
    print_summary(folder, metrics)
    return 0


def labelled(trained: TrainedVariantEffect, given: VariantDataConfig) -> tuple[VariantEffectData, Split]:
    """The rows to measure on: all labelled rows of a new table, or the test rows of the run's own.

    Raises:
        ConfigError: The new table's label is of another kind than the model's.
    """
    settings = trained.data_for(given)
    if given.variants is None:
        data = load_variant_effect(settings)
        split = data.split()
        return data, replace(split, train=NOTHING, validation=NOTHING)
    settings = replace(
        settings,
        label=given.label or settings.label,
        positive=given.positive or settings.positive,
        compare=given.compare,
    )
    data = load_variant_effect(settings)
    kind = trained.description["kind"]
    if data.kind != kind or list(data.class_names) != list(trained.description["class_names"]):
        raise ConfigError("--label", expected=f"a {kind} label like the model's", got=f"a {data.kind} one")
    rows = np.flatnonzero(data.sites.scored_N & ~np.isnan(data.labels).all(axis=1))
    unused = np.setdiff1d(np.arange(len(data.table)), rows)
    description = f"all labelled rows of {Path(settings.variants).name}"
    return data, Split(NOTHING, NOTHING, rows, "given", description, fold=0, folds=1, dropped=unused)


def measure_run(trained: TrainedVariantEffect, data: VariantEffectData, split: Split, folder: Path) -> dict:
    """Metrics of the stored calibration and thresholds on the test rows of a split."""
    outputs = score_rows(trained.task, data, split.test)["outputs"]
    stored = trained.description["calibration"]
    results, methods_of = {}, {}
    for column, name in enumerate(data.label_names):
        ours = decide(data.kind, outputs[:0], outputs, stored["columns"], column)
        methods = [ours._replace(threshold=stored["thresholds"][column])]
        for compared, values in data.compared.items():
            if data.kind != "multiclass" and not np.isnan(values[split.test]).any():
                methods.append(Method(compared, values[:0], values[split.test], False))
        results[name], methods_of[name] = measure(data, split, column, methods, seed=0), methods
    return write_report(folder, data, split, results, methods_of, outputs)
