"""From files to everything a variant-effect model is trained and scored on.

Legend: N alleles, T label columns, F features, C annotation channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl

from seqkit.data import bundled
from seqkit.data.channels import CHANNELS, COMPLEMENT_ORDER
from seqkit.data.consequence import predict_consequences
from seqkit.data.dataset import VariantWindowDataset
from seqkit.data.fasta import Fasta
from seqkit.data.feature_sources import FeatureSource, feature_matrix, open_sources
from seqkit.data.features import MODIFIERS, PLAIN_GROUPS, consequence_features, contexts
from seqkit.data.genome import canonical_contig
from seqkit.data.labels import Labels, read_features, read_labels
from seqkit.data.normalise import normalised
from seqkit.data.reference_check import check_reference
from seqkit.data.regions import Annotation, read_annotation
from seqkit.data.sites import Sites, locate
from seqkit.data.splits import Split, assign_folds, make_split
from seqkit.data.variants import VariantTable, read_variants
from seqkit.data.windows import VariantWindows
from seqkit.errors import ConfigError

STRANDS = ("gene", "forward", "both")
BRCA1_COMPARED = ("CADD.score", "phyloP (mammalian)")


@dataclass(frozen=True, kw_only=True)
class VariantDataConfig:
    """Variants, reference, annotation, windows and split.

    Attributes:
        variants: TSV, CSV, Parquet, VCF or BCF; none takes the bundled BRCA1 assay with its reference and annotation.
        fasta: Reference, plain or bgzip.
        gff: GFF3 or GTF; adds annotation channels, predicted consequences and the gene's strand.
        columns: Which columns hold contig, pos, ref, alt, id, where their names are not guessed.
        label: Column of the label, or several.
        positive: Values of the label that count as 1.
        features: Numeric columns used as features; text is split at commas.
        sources: Where features come from that are no columns: name to INFO/KEY, FILE.tsv.gz:COLUMN (tabix) or FILE.bw.
        compare: Numeric columns whose values stand beside the model in the report; the features by default.
        window: Bases in a window.
        strand: gene (the gene's strand where the annotation gives it, both elsewhere), forward, or both (average).
        norm: Left-normalise insertions and deletions before they are scored; the records stay as they are.
        circular: Contigs that are circles, whose windows go on at the other end; text is split at commas.
        max_n: Largest share of unknown bases in a window that is still scored.
        max_mismatch: Largest share of alleles whose REF may differ from the reference.
        split: block, chromosome, contiguous, position or random; none chooses by what the table holds.
        block: Column of the blocks for a block split.
        blocks: The blocks in order; fold = place in this order modulo folds.
        folds: Number of folds.
        fold: Test fold; the next one is for validation.
        gap: Bases left out between the parts of a contiguous split; none means 100.
        batch_size: Alleles per step.
        workers: Processes that prepare windows; 0 does it in the main one.
    """

    variants: str | None = None
    fasta: str | None = None
    gff: str | None = None
    columns: dict[str, str] | None = None
    label: str | list[str] | None = None
    positive: str | list[str] | None = None
    features: str | list[str] | None = None
    sources: dict[str, str] | None = None
    compare: str | list[str] | None = None
    window: int = 128
    strand: str = "gene"
    norm: bool = False
    circular: str | list[str] | None = None
    max_n: float = 0.1
    max_mismatch: float = 0.1
    split: str | None = None
    block: str | None = None
    blocks: list[str] | None = None
    folds: int = 5
    fold: int = 0
    gap: int | None = None
    batch_size: int = 64
    workers: int = 0

    def __post_init__(self):
        if self.strand not in STRANDS:
            raise ConfigError("data.strand", expected=", ".join(STRANDS), got=self.strand)
        for name, least in (("window", 2), ("batch_size", 1), ("workers", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"data.{name}", expected=f"at least {least}", got=str(getattr(self, name)))

    def resolved(self) -> VariantDataConfig:
        """With the bundled data set filled in where no variants are named.

        Raises:
            ConfigError: Variants without a reference, or a reference without variants.
        """
        if self.variants is None and self.fasta is None:
            data = bundled.brca1()
            return replace(
                self,
                variants=str(data.table),
                fasta=str(data.fasta),
                gff=self.gff or str(data.annotation),
                label=self.label or data.label,
                positive=self.positive or (data.positive if self.label is None else None),
                compare=self.compare or list(BRCA1_COMPARED),
                split=self.split or "block",
                block=self.block or data.block,
                blocks=self.blocks or list(data.blocks),
            )
        for missing, given in (("variants", "fasta"), ("fasta", "variants")):
            if getattr(self, missing) is None:
                raise ConfigError(
                    f"--{missing}", expected=f"a file beside --{given}", got="none",
                    remedy="Give both, or neither for the bundled BRCA1 assay.",
                )  # fmt: skip
        return self if self.compare else replace(self, compare=self.features)


@dataclass(frozen=True)
class VariantEffectData:
    """A table of alleles ready for training or scoring.

    Attributes:
        config: Settings with the bundled set filled in.
        table: Alleles and records.
        sites: Where the alleles lie and which are scored.
        labels_NT: Targets, NaN where unknown.
        label_info: Names, kind and classes of the targets.
        fasta: The reference.
        annotation: Transcripts; None without a GFF.
        consequences: Predicted consequences, one row an allele; None without annotation.
        features: (N, F) float32, annotation features first.
        feature_names: F names.
        n_annotation_features: How many of them come from the annotation.
        compared: Columns shown beside the model, name to (N,) values.
    """

    config: VariantDataConfig
    table: VariantTable
    sites: Sites
    label_info: Labels
    fasta: Fasta
    annotation: Annotation | None
    consequences: pl.DataFrame | None
    features: np.ndarray
    feature_names: tuple[str, ...]
    n_annotation_features: int
    compared: dict[str, np.ndarray]

    @property
    def labels(self) -> np.ndarray:
        """(N, T) float32, NaN where unknown."""
        return self.label_info.values_NK

    @property
    def kind(self) -> str:
        """binary, multiclass or continuous."""
        return self.label_info.kind

    @property
    def label_names(self) -> tuple[str, ...]:
        """T names."""
        return self.label_info.names

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names of a multi-class label."""
        return self.label_info.classes

    @cached_property
    def plain_features(self) -> np.ndarray:
        """(N, F) what a plain regression on the predicted consequence is given; no columns without annotation."""
        if self.consequences is None:
            return np.zeros((len(self.table), 0), dtype=np.float32)
        return consequence_features(self.sites, self.fasta, self.consequences, groups=PLAIN_GROUPS)[0]

    def positive_name(self, label: str) -> str:
        """What the label 1 of a binary column means: the values given as positive, else the column's name."""
        positive = self.config.positive
        return label if positive is None else positive if isinstance(positive, str) else "/".join(positive)

    @property
    def inputs(self) -> dict[str, str | None]:
        """Input files by name, for the manifest."""
        return {"variants": self.config.variants, "fasta": self.config.fasta, "gff": self.config.gff}

    @property
    def positions(self) -> np.ndarray:
        """(N,) 1-based positions."""
        return self.table.alleles["pos"].to_numpy()

    @property
    def contigs(self) -> np.ndarray:
        """(N,) contig names without their spelling variants."""
        return np.array([canonical_contig(name) for name in self.table.alleles["contig"].to_list()])

    @cached_property
    def blocks(self) -> np.ndarray:
        """(N,) the unit each allele belongs to in a resampling: its block, else its contig."""
        if self.config.block is None:
            return self.contigs
        return self.table.column(self.config.block, "block").cast(pl.String).fill_null("").to_numpy()

    def layout(self) -> dict[str, Any]:
        """What decides the shape of a network on these data."""
        annotated = self.consequences is not None
        kinds = {"multiclass": len(self.class_names)}
        return {
            "n_annotation": self.n_annotation_features,
            "n_columns": self.features.shape[1] - self.n_annotation_features,
            "modifiers": [self.feature_names.index(name) for name in MODIFIERS] if annotated else [],
            "n_outputs": kinds.get(self.kind, len(self.label_names)),
            "channel_complement": list(COMPLEMENT_ORDER) if annotated else [],
            "channels": list(CHANNELS) if annotated else [],
            "both_strands": self.config.strand != "forward",
        }

    def folds(self) -> list[Split]:
        """Every fold as a split, with the next fold for validation."""
        return [self.split(fold) for fold in range(self.config.folds)]

    def split(self, fold: int | None = None) -> Split:
        """Training, validation and test rows of a fold; alleles without window or label belong to no part."""
        config = self.config
        classes = self.labels[:, 0] if self.kind != "continuous" else None
        fold_N, kind, description = assign_folds(
            self.table, config.split, folds=config.folds, block=config.block, blocks=config.blocks, strata_N=classes
        )
        usable = self.sites.scored_N & ~np.isnan(self.labels).all(axis=1)
        chosen = config.fold if fold is None else fold
        return make_split(
            self.table, fold_N, kind, description, fold=chosen, folds=config.folds, gap=config.gap, keep=usable
        )

    def windows(
        self, rows: np.ndarray, build: Callable[[np.ndarray], VariantWindows] | None = None
    ) -> VariantWindowDataset:
        """Windows, features and labels of chosen alleles, in that order; ``build`` makes other windows."""
        return VariantWindowDataset(
            self.sites,
            self.fasta,
            length=self.config.window,
            indices=rows,
            annotation=self.annotation,
            features_NF=self.features,
            labels_NK=self.labels,
            build=build,
        )

    @cached_property
    def exchanges(self) -> tuple[np.ndarray, np.ndarray]:
        """(N,) trinucleotides and (N,) alternate bases on the strand that is read; empty for longer alleles."""
        found = contexts(self.sites, self.fasta)
        return np.array([text[:3] for text in found]), np.array([text[4:] for text in found])

    def exons(self, rows: np.ndarray) -> list[tuple[int, int, str]]:
        """Exons (0-based start, end, name) of the transcripts that chosen alleles lie on."""
        if self.annotation is None or len(rows) == 0:
            return []
        wanted = set(self.consequences["transcript"][rows].drop_nulls().to_list())
        contig = self.table.alleles["contig"][int(rows[0])]
        return [
            (exon.start, exon.end, "")
            for transcript in self.annotation.on(contig)
            if transcript.transcript_id in wanted
            for exon in transcript.exons
        ]

    def describe_rows(self, rows: np.ndarray) -> pl.DataFrame:
        """Index, place, alleles and predicted consequence of chosen alleles."""
        frame = self.table.alleles[rows].select("contig", "pos", "ref", "alt")
        frame = frame.insert_column(0, pl.Series("index", rows))
        if self.consequences is None:
            return frame
        return frame.hstack(self.consequences[rows].select("gene", "consequence", "aa_ref", "aa_alt"))


def load_variant_effect(config: VariantDataConfig) -> VariantEffectData:
    """Read, check and annotate a labelled table.

    Raises:
        ConfigError: No label is named.
        InputError: A file cannot be read or a column is absent.
        ReferenceMismatchError: REF differs from the reference at more than ``max_mismatch`` of the alleles.
    """
    config = config.resolved()
    if not config.label:
        raise ConfigError("--label", expected="the column of the label", got="none")
    table = read_variants(config.variants, columns=config.columns)
    labels = read_labels(table, config.label, positive=config.positive)
    return prepare(config, table, labels)


def open_reference(config: VariantDataConfig) -> Fasta:
    """The reference with its circular contigs.

    Raises:
        ConfigError: A circular contig is not in it, or only a piece of it.
    """
    names = config.circular or ()
    names = [n.strip() for n in names.split(",") if n.strip()] if isinstance(names, str) else names
    return Fasta(config.fasta, circular=names)


def prepare(config: VariantDataConfig, table: VariantTable, labels: Labels) -> VariantEffectData:
    """Check alleles against the reference, place and annotate them and collect their features."""
    fasta = open_reference(config)
    check_reference(table, fasta, max_mismatch=config.max_mismatch)
    annotation = read_annotation(config.gff) if config.gff else None
    return assemble(config, table, labels, fasta, annotation)


def assemble(
    config: VariantDataConfig,
    table: VariantTable,
    labels: Labels,
    fasta: Fasta,
    annotation: Annotation | None,
    sources: Mapping[str, FeatureSource] | None = None,
) -> VariantEffectData:
    """Place alleles on an open reference, annotate them and collect their features from opened sources."""
    if sources is None:
        sources = open_sources(config.features, config.sources, table.records.columns)
    sites = locate(table, fasta, length=config.window, max_n_fraction=config.max_n)
    moved = normalised(table, sites, fasta) if config.norm else None
    if moved is not None:
        sites = locate(moved, fasta, length=config.window, max_n_fraction=config.max_n)
    consequences = predict_consequences(sites, fasta, annotation) if annotation else None
    sites = sites.with_strand(reading_strand(config.strand, consequences, len(sites)))
    matrices, names = [], []
    if consequences is not None:
        matrix, found = consequence_features(sites, fasta, consequences)
        matrices.append(matrix)
        names += found
    n_annotation = len(names)
    if config.features:
        matrix, found = feature_matrix(table, sources)
        matrices.append(matrix)
        names += found
    features = np.concatenate(matrices, axis=1) if matrices else np.zeros((len(table), 0), dtype=np.float32)
    compared = {}
    if config.compare:
        values, compared_names = read_features(table, config.compare)
        compared = dict(zip(compared_names, values.T, strict=True))
    return VariantEffectData(
        config, table, sites, labels, fasta, annotation, consequences, features, tuple(names), n_annotation, compared
    )


def reading_strand(strand: str, consequences: pl.DataFrame | None, alleles: int) -> np.ndarray:
    """Direction in which each allele's windows are read: 1, -1, or 0 where both are read and averaged."""
    if strand == "forward":
        return np.ones(alleles, dtype=np.int8)
    if strand == "both" or consequences is None:
        return np.zeros(alleles, dtype=np.int8)
    return consequences["strand"].to_numpy().astype(np.int8)
