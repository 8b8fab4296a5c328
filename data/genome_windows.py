"""Training windows over a genome: which ones an epoch holds, in which order and on which strand.

Everything is a pure function of (seed, epoch, index), so that a run that was killed goes on with the same windows.

Legend: B batch, L bases of a window, N windows of an epoch, S pieces of spans.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch

from seqkit.data.encoded import ID_BITS, SOFT_MASK, EncodedGenome
from seqkit.data.held_out import Span
from seqkit.errors import ConfigError
from seqkit.tokenizers.dna import DNATokenizer, Token

_KEPT_EPOCHS = 4


class GenomeWindows:
    """Windows of one length that never leave their span.

    Runs of unknown bases that no window may hold cut a span in pieces. An epoch covers every piece evenly, from a phase
    of its own; windows in which short runs add up to too many unknown bases are left out. A piece shorter than a
    window but at least half as long is one window, filled up with PAD; where every piece is shorter than that, those of
    at least half the longest one's length are.

    Args:
        genome: The genome.
        spans: Stretches that windows may lie in.
        length: Bases of a window, L.
        seed: Of phases, order and strands.
        max_n: Largest share of a window's bases that are not A, C, G or T.
        reverse_complement: Whether half of the windows are read on the other strand.

    Raises:
        ConfigError: No window is left.
    """

    def __init__(
        self,
        genome: EncodedGenome,
        spans: Sequence[Span],
        length: int,
        *,
        seed: int = 0,
        max_n: float = 0.1,
        reverse_complement: bool = True,
    ):
        self.genome, self.length, self.seed = genome, length, seed
        self.max_n, self.reverse_complement = max_n, reverse_complement
        start_S, end_S = _between_gaps(genome, spans, max_n * length)
        bases_S = end_S - start_S
        kept_S = bases_S >= min(length, bases_S.max(initial=0)) / 2
        self._start_S, self._bases_S = start_S[kept_S], bases_S[kept_S]
        self._window_S = np.minimum(self._bases_S, length)
        self._count_S = np.maximum(1, np.rint(self._bases_S / length).astype(np.int64))
        self._plan = lru_cache(_KEPT_EPOCHS)(self._draw)
        self._ends = [0]
        if not any(len(self.plan(epoch)[0]) for epoch in range(_KEPT_EPOCHS)):
            raise ConfigError(
                "data.max_n", expected=f"windows of {length:,} bases with at most {max_n:.0%} unknown ones",
                got=f"none in {len(spans)} training stretches", remedy="Raise it, or lower the length.",
            )  # fmt: skip

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name != "_plan"}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._plan = lru_cache(_KEPT_EPOCHS)(self._draw)

    @property
    def covered(self) -> int:
        """Number of bases in the pieces that are used at this length."""
        return int(self._bases_S.sum())

    def plan(self, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Offsets, numbers of bases and strands (True: the other one) of an epoch's windows, each (N,), in order."""
        return self._plan(epoch)

    def locate(self, number: int) -> tuple[int, int]:
        """Epoch and index in it of the window with a running number, counted from 0 over all epochs."""
        while self._ends[-1] <= number:
            self._ends.append(self._ends[-1] + len(self.plan(len(self._ends) - 1)[0]))
        epoch = int(np.searchsorted(self._ends, number, side="right")) - 1
        return epoch, number - self._ends[epoch]

    def take(self, first: int, count: int) -> dict[str, torch.Tensor]:
        """The windows with running numbers ``first`` to ``first + count``.

        Returns:
            ``ids`` uint8 (B, L), PAD beyond a short span's end, and ``soft`` bool (B, L), the soft mask.
        """
        coded_BL = np.full((count, self.length), Token.PAD, dtype=np.uint8)
        for row, number in enumerate(range(first, first + count)):
            epoch, index = self.locate(number)
            start_N, bases_N, mirrored_N = self.plan(epoch)
            start, bases = start_N[index], bases_N[index]
            piece = self.genome.bases[start : start + bases]
            coded_BL[row, :bases] = _COMPLEMENT[piece[::-1]] if mirrored_N[index] else piece
        return {"ids": torch.from_numpy(coded_BL & ID_BITS), "soft": torch.from_numpy(coded_BL >= SOFT_MASK)}

    def _draw(self, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        random = np.random.default_rng([self.seed, epoch, self.length])
        phase_S = random.random(len(self._start_S))
        span_N = np.repeat(np.arange(len(self._start_S)), self._count_S)
        place_N = np.arange(len(span_N)) - np.repeat(np.cumsum(self._count_S) - self._count_S, self._count_S)
        places_N = (self._bases_S - self._window_S + 1)[span_N]
        start_N = self._start_S[span_N] + ((place_N + phase_S[span_N]) / self._count_S[span_N] * places_N).astype(int)
        bases_N = self._window_S[span_N]
        order_N = random.permutation(len(span_N))
        mirrored_N = (random.random(len(span_N)) < 0.5) & self.reverse_complement
        kept_N = self.genome.unknown(start_N, start_N + bases_N) <= self.max_n * bases_N
        order_N = order_N[kept_N[order_N]]
        return start_N[order_N], bases_N[order_N], mirrored_N[order_N]


def _between_gaps(genome: EncodedGenome, spans: Sequence[Span], longest: float) -> tuple[np.ndarray, np.ndarray]:
    """Starts and ends (S,) of what is left of the spans without runs of more than ``longest`` unknown bases."""
    runs_R2 = genome.unknown_R2[genome.unknown_R2[:, 1] - genome.unknown_R2[:, 0] > longest]
    pieces = []
    for low, high in spans:
        inside = (runs_R2[:, 1] > low) & (runs_R2[:, 0] < high)
        edges = [low, *runs_R2[inside].ravel().clip(low, high).tolist(), high]
        pieces += [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if a < b]
    start_end = np.array(pieces, dtype=np.int64).reshape(-1, 2)
    return start_end[:, 0], start_end[:, 1]


def _complement_of_bytes() -> np.ndarray:
    """Complement of an encoded byte; the soft mask stays."""
    table = np.arange(256, dtype=np.uint8)
    complement = DNATokenizer().complement
    for soft in (0, SOFT_MASK):
        table[soft : soft + len(complement)] = complement | soft
    return table


_COMPLEMENT = _complement_of_bytes()
