"""A genome as one byte a base in a memory-mapped file, which feeds training as fast as memory is read.

A byte is the token id of a base (5 bits) and, as its highest bit, the soft mask. The file holds the bases of all
records one after the other, then the runs of bases that are not A, C, G or T, then a description as JSON, its length
and a mark. The mark is written last: a file without it is no encoded genome.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from seqkit.data.cache import cache_folder, cache_key
from seqkit.data.fasta import Fasta
from seqkit.data.genome import Interval
from seqkit.errors import InputError
from seqkit.files import atomic
from seqkit.tokenizers.dna import DNATokenizer, Token

SUFFIX = ".skgenome"
SOFT_MASK = 0x80
ID_BITS = 0x7F
_FORMAT = 1
_MARK = b"SKGENOME"
_TAIL = struct.Struct("<Q8s")
_CHUNK = 1 << 24


@dataclass(frozen=True, slots=True)
class Stretch:
    """One FASTA record of an encoded genome.

    Attributes:
        contig: Contig it lies on.
        start: 0-based position of its first base on the contig.
        length: Number of bases.
        offset: Place of its first base in the file.
    """

    contig: str
    start: int
    length: int
    offset: int

    @property
    def end(self) -> int:
        """One past its last base on the contig."""
        return self.start + self.length


class EncodedGenome:
    """Random access to the bases of an encoded genome; a pickled copy opens the file again.

    Args:
        path: A file that :func:`encode_fasta` wrote.

    Attributes:
        source: Name of the FASTA file.
        stretches: The FASTA records in file order.
        unknown_R2: int64 (R, 2), runs of bases that are not A, C, G or T as offsets, half-open, ascending.
        sha256: Hex digest of bases and runs.

    Raises:
        InputError: The file is absent, cut short or of another format.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        description, size = _read_description(self.path)
        stretches, offset = [], 0
        for contig, start, length in description["records"]:
            stretches.append(Stretch(contig, start, length, offset))
            offset += length
        runs = int(description["unknown_runs"])
        if offset + 16 * runs != size:
            raise InputError(str(self.path), expected=f"{offset + 16 * runs} bytes of bases and runs", got=str(size))
        self.source, self.sha256 = str(description["source"]), str(description["sha256"])
        self.stretches = tuple(stretches)
        self.bases = np.memmap(self.path, dtype=np.uint8, mode="r", shape=(offset,))
        with self.path.open("rb") as handle:
            handle.seek(offset)
            self.unknown_R2 = np.frombuffer(handle.read(16 * runs), dtype="<i8").reshape(runs, 2)
        self._before_R = np.concatenate([[0], np.cumsum(self.unknown_R2[:, 1] - self.unknown_R2[:, 0])])

    def __reduce__(self) -> tuple[Any, ...]:
        return EncodedGenome, (self.path,)

    def __len__(self) -> int:
        return len(self.bases)

    def ids(self, start: int, end: int) -> np.ndarray:
        """Token ids of the bases at offsets ``start`` to ``end``, uint8."""
        return self.bases[start:end] & ID_BITS

    def unknown(self, start_N: np.ndarray, end_N: np.ndarray) -> np.ndarray:
        """Number of bases that are not A, C, G or T between offsets, for each pair of ``start_N`` and ``end_N``."""
        return self._unknown_before(end_N) - self._unknown_before(start_N)

    def _unknown_before(self, offset_N: np.ndarray) -> np.ndarray:
        if not len(self.unknown_R2):
            return np.zeros(len(offset_N), dtype=np.int64)
        run_N = np.searchsorted(self.unknown_R2[:, 0], offset_N, side="right") - 1
        inside_N = np.minimum(offset_N, self.unknown_R2[run_N, 1]) - self.unknown_R2[run_N, 0]
        return np.where(run_N >= 0, self._before_R[run_N] + inside_N, 0)

    def where(self, start: int, end: int) -> Interval:
        """The place on its contig of a stretch of offsets that lies within one record."""
        for stretch in self.stretches:
            if stretch.offset <= start and end <= stretch.offset + stretch.length:
                shift = stretch.start - stretch.offset
                return Interval(stretch.contig, start + shift, end + shift)
        raise InputError("offsets", expected="a stretch within one record", got=f"{start}-{end}")

    def verify(self) -> None:
        """Read everything once and compare it with the checksum.

        Raises:
            InputError: The bytes have changed since they were written.
        """
        digest = hashlib.sha256()
        for low in range(0, len(self.bases), _CHUNK):
            digest.update(self.bases[low : low + _CHUNK])
        digest.update(self.unknown_R2.tobytes())
        if digest.hexdigest() != self.sha256:
            raise InputError(
                str(self.path), expected=f"sha256 {self.sha256[:16]}...", got=f"{digest.hexdigest()[:16]}...",
                remedy="The file is damaged: delete it, and it is made again from the FASTA.",
            )  # fmt: skip


def open_genome(path: str | os.PathLike[str]) -> EncodedGenome:
    """Open an encoded genome, or the encoded copy of a FASTA file in the cache folder, made on first use.

    Args:
        path: FASTA (plain, bgzip, gzip), or a file that :func:`encode_fasta` wrote.

    Raises:
        InputError: The file cannot be read, or an encoded copy is damaged.
    """
    path = Path(path)
    if path.suffix == SUFFIX:
        genome = EncodedGenome(path)
        genome.verify()
        return genome
    fasta = Fasta(path)
    target = cache_folder() / (cache_key(path) + SUFFIX)
    if target.is_file():
        genome = EncodedGenome(target)
        genome.verify()
        return genome
    encode_fasta(fasta, target)
    return EncodedGenome(target)


def encode_fasta(fasta: Fasta, target: str | os.PathLike[str]) -> None:
    """Write the encoded copy of a FASTA file; it appears whole or not at all.

    Args:
        fasta: The genome.
        target: Where to; named ``*.skgenome`` so that :func:`open_genome` knows it.

    Raises:
        InputError: A character is no IUPAC base code.
    """
    digest, runs, offset = hashlib.sha256(), [], 0
    with atomic(target) as partial, partial.open("wb") as out:
        for contig, start, chunk in _chunks(fasta):
            coded = _encode(contig, start, chunk)
            runs += [(low + offset, high + offset) for low, high in _unknown_runs(coded & ID_BITS)]
            offset += len(coded)
            digest.update(coded)
            out.write(coded)
        runs_R2 = np.array(_joined(runs), dtype="<i8").reshape(-1, 2)
        digest.update(runs_R2.tobytes())
        out.write(runs_R2.tobytes())
        records = [[record.contig, record.start, record.length] for record in fasta.records]
        description = {"format": _FORMAT, "source": fasta.path.name, "records": records,
                       "unknown_runs": len(runs_R2), "sha256": digest.hexdigest()}  # fmt: skip
        text = json.dumps(description).encode()
        out.write(text + _TAIL.pack(len(text), _MARK))


def _chunks(fasta: Fasta) -> Iterator[tuple[str, int, np.ndarray]]:
    """Contig, 0-based position and letters of every record, piece by piece."""
    for record in fasta.records:
        for low in range(record.start, record.end, _CHUNK):
            high = min(low + _CHUNK, record.end)
            yield record.contig, low, fasta.fetch_array(record.contig, low, high, soft_mask=True)


def _encode(contig: str, start: int, letters: np.ndarray) -> np.ndarray:
    tokenizer = DNATokenizer()
    try:
        ids = tokenizer.encode(letters)
    except InputError as error:
        raise InputError(
            f"{contig} from base {start + 1}", expected=error.expected, got=error.got, remedy=error.remedy
        ) from error
    return ids | (tokenizer.soft_mask(letters).astype(np.uint8) * SOFT_MASK)


def _unknown_runs(ids: np.ndarray) -> list[tuple[int, int]]:
    unknown = (ids < Token.A) | (ids > Token.T)
    edges = np.flatnonzero(np.diff(unknown, prepend=False, append=False))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def _joined(runs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same runs with those joined that a chunk's end cut in two."""
    joined: list[tuple[int, int]] = []
    for low, high in runs:
        if joined and joined[-1][1] == low:
            joined[-1] = joined[-1][0], high
        else:
            joined.append((low, high))
    return joined


def _read_description(path: Path) -> tuple[dict[str, Any], int]:
    """The JSON at the end of a file, and the number of bytes before it."""
    expected = "an encoded genome"
    if not path.is_file():
        raise InputError(str(path), expected=expected, got="no such file")
    size = path.stat().st_size
    with path.open("rb") as handle:
        handle.seek(max(0, size - _TAIL.size))
        tail = handle.read(_TAIL.size)
        length, mark = _TAIL.unpack(tail) if len(tail) == _TAIL.size else (0, b"")
        if mark != _MARK or length + _TAIL.size > size:
            raise InputError(str(path), expected=expected, got="a file that is cut short or something else")
        handle.seek(size - _TAIL.size - length)
        description = json.loads(handle.read(length))
    if description.get("format") != _FORMAT:
        raise InputError(str(path), expected=f"format {_FORMAT}", got=f"format {description.get('format')}")
    return description, size - _TAIL.size - length


def main(argv: list[str] | None = None) -> None:
    """``python -m seqkit.data.encoded FASTA OUT.skgenome``: encode a genome for a machine that lacks pyfaidx."""
    parser = argparse.ArgumentParser(prog="python -m seqkit.data.encoded", description=main.__doc__)
    parser.add_argument("fasta", type=Path)
    parser.add_argument("out", type=Path)
    given = parser.parse_args(argv)
    encode_fasta(Fasta(given.fasta), given.out)


if __name__ == "__main__":
    main()
