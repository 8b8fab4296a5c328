"""Data sets that are part of the package, so that the first command needs no file of the user's."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class BundledVariants:
    """Paths of one bundled variant data set and the settings that fit it.

    Attributes:
        table: Variants with labels, one row a variant.
        fasta: Reference window (bgzip, indexed); its record name carries the offset.
        annotation: GFF3.
        provenance: Source, licence, checksums, derivation.
        label: Column that holds the label.
        positive: Value of ``label`` that counts as positive.
        block: Column whose values are the blocks of the honest split.
        blocks: Those values in their fixed order; fold = place in this order modulo the number of folds.
    """

    table: Path
    fasta: Path
    annotation: Path
    provenance: Path
    label: str
    positive: str
    block: str
    blocks: tuple[str, ...]


def brca1() -> BundledVariants:
    """BRCA1 saturation genome editing: 3,893 single-nucleotide variants of 13 exons (GRCh37).

    Reference: Findlay et al. (2018), Nature 562, 217-222.
    """
    folder = Path(str(files("seqkit.data.bundled"))) / "brca1"
    return BundledVariants(
        table=folder / "findlay2018.tsv.gz",
        fasta=folder / "brca1_hg19.fa.gz",
        annotation=folder / "brca1_hg19.gff3",
        provenance=folder / "PROVENANCE.md",
        label="func.class",
        positive="LOF",
        block="experiment",
        blocks=("X2", "X3", "X4", "X5", *(f"X{i}" for i in range(15, 24))),
    )


@dataclass(frozen=True, kw_only=True)
class BundledGenome:
    """Paths of one bundled stretch of a genome.

    Attributes:
        fasta: bgzip FASTA, indexed; its record name carries the offset.
        provenance: Source, licence, checksums, derivation.
    """

    fasta: Path
    provenance: Path


def chr17() -> BundledGenome:
    """1,175,001 bases of human chromosome 17 (GRCh38) around BRCA1, none of them unknown."""
    folder = Path(str(files("seqkit.data.bundled"))) / "chr17"
    return BundledGenome(fasta=folder / "chr17_hg38.fa.gz", provenance=folder / "PROVENANCE.md")


@dataclass(frozen=True, kw_only=True)
class BundledSeries:
    """Paths of one bundled series.

    Attributes:
        table: CSV with columns ``timestamp`` and ``value``.
        provenance: Source, licence, checksum.
    """

    table: Path
    provenance: Path


def nyc_taxi() -> BundledSeries:
    """Taxi passengers in New York City by half-hour, July 2014 to January 2015: 10,320 rows.

    Reference: Ahmad et al. (2017), Neurocomputing 262, 134-147.
    """
    folder = Path(str(files("seqkit.data.bundled"))) / "nyc_taxi"
    return BundledSeries(table=folder / "nyc_taxi.csv.gz", provenance=folder / "PROVENANCE.md")
