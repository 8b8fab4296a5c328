"""Variant tables and VCF as one frame with a row per alternate allele, beside the untouched input records."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from seqkit.data.genome import build_in_text
from seqkit.data.tables import missing_column, plain_suffix, read_table
from seqkit.errors import InputError

VCF_SUFFIXES = (".vcf", ".bcf")
FIELDS = ("contig", "pos", "ref", "alt", "id")

_GUESSES = {
    "contig": {"chromosome", "chrom", "chr", "contig", "seqname", "seqnames", "seqid", "chrname"},
    "pos": {"position", "pos", "bp", "genomicposition", "chrpos", "startposition", "basepairposition"},
    "ref": {"reference", "ref", "referenceallele", "refallele", "refbase", "referencebase"},
    "alt": {"alternate", "alt", "alternative", "alternateallele", "alternativeallele", "altallele", "altbase", "mutant",
            "tumorseqallele2"},
    "id": {"id", "variantid", "rsid", "rs", "snp", "dbsnp", "variantname"},
}  # fmt: skip


@dataclass(frozen=True)
class VariantTable:
    """Variants as they came, and one row per alternate allele.

    Attributes:
        alleles: Columns ``row`` (0-based input record), ``allele`` (0-based among the record's alternates), ``contig``
            (as written), ``pos`` (1-based), ``ref``, ``alt`` (upper case), ``id``. In input order.
        records: The input records, one a row, every column as it was. For a VCF: CHROM, POS, ID, REF, ALT, QUAL,
            FILTER and ``INFO/<key>``.
        path: Where they came from; None for a frame.
        kind: ``table`` or ``vcf``.
        column_map: Which input column was taken for contig, pos, ref, alt, id.
    """

    alleles: pl.DataFrame
    records: pl.DataFrame
    path: Path | None = None
    kind: str = "table"
    column_map: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.alleles.height

    @property
    def build_hint(self) -> str | None:
        """Assembly that the position column's name mentions (``position (hg19)``), or None."""
        return build_in_text(self.column_map.get("pos", ""))

    def column(self, name: str, argument: str = "column") -> pl.Series:
        """An input column with one value per allele.

        A list column (a VCF field with one value per allele) gives each allele its own value.

        Raises:
            InputError: There is no such column; names the nearest.
        """
        if name not in self.records.columns:
            raise missing_column(name, self.records.columns, argument)
        values = self.records[name].gather(self.alleles["row"])
        if not isinstance(values.dtype, pl.List):
            return values
        frame = pl.DataFrame({"v": values, "a": self.alleles["allele"]})
        return frame.select(pl.col("v").list.get(pl.col("a"), null_on_oob=True).alias(name))[name]

    def take(self, indices) -> VariantTable:
        """The table with only these alleles (rows of ``alleles``); the input records stay complete."""
        return VariantTable(self.alleles[indices], self.records, self.path, self.kind, self.column_map)


def read_variants(source: str | Path | pl.DataFrame, *, columns: Mapping[str, str] | None = None) -> VariantTable:
    """Read variants from TSV, CSV, Parquet, VCF, BCF or a frame.

    Args:
        source: Path (``.gz`` allowed for text), or a polars frame.
        columns: Which column holds ``contig``, ``pos`` (1-based), ``ref``, ``alt``, ``id``. Whatever it leaves out is
            guessed from common names.

    Returns:
        The table; records with several alternates (``A,T``) have one row per allele.

    Raises:
        InputError: A file cannot be read, a column is missing or ambiguous, or a position is no number.
    """
    if isinstance(source, pl.DataFrame):
        return table_of_frame(source, columns, None)
    path = Path(source)
    if plain_suffix(path) in VCF_SUFFIXES:
        from seqkit.data.vcf import read_vcf

        alleles, records = read_vcf(path)
        names = dict(zip(FIELDS, ("CHROM", "POS", "REF", "ALT", "ID"), strict=True))
        return VariantTable(alleles, records, path, "vcf", names)
    return table_of_frame(read_table(path), columns, path)


def table_of_frame(
    frame: pl.DataFrame, columns: Mapping[str, str] | None, path: Path | None, *, first_row: int = 1
) -> VariantTable:
    """A frame with one row a record as a table; see :func:`read_variants`.

    Args:
        frame: The records.
        columns: Which column holds contig, pos, ref, alt, id.
        path: Where they came from.
        first_row: Number of the frame's first row in the file, for messages.
    """
    names = column_map(frame.columns, columns)
    label = str(path) if path else "variants"
    if frame.is_empty():
        raise InputError(label, expected="at least one variant", got="a header without rows")
    text = {key: pl.col(names[key]).cast(pl.String).str.strip_chars() for key in ("contig", "ref", "alt")}
    number = pl.col(names["pos"])
    if frame.schema[names["pos"]] == pl.String:
        number = number.str.replace_all(r"[,\s]", "")
    identity = pl.col(names["id"]).cast(pl.String) if "id" in names else pl.lit(None, dtype=pl.String)
    alleles = frame.select(
        pl.int_range(pl.len(), dtype=pl.Int64).alias("row"),
        text["contig"].alias("contig"),
        number.cast(pl.Int64, strict=False).alias("pos"),
        text["ref"].str.to_uppercase().alias("ref"),
        text["alt"].str.to_uppercase().alias("alt"),
        identity.alias("id"),
    )
    bad = alleles.filter(pl.any_horizontal(pl.col("contig", "pos", "ref").is_null()) | (pl.col("pos") < 1))
    if bad.height:
        raise InputError(
            label,
            expected=f"contig, 1-based position and reference in {[names[k] for k in ('contig', 'pos', 'ref')]}",
            got=f"{bad.height} rows without, first in row {bad['row'][0] + first_row} after the header",
        )
    return VariantTable(split_alternates(alleles), frame, path, "table", names)


def split_alternates(alleles: pl.DataFrame) -> pl.DataFrame:
    """One row per alternate of the comma-separated column ``alt``; a missing alternate becomes ``.``."""
    split = alleles.with_columns(pl.col("alt").fill_null(".").str.split(","))
    split = split.with_columns(pl.int_ranges(pl.col("alt").list.len()).alias("allele"))
    split = split.explode("alt", "allele").with_columns(pl.col("alt").str.strip_chars())
    return split.select("row", "allele", "contig", "pos", "ref", "alt", "id")


def column_map(present: list[str], given: Mapping[str, str] | None = None) -> dict[str, str]:
    """Find the columns for contig, pos, ref, alt and (if any) id.

    Names are compared without case, punctuation and remarks in brackets; a build name such as hg19 is ignored.

    Raises:
        InputError: A given name is absent, a needed column is not found, or several fit equally well.
    """
    given = dict(given or {})
    for key, name in given.items():
        if key not in FIELDS:
            raise InputError("columns", expected=f"keys among {', '.join(FIELDS)}", got=repr(key))
        if name not in present:
            raise missing_column(name, present, f"columns.{key}")
    found = dict(given)
    for key in FIELDS:
        if key in found:
            continue
        fits = [name for name in present if _bare(name) in _GUESSES[key]]
        if len(fits) > 1:
            raise InputError(
                f"columns.{key}",
                expected="one column",
                got=f"several that fit: {', '.join(map(repr, fits))}",
                remedy=f"Say which, e.g. --columns '{key}={fits[0]}'.",
            )
        if fits:
            found[key] = fits[0]
        elif key != "id":
            raise missing_column(key, present, f"columns.{key}")
    return found


def _bare(name: str) -> str:
    name = re.sub(r"\(.*?\)|\[.*?\]", "", name.lower())
    return re.sub(r"(hg19|hg38|grch37|grch38|mm10|mm39|t2t)", "", re.sub(r"[^a-z0-9]", "", name))
