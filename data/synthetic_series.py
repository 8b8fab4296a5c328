"""Labelled series made from a seed: what the tasks on whole series learn where no table is given."""

from __future__ import annotations

import numpy as np
import polars as pl

SYNTHETIC_NUMBER = "pitch"
CLASSES = ("falling", "rising", "steady")
_CYCLES = (0.08, 0.16)


def bursts(seed: int, series: int = 360) -> pl.DataFrame:
    """Long frame of noisy series, each with one burst of a wave somewhere in it.

    The pitch of the wave rises, falls or stays; ``label`` says which and ``pitch`` is its mean, in cycles per 100
    steps. Lengths go from 96 to 160 steps, bursts last 48, the noise is 0.4 of their size. Synthetic: the same seed
    gives the same frame, and no figure on it says anything about real data.
    """
    rng = np.random.default_rng([seed, 11])
    low, high = _CYCLES
    frames = []
    for number in range(series):
        length, kind = int(rng.integers(96, 161)), number % len(CLASSES)
        start, middle = int(rng.integers(0, length - 48)), rng.uniform(low, high)
        turn = (-0.7, 0.7, 0.0)[kind]
        pitch = middle * (1 + turn * np.linspace(-1, 1, 48))
        wave = np.sqrt(2) * np.hanning(48) ** 0.25 * np.sin(2 * np.pi * (pitch.cumsum() + rng.random()))
        y = 0.4 * rng.normal(size=length)
        y[start : start + 48] += wave
        columns = {"ds": np.arange(length), "y": y}
        name = {"unique_id": f"burst-{number:03d}", "label": CLASSES[kind], SYNTHETIC_NUMBER: 100 * float(pitch.mean())}
        frames.append(pl.DataFrame(columns).with_columns(**{key: pl.lit(value) for key, value in name.items()}))
    return pl.concat(frames).select("unique_id", "ds", "y", "label", SYNTHETIC_NUMBER)
