"""How much of a run is over, by steps, by time, or by whichever is further."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from seqkit.errors import ConfigError


class Budget:
    """Steps and seconds that a run may take; a resumed run goes on with what was left.

    With a limit in steps alone, everything that follows the progress repeats exactly; with one in time it depends on
    the machine.

    Args:
        max_steps: Optimiser steps; None for no limit.
        max_seconds: Seconds between :meth:`start` and the end, held-out evaluations included; None for no limit.
        clock: Seconds from any origin.

    Raises:
        ConfigError: There is no limit at all.
    """

    def __init__(
        self, max_steps: int | None, max_seconds: float | None = None, clock: Callable[[], float] = time.monotonic
    ):
        if max_steps is None and max_seconds is None:
            raise ConfigError("trainer", expected="max_steps, max_time or both", got="neither")
        self.max_steps, self.max_seconds = max_steps, max_seconds
        self._clock, self._before, self._started = clock, 0.0, None

    @property
    def seconds(self) -> float:
        """Seconds used so far, those before a resume included."""
        return self._before + (0.0 if self._started is None else self._clock() - self._started)

    def resume(self, seconds: float) -> None:
        """Set what the run had used before it was stopped."""
        self._before = seconds

    def start(self) -> None:
        """Start the clock."""
        self._started = self._clock()

    def progress(self, step: int) -> float:
        """Share of the run that is over before ``step``, from 0 to 1."""
        by_steps = step / self.max_steps if self.max_steps else 0.0
        by_time = self.seconds / self.max_seconds if self.max_seconds else 0.0
        return min(1.0, max(by_steps, by_time))


def seconds_of(text: str | None) -> float | None:
    """Seconds of ``[[DD:]HH:]MM:SS``; None for None.

    Raises:
        ConfigError: The text is no duration.
    """
    if text is None:
        return None
    parts = text.split(":")
    try:
        numbers = [float(part) for part in parts]
    except ValueError:
        numbers = []
    if not 2 <= len(parts) <= 4 or len(numbers) != len(parts) or min(numbers) < 0 or max(numbers) <= 0:
        raise ConfigError("trainer.max_time", expected="HH:MM:SS, such as 00:10:00", got=repr(text))
    return sum(number * unit for number, unit in zip(reversed(numbers), (1, 60, 3600, 86_400), strict=False))


def cosine_after_warmup(progress: float, warmup: float) -> float:
    """Factor of the peak learning rate: linear rise over a share ``warmup`` of the run, then half a cosine to zero."""
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / max(1e-9, 1 - warmup)))
