"""Markov models of DNA, the bar that a pretrained model has to pass: counts of k-mers on both strands, numpy alone.

Bases are token ids; anything but A, C, G, T is unknown, is never predicted and resets the context.

Legend: L positions, M scored positions.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from seqkit.errors import ConfigError
from seqkit.tokenizers.dna import Token

ORDER = 12
"""Bases that must be known before a scored one, for every model alike."""

STRENGTH = 128.0
"""Weight of the next shorter context, as a number of observations."""

_POSITIONS_AT_ONCE = 1 << 22
_ONE = np.uint32(1)  # of the counts' type: numpy then adds without a cast for each element, fifteen times as fast
_SWAPS = ((2, 0x3333_3333_3333_3333), (4, 0x0F0F_0F0F_0F0F_0F0F))  # neighbouring digits, then pairs of them


class MarkovModel:
    """Counts of a base after each context of ``order`` bases; those of shorter contexts are sums of them.

    Args:
        order: Length of the longest context, 0 to 15. Memory grows as 4^(order + 1), 430 MiB for 12.
        both_strands: Whether the reverse complement of everything is counted too.

    Attributes:
        order: Length of the longest context.
    """

    def __init__(self, order: int = ORDER, *, both_strands: bool = True):
        if not 0 <= order <= 15:
            raise ConfigError("order", expected="0 to 15", got=str(order))
        self.order, self.both_strands = order, both_strands
        self._counts: list[NDArray[np.uint32]] = []
        self._totals: list[NDArray[np.uint32]] = []

    def fit(self, pieces: Iterable[NDArray[np.uint8]]) -> MarkovModel:
        """Count the k-mers of stretches (L,) of token ids; a k-mer never spans two stretches."""
        width = self.order + 1
        counts = np.zeros(4**width, dtype=np.uint32)
        for ids_L in pieces:
            for low in range(0, len(ids_L), _POSITIONS_AT_ONCE):
                codes_M, _ = kmer_codes(ids_L[max(0, low - self.order) : low + _POSITIONS_AT_ONCE], width)
                np.add.at(counts, codes_M, _ONE)
                if self.both_strands:
                    np.add.at(counts, complement_codes(codes_M, width), _ONE)
        self._counts = [counts]
        for _ in range(self.order):
            self._counts.insert(0, self._counts[0].reshape(4, -1).sum(0, dtype=np.uint32))
        self._totals = [counts.reshape(-1, 4).sum(1, dtype=np.uint32) for counts in self._counts]
        return self

    def mixed_bits(self, ids_L: NDArray[np.uint8], strength: float = STRENGTH) -> NDArray[np.float32]:
        """Bits of each base under all orders mixed: p_k = (n + strength * p_(k-1)) / (total + strength), p_(-1) = 1/4.

        Returns:
            float32 (L,), NaN where a base is not scored (see :func:`scored`).
        """

        def probability(codes_M: NDArray[np.int64]) -> NDArray[np.float64]:
            p_M = np.full(len(codes_M), 0.25)
            for k in range(self.order + 1):
                count_M, total_M = self._lookup(k, codes_M)
                p_M = (count_M + strength * p_M) / (total_M + strength)
            return p_M

        return self._bits(ids_L, probability)

    def single_bits(self, ids_L: NDArray[np.uint8], order: int) -> NDArray[np.float32]:
        """Bits of each base under one order with one added to every count; as :meth:`mixed_bits`."""

        def probability(codes_M: NDArray[np.int64]) -> NDArray[np.float64]:
            count_M, total_M = self._lookup(order, codes_M)
            return (count_M + 1.0) / (total_M + 4.0)

        return self._bits(ids_L, probability)

    def _lookup(self, order: int, codes_M: NDArray[np.int64]) -> tuple[NDArray, NDArray]:
        """How often the last base followed its last ``order`` ones, and how often any base did."""
        kmer_M = codes_M % 4 ** (order + 1)
        counted, total = self._counts[order], self._totals[order]
        return counted[kmer_M].astype(np.float64), total[kmer_M // 4].astype(np.float64)

    def _bits(self, ids_L: NDArray[np.uint8], probability) -> NDArray[np.float32]:
        bits_L = np.full(len(ids_L), np.nan, dtype=np.float32)
        scored_L = scored(ids_L)
        for low in range(0, len(ids_L), _POSITIONS_AT_ONCE):
            begin = max(0, low - self.order)
            codes_M, last_M = kmer_codes(ids_L[begin : low + _POSITIONS_AT_ONCE], self.order + 1)
            wanted_M = scored_L[last_M + begin]
            bits_L[last_M[wanted_M] + begin] = -np.log2(probability(codes_M[wanted_M]))
        return bits_L


def scored(ids_L: NDArray[np.uint8], known: int = ORDER) -> NDArray[np.bool_]:
    """Which bases count in a comparison: known ones with at least ``known`` known bases right before them."""
    known_L = _is_base(ids_L)
    last_unknown_L = np.maximum.accumulate(np.where(known_L, -1, np.arange(len(ids_L))))
    return np.arange(len(ids_L)) - last_unknown_L > known


def kmer_codes(ids_L: NDArray[np.uint8], width: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Every k-mer of known bases as a number in base 4, and the position of its last base.

    Args:
        ids_L: Token ids (L,).
        width: Bases of a k-mer, 1 to 16.

    Returns:
        Codes and positions, both (M,), in order.
    """
    last_L = np.flatnonzero(scored(ids_L, width - 1))
    digit_L = np.where(_is_base(ids_L), ids_L - np.uint8(Token.A), 0).astype(np.int64)
    code_L = np.zeros(max(0, len(ids_L) - width + 1), dtype=np.int64)
    for i in range(width):
        code_L *= 4
        code_L += digit_L[i : i + len(code_L)]
    return code_L[last_L - (width - 1)], last_L


def complement_codes(codes_M: NDArray[np.int64], width: int) -> NDArray[np.int64]:
    """Codes of the reverse complements of k-mers of ``width`` bases: digits reversed, A and T, C and G exchanged."""
    turned_M = ~codes_M
    for bits, mask in _SWAPS:
        turned_M = ((turned_M >> bits) & mask) | ((turned_M & mask) << bits)
    return (turned_M.byteswap() >> (64 - 2 * width)) & (4**width - 1)


def _is_base(ids_L: NDArray[np.uint8]) -> NDArray[np.bool_]:
    return (ids_L >= Token.A) & (ids_L <= Token.T)
