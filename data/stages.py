"""Windows that grow while a model trains."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from seqkit.data.genome_windows import GenomeWindows
from seqkit.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class StagesConfig:
    """Lengths of the training windows over a run; steps have the same number of tokens as far as one window allows.

    Attributes:
        length: Final length of a window, in bases.
        ramp: Lengths before it, each below ``length``; larger ones are left out.
        ramp_share: Share of the run spent below the final length, in equal parts; 0 starts at the final length.
        tokens_per_step: Tokens of an optimiser step, a multiple of every length up to it; a longer window is a step by
            itself.
        tokens_at_once: Tokens of one pass; a step of more accumulates gradients over several. A window is never cut.
    """

    length: int = 8192
    ramp: tuple[int, ...] = (1024, 8192, 131_072)
    ramp_share: float = 0.3
    tokens_per_step: int = 8192
    tokens_at_once: int = 131_072

    def __post_init__(self) -> None:
        for name in ("length", "tokens_per_step", "tokens_at_once"):
            if getattr(self, name) < 1:
                raise ConfigError(f"stages.{name}", expected="at least 1", got=str(getattr(self, name)))
        if not 0 <= self.ramp_share < 1:
            raise ConfigError("stages.ramp_share", expected="a share from 0 to below 1", got=str(self.ramp_share))
        if sorted(set(self.ramp)) != list(self.ramp) or min(self.ramp, default=1) < 1:
            raise ConfigError("stages.ramp", expected="lengths in ascending order", got=str(list(self.ramp)))
        for length in self.lengths:
            if self.step_tokens(length) % length:
                raise ConfigError(
                    "stages.tokens_per_step", expected=f"a multiple of every length up to it ({length:,} is one)",
                    got=f"{self.tokens_per_step:,}", remedy="Set stages.ramp or stages.tokens_per_step to fit.",
                )  # fmt: skip

    @property
    def lengths(self) -> tuple[int, ...]:
        """Lengths of the stages, first to last."""
        before = tuple(n for n in self.ramp if n < self.length) if self.ramp_share else ()
        return (*before, self.length)

    def step_tokens(self, length: int) -> int:
        """Tokens of an optimiser step over windows of one length."""
        return max(self.tokens_per_step, length)

    def length_at(self, progress: float) -> int:
        """Length of the windows when a share ``progress`` of the run is over."""
        if progress >= self.ramp_share:
            return self.length
        return self.lengths[int(progress / self.ramp_share * (len(self.lengths) - 1))]


class StagedBatches:
    """An endless stream of training batches that starts at any step.

    The windows of a step are numbered as if all steps before it had been of its kind, so they depend on (seed, step,
    length) alone.

    Args:
        stages: Lengths and tokens.
        windows: From a number of bases to the windows of that length.
        extra: Bases of a window beyond its tokens: 1 where each token's target is the next base.
        first_step: Number of the first step, asked when an iteration starts.
        progress: From a step to the share of the run that is over.
    """

    def __init__(
        self,
        stages: StagesConfig,
        windows: Callable[[int], GenomeWindows],
        *,
        extra: int,
        first_step: Callable[[], int],
        progress: Callable[[int], float],
    ):
        self.stages, self.extra, self.first_step, self.progress = stages, extra, first_step, progress
        self._windows = {length: windows(length + extra) for length in stages.lengths}

    def each_length(self) -> Iterator[dict[str, torch.Tensor]]:
        """A batch of windows of each length, longest first."""
        for length in reversed(self.stages.lengths):
            yield self._windows[length].take(0, self.stages.step_tokens(length) // length)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        step = self.first_step()
        while True:
            length = self.stages.length_at(self.progress(step))
            count = self.stages.step_tokens(length) // length
            yield self._windows[length].take(step * count, count)
            step += 1
