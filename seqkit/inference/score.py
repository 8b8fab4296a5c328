"""Run a model over batches and collect what it returns."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


def score_batches(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    score: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]],
    *,
    device: torch.device,
    rows: int,
    title: str | None = "scoring",
) -> dict[str, NDArray]:
    """Score batches in evaluation mode and concatenate the results.

    Args:
        model: Put on ``device`` and into evaluation mode; its training mode is restored, even after an error.
        batches: Dicts of tensors with the batch on the first axis.
        score: From a batch on ``device`` to named tensors with the batch on the first axis.
        device: Where to compute.
        rows: Number of rows in all batches, for the progress bar.
        title: Text of the progress bar, which is shown when stderr is a terminal; None shows none.

    Returns:
        float32 or integer arrays with ``rows`` rows each.
    """
    training = model.training
    model.to(device).eval()
    parts: dict[str, list[NDArray]] = {}
    try:
        with torch.inference_mode(), progress_bar(title, rows) as advance:
            for batch in batches:
                results = score({name: tensor.to(device) for name, tensor in batch.items()})
                for name, value in results.items():
                    parts.setdefault(name, []).append(value.cpu().numpy())
                advance(len(next(iter(results.values()))))
    finally:
        model.train(training)
    return {name: np.concatenate(values) for name, values in parts.items()}


def progress_bar(title: str | None, rows: int | None):
    """Context manager giving ``advance(n)``: a bar on stderr for people, nothing for pipes.

    Without a number of rows the bar counts.
    """
    if title is None or not sys.stderr.isatty():
        return contextlib.nullcontext(lambda n: None)
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress

    @contextlib.contextmanager
    def bar():
        with Progress(*Progress.get_default_columns(), MofNCompleteColumn(), console=Console(stderr=True)) as progress:
            task = progress.add_task(title, total=rows)
            yield lambda n: progress.advance(task, n)

    return bar()
