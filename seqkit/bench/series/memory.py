"""Peak memory and time of training on 100,000, 300,000 and all 936,001 seismic samples, each in a process of its own.

One pass on contiguous chunks with carried state, as in the protocol ``seismic``; the file is read beforehand, so that
a process holds only the samples it trains on.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

from numpy.typing import NDArray

from seqkit.bench.series import files, seismic
from seqkit.bench.series.one_step import train_and_read
from seqkit.bench.series.rows import Row
from seqkit.bench.stream import memory_mib

FILES = (files.SEISMIC,)
LENGTHS = (100_000, 300_000, 936_001)


def measure(series: NDArray, seed: int, device: str) -> tuple[float, dict[str, float]]:
    """Train on all but the last tenth, choose by it, read all of it; seconds, and MiB before and at the peak."""
    settings = replace(seismic.ONE_STEP, chunks=replace(seismic.ONE_STEP.chunks, epochs=1))
    before, begun = memory_mib("VmHWM"), time.perf_counter()
    train_and_read(settings, series, len(series) * 9 // 10, len(series), seed, device)
    return time.perf_counter() - begun, {"peak_mib": memory_mib("VmHWM"), "before_mib": before}


def models(folder: Path, device: str, seeds: Sequence[int]) -> Iterator[Row]:
    """One row a length and seed."""
    series, _ = seismic.load(folder)
    for length in LENGTHS:
        for seed in seeds:
            # Spawned: a forked process would begin at this one's size.
            with get_context("spawn").Pool(1) as pool:
                seconds, found = pool.apply(measure, (series[:length], seed, device))
            yield Row(f"seismic memory {length}", "seqkit", found, seconds, seed)
