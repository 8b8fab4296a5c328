"""``seqkit predict``: score every allele of a file with a finished run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from seqkit.commands.arguments import parse
from seqkit.commands.trained import TrainedVariantEffect, load_trained
from seqkit.commands.trainer import torch_device
from seqkit.commands.variant_effect import ALIASES
from seqkit.commands.variant_report import score_rows
from seqkit.data.labels import Labels
from seqkit.data.variant_effect import VariantDataConfig, VariantEffectData, load_unlabelled
from seqkit.data.writers import write_scores
from seqkit.errors import ConfigError
from seqkit.tasks.calibration import PlattScaling, TemperatureScaling


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """What to score, with what, and where the result goes.

    Attributes:
        ckpt: Run folder of ``seqkit fit``.
        out: Result; TSV, CSV, Parquet, VCF or BCF by suffix.
        task: Checked against the checkpoint's.
        info_prefix: First letters of the INFO keys.
        device: auto, cpu, cuda or cuda:N.
        data: Variants and reference; windows, features and strand are those of the run.
    """

    ckpt: str | None = None
    out: str | None = None
    task: str | None = None
    info_prefix: str = "SK"
    device: str = "auto"
    data: VariantDataConfig = field(default_factory=VariantDataConfig)


INPUT_ALIASES = ("fasta", "variants", "gff", "columns", "max-mismatch", "batch-size", "workers")
PREDICT_ALIASES = {name: ALIASES[name] for name in INPUT_ALIASES} | {"info-prefix": "info_prefix"}


def run(argv: Sequence[str]) -> int:
    """Score a file and write all of its records."""
    config, _, _ = parse("seqkit predict", PredictConfig, argv, aliases=PREDICT_ALIASES)
    if not config.out:
        raise ConfigError("--out", expected="a file to write", got="none")
    if config.data.variants is None:
        raise ConfigError("--variants", expected="a file to score", got="none")
    trained = load_trained(config.ckpt, config.task)
    device = torch_device(config.device)
    trained.task.to(device)
    data = load_unlabelled(trained.data_for(config.data), label_info(trained))
    provenance = {"seqkit_model": Path(config.ckpt).resolve().name, "seqkit_reference": Path(data.config.fasta).name}
    write_scores(
        data.table,
        allele_scores(trained, data),
        config.out,
        fasta=data.fasta,
        provenance=provenance,
        prefix=config.info_prefix,
    )
    counts = ", ".join(f"{name} {count}" for name, count in data.sites.counts().items())
    print(f"{len(data.table)} alleles: {counts}; written to {config.out}", file=sys.stderr)
    return 0


def label_info(trained: TrainedVariantEffect) -> Labels:
    """Names, kind and classes of what the model predicts, without values."""
    d = trained.description
    names = tuple(d["label_names"])
    return Labels(np.zeros((0, len(names)), dtype=np.float32), names, d["kind"], tuple(d["class_names"]))


def allele_scores(trained: TrainedVariantEffect, data: VariantEffectData) -> pl.DataFrame:
    """Scores of every allele of a table, NaN where the status says why there is none.

    Returns:
        One row an allele: a column per output (``prob`` or ``value`` for a single one), ``fwd`` and ``rc`` where there
        is a single probability, and ``status``.
    """
    n, names = len(data.table), output_names(trained)
    rows = np.flatnonzero(data.sites.scored_N)
    values = np.full((n, len(names)), np.nan)
    strands = np.full((n, 2), np.nan)
    if len(rows):
        found = score_rows(trained.task, data, rows)
        values[rows] = calibrated(trained, found["outputs"])
        both = np.stack([calibrated(trained, found[name])[:, 0] for name in ("as_given", "other")], axis=1)
        strands[rows] = np.where(data.sites.strand_N[rows, None] >= 0, both, both[:, ::-1])
    columns = dict(zip(names, values.T, strict=True))
    if names == ["prob"]:
        columns |= {"fwd": strands[:, 0], "rc": strands[:, 1]}
    return pl.DataFrame(columns).with_columns(pl.Series("status", data.sites.status_names()))


def output_names(trained: TrainedVariantEffect) -> list[str]:
    """Names of the score columns: prob or value for one output, with the label or class for several."""
    d = trained.description
    stem = "value" if d["kind"] == "continuous" else "prob"
    several = d["class_names"] if d["kind"] == "multiclass" else d["label_names"]
    return [stem] if len(several) == 1 else [f"{stem}_{name}" for name in several]


def calibrated(trained: TrainedVariantEffect, outputs_NK: NDArray) -> NDArray:
    """Calibrated probabilities (N, K), or values as they are; NaN stays."""
    kind, columns = trained.description["kind"], trained.description["calibration"]["columns"]
    if kind == "continuous":
        return outputs_NK
    if kind == "multiclass":
        return TemperatureScaling(**columns[0]).probabilities(outputs_NK)
    with np.errstate(invalid="ignore"):  # NaN where a strand was not read
        scaled = [PlattScaling(**c).probabilities(outputs_NK[:, k]) for k, c in enumerate(columns)]
    return np.stack(scaled, axis=1)
