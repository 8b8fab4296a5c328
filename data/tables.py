"""Reading tables as polars frames: delimiter by suffix and header, gzip and bgzip, errors that name columns."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

import polars as pl

from seqkit.errors import InputError

TABLE_SUFFIXES = (".tsv", ".csv", ".txt", ".tab", ".parquet", ".pq")
MISSING = ["", ".", "NA", "NaN", "nan", "N/A", "#N/A"]


def plain_suffix(path: Path) -> str:
    """Lower-case suffix of a path without its compression: ``.tsv`` for ``a.tsv.gz``."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in (".gz", ".bgz"):
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def read_table(path: Path) -> pl.DataFrame:
    """Read TSV, CSV (comma or semicolon) or Parquet; text may be compressed with gzip or bgzip.

    Leading lines that start with ``##`` are remarks.

    Raises:
        InputError: The file is absent, empty, damaged, or of another kind.
    """
    if not path.is_file():
        raise InputError(str(path), expected="a table", got="a folder" if path.is_dir() else "no such file")
    suffix = plain_suffix(path)
    if suffix not in TABLE_SUFFIXES:
        raise InputError(
            str(path), expected=f"a table ({', '.join(TABLE_SUFFIXES)}, text also .gz)", got=path.suffix or path.name
        )
    try:
        if suffix in (".parquet", ".pq"):
            return pl.read_parquet(path)
        data = read_bytes(path)
        while data.startswith(b"##"):
            data = data.partition(b"\n")[2]
        if not data.strip():
            raise InputError(str(path), expected="a table with a header line", got="an empty file")
        return pl.read_csv(
            io.BytesIO(data),
            separator=separator_of(data, suffix),
            infer_schema_length=None,
            null_values=MISSING,
            encoding="utf8-lossy",
            quote_char='"' if suffix == ".csv" else None,
        )
    except (pl.exceptions.PolarsError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(str(path), expected="a readable table", got=reason) from error


def read_bytes(path: Path) -> bytes:
    """All bytes of a file, decompressed where it is gzip or bgzip.

    Raises:
        InputError: The compressed stream is damaged or cut off.
    """
    data = path.read_bytes()
    if data[:2] != b"\x1f\x8b":
        return data
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(str(path), expected="a complete gzip file", got=f"{type(error).__name__}: {error}") from error


def separator_of(data: bytes, suffix: str) -> str:
    """Tab, comma or semicolon, by what the first line holds; the suffix decides where it holds several."""
    header = data.lstrip(b"\xef\xbb\xbf").split(b"\n", 1)[0].decode("utf-8", "replace")
    counts = {separator: header.count(separator) for separator in "\t,;"}
    preferred = "," if suffix == ".csv" else "\t"
    return preferred if counts[preferred] or not any(counts.values()) else max(counts, key=counts.get)


def missing_column(name: str, present: Iterable[str], argument: str = "column") -> InputError:
    """The error for a column that is not there: lists the columns and names the nearest."""
    columns = list(present)
    lower = {column.lower(): column for column in columns}
    near = get_close_matches(name.lower(), list(lower), n=1, cutoff=0.5)
    shown = ", ".join(map(repr, columns[:30])) + (", ..." if len(columns) > 30 else "")
    return InputError(
        argument,
        expected=f"one of {shown}",
        got=repr(name),
        remedy=f"Did you mean {lower[near[0]]!r}?" if near else "",
    )
