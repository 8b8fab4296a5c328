"""Shipped YAML: one file per task and per model preset."""

if not __name__.startswith("seqkit."):
    raise ImportError("import seqkit.configs, not configs")

import difflib
from pathlib import Path

from seqkit.errors import ConfigError

FOLDER = Path(__file__).resolve().parent
KINDS = ("task", "model")


def names(kind: str) -> list[str]:
    """Names of the shipped configs of a kind: ``task`` or ``model``."""
    return sorted(path.stem for path in (FOLDER / kind).glob("*.yaml"))


def path(kind: str, name: str) -> Path:
    """File of a shipped config.

    Raises:
        ConfigError: No config of that name; the nearest one is named.
    """
    found = FOLDER / kind / f"{name}.yaml"
    if name in names(kind):
        return found
    near = difflib.get_close_matches(name, names(kind), n=1)
    remedy = f"Did you mean {near[0]}?" if near else ""
    raise ConfigError(f"--{kind}", expected=f"one of {', '.join(names(kind))}", got=repr(name), remedy=remedy)
