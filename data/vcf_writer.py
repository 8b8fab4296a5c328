"""VCF, VCF.gz and BCF with scores: pysam reads and compresses, scores enter the text of INFO, nothing else changes.

Records go out as the text htslib formats, with our keys put behind the other INFO keys. Setting INFO through pysam
instead would write END into every record with a symbolic alternate.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from seqkit.data.bgzip import BGZIP_END
from seqkit.data.variants import VariantTable
from seqkit.data.vcf import import_pysam
from seqkit.data.writers import ScoreField


class VcfEncoder:
    """Records with scores as the bytes of a VCF, VCF.gz or BCF.

    Args:
        header: Lines of the header, the ``#CHROM`` line last.
        fields: Scores that enter INFO.
        prefix: Of the INFO keys.
        notes: Written as the ``##seqkit`` line.
        kind: ``vcf``, ``vcf.gz`` or ``bcf``.
        formats: FORMAT fields: key, number, type, description.
    """

    def __init__(
        self,
        header: Sequence[str],
        fields: Sequence[ScoreField],
        *,
        prefix: str,
        notes: Mapping[str, str],
        kind: str,
        formats: Sequence[tuple[str, str, str, str]] = (),
    ):
        self.kind = kind
        self.fields = [(field.column, f"{prefix}{field.suffix}", field.kind == "Float") for field in fields]
        ours = {key for _, key, _ in self.fields}
        before = list(header[:-1])
        self.stale = {key for key in ours if any(_declares(line, "INFO", key) for line in before)}
        stale_formats = {f[0] for f in formats}
        kept = [
            line
            for line in before
            if not any(_declares(line, "INFO", key) for key in self.stale)
            and not any(_declares(line, "FORMAT", key) for key in stale_formats)
        ]
        self.lines = kept + [
            f'##INFO=<ID={key},Number=A,Type={field.kind},Description="{field.description}">'
            for field, (_, key, _) in zip(fields, self.fields, strict=True)
        ]
        self.lines += [f'##FORMAT=<ID={k},Number={n},Type={t},Description="{d}">' for k, n, t, d in formats]
        self.formats = [f[0] for f in formats]
        text = "; ".join(f"{key}={value}" for key, value in notes.items())
        self.lines.append("##seqkit=" + " ".join(text.split()))
        self.columns_line = header[-1]
        self._known = set(header)

    def grow(self, header: Sequence[str]) -> bool:
        """Add lines the reader has made up for what its file does not declare; True where there were some."""
        fresh = [line for line in header if line not in self._known]
        self.lines += fresh
        self._known.update(fresh)
        return bool(fresh)

    def head(self) -> bytes:
        """The header as the output begins with it."""
        text = ("\n".join((*self.lines, self.columns_line)) + "\n").encode()
        if self.kind == "vcf":
            return text
        return self._bgzip(text) if self.kind == "vcf.gz" else self._bcf(text)[: -len(BGZIP_END)]

    @property
    def tail(self) -> bytes:
        """The last bytes of a complete output."""
        return b"" if self.kind == "vcf" else BGZIP_END

    @property
    def index(self) -> str | None:
        """Kind of the index the output can have."""
        return {"vcf": None, "vcf.gz": "vcf", "bcf": "bcf"}[self.kind]

    def body(self, fields: pl.DataFrame, table: VariantTable, scores: pl.DataFrame) -> bytes:
        """Bytes of a chunk.

        Args:
            fields: Text fields of the records, see :data:`seqkit.data.vcf_stream.TEXT_FIELDS`.
            table: Their alleles.
            scores: One row an allele, with the columns of the fields.
        """
        text = self.annotated(fields, table, scores).str.join("\n").item().encode() + b"\n"
        if self.kind == "vcf":
            return text
        if self.kind == "vcf.gz":
            return self._bgzip(text)
        head = ("\n".join((*self.lines, self.columns_line)) + "\n").encode()
        return self._bcf(head + text)[len(self._bcf(head)) - len(BGZIP_END) : -len(BGZIP_END)]

    def annotated(self, fields: pl.DataFrame, table: VariantTable, scores: pl.DataFrame) -> pl.Series:
        """Lines with our INFO keys behind the others; a record without an alternate gets none."""
        texts = scores.select(
            _number_text(column).alias(key) if is_float else pl.col(column).fill_null(".").alias(key)
            for column, key, is_float in self.fields
        )
        keys = texts.columns
        texts = texts.with_columns(table.alleles["row"], (table.alleles["alt"] != ".").alias("\0alt"))
        if texts.height != fields.height:
            texts = texts.group_by("row", maintain_order=True).agg(pl.col(keys).str.join(","), pl.col("\0alt").first())
        added = pl.concat_str([part for key in keys for part in (pl.lit(f";{key}="), pl.col(key))]).str.slice(1)
        added = texts.select(pl.when("\0alt").then(added).alias("\0added"))
        info = pl.col("INFO")
        if self.stale:
            info = pl.Series("INFO", [self._without_stale(text) for text in fields["INFO"].to_list()])
            fields, info = fields.with_columns(info), pl.col("INFO")
        joined = (
            pl.when(pl.col("\0added").is_null()).then(info)
            .when(info == ".").then(pl.col("\0added"))
            .otherwise(pl.concat_str(info, pl.lit(";"), "\0added"))
        )  # fmt: skip
        fields = fields.hstack(added).with_columns(joined.alias("INFO")).drop("\0added")
        return fields.select(pl.concat_str(pl.all(), separator="\t", ignore_nulls=True))["CHROM"]

    def _without_stale(self, info: str) -> str:
        return ";".join(item for item in info.split(";") if item.partition("=")[0] not in self.stale) or "."

    def _bgzip(self, text: bytes) -> bytes:
        with _scratch() as (path, read):
            with import_pysam().BGZFile(path, "wb") as out:
                out.write(text)
            return read()[: -len(BGZIP_END)]

    def _bcf(self, text: bytes) -> bytes:
        # Not pysam's VariantFile: it writes END into records with a symbolic alternate.
        import_pysam()
        from pysam import bcftools

        with _scratch() as (source, _), _scratch() as (target, read):
            Path(source).write_bytes(text)
            bcftools.view("--no-version", "-Ob", "-o", target, source, catch_stdout=False)
            return read()


@contextlib.contextmanager
def _scratch() -> Iterator[tuple[str, Any]]:
    """Path of a file for one chunk, in memory where the system has such, and a function that reads it."""
    if hasattr(os, "memfd_create"):
        handle = os.memfd_create("seqkit")
        path = f"/proc/self/fd/{handle}"
        try:
            yield path, Path(path).read_bytes
        finally:
            os.close(handle)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "chunk"
        yield str(path), path.read_bytes


def _declares(line: str, kind: str, key: str) -> bool:
    return line.startswith((f"##{kind}=<ID={key},", f"##{kind}=<ID={key}>"))


def _number_text(column: str) -> pl.Expr:
    """Six significant digits, as htslib keeps; a dot where there is no value."""
    return pl.col(column).fill_nan(None).round_sig_figs(6).cast(pl.String).fill_null(".")


def with_formats(
    fields: pl.DataFrame, keys: Sequence[str], cells: Sequence[tuple[str, ...] | None], sample: int
) -> pl.DataFrame:
    """Text fields with FORMAT values added to one sample; other samples end before them, which stands for missing.

    Args:
        fields: Text fields of the records.
        keys: FORMAT keys.
        cells: Their values, one a record; None leaves the record as it is.
        sample: 0-based.
    """
    texts = []
    for text, values in zip(fields["GENOTYPES"].to_list(), cells, strict=True):
        if values is not None:
            form, *samples = text.split("\t")
            names = form.split(":")
            own = dict(zip(names, samples[sample].split(":"), strict=False)) | dict(zip(keys, values, strict=True))
            names += [key for key in keys if key not in names]
            samples[sample] = ":".join(own.get(name, ".") for name in names)
            text = "\t".join((":".join(names), *samples))
        texts.append(text)
    return fields.with_columns(pl.Series("GENOTYPES", texts, dtype=pl.String))
