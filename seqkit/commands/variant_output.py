"""Where predictions go: the encoder and the file that the names of input and output ask for."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from seqkit.data.fasta import Fasta
from seqkit.data.partial import Partial, PartialBytes, PartialParquet, StandardOutput
from seqkit.data.stream import Chunk, Source
from seqkit.data.tables import TABLE_SUFFIXES, plain_suffix
from seqkit.data.variants import VCF_SUFFIXES
from seqkit.data.vcf_writer import VcfEncoder, with_formats
from seqkit.data.writers import FrameEncoder, TextEncoder, score_fields, table_header, vcf_fields
from seqkit.errors import InputError

STDOUT = "-"


class VariantOutput:
    """Turns chunks with scores into the output's bytes and puts them where they belong.

    Args:
        out: File, or ``-`` for stdout: VCF text where the input is a VCF, else TSV.
        source: The input.
        columns: Names and types of the score columns.
        fasta: The reference; its contigs head a VCF made from a table.
        notes: Provenance for the header.
        prefix: Of the INFO keys.
        identity: What decides the output's bytes.
        resume: Go on where an earlier run stopped.
        formats: FORMAT fields of a sample: key, number, type, description.

    Raises:
        InputError: The suffix is unknown.
    """

    def __init__(
        self,
        out: str,
        source: Source,
        *,
        columns: Mapping[str, Any],
        fasta: Fasta,
        notes: Mapping[str, str],
        prefix: str,
        identity: Mapping[str, Any],
        resume: bool,
        formats: Sequence[tuple[str, str, str, str]] = (),
    ):
        self.source, self.fasta, self.notes, self.prefix = source, fasta, notes, prefix
        self.formats = formats
        self.scores = pl.DataFrame(schema=dict(columns))
        self.format = output_format(out, source)
        self.encoder: VcfEncoder | TextEncoder | FrameEncoder | None = None
        self.place: StandardOutput | PartialBytes | PartialParquet
        if out == STDOUT:
            self.place = StandardOutput()
        else:
            kind = PartialParquet if self.format == "parquet" else PartialBytes
            self.place = kind(Path(out), identity, resume=resume)
        self.head_bytes = self.place.progress.get("head_bytes")

    @property
    def progress(self) -> dict[str, Any]:
        """What the last saved piece was noted with."""
        return self.place.progress

    def write(
        self,
        chunk: Chunk,
        scores: pl.DataFrame,
        cells: Sequence[tuple[str, ...] | None] = (),
        sample: int | None = None,
    ) -> None:
        """Append a chunk.

        Args:
            chunk: Its records.
            scores: One row an allele.
            cells: Values of the FORMAT fields, one a record; None leaves the record's FORMAT alone.
            sample: Number of the sample they belong to.
        """
        if self.format == "parquet":
            self._ready()
            self.place.append(self.encoder.body(chunk, scores))
        elif isinstance(self._ready(), TextEncoder):
            self._begin()
            self.place.append(self.encoder.body(chunk, scores))
        else:
            fields, grown = self._vcf_fields(chunk)
            if sample is not None:
                fields = with_formats(fields, [f[0] for f in self.formats], cells, sample)
            self._ready()
            if self.encoder.grow(grown) and self.head_bytes is not None and isinstance(self.place, StandardOutput):
                raise InputError(
                    str(self.source.path), expected="a header that declares every contig, FILTER, INFO and FORMAT key",
                    got=f"the header on stdout without {grown[-1]}",
                    remedy="Name a file as --out, or declare it with bcftools annotate -h.",
                )  # fmt: skip
            self._begin()
            self.place.append(self.encoder.body(fields, chunk.table, scores))

    def save(self, **progress: Any) -> None:
        """Note how far the output has come."""
        self.place.save({**progress, "head_bytes": self.head_bytes})

    def finish(self) -> None:
        """Complete the output and give it its name."""
        encoder = self._ready()
        if isinstance(self.place, PartialParquet):
            if not self.place.progress.get("records"):
                self.place.append(_empty_frame(self.source, self.encoder, self.scores))
            self.place.finish(self.notes)
            return
        self._begin()
        self.place.finish(encoder.head(), self.head_bytes, encoder.tail, encoder.index)

    def discard(self) -> None:
        """Leave nothing behind."""
        self.place.discard()

    def _ready(self) -> VcfEncoder | TextEncoder | FrameEncoder:
        """The encoder; made with the first chunk, when a reader has seen what its header leaves out."""
        if self.encoder is None:
            self.encoder = self._make()
        return self.encoder

    def _make(self) -> VcfEncoder | TextEncoder | FrameEncoder:
        source, scores = self.source, self.scores.columns
        names = source.columns() if source.kind != "vcf" else source.frame_columns()
        if self.format == "parquet":
            if source.kind == "text":
                self.place.text_columns = tuple(names)
            return FrameEncoder(names, scores)
        if self.format in (".tsv", ".csv"):
            raw = source.kind == "text" and source.is_plain and self.format == ".tsv"
            return TextEncoder(
                names, scores, separator="," if self.format == ".csv" else "\t", compress=self._compressed,
                raw=source.end if raw else None, head=b"".join((*source.remarks, source.header)) if raw else b"",
            )  # fmt: skip
        header = source.header_lines if source.kind == "vcf" else table_header(self.fasta)
        return VcfEncoder(
            header,
            score_fields(self.scores),
            prefix=self.prefix,
            notes=self.notes,
            kind=self.format,
            formats=self.formats,
        )

    @property
    def _compressed(self) -> bool:
        return isinstance(self.place, Partial) and self.place.path.suffix.lower() in (".gz", ".bgz")

    def _begin(self) -> None:
        if self.head_bytes is None:
            head = self.encoder.head()
            self.place.append(head)
            self.head_bytes = len(head)

    def _vcf_fields(self, chunk: Chunk) -> tuple[pl.DataFrame, list[str]]:
        """Text fields of a chunk, and the header lines there are by now."""
        if self.source.kind == "vcf":
            return chunk.records, self.source.current_header()
        return vcf_fields(chunk.table, self.fasta)


def output_format(out: str, source: Source) -> str:
    """``vcf``, ``vcf.gz``, ``bcf``, ``.tsv``, ``.csv`` or ``parquet``, by suffix.

    Raises:
        InputError: None of them.
    """
    if out == STDOUT:
        return "vcf" if source.kind == "vcf" else ".tsv"
    suffix = plain_suffix(Path(out))
    compressed = Path(out).suffix.lower() in (".gz", ".bgz")
    if suffix in VCF_SUFFIXES:
        return "bcf" if suffix == ".bcf" else "vcf.gz" if compressed else "vcf"
    if suffix in (".parquet", ".pq"):
        return "parquet"
    if suffix in TABLE_SUFFIXES:
        return ".csv" if suffix == ".csv" else ".tsv"
    known = ", ".join((*TABLE_SUFFIXES, *VCF_SUFFIXES, ".vcf.gz"))
    raise InputError("--out", expected=f"- or a name that ends in one of {known}", got=out)


def _empty_frame(source: Source, encoder: FrameEncoder, scores: pl.DataFrame) -> pl.DataFrame:
    """No rows, with the columns and types that rows would have."""
    schema = source.frame_schema()
    added = {"allele": pl.Int64, "allele_alt": pl.String, **scores.schema}
    return pl.DataFrame(schema={**schema, **dict(zip(encoder.added, added.values(), strict=True))})


def say(line: str) -> None:
    """A line for people, on stderr."""
    print(line, file=sys.stderr)
