"""The user's cache folder: indexes and decompressed copies that cannot stand beside their source."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

from seqkit.errors import InputError


def cache_folder() -> Path:
    """The cache folder, made if absent: ``$SEQKIT_CACHE``, else the platform's usual place.

    Raises:
        InputError: The folder cannot be made or written.
    """
    given = os.environ.get("SEQKIT_CACHE")
    if given:
        folder = Path(given)
    elif sys.platform == "win32":
        folder = Path(os.environ.get("LOCALAPPDATA", str(Path.home()))) / "seqkit" / "cache"
    else:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "seqkit"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            "cache folder",
            expected="a folder that can be written",
            got=f"{folder} ({error.strerror})",
            remedy="Set SEQKIT_CACHE to a folder of yours.",
        ) from error
    return folder


def cache_key(path: Path) -> str:
    """A name that changes with the file's place, size and time of change."""
    status = path.stat()
    text = f"{path.resolve()}\0{status.st_size}\0{status.st_mtime_ns}"
    return f"{hashlib.sha256(text.encode()).hexdigest()[:16]}-{path.name}"
