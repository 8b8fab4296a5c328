"""Variant files read in chunks, so that memory does not grow with the file. Legend: N alleles of a chunk."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from seqkit.data.bgzip import BGZIP_END, cut_off, is_bgzip
from seqkit.data.selection import Regions
from seqkit.data.tables import TABLE_SUFFIXES, plain_suffix
from seqkit.data.variants import VCF_SUFFIXES, VariantTable
from seqkit.errors import InputError

_COPY_BYTES = 1 << 16


@dataclass(frozen=True)
class Chunk:
    """Records that follow each other in the input.

    Attributes:
        records: As the source gives them: a frame of text fields (VCF), lines, or one frame.
        table: Their alleles; ``row`` counts from the chunk's first record.
        first: Number of the first record among the chosen ones of the input, 0-based.
        size: Number of records.
    """

    records: Any
    table: VariantTable
    first: int
    size: int


class Source(Protocol):
    """A variant file that is read in chunks."""

    path: Path
    kind: str

    def chunks(self, size: int, *, start: int = 0, stop: int | None = None) -> Iterator[Chunk]:
        """Chunks of ``size`` records from record ``start`` to ``stop`` of the chosen ones."""

    def columns(self) -> list[str]:
        """Names that a feature may be read from."""


@contextlib.contextmanager
def left_alone() -> Iterator[None]:
    """Keep the garbage collector from walking over what is there already, again and again, while records are made."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def open_source(
    path: str, *, columns: dict[str, str] | None = None, regions: Regions | None = None, keep: tuple[str, ...] = ()
) -> Source:
    """Open variants for reading in chunks.

    Args:
        path: VCF, BCF, TSV, CSV or Parquet; ``-`` or a pipe for VCF, BCF or TSV.
        columns: Which column of a table holds contig, pos, ref, alt, id.
        regions: Only records whose POS lies inside.
        keep: Columns, or INFO keys as ``INFO/key``, that the chunk's table must hold.

    Raises:
        InputError: There is no such file, or it is of another kind.
    """
    from seqkit.data.table_stream import ParquetSource, TextSource
    from seqkit.data.vcf_stream import VcfSource

    stream = None
    place = Path(path)
    if path == "-" or (place.exists() and not place.is_file() and not place.is_dir()):
        stream = StreamedInput(sys.stdin.buffer if path == "-" else place.open("rb", buffering=0))
        suffix = ".vcf" if stream.is_vcf() else ".tsv"
        place = Path("standard input" if path == "-" else path)
    else:
        suffix = plain_suffix(place)
        if not place.is_file():
            got = "a folder" if place.is_dir() else "no such file"
            raise InputError(path, expected="a file of variants", got=got)
    if suffix in VCF_SUFFIXES:
        return VcfSource(place, stream=stream, regions=regions, keep=keep)
    if suffix in (".parquet", ".pq"):
        return ParquetSource(place, columns=columns, regions=regions)
    if suffix in TABLE_SUFFIXES:
        return TextSource(place, stream=stream, columns=columns, regions=regions)
    known = ", ".join((*TABLE_SUFFIXES, *VCF_SUFFIXES))
    raise InputError(path, expected=f"a name that ends in one of {known}, text also .gz", got=place.suffix or path)


class StreamedInput:
    """A pipe whose first bytes were looked at; :meth:`file` gives all of them, through a pipe of our own.

    Args:
        source: File that gives bytes; read to its end by a thread.
    """

    def __init__(self, source: BinaryIO):
        self._source = source
        self._head = source.read(_COPY_BYTES) or b""
        self._tail = b""
        if not self._head:
            raise InputError("standard input", expected="variants", got="no bytes at all")

    def is_vcf(self) -> bool:
        """True for VCF, plain or compressed, and BCF."""
        return self._head.startswith((b"##fileformat=VCF", b"BCF\2", b"\x1f\x8b", b"#CHROM\tPOS"))

    def file(self) -> BinaryIO:
        """A file to read everything from; it has a file descriptor, as htslib needs one."""
        readable, writable = os.pipe()
        threading.Thread(target=self._pump, args=(writable,), daemon=True).start()
        return os.fdopen(readable, "rb")

    def _pump(self, writable: int) -> None:
        data = self._head
        try:
            with os.fdopen(writable, "wb", buffering=0) as out:
                while data:
                    out.write(data)
                    self._tail = (self._tail + data)[-len(BGZIP_END) :]
                    data = self._source.read(_COPY_BYTES)
        except (BrokenPipeError, ValueError):  # the reader has gone; what it thought of the bytes, it says itself
            pass

    def check_end(self) -> None:
        """Raise where a bgzip stream stopped before its end."""
        if is_bgzip(self._head.ljust(18, b"\0")) and self._tail != BGZIP_END:
            raise cut_off("standard input")
