"""FASTA from front to back: plain, gzip or bgzip, in memory that does not grow and without an index."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from seqkit.errors import ConfigError, InputError

_BLOCK_BYTES = 1 << 20
_GZIP_MAGIC = b"\x1f\x8b"
_LINE_ENDS = b"\r\n"


@dataclass(frozen=True)
class SequencePiece:
    """Bases that follow each other in one record.

    Attributes:
        contig: The record's name: its header up to the first space.
        start: 0-based position of the first base in the record.
        bases: (l,) uint8 ASCII codes, in the file's case.
    """

    contig: str
    start: int
    bases: np.ndarray


def read_sequences(path: str | os.PathLike[str], size: int) -> Iterator[SequencePiece]:
    """All records of a FASTA file in order.

    Args:
        path: FASTA file, compressed or not.
        size: Most bases in a piece; only a record's last one is shorter.

    Raises:
        InputError: The file is absent, no FASTA, or cut off.
        ConfigError: ``size`` is less than one.
    """
    if size < 1:
        raise ConfigError("size", expected="at least 1 base", got=str(size))
    path = Path(path)
    if not path.is_file():
        raise InputError(str(path), expected="a FASTA file", got="a folder" if path.is_dir() else "no such file")
    with path.open("rb") as plain:
        compressed = plain.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
    with gzip.open(path) if compressed else path.open("rb") as file:
        contig, start, waiting = None, 0, bytearray()
        for name, bases in _records(file, path):
            if name != contig:
                if waiting:
                    yield SequencePiece(contig, start, np.frombuffer(bytes(waiting), dtype=np.uint8))
                contig, start, waiting = name, 0, bytearray()
            waiting += bases
            whole = len(waiting) - len(waiting) % size
            for begin in range(0, whole, size):
                yield SequencePiece(contig, start, np.frombuffer(bytes(waiting[begin : begin + size]), dtype=np.uint8))
                start += size
            del waiting[:whole]
        if waiting:
            yield SequencePiece(contig, start, np.frombuffer(bytes(waiting), dtype=np.uint8))


def _records(file: BinaryIO, path: Path) -> Iterator[tuple[str, bytes]]:
    """Name of a record and some of its bases, again and again; a name once without bases where a record begins."""
    name, header = None, None
    for block in _blocks(file, path):
        while block:
            if header is not None:
                line, end, block = block.partition(b"\n")
                header += line
                if end:
                    name, header = (header.split() or [b""])[0].decode("latin-1"), None
                    yield name, b""
                continue
            bases, mark, block = block.partition(b">")
            bases = bases.translate(None, _LINE_ENDS)
            if bases and name is None:
                got = f"a file that starts with {bases[:8]!r}"
                raise InputError(str(path), expected="a FASTA file, compressed or not", got=got)
            if bases:
                yield name, bases
            header = b"" if mark else None
    if name is None:
        raise InputError(str(path), expected="a FASTA file", got="no records")


def _blocks(file: BinaryIO, path: Path) -> Iterator[bytes]:
    try:
        while block := file.read(_BLOCK_BYTES):
            yield block
    except (EOFError, OSError, zlib.error) as error:
        got = f"{type(error).__name__}: {error}"
        raise InputError(str(path), expected="a complete file", got=got, remedy="Fetch it again.") from error
