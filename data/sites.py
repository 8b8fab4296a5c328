"""Where each allele lies on the reference and whether it can be scored. Legend: N alleles."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np

from seqkit.data.fasta import Fasta
from seqkit.data.genome import trim_alleles
from seqkit.data.variants import VariantTable

_LETTERS = frozenset("ACGTUNRYSWKMBDHV")
_BASES = frozenset("ACGT")
_READ_SPAN = 1 << 22


class Status(IntEnum):
    """Why an allele has a score or has none. ``OK`` and ``EDGE`` are scored, the rest are not.

    EDGE: the window hangs over the end of the contig or of the known region and is filled with N there.
    N_IN_WINDOW: an allele holds a letter other than A, C, G, T, or too much of the window is unknown.
    TOO_LONG: what changes does not fit between the window's centre and its end.
    CONTIG_MISSING: the reference has no such contig, or no base at this position.
    FEATURE_MISSING: a feature the model was fitted with has no value for the allele.
    """

    OK = 0
    EDGE = 1
    REF_MISMATCH = 2
    CONTIG_MISSING = 3
    N_IN_WINDOW = 4
    SYMBOLIC = 5
    STAR = 6
    TOO_LONG = 7
    FEATURE_MISSING = 8

    @property
    def scored(self) -> bool:
        """True where a window is built."""
        return self <= Status.EDGE


@dataclass(frozen=True)
class Sites:
    """Alleles placed on a reference.

    Attributes:
        contig: Reference's name of each allele's contig; None where it has none.
        start_N: int64, 0-based first base of REF.
        ref: Reference alleles, upper case.
        alt: Alternate alleles, upper case.
        strand_N: int8, 1 or -1: strand on which windows are read; 0: unknown, read on the plus strand.
        status_N: int8 of :class:`Status`.
    """

    contig: tuple[str | None, ...]
    start_N: np.ndarray
    ref: tuple[str, ...]
    alt: tuple[str, ...]
    strand_N: np.ndarray
    status_N: np.ndarray

    def __len__(self) -> int:
        return len(self.ref)

    @property
    def scored_N(self) -> np.ndarray:
        """Boolean, True where a window can be built."""
        return self.status_N <= Status.EDGE

    def status_names(self) -> list[str]:
        """One status name an allele, as written to the output."""
        return [Status(value).name for value in self.status_N]

    def counts(self) -> dict[str, int]:
        """Number of alleles by status, in the order of :class:`Status`, without zeros."""
        found = Counter(self.status_N.tolist())
        return {status.name: found[status] for status in Status if found[status]}

    def without(self, rows_N: np.ndarray, status: Status) -> Sites:
        """The same sites with a status for those of the chosen rows (boolean, shape (N,)) that would be scored."""
        return replace(self, status_N=np.where(rows_N & self.scored_N, np.int8(status), self.status_N))

    def with_strand(self, strand_N: np.ndarray) -> Sites:
        """The same sites read on the given strands (1, -1, 0 for unknown), shape (N,)."""
        return replace(self, strand_N=np.sign(np.asarray(strand_N)).astype(np.int8))


def locate(
    table: VariantTable,
    fasta: Fasta,
    *,
    length: int,
    strand: Sequence[int] | np.ndarray | None = None,
    max_n_fraction: float = 0.1,
) -> Sites:
    """Place every allele on the reference and judge it.

    Where several reasons apply the first of STAR, SYMBOLIC, N_IN_WINDOW (letters of the alleles), CONTIG_MISSING,
    REF_MISMATCH, TOO_LONG, N_IN_WINDOW (reference), EDGE is given.

    Args:
        table: The alleles.
        fasta: The reference.
        length: Window length in bases, at least 2.
        strand: 1, -1 or 0 (unknown) per allele; all 0 by default.
        max_n_fraction: Unknown letters of the reference inside a window, padding not counted, above which it is not
            scored; in [0, 1].
    """
    alleles = table.alleles
    ref, alt = tuple(alleles["ref"].to_list()), tuple(alleles["alt"].to_list())
    start_N = alleles["pos"].to_numpy().astype(np.int64) - 1
    contig = tuple(fasta.resolve(name) for name in alleles["contig"].to_list())
    strand_N = np.sign(np.zeros(len(ref)) if strand is None else np.asarray(strand)).astype(np.int8)
    status_N = np.array([_allele_status(r, a, length) for r, a in zip(ref, alt, strict=True)], dtype=np.int8)
    sites = Sites(contig, start_N, ref, alt, strand_N, status_N)
    usable_N = np.isin(status_N, [int(Status.OK), int(Status.TOO_LONG)])
    names_N = np.array(contig, dtype=object)
    for name in dict.fromkeys(contig):
        members = np.flatnonzero(usable_N & (names_N == name))
        if len(members) and name is None:
            status_N[members] = Status.CONTIG_MISSING
        elif len(members):
            _judge_contig(sites, fasta, name, members, length, max_n_fraction)
    return sites


def _allele_status(ref: str, alt: str, length: int) -> Status:
    if len(ref) == len(alt) == 1 and ref in _BASES and alt in _BASES:
        return Status.OK
    if alt == "*":
        return Status.STAR
    if not alt or not ref or not _LETTERS.issuperset(alt) or not _LETTERS.issuperset(ref):
        return Status.SYMBOLIC
    if not _BASES.issuperset(alt) or not _BASES.issuperset(ref):
        return Status.N_IN_WINDOW
    _, short_ref, short_alt = trim_alleles(ref, alt)
    room = length - length // 2
    return Status.TOO_LONG if max(len(short_ref), len(short_alt)) > room else Status.OK


def _judge_contig(
    sites: Sites, fasta: Fasta, name: str, members: np.ndarray, length: int, max_n_fraction: float
) -> None:
    """Fill in the statuses that need the reference, for the alleles of one contig."""
    status_N, order = sites.status_N, members[np.argsort(sites.start_N[members], kind="stable")]
    ends = sites.start_N[order] + np.array([len(sites.ref[i]) for i in order])
    for span in clusters(sites.start_N[order] - length, ends + length, _READ_SPAN):
        chosen = order[span]
        low = int(sites.start_N[chosen].min()) - length
        high = int(ends[span].max()) + length
        bases = fasta.fetch_array(name, low, high)
        inside = np.zeros(high - low + 1, dtype=np.int64)
        for piece in fasta.pieces(name):
            inside[max(piece.start - low, 0) + 1 : max(min(piece.end, high) - low, 0) + 1] = 1
        known = (bases == 65) | (bases == 67) | (bases == 71) | (bases == 84)
        around = fasta.circle(name)
        if around is not None:
            inside[1:] = 1
        covered = np.cumsum(inside)
        unknown = np.concatenate([[0], np.cumsum(~known & (inside[1:] > 0))])
        start, end = sites.start_N[chosen] - low, ends[span] - low
        absent = covered[end] - covered[start] < end - start
        if around is not None:
            absent = (sites.start_N[chosen] < 0) | (sites.start_N[chosen] >= around)
        differs = bases[start] != np.array([ord(sites.ref[i][0]) for i in chosen], dtype=np.uint8)
        for k in np.flatnonzero((end - start > 1) & ~absent):
            differs[k] = bases[start[k] : end[k]].tobytes() != sites.ref[chosen[k]].encode()
        first = start - length // 2
        last = first + length
        judged = [
            (absent, Status.CONTIG_MISSING),
            (differs, Status.REF_MISMATCH),
            (status_N[chosen] == Status.TOO_LONG, Status.TOO_LONG),
            (unknown[last] - unknown[first] > max_n_fraction * length, Status.N_IN_WINDOW),
            (covered[last] - covered[first] < length, Status.EDGE),
        ]
        status_N[chosen] = np.select([mask for mask, _ in judged], [status for _, status in judged], Status.OK)


def clusters(starts: np.ndarray, ends: np.ndarray, limit: int) -> list[slice]:
    """Group intervals sorted by start into runs that are worth one read: they touch, and the run stays under ``limit``.

    Args:
        starts: (n,) ascending.
        ends: (n,).
        limit: Longest span of a run in bases; a single longer interval is a run of its own.

    Returns:
        Slices that cover 0..n in order.
    """
    runs, first, reach = [], 0, -1
    for i in range(len(starts)):
        if i > first and (starts[i] > reach or max(reach, ends[i]) - starts[first] > limit):
            runs.append(slice(first, i))
            first, reach = i, -1
        reach = max(reach, int(ends[i])) if i > first else int(ends[i])
    if len(starts):
        runs.append(slice(first, len(starts)))
    return runs
