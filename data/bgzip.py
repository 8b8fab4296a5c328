"""Telling bgzip from gzip, and whole files from cut ones."""

from __future__ import annotations

import os
from pathlib import Path

from seqkit.errors import InputError

BGZIP_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")
"""The empty block at the end of every complete bgzip file (SAM specification, section 4.1.2)."""


def is_bgzip(head: bytes) -> bool:
    """True where the first 18 bytes are those of a bgzip file."""
    return head[:2] == b"\x1f\x8b" and bool(head[3] & 4) and head[12:14] == b"BC"


def is_gzip(head: bytes) -> bool:
    """True where the first 18 bytes are those of a gzip file that is not bgzip."""
    return head[:2] == b"\x1f\x8b" and not is_bgzip(head.ljust(18, b"\0"))


def check_bgzip_end(path: Path) -> None:
    """Raise where a bgzip file lacks its last block: one that was cut off may be read without complaint."""
    with path.open("rb") as handle:
        if not is_bgzip(handle.read(18).ljust(18, b"\0")):
            return
        handle.seek(0, os.SEEK_END)
        handle.seek(max(0, handle.tell() - len(BGZIP_END)))
        if handle.read() != BGZIP_END:
            raise cut_off(str(path))


def cut_off(name: str) -> InputError:
    """The error for a bgzip file without its end."""
    return InputError(
        name, expected="a complete bgzip file", got="one without its last block: it was cut off",
        remedy="Fetch or write it again.",
    )  # fmt: skip
