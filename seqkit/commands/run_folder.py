"""The folder of one run: who may write into it, and what it says about how it was made."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import yaml

from seqkit import __version__
from seqkit.errors import ConfigError
from seqkit.files import sha256, write_json, write_text

CONFIG = "config.yaml"
METRICS = "metrics.json"
MANIFEST = "manifest.json"
RECORDED = (
    "torch",
    "triton",
    "lightning",
    "numpy",
    "polars",
    "pyfaidx",
    "pysam",
    "biopython",
    "scikit-learn",
)


def open_run(out: str | None, task: str, config_text: str, *, resume: bool, overwrite: bool) -> Path:
    """Make or reopen a run folder and store the resolved config in it.

    Args:
        out: Folder; ``None`` takes the next free ``runs/TASK/NNN`` (with ``resume``: the last one).
        task: Task name, part of the default folder.
        config_text: Resolved config as YAML.
        resume: Go on with the run that lies in the folder; its config must be the same.
        overwrite: Empty the folder first.

    Raises:
        ConfigError: The folder is not empty and neither flag is set, or the config differs from the stored one.
    """
    if resume and overwrite:
        raise ConfigError("--resume", expected="--resume or --overwrite", got="both", remedy="Drop one.")
    folder = Path(out) if out else default_folder(Path("runs") / task, resume)
    occupied = folder.exists() and any(folder.iterdir())
    if occupied and overwrite:
        shutil.rmtree(folder)
    elif occupied and not resume:
        raise ConfigError(
            "--out",
            expected="an empty or new folder",
            got=f"{folder} with files in it",
            remedy="Add --resume or --overwrite.",
        )
    elif occupied:
        require_same_config(folder, config_text)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / CONFIG, config_text)
    return folder


def default_folder(parent: Path, last: bool) -> Path:
    """The next free numbered folder under ``parent``, or the last one there is."""
    taken = sorted(int(p.name) for p in parent.glob("[0-9]*") if p.name.isdigit()) if parent.is_dir() else []
    if last and taken:
        return parent / f"{taken[-1]:03d}"
    return parent / f"{taken[-1] + 1 if taken else 0:03d}"


def require_same_config(folder: Path, config_text: str) -> None:
    """Refuse to resume a run under another config, naming the keys that differ."""
    stored = folder / CONFIG
    if not stored.exists():
        raise ConfigError(
            "--resume",
            expected=f"a run in {folder}",
            got="no config.yaml there",
            remedy="Name another --out.",
        )
    differing = differing_keys(yaml.safe_load(stored.read_text()), yaml.safe_load(config_text))
    if differing:
        raise ConfigError(
            "--resume",
            expected=f"the config stored in {stored}",
            got=f"other values for {', '.join(differing)}",
            remedy="Give the same settings, or a new --out.",
        )


def differing_keys(a: Mapping, b: Mapping, prefix: str = "") -> list[str]:
    """Dotted keys whose values differ between two nested mappings."""
    keys = []
    for key in sorted(set(a) | set(b)):
        left, right = a.get(key), b.get(key)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            keys += differing_keys(left, right, f"{prefix}{key}.")
        elif left != right:
            keys.append(prefix + key)
    return keys


def write_manifest(folder: Path, *, seed: int, inputs: Mapping[str, str | None], device: str) -> None:
    """Record versions, git revision, seed, command and checksums of the inputs."""
    files = {name: {"path": str(path), "sha256": sha256(path)} for name, path in inputs.items() if path}
    write_json(
        folder / MANIFEST,
        {
            "seqkit": __version__,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": ["seqkit", *sys.argv[1:]],
            "seed": seed,
            "device": device,
            "python": platform.python_version(),
            "platform": platform.platform(),
            "versions": {name: _version(name) for name in RECORDED},
            "git_revision": git_revision(),
            "inputs": files,
        },
    )


def git_revision() -> str | None:
    """Revision of the checkout seqkit runs from, or None when it was installed from a wheel."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
