"""TSV, CSV and Parquet in chunks."""

from __future__ import annotations

import csv
import gzip
import io
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

import polars as pl

from seqkit.data.bgzip import check_bgzip_end
from seqkit.data.selection import Regions
from seqkit.data.stream import Chunk, StreamedInput
from seqkit.data.tables import MISSING, plain_suffix, separator_of
from seqkit.data.variants import column_map, table_of_frame
from seqkit.errors import InputError

_SLAB_ROWS = 1 << 17
_READ_ERRORS = (OSError, EOFError, zlib.error, csv.Error)


class TextSource:
    """TSV or CSV, plain, gzip or bgzip, from a file or a pipe. Lines that start with ``##`` come first and are kept.

    Args:
        path: The file, or a name for the pipe.
        stream: The pipe.
        columns: Which column holds contig, pos, ref, alt, id.
        regions: Only rows whose position lies inside.
    """

    kind = "text"

    def __init__(
        self,
        path: Path,
        *,
        stream: StreamedInput | None = None,
        columns: Mapping[str, str] | None = None,
        regions: Regions | None = None,
    ):
        self.path, self.regions, self._given = path, regions, columns
        self._stream = stream
        if stream is None:
            check_bgzip_end(path)
        with _readable(path):
            self._lines = self._open()
            self.remarks: list[bytes] = []
            header = next(self._lines, b"")
            while header.startswith(b"##"):
                self.remarks.append(header)
                header = next(self._lines, b"")
        if not header.strip():
            raise InputError(str(path), expected="a table with a header line", got="an empty file")
        self.header = header
        self.end = b"\r\n" if header.endswith(b"\r\n") else b"\n"
        self.separator = separator_of(header, plain_suffix(path) if stream is None else ".tsv")
        self.names = self._split(header.removeprefix(b"\xef\xbb\xbf"))
        self.map = column_map(self.names, columns)

    @property
    def is_plain(self) -> bool:
        """True where a row is a line: nothing is quoted."""
        return self.separator == "\t"

    def columns(self) -> list[str]:
        """Names of the columns."""
        return _unique(self.names)

    def frame_schema(self) -> dict[str, pl.DataType]:
        """Columns with their types."""
        return dict.fromkeys(_unique(self.names), pl.String)

    def count(self) -> int:
        """Number of chosen rows."""
        return sum(chunk.size for chunk in self.chunks(_SLAB_ROWS))

    def chunk_records(self, size: int) -> int:
        """Records in a chunk."""
        return size

    def chunks(self, size: int, *, start: int = 0, stop: int | None = None) -> Iterator[Chunk]:
        """See :class:`seqkit.data.stream.Source`; a pipe gives its chunks once. ``records`` are lines."""
        lines = self._lines
        if self._stream is None:
            lines = islice(self._open(), 1 + len(self.remarks), None)
        with _readable(self.path):
            rows = enumerate(self._rows(lines), start=1)
            if self.regions is not None:
                rows = self._chosen(rows)
            rows = islice(rows, start, stop)
            first = start
            while block := list(islice(rows, size)):
                yield self._chunk(block, first)
                first += len(block)
            if self._stream:
                self._stream.check_end()

    def _open(self) -> Iterator[bytes]:
        raw = self.path.open("rb") if self._stream is None else self._stream.file()
        head = raw.peek(2)[:2]
        return iter(gzip.GzipFile(fileobj=raw) if head == b"\x1f\x8b" else raw)

    def _rows(self, lines: Iterator[bytes]) -> Iterator[bytes]:
        """Rows as bytes; those of a CSV may hold ends of lines inside quotes."""
        if self.is_plain:
            yield from (line for line in lines if line.strip())
            return
        held = b""
        for line in lines:
            held += line
            if held.count(b'"') % 2 == 0:
                if held.strip():
                    yield held
                held = b""
        if held:
            raise csv.Error("a quote is never closed")

    def _split(self, line: bytes) -> list[str]:
        text = line.decode("utf-8", "replace").rstrip("\r\n")
        if self.is_plain:
            return text.split("\t")
        return next(csv.reader(io.StringIO(text), delimiter=self.separator))

    def _chosen(self, rows: Iterator[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
        contig, pos = (self.names.index(self.map[key]) for key in ("contig", "pos"))
        for number, line in rows:
            fields = self._split(line)
            place = re.sub(r"[,\s]", "", fields[pos]) if len(fields) > pos else ""
            if place.isdigit() and self.regions.keeps(fields[contig].strip(), int(place) - 1):
                yield number, line

    def _chunk(self, block: list[tuple[int, bytes]], first: int) -> Chunk:
        cells = []
        for number, line in block:
            fields = self._split(line)
            if len(fields) != len(self.names):
                raise InputError(
                    str(self.path), expected=f"{len(self.names)} columns in every row",
                    got=f"{len(fields)} in row {number} after the header",
                )  # fmt: skip
            cells.append(fields)
        frame = pl.DataFrame(
            dict(zip(_unique(self.names), zip(*cells, strict=True), strict=True)),
            schema=dict.fromkeys(_unique(self.names), pl.String),
        )
        frame = frame.with_columns(pl.when(~pl.all().is_in(MISSING)).then(pl.all()))
        table = table_of_frame(frame, self._given, self.path, first_row=block[0][0])
        return Chunk([line for _, line in block], table, first, len(block))


class ParquetSource:
    """Parquet, read in slabs of rows.

    Args:
        path: The file.
        columns: Which column holds contig, pos, ref, alt, id.
        regions: Only rows whose position lies inside.
    """

    kind = "frame"

    def __init__(self, path: Path, *, columns: Mapping[str, str] | None = None, regions: Regions | None = None):
        self.path, self.regions, self._given = path, regions, columns
        with _readable(path):
            schema = pl.scan_parquet(path).collect_schema()
        self.names = list(schema)
        self._schema = schema
        self.map = column_map(self.names, columns)

    def columns(self) -> list[str]:
        """Names of the columns."""
        return list(self.names)

    def frame_schema(self) -> dict[str, pl.DataType]:
        """Columns with their types."""
        return dict(self._schema)

    def count(self) -> int:
        """Number of chosen rows."""
        return sum(chunk.size for chunk in self.chunks(_SLAB_ROWS))

    def chunk_records(self, size: int) -> int:
        """Records in a chunk."""
        return size

    def chunks(self, size: int, *, start: int = 0, stop: int | None = None) -> Iterator[Chunk]:
        """See :class:`seqkit.data.stream.Source`. ``records`` is a frame."""
        with _readable(self.path):
            held, seen, first = None, 0, start
            for slab, begin in self._slabs():
                low, high = max(start - seen, 0), slab.height if stop is None else max(stop - seen, 0)
                seen += slab.height
                chosen = slab[low:high]
                held = chosen if held is None else pl.concat([held, chosen])
                while held.height >= size:
                    yield self._chunk(held[:size], first, begin)
                    held, first = held[size:], first + size
            if held is not None and held.height:
                yield self._chunk(held, first, seen - held.height)

    def _slabs(self) -> Iterator[tuple[pl.DataFrame, int]]:
        scan, begin = pl.scan_parquet(self.path), 0
        while (slab := scan.slice(begin, _SLAB_ROWS).collect()).height:
            rows = slab.height
            if self.regions is not None:
                places = zip(slab[self.map["contig"]].to_list(), slab[self.map["pos"]].to_list(), strict=True)
                slab = slab.filter([self.regions.keeps(str(c), int(p) - 1) for c, p in places])
            yield slab, begin
            begin += rows

    def _chunk(self, frame: pl.DataFrame, first: int, begin: int) -> Chunk:
        return Chunk(frame, table_of_frame(frame, self._given, self.path, first_row=begin + 1), first, frame.height)


def _unique(names: Sequence[str]) -> list[str]:
    seen: dict[str, int] = {}
    out = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        out.append(name if seen[name] == 1 else f"{name}_duplicated_{seen[name] - 2}")
    return out


class _readable:
    """What goes wrong while a table is read becomes an InputError with its name."""

    def __init__(self, path: Path):
        self._path = path

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if isinstance(error, (*_READ_ERRORS, pl.exceptions.PolarsError)) and not isinstance(error, BrokenPipeError):
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(str(self._path), expected="a complete, readable table", got=reason) from error
        return False
