"""Outputs that grow under a ``.partial`` name beside their final one and take the final name when they are whole.

A run that is killed leaves the folder ``OUT.partial`` with what it has written and how far it got; the same run with
``--resume`` goes on from there. Workflow engines delete the declared output before they try again, so nothing that a
resume needs lies under the final name.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from seqkit.errors import ConfigError, InputError
from seqkit.files import atomic, write_json

_SYNC_S = 1.0
_COPY_BYTES = 1 << 20


class Partial(ABC):
    """Folder ``OUT.partial`` with the state of an unfinished output.

    Args:
        path: Final name.
        identity: Plain values that decide the output's bytes; a resume under others is refused.
        resume: Go on where an earlier run stopped, if there is one.

    Attributes:
        progress: What the last :meth:`save` was given; empty for a new output.

    Raises:
        ConfigError: A resume with another identity; names what differs.
        InputError: ``path`` is a folder.
        OSError: The folder cannot be written.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any], *, resume: bool):
        if path.is_dir():
            raise InputError(str(path), expected="a file to write", got="a folder")
        self.path, self.folder = path, path.with_name(path.name + ".partial")
        self.identity = json.loads(json.dumps(identity))
        self._state_path = self.folder / "state.json"
        stored = self._stored() if resume else None
        if stored is None:
            if self.folder.exists():
                shutil.rmtree(self.folder)
            self.folder.mkdir(parents=True)
            stored = {"identity": self.identity, "position": 0, "progress": {}}
        self.progress: dict[str, Any] = stored["progress"]
        self._position = stored["position"]
        self._saved_at = time.monotonic()
        self._restore()
        self.save(self.progress, now=True)

    def _stored(self) -> dict[str, Any] | None:
        try:
            stored = json.loads(self._state_path.read_text())
        except (OSError, ValueError):
            return None
        differing = sorted(k for k in self.identity if stored["identity"].get(k) != self.identity[k])
        if differing:
            raise ConfigError(
                "--resume", expected="the inputs and settings of the run that was stopped",
                got=f"other values for {', '.join(differing)}", remedy=f"Repeat them, or delete {self.folder.name}.",
            )  # fmt: skip
        return stored if self._intact(stored["position"]) else None

    def save(self, progress: Mapping[str, Any], *, now: bool = False) -> None:
        """Note that everything written so far belongs to ``progress``; at most once a second unless ``now``."""
        self.progress = dict(progress)
        if now or time.monotonic() - self._saved_at >= _SYNC_S:
            self._sync()
            write_json(self._state_path, {
                "identity": self.identity, "position": self._position, "progress": self.progress,
            })  # fmt: skip
            self._saved_at = time.monotonic()

    def discard(self) -> None:
        """Remove everything."""
        shutil.rmtree(self.folder, ignore_errors=True)

    @abstractmethod
    def _intact(self, position: int) -> bool:
        """Whether what was written up to ``position`` is still there."""

    @abstractmethod
    def _restore(self) -> None:
        """Go on behind what the stored progress covers."""

    @abstractmethod
    def _sync(self) -> None:
        """Bring everything written to the disk."""


class PartialBytes(Partial):
    """Text, bgzip or BCF: a head, then pieces of bytes, then a tail."""

    def _intact(self, position: int) -> bool:
        body = self.folder / "body"
        return body.is_file() and body.stat().st_size >= position

    def _restore(self) -> None:
        self.body = self.folder / "body"
        self._file = self.body.open("r+b" if self.body.exists() else "w+b")
        self._file.truncate(self._position)
        self._file.seek(self._position)

    def append(self, data: bytes) -> None:
        """Add bytes at the end."""
        self._file.write(data)
        self._position += len(data)

    def _sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def finish(self, head: bytes, head_bytes: int, tail: bytes = b"", index: str | None = None) -> None:
        """Add the tail, give the file its final name, and index it.

        Args:
            head: What the file must begin with.
            head_bytes: Size of the head it was begun with; another one is put in its place, since the input may have
                named more than its own header did.
            tail: Last bytes.
            index: ``vcf`` or ``bcf``; a file whose records are not sorted gets none.
        """
        self._file.write(tail)
        self._sync()
        self._file.seek(0)
        whole = self.body
        if self._file.read(head_bytes) != head:
            whole = self.folder / "whole"
            with whole.open("wb") as out:
                out.write(head)
                shutil.copyfileobj(self._file, out, _COPY_BYTES)
        self._file.close()
        made = index is not None and _index(whole, self.folder / "index", index)
        for suffix in (".csi", ".tbi"):  # an index of what the name held before must never meet the new file
            Path(f"{self.path}{suffix}").unlink(missing_ok=True)
        os.replace(whole, self.path)
        if made:
            os.replace(self.folder / "index", f"{self.path}.csi")
        self.discard()


class PartialParquet(Partial):
    """Parquet: one file a piece, joined in order at the end without reading all of them at once.

    Columns that came as text become numbers where every value is one.
    """

    text_columns: tuple[str, ...] = ()

    def _intact(self, position: int) -> bool:
        return len(self._pieces()) >= position

    def _restore(self) -> None:
        for path in self._pieces()[self._position :]:
            path.unlink()

    def _pieces(self) -> list[Path]:
        return sorted(self.folder.glob("[0-9]*.parquet"))

    def append(self, frame: pl.DataFrame) -> None:
        """Add rows."""
        with atomic(self.folder / f"{self._position:08d}.parquet") as partial, self._errors():
            frame.write_parquet(partial)
        self._position += 1

    def _sync(self) -> None:
        pass  # every piece is renamed when it is whole

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except pl.exceptions.ComputeError as error:  # how polars reports a full disk
            raise InputError(str(self.path), expected="a Parquet file to be written", got=str(error)) from error

    def finish(self, metadata: Mapping[str, str]) -> None:
        """Join the pieces under the final name; ``metadata`` goes into the file."""
        with self._errors():
            frame = pl.scan_parquet(self._pieces())
            types = _number_types(frame, self.text_columns)
            frame = frame.with_columns(pl.col(name).cast(dtype) for name, dtype in types.items())
            frame.sink_parquet(self.folder / "body", metadata=dict(metadata), maintain_order=True)
        os.replace(self.folder / "body", self.path)
        self.discard()


class StandardOutput:
    """Bytes to stdout: nothing to resume."""

    def __init__(self):
        self.progress: dict[str, Any] = {}

    def append(self, data: bytes) -> None:
        """Write and flush, so that a reader sees every piece at once."""
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()

    def save(self, progress: Mapping[str, Any], *, now: bool = False) -> None:
        """Keep the progress for the summary."""
        self.progress = dict(progress)

    def finish(self, head: bytes, head_bytes: int, tail: bytes = b"", index: str | None = None) -> None:
        """Write the tail; the head has gone out already."""
        self.append(tail)

    def discard(self) -> None:
        """Nothing is kept."""


def _number_types(frame: pl.LazyFrame, names: tuple[str, ...]) -> dict[str, pl.DataType]:
    """Type of every text column whose values are all integers or all numbers; codes such as 007 stay text."""
    if not names:
        return {}
    integer = r"^-?(0|[1-9][0-9]{0,17})$"
    decimal = r"^[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?$"
    leading = r"^[-+]?0[0-9]"
    tests = [
        test
        for name in names
        for test in (
            pl.col(name).str.contains(integer).all().alias(f"{name}\0i"),
            (pl.col(name).str.contains(decimal) & ~pl.col(name).str.contains(leading)).all().alias(f"{name}\0f"),
            pl.col(name).is_not_null().any().alias(f"{name}\0any"),
        )
    ]
    found = frame.select(tests).collect(engine="streaming").row(0, named=True)
    types = {}
    for name in names:
        if found[f"{name}\0any"] and (found[f"{name}\0i"] or found[f"{name}\0f"]):
            types[name] = pl.Int64 if found[f"{name}\0i"] else pl.Float64
    return types


def _index(path: Path, target: Path, preset: str) -> bool:
    import pysam

    verbosity = pysam.set_verbosity(0)
    try:
        pysam.tabix_index(str(path), preset=preset, force=True, csi=True, index=str(target), keep_original=True)
    except OSError:  # records out of order: the file is as the input was
        target.unlink(missing_ok=True)
        return False
    finally:
        pysam.set_verbosity(verbosity)
    return target.is_file()
