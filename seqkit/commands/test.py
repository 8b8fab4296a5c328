"""``seqkit test``: finds the command of the task that a run was trained for and hands over."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from seqkit.commands.dispatch import task_command

OTHER_TASKS = {
    "anomaly": "seqkit.commands.anomaly",
    "forecast": "seqkit.commands.forecast_predict",
    "impute": "seqkit.commands.impute",
    "pretrain": "seqkit.commands.pretrain_test",
    "series-classify": "seqkit.commands.series_label_predict",
    "series-regress": "seqkit.commands.series_label_predict",
}
FIRST_TASK = "seqkit.commands.variant_test"


def run(argv: Sequence[str]) -> int:
    """Measure a run on labelled input; arguments that name no run of another task are for variant effects."""
    other = task_command("test", argv, OTHER_TASKS)
    return (other or importlib.import_module(FIRST_TASK).test)(list(argv))
