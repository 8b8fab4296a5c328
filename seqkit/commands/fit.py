"""``seqkit fit``: finds the task's own command and hands over."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path

import yaml

from seqkit import configs
from seqkit.errors import ConfigError

TASKS = {
    "anomaly": "seqkit.commands.anomaly",
    "forecast": "seqkit.commands.forecast",
    "impute": "seqkit.commands.impute",
    "pretrain": "seqkit.commands.pretrain",
    "series-classify": "seqkit.commands.series_label",
    "series-regress": "seqkit.commands.series_label",
    "variant-effect": "seqkit.commands.variant_effect",
}


def run(argv: Sequence[str]) -> int:
    """Train the task that ``--task`` or the config names."""
    task = task_of(argv)
    if task is None and {"-h", "--help"} & set(argv):
        print("usage: seqkit fit --task TASK [options]      seqkit fit --task TASK --help\ntasks: " + ", ".join(TASKS))
        return 0
    if task is None:
        raise ConfigError("--task", expected=f"one of {', '.join(TASKS)}", got="none")
    if task not in TASKS:
        configs.path("task", task)
    return importlib.import_module(TASKS[task]).fit(list(argv))


def task_of(argv: Sequence[str]) -> str | None:
    """Task named by ``--task`` or, failing that, by the last ``--config`` that names one."""
    named = None
    for position, argument in enumerate(argv):
        name, equals, value = argument.partition("=")
        if name not in ("--task", "--config"):
            continue
        value = value if equals else next(iter(argv[position + 1 : position + 2]), None)
        if name == "--task":
            return value
        if value and Path(value).is_file():
            named = (yaml.safe_load(Path(value).read_text()) or {}).get("task", named)
    return named
