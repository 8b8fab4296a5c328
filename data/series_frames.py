"""Frames of any kind into polars and back, and which of their columns mean what."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from seqkit.data.wfdb_records import read_record
from seqkit.errors import InputError

Restore = Callable[[pl.DataFrame], Any]
_ALIASES = {
    "id": ("unique_id", "item_id", "series_id", "id"),
    "time": ("ds", "timestamp", "datetime", "date", "time"),
    "target": ("y", "target", "value"),
}
_READERS = {".parquet": pl.scan_parquet, ".arrow": pl.scan_ipc, ".feather": pl.scan_ipc, ".ipc": pl.scan_ipc}


class Roles(NamedTuple):
    """Names of the columns that every series has.

    Attributes:
        id: Series; None where the frame holds one series and does not name it.
        time: Stamps.
        target: Values; None in a frame of known-future rows.
    """

    id: str | None
    time: str
    target: str | None


def as_polars(source: Any) -> tuple[pl.LazyFrame, Restore]:
    """Take a frame or a file as a lazy polars frame.

    Args:
        source: A polars (lazy) frame, pandas frame, Arrow table, or the path of a CSV, TSV, Parquet or Arrow file, or
            of a WFDB record's header.

    Returns:
        The frame, and a function that turns a polars frame into the kind that ``source`` was (polars for a file).

    Raises:
        InputError: It is none of these, or the file is not there.
    """
    if isinstance(source, pl.LazyFrame):
        return source, _same
    if isinstance(source, pl.DataFrame):
        return source.lazy(), _same
    if isinstance(source, str | Path):
        return _scan(Path(source)), _same
    # Only a caller that has imported pandas or Arrow can hand over one of their tables.
    pandas, arrow = sys.modules.get("pandas"), sys.modules.get("pyarrow")
    if pandas is not None and isinstance(source, pandas.DataFrame):
        named = [name for name in source.index.names if name is not None]
        flat = source.reset_index() if named else source
        return pl.from_pandas(flat).lazy(), lambda frame: frame.to_pandas()
    if arrow is not None and isinstance(source, arrow.Table):
        return pl.from_arrow(source).lazy(), lambda frame: frame.to_arrow()
    raise InputError(
        "df", expected="a polars or pandas frame, an Arrow table, or the path of a table", got=type(source).__name__
    )


def find_roles(columns: Sequence[str], given: Mapping[str, str] | None = None, *, target: bool = True) -> Roles:
    """Names of the id, time and target columns: those given, else the usual ones.

    Args:
        columns: Columns of the frame.
        given: Any of ``id``, ``time``, ``target`` to column names.
        target: Whether there must be a target.

    Raises:
        InputError: A given column is not there, or none of the usual names is.
    """
    given = dict(given or {})
    unknown = set(given) - set(_ALIASES)
    if unknown:
        raise InputError("columns", expected="id, time or target as keys", got=", ".join(sorted(unknown)))
    found: dict[str, str | None] = {}
    for role, aliases in _ALIASES.items():
        if role in given and (role != "target" or target):
            if given[role] not in columns:
                raise InputError("columns", expected=f"one of {', '.join(columns)}", got=f"{role}: {given[role]}")
            found[role] = given[role]
        else:
            found[role] = next((name for name in aliases if name in columns), None)
    for role in ("time", *(["target"] if target else [])):
        if found[role] is None:
            raise InputError(
                "columns", expected=f"a {role} column ({', '.join(_ALIASES[role])})", got=", ".join(columns),
                remedy=f"Name it: --columns '{{{role}: ...}}', or {role}_col from Python.",
            )  # fmt: skip
    return Roles(found["id"], found["time"], found["target"])


def _same(frame: pl.DataFrame) -> pl.DataFrame:
    return frame


def _scan(path: Path) -> pl.LazyFrame:
    if not path.is_file():
        raise InputError("--table", expected="a file", got=f"{path}, which is none")
    suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    try:
        if suffix in _READERS:
            return _READERS[suffix](path)
        if suffix in (".csv", ".tsv", ".txt"):
            separator = "\t" if suffix == ".tsv" else ","
            return pl.scan_csv(path, separator=separator, try_parse_dates=True, infer_schema_length=10_000)
        if suffix == ".hea":
            return read_record(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise InputError(str(path), expected="a readable table", got=str(error).splitlines()[0]) from error
    raise InputError("--table", expected=".csv, .tsv, .parquet, .arrow (CSV also gzipped) or .hea", got=path.name)
