"""Scores beside the variants they belong to: as columns of a table, and where their VCF fields are named."""

from __future__ import annotations

import gzip
import re
from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl
import polars.selectors as cs

from seqkit.data.fasta import Fasta
from seqkit.data.stream import Chunk
from seqkit.data.variants import VariantTable

_BASES = re.compile(r"[ACGTUNRYSWKMBDHV]+")
_ALTERNATE = re.compile(r"[ACGTUNRYSWKMBDHV]+|\*|<[^<>,\s]+>|[^\s,]*[\[\]][^\s,]*")
ALLELE_COLUMNS = ("allele", "allele_alt")


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


class TextEncoder:
    """Rows with scores as TSV or CSV: one row an allele, the input's columns first.

    Where input and output are both tab-separated a row is the input's own bytes with columns added.

    Args:
        names: Columns of the input.
        scores: Columns of the scores.
        separator: Of the output.
        raw: Lines are given to :meth:`body` in place of a frame, with this end of line.
        head: Header line and remarks of the input, for ``raw``.
        compress: gzip every piece; the pieces follow each other in one file.
    """

    tail, index = b"", None

    def __init__(
        self, names: Sequence[str], scores: Sequence[str], *, separator: str, compress: bool, raw: bytes | None = None,
        head: bytes = b"",
    ):  # fmt: skip
        self.added = _new_names(names, (*ALLELE_COLUMNS, *scores))
        self.separator, self._raw, self._head, self._compress = separator, raw, head, compress
        self._names = list(names)

    def head(self) -> bytes:
        """Header line, with what stood before it."""
        if self._raw is not None:
            added = "\t".join(self.added).encode()
            return self._packed(self._head.rstrip(b"\r\n") + b"\t" + added + self._raw)
        empty = pl.DataFrame(schema=dict.fromkeys([*self._names, *self.added], pl.String))
        return self._packed(empty.write_csv(separator=self.separator).encode())

    def body(self, chunk: Chunk, scores: pl.DataFrame) -> bytes:
        """Bytes of a chunk."""
        if self._raw is None:
            frame = scored_frame(chunk.table, scores, self.added)
            return self._packed(frame.write_csv(separator=self.separator, include_header=False).encode())
        texts = (
            added_columns(chunk.table, scores)
            .write_csv(separator="\t", include_header=False, quote_style="never")
            .encode()
            .split(b"\n")
        )
        lines = [line.rstrip(b"\r\n") for line in chunk.records]
        rows = chunk.table.alleles["row"].to_list()
        return self._packed(b"".join([lines[r] + b"\t" + t + self._raw for r, t in zip(rows, texts, strict=False)]))

    def _packed(self, data: bytes) -> bytes:
        # No time stamp: the same scores give the same bytes.
        return gzip.compress(data, mtime=0) if self._compress and data else data


class FrameEncoder:
    """Rows with scores as frames, for Parquet.

    Args:
        names: Columns of the input.
        scores: Columns of the scores.
    """

    def __init__(self, names: Sequence[str], scores: Sequence[str]):
        self.added = _new_names(names, (*ALLELE_COLUMNS, *scores))

    def body(self, chunk: Chunk, scores: pl.DataFrame) -> pl.DataFrame:
        """The frame of a chunk."""
        return scored_frame(chunk.table, scores, self.added)


def added_columns(table: VariantTable, scores: pl.DataFrame) -> pl.DataFrame:
    """Number of the allele in its record (0-based), the alternate, and the scores with null for NaN."""
    alleles = table.alleles.select(pl.col("allele"), pl.col("alt").alias("allele_alt"))
    return alleles.hstack(scores.select(pl.all().name.prefix("score."))).with_columns(cs.float().fill_nan(None))


def scored_frame(table: VariantTable, scores: pl.DataFrame, names: Sequence[str]) -> pl.DataFrame:
    """One row an allele: input columns, then allele, alternate and scores under the given names."""
    # Only in a VCF does a list hold one value per alternate.
    if table.kind == "vcf":
        records = pl.DataFrame([table.column(name) for name in table.records.columns])
    else:
        records = table.records[table.alleles["row"].to_list()]
    added = added_columns(table, scores)
    return records.hstack(added.rename(dict(zip(added.columns, names, strict=True))))


def _new_names(taken: Sequence[str], names: Sequence[str]) -> list[str]:
    """Names of the added columns; one that the input has already gets the prefix ``seqkit.``."""
    out = []
    for name in names:
        while name in taken:
            name = f"seqkit.{name}"
        out.append(name)
    return out


def table_header(fasta: Fasta) -> list[str]:
    """Lines of a VCF header for a table scored against a reference."""
    lines = ["##fileformat=VCFv4.2", '##FILTER=<ID=PASS,Description="All filters passed">']
    lengths = fasta.lengths
    for name in fasta.contigs:
        whole = not any(piece.is_piece for piece in fasta.pieces(name))
        lines.append(f"##contig=<ID={name},length={lengths[name]}>" if whole else f"##contig=<ID={name}>")
    lines.append('##INFO=<ID=END,Number=1,Type=Integer,Description="Last position of the variant">')
    return [*lines, "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO"]


def vcf_fields(table: VariantTable, fasta: Fasta) -> tuple[pl.DataFrame, list[str]]:
    """Text fields of a table's rows as VCF records, and header lines for contigs the reference lacks.

    Alleles that no VCF may hold become ``N`` and ``<INVALID>``.
    """
    grouped = table.alleles.group_by("row", maintain_order=True).agg(
        pl.col("contig", "pos", "ref", "id").first(), pl.col("alt")
    )
    rows, unknown = [], {}
    for row in grouped.iter_rows(named=True):
        ref = row["ref"] if _BASES.fullmatch(row["ref"]) else "N"
        alts = [alt if _ALTERNATE.fullmatch(alt) else "<INVALID>" for alt in row["alt"] if alt != "."]
        contig = fasta.resolve(row["contig"])
        if contig is None:
            contig = re.sub(r"\s", "_", row["contig"])
            unknown[contig] = f"##contig=<ID={contig}>"
        identity = re.sub(r"[\s;]", "_", row["id"] or ".")
        rows.append((contig, str(row["pos"]), identity, ref, ",".join(alts) or ".", ".", ".", "."))
    columns = ("CHROM", "POS", "ID", "REF", "ALT", "QUAL", "FILTER", "INFO")
    frame = pl.DataFrame(rows, schema=dict.fromkeys(columns, pl.String), orient="row")
    return frame, list(unknown.values())
