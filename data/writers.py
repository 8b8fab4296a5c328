"""Scores to tables and to VCF; a file has its final name only when it is complete."""

from __future__ import annotations

import gzip
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import polars.selectors as cs

import seqkit
from seqkit.data.fasta import Fasta
from seqkit.data.tables import TABLE_SUFFIXES, plain_suffix
from seqkit.data.variants import VCF_SUFFIXES, VariantTable
from seqkit.data.vcf import declared, import_pysam, open_vcf
from seqkit.errors import InputError
from seqkit.files import atomic

_BASES = re.compile(r"[ACGTUNRYSWKMBDHV]+")
_ALTERNATE = re.compile(r"[ACGTUNRYSWKMBDHV]+|\*|<[^<>,\s]+>|[^\s,]*[\[\]][^\s,]*")
_MODES = {".vcf": "w", ".vcf.gz": "wz", ".bcf": "wb"}


@dataclass(frozen=True)
class ScoreField:
    """One score column and its place in a VCF's INFO.

    Attributes:
        column: Column of the scores frame.
        suffix: INFO key after the prefix.
        kind: VCF type, ``Float`` or ``String``.
        description: Text of the header line.
    """

    column: str
    suffix: str
    kind: str
    description: str


SCORE_FIELDS = (
    ScoreField("prob", "PROB", "Float", "Calibrated probability of the positive class"),
    ScoreField("llr", "LLR", "Float", "log P(alternate) - log P(reference)"),
    ScoreField("fwd", "FWD", "Float", "Probability from the plus strand; . where that strand was not read"),
    ScoreField("rc", "RC", "Float", "Probability from the minus strand; . where that strand was not read"),
    ScoreField("status", "STAT", "String", "OK or EDGE where scored, else the reason why not"),
)


def write_scores(
    table: VariantTable,
    scores: pl.DataFrame,
    path: str | Path,
    *,
    fasta: Fasta | None = None,
    provenance: Mapping[str, str] | None = None,
    prefix: str = "SK",
) -> None:
    """Write scores beside their variants; the suffix of ``path`` decides the format.

    TSV, CSV (also .gz) and Parquet have one row an allele in input order: the input's columns as they were, ``allele``
    and ``allele_alt`` where a record has several, then the columns of ``scores``. VCF, VCF.gz and BCF have the input's
    records, none dropped or moved, with typed INFO fields of one value per alternate (``.`` where unscored). A table
    given as input becomes a VCF whose contigs are those of ``fasta``.

    Args:
        table: What was scored.
        scores: One row an allele: any of ``prob``, ``llr``, ``fwd``, ``rc`` (float, null or NaN where unscored) and
            ``status``; further float columns are named after themselves.
        path: Output file.
        fasta: The reference; needed for a VCF from a table.
        provenance: Written into the VCF header and the Parquet metadata, beside the tool's version.
        prefix: Of the INFO keys.

    Raises:
        InputError: The suffix is unknown, the rows do not match, or the input cannot be read again.
    """
    path = Path(path)
    if scores.height != len(table):
        raise InputError("scores", expected=f"{len(table)} rows, one an allele", got=str(scores.height))
    notes = {"seqkit_version": seqkit.__version__, **(provenance or {})}
    suffix = plain_suffix(path)
    if suffix in VCF_SUFFIXES:
        _write_vcf(table, scores, path, fasta, notes, prefix)
    elif suffix in TABLE_SUFFIXES:
        write_table(scored_frame(table, scores), path, metadata=notes)
    else:
        known = ", ".join((*TABLE_SUFFIXES, *VCF_SUFFIXES, ".vcf.gz"))
        raise InputError("out", expected=f"a name that ends in one of {known}", got=path.name)


def scored_frame(table: VariantTable, scores: pl.DataFrame) -> pl.DataFrame:
    """One row an allele: input columns, allele columns where records have several alternates, scores.

    A score column that has the name of an input column gets the prefix ``seqkit.``; the input keeps its own.
    """
    records = pl.DataFrame([table.column(name) for name in table.records.columns])
    if table.alleles["allele"].max():
        records = records.with_columns(
            table.alleles["allele"].alias("allele"), table.alleles["alt"].alias("allele_alt")
        )
    scores = scores.with_columns(cs.float().fill_nan(None))
    renamed = {name: f"seqkit.{name}" for name in scores.columns if name in records.columns}
    return records.hstack(scores.rename(renamed))


def write_table(frame: pl.DataFrame, path: str | Path, *, metadata: Mapping[str, str] | None = None) -> None:
    """Write TSV, CSV (``.gz`` compresses) or Parquet by suffix; text has no room for ``metadata``."""
    path, suffix = Path(path), plain_suffix(Path(path))
    with atomic(path) as partial:
        if suffix in (".parquet", ".pq"):
            frame.write_parquet(partial, metadata=dict(metadata or {}))
            return
        separator = "," if suffix == ".csv" else "\t"
        if path.suffix.lower() in (".gz", ".bgz"):
            # No time stamp: the same scores give the same bytes.
            with partial.open("wb") as raw, gzip.GzipFile(fileobj=raw, mode="wb", filename="", mtime=0) as out:
                out.write(frame.write_csv(separator=separator).encode())
        else:
            frame.write_csv(partial, separator=separator)


def score_fields(scores: pl.DataFrame) -> list[ScoreField]:
    """INFO fields of a scores frame: the known ones, then one per further float column, named after it."""
    known = {field.column: field for field in SCORE_FIELDS}
    fields = []
    for name, dtype in scores.schema.items():
        if name in known:
            fields.append(known[name])
        elif dtype.is_float():
            key = re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_").upper()
            fields.append(ScoreField(name, key, "Float", f"Predicted {name}"))
    return fields


def _write_vcf(
    table: VariantTable, scores: pl.DataFrame, path: Path, fasta: Fasta | None, notes: Mapping[str, str], prefix: str
) -> None:
    pysam = import_pysam()
    fields = score_fields(scores)
    values = {field.column: scores[field.column].to_list() for field in fields}
    mode = _MODES[plain_suffix(path) + (".gz" if path.suffix.lower() == ".gz" else "")]
    with atomic(path) as partial:
        if table.kind == "vcf":
            with declared(table.path) as complete, open_vcf(complete) as source:
                header = _without(source.header, {f"{prefix}{field.suffix}" for field in fields})
                _declare(header, table, fields, notes, prefix)
                with pysam.VariantFile(str(partial), mode, header=header) as out:
                    _annotate(source, out, fields, values, prefix)
        else:
            header = _header(table, fasta)
            _declare(header, table, fields, notes, prefix)
            with pysam.VariantFile(str(partial), mode, header=header) as out:
                _annotate(_records(table, fasta, header), out, fields, values, prefix)
    if mode != "w" and _is_sorted(table):
        preset = "bcf" if mode == "wb" else "vcf"
        pysam.tabix_index(str(path), preset=preset, force=True, csi=True)


def _declare(header, table: VariantTable, fields: list[ScoreField], notes: Mapping[str, str], prefix: str) -> None:
    for field in fields:
        key = f"{prefix}{field.suffix}"
        header.add_line(f'##INFO=<ID={key},Number=A,Type={field.kind},Description="{field.description}">')
    # pysam writes END into every record with a symbolic alternate that it changes.
    if "END" not in header.info and table.alleles["alt"].str.starts_with("<").any():
        header.add_line('##INFO=<ID=END,Number=1,Type=Integer,Description="Last position of the variant">')
    text = "; ".join(f"{key}={value}" for key, value in notes.items()).replace("\n", " ")
    header.add_line(f"##seqkit={text}")


def _without(header, keys: set[str]):
    """The header itself, or a copy without INFO keys that an earlier run declared, perhaps with another type."""
    if not keys.intersection(header.info):
        return header
    copy = import_pysam().VariantHeader()
    for line in header.records:
        if not (line.key == "INFO" and line.get("ID") in keys):
            copy.add_record(line)
    copy.add_samples(*header.samples)
    return copy


def _annotate(records, out, fields: list[ScoreField], values: dict[str, list], prefix: str) -> None:
    allele = 0
    keys = {f"{prefix}{field.suffix}" for field in fields}
    for record in records:
        count = len(record.alts or ())
        for key in keys.intersection(record.info):
            del record.info[key]
        if record.header is not out.header:
            record.translate(out.header)
        for field in fields:
            key = f"{prefix}{field.suffix}"
            if count:
                # Unscored alleles keep their place as a dot, even where no allele of the record has a score.
                record.info[key] = tuple(_present(value) for value in values[field.column][allele : allele + count])
        # A record without an alternate counts as one allele in the table.
        allele += max(count, 1)
        out.write(record)


def _present(value: float | str | None) -> float | str | None:
    return None if value is None or value != value else value


def _header(table: VariantTable, fasta: Fasta | None):
    if fasta is None:
        raise InputError("fasta", expected="the reference, whose contigs the VCF header needs", got="none")
    header = import_pysam().VariantHeader()
    ends = fasta.lengths
    for name in fasta.contigs:
        whole = not any(piece.is_piece for piece in fasta.pieces(name))
        header.contigs.add(name, length=ends[name] if whole else None)
    for name in table.alleles["contig"].unique(maintain_order=True).to_list():
        if fasta.resolve(name) is None:
            header.contigs.add(name)
    return header


def _records(table: VariantTable, fasta: Fasta, header):
    """VCF records of a table's rows, in their order; alleles that no VCF may hold become ``N`` and ``<INVALID>``."""
    grouped = table.alleles.group_by("row", maintain_order=True).agg(
        pl.col("contig", "pos", "ref", "id").first(), pl.col("alt")
    )
    for row in grouped.iter_rows(named=True):
        ref = row["ref"] if _BASES.fullmatch(row["ref"]) else "N"
        alts = [alt if _ALTERNATE.fullmatch(alt) else "<INVALID>" for alt in row["alt"] if alt != "."]
        yield header.new_record(
            contig=fasta.resolve(row["contig"]) or row["contig"],
            start=row["pos"] - 1,
            alleles=(ref, *alts),
            id=row["id"],
        )


def _is_sorted(table: VariantTable) -> bool:
    """True where an index can exist: every contig in one run, positions ascending within it."""
    frame = table.alleles.select("contig", "pos", pl.col("contig").rle_id().alias("run"))
    if frame["run"].n_unique() != frame["contig"].n_unique():
        return False
    return bool(frame.select((pl.col("pos").diff().fill_null(0) >= 0).over("run").all()).item())
