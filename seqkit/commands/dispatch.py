"""Which task's code answers ``predict`` and ``test``: the one the checkpoint was trained for."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from seqkit.tasks.export import DESCRIPTION


def task_command(verb: str, argv: Sequence[str], tasks: Mapping[str, str]) -> Callable[[list[str]], int] | None:
    """The function of another task that takes these arguments; None leaves them to the caller.

    Args:
        verb: Name of the function in the task's module: ``predict`` or ``test``.
        argv: Arguments of the verb.
        tasks: Task to module.
    """
    module = tasks.get(task_of(argv, tasks) or "")
    return getattr(importlib.import_module(module), verb) if module else None


def task_of(argv: Sequence[str], tasks: Mapping[str, str]) -> str | None:
    """Task of the checkpoint; without one to read, the task that ``--task`` or the run folder's path names."""
    options = {}
    for position, argument in enumerate(argv):
        name, equals, value = argument.partition("=")
        if name in ("--ckpt", "--task"):
            options[name] = value if equals else next(iter(argv[position + 1 : position + 2]), None)
    folder = Path(options.get("--ckpt") or "")
    try:
        return json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))["task"]
    except (OSError, ValueError, KeyError, TypeError):
        return options.get("--task") or next((part for part in folder.parts if part in tasks), None)
