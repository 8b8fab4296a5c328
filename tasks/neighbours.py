"""A base from its neighbours on both sides by counting: what a masked language model has to pass.

Legend: L positions, M counted or scored positions.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from seqkit.tasks.markov import STRENGTH, complement_codes, kmer_codes

REACH = 5


class NeighbourModel:
    """Counts of a base between its ``k`` left and ``k`` right neighbours, for every k up to ``reach``, on both strands.

    It is shown every neighbour, while a masked model is asked for several bases at once and misses some of them.

    Args:
        reach: Neighbours a side, 0 to 6. Memory grows as 16^reach, 21 MiB for 5.
    """

    def __init__(self, reach: int = REACH):
        self.reach = reach
        self._counts = [np.zeros((16**k, 4), dtype=np.uint32) for k in range(reach + 1)]

    def fit(self, pieces: Iterable[NDArray[np.uint8]]) -> NeighbourModel:
        """Count stretches (L,) of token ids."""
        width = 2 * self.reach + 1
        for ids_L in pieces:
            codes_M, _ = kmer_codes(ids_L, width)
            for strand_M in (codes_M, complement_codes(codes_M, width)):
                for k, counts in enumerate(self._counts):
                    np.add.at(counts, self._parts(strand_M, k), 1)
        return self

    def bits(self, ids_L: NDArray[np.uint8], strength: float = STRENGTH) -> NDArray[np.float32]:
        """Bits of each base, all k mixed from 0 up as :meth:`seqkit.tasks.markov.MarkovModel.mixed_bits` mixes orders.

        Returns:
            float32 (L,), NaN where a base or one of its ``reach`` neighbours a side is unknown.
        """
        codes_M, last_M = kmer_codes(ids_L, 2 * self.reach + 1)
        p_M = np.full(len(codes_M), 0.25)
        for k, counts in enumerate(self._counts):
            context_M, base_M = self._parts(codes_M, k)
            total_M = counts.sum(1)[context_M]
            p_M = (counts[context_M, base_M] + strength * p_M) / (total_M + strength)
        bits_L = np.full(len(ids_L), np.nan, dtype=np.float32)
        bits_L[last_M - self.reach] = -np.log2(p_M)
        return bits_L

    def _parts(self, codes_M: NDArray[np.int64], k: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Number of the 2k neighbours next to the base in the middle of each k-mer, and that base."""
        middle_M = codes_M // 4 ** (self.reach - k) % 4 ** (2 * k + 1)
        left_M, right_M = middle_M // 4 ** (k + 1), middle_M % 4**k
        return left_M * 4**k + right_M, middle_M // 4**k % 4
