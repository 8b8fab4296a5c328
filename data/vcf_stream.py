"""VCF and BCF in chunks, read by pysam from files and pipes."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import polars as pl

from seqkit.data.bgzip import check_bgzip_end, is_gzip
from seqkit.data.selection import Regions
from seqkit.data.stream import Chunk, StreamedInput
from seqkit.data.variants import FIELDS, VariantTable, split_alternates
from seqkit.data.vcf import import_pysam, record_fields, record_schema
from seqkit.errors import InputError

log = logging.getLogger(__name__)

_INDEX_SLACK_S = 120
_CELLS = 4_000_000
_LONGEST_CONTIG = (1 << 31) - 1


TEXT_FIELDS = ("CHROM", "POS", "ID", "REF", "ALT", "QUAL", "FILTER", "INFO", "GENOTYPES")
"""Columns of a record's text; the last holds FORMAT and all samples, null where there are none."""


class VcfSource:
    """VCF, VCF.gz (bgzip or gzip) or BCF, from a file or a pipe.

    Args:
        path: The file, or a name for the pipe.
        stream: The pipe.
        regions: Only records whose POS lies inside; read through the index where a fresh one is there.
        keep: ``INFO/key`` columns the tables must hold.
        whole: Tables hold every fixed column and INFO key, for a table as output.
    """

    kind = "vcf"

    def __init__(
        self,
        path: Path,
        *,
        stream: StreamedInput | None = None,
        regions: Regions | None = None,
        keep: Sequence[str] = (),
        whole: bool = False,
    ):
        self.path, self.regions, self.keep, self.whole = path, regions, tuple(keep), whole
        self._stream, self._pipes = stream, []
        with self._errors():
            if stream is None:
                check_bgzip_end(path)
            with contextlib.nullcontext() if stream else path.open("rb") as head:
                self._plain_gzip = stream is None and is_gzip(head.read(18))
            self._first = self._open()
            self.header_lines = str(self._first.header).splitlines()
            self.contig_lengths = {name: entry.length for name, entry in self._first.header.contigs.items()}
            self._info = dict(self._first.header.info.items())
        if not self.header_lines or not self.header_lines[0].startswith("##fileformat"):
            raise InputError(str(path), expected="a VCF with a ##fileformat line", got=self.header_lines[:1])
        self._grown: tuple[int, list[str]] = -1, []
        self.samples = list(self._first.header.samples)

    def columns(self) -> list[str]:
        """INFO keys as ``INFO/key``."""
        return [f"INFO/{key}" for key in self._info]

    def frame_schema(self) -> dict[str, Any]:
        """Columns of the records as a table, one value an allele."""
        schema = record_schema(self._info)
        return {name: dtype.inner if isinstance(dtype, pl.List) else dtype for name, dtype in schema.items()}

    def frame_columns(self) -> list[str]:
        """Names of :meth:`frame_schema`."""
        return list(self.frame_schema())

    def current_header(self) -> list[str]:
        """Lines of the header without the last; those that htslib has made up while reading come at the end."""
        known = len(self.header.records)
        if known != self._grown[0]:
            self._grown = known, str(self.header).splitlines()[:-1]
        return self._grown[1]

    def count(self) -> int:
        """Number of chosen records."""
        return sum(1 for _ in self._records(self._open()))

    def chunk_records(self, size: int) -> int:
        """Records in a chunk: fewer where a record has many samples."""
        formats = max(1, sum(line.startswith("##FORMAT") for line in self.header_lines))
        return max(16, min(size, _CELLS // max(1, len(self.samples) * formats)))

    def chunks(self, size: int, *, start: int = 0, stop: int | None = None) -> Iterator[Chunk]:
        """See :class:`seqkit.data.stream.Source`; a pipe gives its chunks once."""
        with self._errors():
            handle = self._first if self._stream else self._open()
            self.header = handle.header
            records, first = islice(self._records(handle), start, stop), start
            while block := list(islice(records, size)):
                yield self._chunk(block, first)
                first += len(block)
            if self._stream:
                self._stream.check_end()

    def _chunk(self, records: list, first: int) -> Chunk:
        lines = pl.Series("line", [str(record)[:-1] for record in records])
        fields = lines.str.splitn("\t", len(TEXT_FIELDS)).struct.rename_fields(TEXT_FIELDS).struct.unnest()
        names = dict(zip(FIELDS, ("CHROM", "POS", "REF", "ALT", "ID"), strict=True))
        table = VariantTable(alleles_of(fields), self._frame(records), self.path, "vcf", names)
        return Chunk(fields, table, first, len(records))

    def _frame(self, records: list) -> pl.DataFrame:
        """Fixed columns and INFO, as far as they are wanted."""
        schema = record_schema(self._info)
        if self.whole:
            return pl.DataFrame([record_fields(r, self._info) for r in records], schema=schema, strict=False)
        columns = {name: [_info_value(r, name[5:], self._info) for r in records] for name in self.keep}
        chosen = {name: schema[name] for name in self.keep}
        return pl.DataFrame(columns, schema=chosen, strict=False)

    def _open(self):
        """The file for pysam; plain gzip, in which it cannot seek, goes through a pipe."""
        source = str(self.path)
        if self._stream or self._plain_gzip:
            stream = self._stream or StreamedInput(self.path.open("rb"))
            self._pipes.append(source := stream.file())
        return import_pysam().VariantFile(source)

    def _records(self, handle) -> Iterator[Any]:
        """The chosen records, in file order."""
        if self.regions is None:
            return iter(handle)
        if self._stream is None and not self._plain_gzip and has_fresh_index(self.path):
            return self._fetched(handle)
        return (record for record in handle if self.regions.keeps(record.contig, record.start))

    def _fetched(self, handle) -> Iterator[Any]:
        for contig in handle.header.contigs:
            for start, end in self.regions.spans(contig):
                for record in handle.fetch(contig, start, min(end, _LONGEST_CONTIG)):
                    if start <= record.start < end:  # not what only reaches into the region
                        yield record

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        pysam = import_pysam()
        verbosity = pysam.set_verbosity(0)  # htslib's own lines on stderr say less than ours
        try:
            yield
        except InputError:
            raise
        except UnicodeDecodeError as error:
            raise InputError(
                str(self.path), expected="UTF-8 text, as VCF asks for", got=f"byte {error.object[error.start]:#x}",
                remedy="Convert it: iconv -f latin1 -t utf-8.",
            ) from error  # fmt: skip
        except (OSError, ValueError, EOFError) as error:
            if isinstance(error, OSError) and error.filename and Path(str(error.filename)) != self.path:
                raise
            raise InputError(
                str(self.path),
                expected="a complete VCF or BCF",
                got=f"{type(error).__name__}: {error}",
                remedy="Check it with bcftools view, and write it again.",
            ) from error
        finally:
            pysam.set_verbosity(verbosity)


def has_fresh_index(path: Path) -> bool:
    """True where a .csi or .tbi lies beside the file and is not older; an old one is named in a warning."""
    found = [Path(f"{path}{suffix}") for suffix in (".csi", ".tbi") if Path(f"{path}{suffix}").is_file()]
    if not found:
        log.warning("%s has no index: its records are read one by one to find the regions", path.name)
        return False
    # htslib takes the .csi first, so an old one beside a new .tbi would still be used.
    stale = [index for index in found if index.stat().st_mtime < path.stat().st_mtime - _INDEX_SLACK_S]
    if stale:
        log.warning("%s is older than %s and is not used; tabix -f makes a new one", stale[0].name, path.name)
    return not stale


def _info_value(record, key: str, info: Mapping[str, Any]) -> Any:
    value = record.info.get(key)
    if value is None:
        return None
    if info[key].number == "A":
        return list(value)
    return ",".join("." if v is None else str(v) for v in value) if isinstance(value, tuple) else value


def alleles_of(fields: pl.DataFrame) -> pl.DataFrame:
    """Columns of :attr:`VariantTable.alleles` from the text fields of records; ``.`` where there is no alternate."""
    alleles = fields.select(
        pl.int_range(pl.len(), dtype=pl.Int64).alias("row"),
        pl.lit(0, dtype=pl.Int64).alias("allele"),
        pl.col("CHROM").alias("contig"),
        pl.col("POS").cast(pl.Int64).alias("pos"),
        pl.col("REF").str.to_uppercase().alias("ref"),
        pl.col("ALT").str.to_uppercase().alias("alt"),
        pl.col("ID").alias("id"),
    )
    if not alleles["alt"].str.contains(",", literal=True).any():
        return alleles
    return split_alternates(alleles)
