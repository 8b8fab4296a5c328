"""One class for reference sequences; whatever FASTA files and their readers do differently ends here."""

from __future__ import annotations

import gzip
import hashlib
import logging
import os
import shutil
import struct
import warnings
import zlib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from seqkit.data.bgzip import check_bgzip_end, is_bgzip
from seqkit.data.cache import cache_folder, cache_key
from seqkit.data.genome import Interval, guess_build, match_contig
from seqkit.errors import ConfigError, InputError
from seqkit.files import atomic, sha256

log = logging.getLogger(__name__)

# A checkout or an unpacked archive writes a file and its index within moments of each other, in either order.
_INDEX_SLACK_S = 120
_KEPT_RECORD_BASES = 1 << 21
_KEPT_RECORDS = 8
_HASHED_BYTES = 1 << 28
_READ_ERRORS = (OSError, ValueError, IndexError, EOFError, zlib.error, struct.error)
_UPPER = np.frombuffer(bytes(range(256)).upper(), dtype=np.uint8)


@dataclass(frozen=True, slots=True)
class Record:
    """One FASTA record placed on its contig.

    Attributes:
        name: Name in the file.
        contig: Contig it lies on; differs from ``name`` for records such as ``chr17:41100001-41300000``.
        start: 0-based position of its first base on the contig.
        length: Number of bases.
    """

    name: str
    contig: str
    start: int
    length: int

    @property
    def end(self) -> int:
        """One past its last base on the contig, 0-based."""
        return self.start + self.length

    @property
    def is_piece(self) -> bool:
        """True where the record is a region of a contig, whose full length is then unknown."""
        return self.name != self.contig


class Fasta:
    """Random access to a FASTA file: plain, bgzip or gzip; whole contigs or named regions of them.

    Answers have exactly the length that was asked for; what lies outside the data is N; letters are upper case unless
    the soft mask is asked for. The file is opened on first use in each process, so an instance can be pickled and used
    in workers.

    Args:
        path: FASTA file. Plain gzip is decompressed once into the cache folder. The index is read or written beside
            the file; where that is impossible it goes to the cache folder.
        circular: Contigs that are circles: what lies beyond one end is the other end.

    Raises:
        InputError: The file is absent, empty, a folder, or compressed in a way that is not understood.
        ConfigError: A circular contig is missing, or the file holds only a piece of it.
    """

    def __init__(self, path: str | os.PathLike[str], *, circular: Sequence[str] = ()):
        self.path = Path(path)
        self._data_path = _readable_path(self.path)
        self._circles: dict[str, int] = {}
        self._forget()
        for name in circular:
            pieces = self.pieces(name)
            if len(pieces) != 1 or pieces[0].is_piece:
                got = "only a piece of it" if pieces else "no such contig"
                raise ConfigError("circular", expected=f"a whole contig of {self.path.name}", got=f"{name!r}: {got}")
            self._circles[pieces[0].contig] = pieces[0].length

    def _forget(self) -> None:
        self._process = -1
        self._file = None
        self._records: tuple[Record, ...] = ()
        self._kept: dict[str, np.ndarray] = {}
        self._resolved: dict[str, str | None] = {}

    def __getstate__(self) -> dict[str, Path]:
        return {"path": self.path, "_data_path": self._data_path, "_circles": self._circles}

    def __setstate__(self, state: dict[str, Path]) -> None:
        self.__dict__.update(state)
        self._forget()

    def __repr__(self) -> str:
        return f"Fasta({str(self.path)!r})"

    @property
    def records(self) -> tuple[Record, ...]:
        """All records in file order."""
        self._open()
        return self._records

    @property
    def contigs(self) -> list[str]:
        """Names of the contigs in file order, each once."""
        return list(dict.fromkeys(record.contig for record in self.records))

    @property
    def lengths(self) -> dict[str, int]:
        """End of the known part of every contig, in bases (its length, unless it is only a piece)."""
        ends: dict[str, int] = {}
        for record in self.records:
            ends[record.contig] = max(ends.get(record.contig, 0), record.end)
        return ends

    @property
    def build(self) -> str | None:
        """Assembly guessed from the lengths of whole contigs (``GRCh37``, ``GRCh38``, ...), or None."""
        return guess_build({record.contig: record.length for record in self.records if not record.is_piece})

    def resolve(self, contig: str) -> str | None:
        """This file's name for ``contig`` (chr1, 1 and NC_000001.11 are one), or None where it has none."""
        if contig not in self._resolved:
            self._resolved[contig] = match_contig(contig, self.contigs)
        return self._resolved[contig]

    def circle(self, contig: str) -> int | None:
        """Length of a circular contig; None for any other."""
        return self._circles.get(self.resolve(contig))

    def pieces(self, contig: str) -> list[Record]:
        """Records that lie on ``contig``, by position; empty where it is missing."""
        name = self.resolve(contig)
        return sorted((r for r in self.records if r.contig == name), key=lambda record: record.start)

    def fetch(self, contig: str, start: int, end: int, *, soft_mask: bool = False) -> bytes:
        """Bases of ``contig`` from ``start`` to ``end`` (0-based half-open) as ASCII.

        Args:
            contig: Any alias of the contig's name.
            start: First base; may be negative.
            end: One past the last base; may lie beyond the contig.
            soft_mask: Keep lower case instead of raising it.

        Returns:
            Exactly ``end - start`` letters; N where the file has no data, the other end of a circular contig.

        Raises:
            InputError: The contig is missing, ``end < start``, or the file cannot be read.
        """
        return self.fetch_array(contig, start, end, soft_mask=soft_mask).tobytes()

    def fetch_array(self, contig: str, start: int, end: int, *, soft_mask: bool = False) -> np.ndarray:
        """Like :meth:`fetch`, as a uint8 array of ASCII codes of shape (end - start,)."""
        if end < start:
            raise InputError("region", expected="end >= start", got=f"{contig}:{start}-{end} (0-based)")
        pieces = self.pieces(contig)
        if not pieces:
            raise self.missing_contig(contig)
        around = self._circles.get(pieces[0].contig)
        if around is not None and (start < 0 or end > around):
            whole = self._read(pieces[0], 0, around)
            bases = whole[np.arange(start, end) % around]
            return bases if soft_mask else _UPPER[bases]
        bases = np.full(end - start, ord("N"), dtype=np.uint8)
        for record in pieces:
            low, high = max(start, record.start), min(end, record.end)
            if low < high:
                bases[low - start : high - start] = self._read(record, low - record.start, high - record.start)
        return bases if soft_mask else _UPPER[bases]

    def missing_contig(self, contig: str) -> InputError:
        """The error that says which contigs there are."""
        names = self.contigs
        shown = ", ".join(names[:8]) + (f", ... ({len(names)} in all)" if len(names) > 8 else "")
        return InputError("contig", expected=f"a contig of {self.path.name}: {shown}", got=repr(contig))

    def covers(self, contig: str, start: int, end: int) -> bool:
        """True where the file has data for every base of the interval."""
        if self.circle(contig) is not None:
            return True
        position = start
        for record in self.pieces(contig):
            if record.start <= position < record.end:
                position = record.end
        return position >= end

    def contig_md5(self, contig: str) -> str:
        """MD5 of the upper-case bases of a contig, as in the M5 field of a SAM header."""
        pieces = self.pieces(contig)
        if not pieces:
            raise self.missing_contig(contig)
        digest = hashlib.md5(usedforsecurity=False)
        for record in pieces:
            for low in range(record.start, record.end, 1 << 24):
                digest.update(self.fetch_array(contig, low, min(low + (1 << 24), record.end)))
        return digest.hexdigest()

    def digest(self) -> str:
        """Checksum for a run's manifest.

        Returns:
            ``sha256:`` of the file, or ``contigs-sha256:`` over names and lengths where the file exceeds 256 MiB.
        """
        if self.path.stat().st_size <= _HASHED_BYTES:
            return f"sha256:{sha256(self.path)}"
        text = "".join(f"{record.name}\t{record.length}\n" for record in self.records)
        return f"contigs-sha256:{hashlib.sha256(text.encode()).hexdigest()}"

    def _open(self) -> None:
        # A file handle shared with a forked parent shares its position: every process opens its own.
        if self._process == os.getpid():
            return
        self._forget()
        self._file = _open_indexed(self._data_path)
        self._records = tuple(_place(name, entry.rlen) for name, entry in self._file.index.items())
        if not self._records:
            raise InputError(str(self.path), expected="a FASTA file", got="no records")
        self._process = os.getpid()

    def _read(self, record: Record, start: int, end: int) -> np.ndarray:
        kept = self._kept.get(record.name)
        if kept is not None:
            return kept[start:end]
        whole = record.length <= _KEPT_RECORD_BASES
        low, high = (0, record.length) if whole else (start, end)
        try:
            text = self._file.fetch(record.name, low + 1, high)
        except _READ_ERRORS as error:
            raise InputError(
                str(self.path), expected="a readable FASTA", got=f"{type(error).__name__}: {error}"
            ) from error
        bases = np.frombuffer(str(text).encode("latin-1"), dtype=np.uint8)
        if len(bases) != high - low:
            raise InputError(
                str(self.path),
                expected=f"{high - low} bases of {record.name}",
                got=f"{len(bases)}",
                remedy="The file is truncated or its index belongs to another file: delete the .fai and try again.",
            )
        if whole:
            while len(self._kept) >= _KEPT_RECORDS:
                self._kept.pop(next(iter(self._kept)))
            self._kept[record.name] = bases
            return bases[start:end]
        return bases


def _place(name: str, length: int) -> Record:
    """Put a record on its contig; ``contig:start-end`` counts as a region only where its length fits."""
    if ":" in name:
        try:
            region = Interval.parse(name)
        except InputError:
            return Record(name, name, 0, length)
        if len(region) == length and region.start >= 0:
            return Record(name, region.contig, region.start, length)
    return Record(name, name, 0, length)


def _readable_path(path: Path) -> Path:
    """The path itself, or that of its decompressed copy in the cache."""
    if not path.is_file():
        raise InputError(str(path), expected="a FASTA file", got="a folder" if path.is_dir() else "no such file")
    if path.stat().st_size == 0:
        raise InputError(str(path), expected="a FASTA file", got="an empty file")
    try:
        with path.open("rb") as handle:
            head = handle.read(18)
    except OSError as error:
        raise InputError(str(path), expected="a readable file", got=str(error.strerror)) from error
    suffixed = path.suffix.lower() in (".gz", ".bgz")
    if head[:2] == b"\x1f\x8b":
        check_bgzip_end(path)
        return path if is_bgzip(head.ljust(18, b"\0")) and suffixed else _decompressed(path)
    if suffixed or not head.lstrip().startswith((b">", b";")):
        raise InputError(
            str(path),
            expected="a FASTA file, plain or compressed with bgzip",
            got="a name that ends in .gz on a file that is not"
            if suffixed
            else f"a file that starts with {head[:8]!r}",
            remedy="Decompress it, or write it again with bgzip.",
        )
    return path


def _decompressed(path: Path) -> Path:
    target = cache_folder() / (cache_key(path).removesuffix(".gz").removesuffix(".bgz") + ".fa")
    if target.is_file():
        return target
    log.warning("%s is plain gzip, which has no random access; decompressing it once to %s", path.name, target)
    try:
        with gzip.open(path) as source, atomic(target) as partial, partial.open("wb") as out:
            shutil.copyfileobj(source, out, 1 << 20)
    except _READ_ERRORS as error:
        raise InputError(
            str(path),
            expected="a complete gzip file",
            got=f"{type(error).__name__}: {error}",
            remedy=f"Fetch it again, or: gunzip -c {path.name} | bgzip > {path.stem}.bgz",
        ) from error
    return target


def _index_folder(path: Path) -> tuple[Path, bool]:
    """Stem of the index files, and whether they must be made first."""
    beside = path
    if _fresh(path, beside):
        return beside, False
    # An index that is there but old belongs to somebody: it is not overwritten.
    if os.access(path.parent, os.W_OK) and not Path(f"{beside}.fai").exists():
        return beside, True
    cached = cache_folder() / cache_key(path)
    return cached, not _fresh(path, cached)


def _fresh(path: Path, stem: Path) -> bool:
    suffixes = (".fai", ".gzi") if path.suffix.lower() in (".gz", ".bgz") else (".fai",)
    oldest = path.stat().st_mtime - _INDEX_SLACK_S
    files = [Path(f"{stem}{suffix}") for suffix in suffixes]
    return all(file.is_file() and file.stat().st_mtime >= oldest for file in files)


def _open_indexed(path: Path):
    """Open with pyfaidx; a missing index is written under a temporary name first, so that no reader sees half of it."""
    from pyfaidx import Faidx, FastaIndexingError

    stem, missing = _index_folder(path)
    compressed = path.suffix.lower() in (".gz", ".bgz")
    names = [Path(f"{stem}.fai")] + ([Path(f"{stem}.gzi")] if compressed else [])
    try:
        with warnings.catch_warnings(), ExitStack() as stack:
            # The age of the index was judged above.
            warnings.simplefilter("ignore", RuntimeWarning)
            if missing:
                log.info("indexing %s", path.name)
                partial = [stack.enter_context(atomic(name)) for name in names]
                for name in partial:
                    name.unlink()
                Faidx(str(path), indexname=partial[0], gzi_indexname=partial[-1], as_raw=True).close()
                stack.close()
            return Faidx(str(path), indexname=names[0], gzi_indexname=names[-1], as_raw=True, rebuild=False)
    except InputError:
        raise
    except (*_READ_ERRORS, FastaIndexingError) as error:
        raise InputError(
            str(path),
            expected="a complete FASTA file with unique names and lines of one length per record",
            got=f"{type(error).__name__}: {error}",
        ) from error
