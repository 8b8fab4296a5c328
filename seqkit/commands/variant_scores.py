"""Scores of alleles from a finished run, chunk by chunk or for a whole table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import polars.selectors as cs
from numpy.typing import NDArray

from seqkit.commands.trained import TrainedVariantEffect, load_trained
from seqkit.commands.trainer import torch_device
from seqkit.commands.variant_report import score_rows
from seqkit.data.fasta import Fasta
from seqkit.data.feature_sources import FeatureSource
from seqkit.data.labels import Labels
from seqkit.data.reference_check import check_reference
from seqkit.data.regions import read_annotation
from seqkit.data.sites import Status
from seqkit.data.variant_effect import VariantDataConfig, VariantEffectData, assemble, open_reference
from seqkit.data.variants import VariantTable, read_variants
from seqkit.tasks.calibration import PlattScaling, TemperatureScaling

CHUNK = 4096
"""Alleles scored at once by :func:`score_variants`."""


def score_variants(
    model: str | Path | TrainedVariantEffect,
    variants: pl.DataFrame | str | Path,
    fasta: str | Path | Fasta | None = None,
    *,
    gff: str | Path | None = None,
    columns: Mapping[str, str] | None = None,
    sources: Mapping[str, str] | None = None,
    device: str = "auto",
    max_mismatch: float = 0.1,
) -> pl.DataFrame:
    """Score variants from Python, as ``seqkit predict`` does.

    Args:
        model: Run folder of ``seqkit fit``, or what :func:`seqkit.commands.trained.load_trained` gave.
        variants: Frame with contig, 1-based position, reference and alternate, or a TSV, CSV, Parquet, VCF or BCF.
        fasta: Reference; the run's by default. One that is open stays open.
        gff: Annotation of another reference than the run's, where the model uses one.
        columns: Which column holds ``contig``, ``pos``, ``ref``, ``alt``, ``id``, where their names are not guessed.
        sources: Where features come from that are no columns: name to ``INFO/KEY``, ``FILE.tsv.gz:COLUMN`` (tabix) or
            ``FILE.bw``.
        device: auto, cpu, cuda or cuda:N. The model is put back where it was.
        max_mismatch: Largest share of alleles whose REF may differ from the reference.

    Returns:
        One row an allele in input order: ``row`` (0-based input record), ``chrom, pos, ref, alt``, a column per output
        (``prob`` or ``value`` for a single one), ``fwd`` and ``rc`` where there is a single probability, null where
        there is no score, and ``status``, which says why.

    Raises:
        ReferenceMismatchError: REF differs from the reference at more than ``max_mismatch`` of the alleles.
        InputError: Something cannot be read, or a column is missing.
    """
    trained = model if isinstance(model, TrainedVariantEffect) else load_trained(str(model))
    table = read_variants(variants, columns=columns)
    path = fasta.path if isinstance(fasta, Fasta) else fasta
    given = VariantDataConfig(
        variants="a frame" if isinstance(variants, pl.DataFrame) else str(variants),
        fasta=None if path is None else str(path),
        gff=None if gff is None else str(gff),
        columns=None if columns is None else dict(columns),
        sources=None if sources is None else dict(sources),
        max_mismatch=max_mismatch,
    )
    before = trained.task.device
    trained.task.to(torch_device(device))
    try:
        scorer = VariantScorer(trained, trained.data_for(given), fasta if isinstance(fasta, Fasta) else None)
        check_reference(table, scorer.fasta, max_mismatch=max_mismatch)
        parts = [scorer.score(table.take(slice(i, i + CHUNK))) for i in range(0, len(table), CHUNK)]
    finally:
        trained.task.to(before)
    alleles = table.alleles.select("row", pl.col("contig").alias("chrom"), "pos", "ref", "alt")
    return alleles.hstack(pl.concat(parts).with_columns(cs.float().fill_nan(None)))


class VariantScorer:
    """Scores tables of alleles; reference and annotation are opened once.

    Args:
        trained: The run, its network on the device to use.
        config: Data settings: the run's, with the reference and annotation to score against.
        fasta: The reference, where it is open already.
        sources: Opened sources of the features; by default they are looked for in each table.

    Attributes:
        fasta: The reference.
        counts: Alleles by status over all tables so far.
    """

    def __init__(
        self,
        trained: TrainedVariantEffect,
        config: VariantDataConfig,
        fasta: Fasta | None = None,
        sources: Mapping[str, FeatureSource] | None = None,
    ):
        self.trained, self.config, self._sources = trained, config, sources
        self.fasta = fasta or open_reference(config)
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
        return self.score_with_data(table)[0]

    def score_with_data(self, table: VariantTable) -> tuple[pl.DataFrame, VariantEffectData]:
        """Score columns, and the table as the model was given it."""
        labels = no_labels(self.trained, len(table))
        data = assemble(self.config, table, labels, self.fasta, self._annotation, self._sources)
        unknown_N = np.isnan(data.features[:, data.n_annotation_features :]).any(axis=1)
        data = replace(data, sites=data.sites.without(unknown_N, Status.FEATURE_MISSING))
        self.counts.update(data.sites.counts())
        return allele_scores(self.trained, data), data


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
