"""Time of a step on this machine's CPU: short steps measured, longer ones from the line through them."""

from __future__ import annotations

import time
from dataclasses import replace

from seqkit.estimate.step import Step
from seqkit.estimate.workload import Workload

SHORTEST = 512
LONG_ENOUGH = 0.5
"""Seconds of the longest measured step: less is mostly the cost of calls, more is waiting."""
LONGEST = 1 << 15


def cpu_seconds(workload: Workload) -> float:
    """Estimate a step by running short ones in this process.

    Lengths double until a step takes half a second. From the last two follows the cost of a token beyond them; where
    attention is in the model a parabola goes through the last three.

    Args:
        workload: What is to be run, in float32.
    """
    points: list[tuple[int, float]] = []
    length = min(SHORTEST, workload.length)
    while True:
        points.append((length, _measured(_short(workload, length))))
        if length == workload.length:
            return points[-1][1] * workload.batch
        if (points[-1][1] > LONG_ENOUGH and len(points) > 2) or length >= LONGEST:
            break
        length = min(2 * length, workload.length)
    return workload.batch * _extrapolate(points, workload.length, "attention" in workload.model.blocks)


def _short(workload: Workload, length: int) -> Workload:
    """One sequence of another length, cut into slabs and chunks if the whole one is."""
    model, half = workload.model, max(1, length // 2)
    cut = {}
    for name in ("slab", "sequence_chunk"):
        size = getattr(model, name)
        if size is not None and workload.length > size:
            cut[name] = min(size, half)
    return replace(workload.with_model(**cut), length=length, batch=1)


def _measured(workload: Workload) -> float:
    """The better of two steps behind one that warms up."""
    step, spent = Step(workload), []
    for _ in range(3):
        begun = time.perf_counter()
        step.run()
        spent.append(time.perf_counter() - begun)
    return min(spent[1:])


def _extrapolate(points: list[tuple[int, float]], length: int, parabola: bool) -> float:
    (a, at_a), (b, at_b) = points[-2:]
    slope = max(0.0, (at_b - at_a) / (b - a))
    if not parabola:
        return at_b + slope * (length - b)
    first, at_first = points[-3]
    bend = max(0.0, (slope - (at_a - at_first) / (a - first)) / (b - first))
    return at_b + slope * (length - b) + bend * (length - b) * (length - a)
