"""Scores of alleles from a finished run, chunk by chunk or for a whole table."""

from __future__ import annotations

from collections import Counter

import numpy as np
import polars as pl
from numpy.typing import NDArray

from seqkit.commands.trained import TrainedVariantEffect
from seqkit.commands.variant_report import score_rows
from seqkit.data.fasta import Fasta
from seqkit.data.labels import Labels
from seqkit.data.regions import read_annotation
from seqkit.data.variant_effect import VariantDataConfig, VariantEffectData, assemble
from seqkit.data.variants import VariantTable
from seqkit.tasks.calibration import PlattScaling, TemperatureScaling


class VariantScorer:
    """Scores tables of alleles; reference and annotation are opened once.

    Args:
        trained: The run, its network on the device to use.
        config: Data settings: the run's, with the reference and annotation to score against.

    Attributes:
        fasta: The reference.
        counts: Alleles by status over all tables so far.
    """

    def __init__(self, trained: TrainedVariantEffect, config: VariantDataConfig):
        self.trained, self.config = trained, config
        self.fasta = Fasta(config.fasta)
        self._annotation = read_annotation(config.gff) if config.gff else None
        self.counts: Counter[str] = Counter()

    @property
    def columns(self) -> dict[str, type[pl.DataType]]:
        """Names and types of the score columns."""
        names = output_names(self.trained)
        strands = ["fwd", "rc"] if names == ["prob"] else []
        return {**dict.fromkeys([*names, *strands], pl.Float64), "status": pl.String}

    def score(self, table: VariantTable) -> pl.DataFrame:
        """Score columns, one row an allele."""
        data = assemble(self.config, table, no_labels(self.trained, len(table)), self.fasta, self._annotation)
        self.counts.update(data.sites.counts())
        return allele_scores(self.trained, data)


def no_labels(trained: TrainedVariantEffect, alleles: int) -> Labels:
    """Names, kind and classes of what the model predicts, with no value for any allele."""
    d = trained.description
    names = tuple(d["label_names"])
    return Labels(np.full((alleles, len(names)), np.nan, dtype=np.float32), names, d["kind"], tuple(d["class_names"]))


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
        found = score_rows(trained.task, data, rows, title=None)
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
