"""Positions seen from a transcript: reading coordinates, splice distances, coding numbers, codons.

Reading coordinates grow in the direction of transcription: the position itself on the plus strand, its negative on the
minus strand. All arrays are over n positions unless said.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from seqkit.data.fasta import Fasta
from seqkit.data.genome import canonical_contig
from seqkit.data.regions import Transcript

KNOWN_INTRON = 100
"""Bases called intron beside a splice site whose other end is not annotated."""

NO_SITE = np.iinfo(np.int32).max
"""Distance where a transcript has no site of the kind."""

_COMPLEMENT = np.frombuffer(bytes.maketrans(b"ACGT", b"TGCA"), dtype=np.uint8)
_BASE_NUMBER = np.full(256, 4, dtype=np.int64)
_BASE_NUMBER[np.frombuffer(b"ACGT", dtype=np.uint8)] = np.arange(4)
_VERTEBRATE_MITOCHONDRION = 2


def codon_table_of(contig: str) -> int:
    """NCBI number of a contig's genetic code: 2 for chrM, MT and their aliases, else 1."""
    return _VERTEBRATE_MITOCHONDRION if canonical_contig(contig) == "MT" else 1


@lru_cache
def amino_acids(table: int) -> np.ndarray:
    """Amino acid (ASCII) of every codon, shape (5, 5, 5) over A C G T N; ``X`` where a base is unknown, ``*`` stop."""
    from Bio.Data import CodonTable

    known = CodonTable.unambiguous_dna_by_id[table]
    letters = np.full((5, 5, 5), ord("X"), dtype=np.uint8)
    for codon, letter in [*known.forward_table.items(), *((codon, "*") for codon in known.stop_codons)]:
        letters[tuple("ACGT".index(base) for base in codon)] = ord(letter)
    return letters


@lru_cache
def start_codons(table: int) -> frozenset[str]:
    """Codons that start a protein: ATG alone in the standard code, all starts of the table in others."""
    from Bio.Data import CodonTable

    return frozenset({"ATG"}) if table == 1 else frozenset(CodonTable.unambiguous_dna_by_id[table].start_codons)


def base_numbers(letters: np.ndarray) -> np.ndarray:
    """ASCII letters to 0..3 for A C G T, 4 for all else."""
    return _BASE_NUMBER[letters]


def complement(letters: np.ndarray) -> np.ndarray:
    """Complement of ASCII letters A C G T; others stay."""
    return _COMPLEMENT[letters]


@dataclass(frozen=True)
class TranscriptGeometry:
    """Index arrays of one transcript, in reading coordinates."""

    transcript: Transcript

    def read(self, positions: np.ndarray) -> np.ndarray:
        """Reading coordinates of 0-based positions."""
        return positions if self.transcript.strand > 0 else -positions

    def _spans(self, parts) -> np.ndarray:
        pairs = [(p.start, p.end) if self.transcript.strand > 0 else (1 - p.end, 1 - p.start) for p in parts]
        return np.array(pairs, dtype=np.int64).reshape(-1, 2)

    @cached_property
    def exons(self) -> np.ndarray:
        """(E, 2) half-open, ascending."""
        return self._spans(self.transcript.exons)

    @cached_property
    def coding(self) -> np.ndarray:
        """(K, 2) half-open, ascending."""
        return self._spans(self.transcript.coding)

    @cached_property
    def coding_numbers(self) -> np.ndarray:
        """(K,) coding number of the first base of every coding part."""
        return np.array([part.position for part in self.transcript.coding], dtype=np.int64)

    @cached_property
    def donors(self) -> np.ndarray:
        """First intronic base after every donor site, ascending."""
        return self.exons[[exon.donor for exon in self.transcript.exons], 1]

    @cached_property
    def acceptors(self) -> np.ndarray:
        """First exonic base after every acceptor site, ascending."""
        return self.exons[[exon.acceptor for exon in self.transcript.exons], 0]

    @cached_property
    def introns(self) -> np.ndarray:
        """(I, 2) half-open: gaps between two sites, and ``KNOWN_INTRON`` bases beside a site without a partner."""
        spans, exons = [], self.transcript.exons
        for left, right, a, b in zip(exons, exons[1:], self.exons, self.exons[1:], strict=False):
            if left.donor and right.acceptor:
                spans.append((a[1], b[0]))
                continue
            if left.donor:
                spans.append((a[1], min(a[1] + KNOWN_INTRON, b[0])))
            if right.acceptor:
                spans.append((max(b[0] - KNOWN_INTRON, a[1]), b[0]))
        if exons[0].acceptor:
            spans.insert(0, (self.exons[0, 0] - KNOWN_INTRON, self.exons[0, 0]))
        if exons[-1].donor:
            spans.append((self.exons[-1, 1], self.exons[-1, 1] + KNOWN_INTRON))
        return np.array(spans, dtype=np.int64).reshape(-1, 2)

    @property
    def extent(self) -> tuple[int, int]:
        """Genomic interval on which the transcript has something to say, 0-based half-open."""
        return self.transcript.start - KNOWN_INTRON, self.transcript.end + KNOWN_INTRON

    def donor_distance(self, q: np.ndarray) -> np.ndarray:
        """Signed distance to the nearest donor: -1 the last exonic base, +1 the first intronic one; there is no 0."""
        return _signed_distance(q, self.donors)

    def acceptor_distance(self, q: np.ndarray) -> np.ndarray:
        """Signed distance to the nearest acceptor: -1 the last intronic base, +1 the first exonic; there is no 0."""
        return _signed_distance(q, self.acceptors)

    def coding_number(self, q: np.ndarray) -> np.ndarray:
        """Coding number (1-based) of reading coordinates; 0 where not coding."""
        part, inside = find_span(q, self.coding)
        if not len(self.coding):
            return np.zeros(len(q), dtype=np.int64)
        return np.where(inside, self.coding_numbers[part] + q - self.coding[part, 0], 0)

    def codons(self, fasta: Fasta) -> np.ndarray:
        """(C, 3) coding-strand bases (ASCII) by codon number, N where a base is not annotated or not known."""
        total = max((int(n + e - s) for n, (s, e) in zip(self.coding_numbers, self.coding, strict=True)), default=1) - 1
        bases = np.full(-(-total // 3) * 3, ord("N"), dtype=np.uint8)
        for part in self.transcript.coding:
            letters = fasta.fetch_array(self.transcript.contig, part.start, part.end)
            if self.transcript.strand < 0:
                letters = complement(letters[::-1])
            bases[part.position - 1 : part.position - 1 + len(letters)] = letters
        return bases.reshape(-1, 3)


def find_span(q: np.ndarray, spans: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each coordinate the last span that starts at or before it (at least 0), and whether it lies inside."""
    if not len(spans):
        return np.zeros(len(q), dtype=np.int64), np.zeros(len(q), dtype=bool)
    index = np.searchsorted(spans[:, 0], q, side="right") - 1
    inside = (index >= 0) & (q < spans[index.clip(0), 1])
    return index.clip(0), inside


def _signed_distance(q: np.ndarray, sites: np.ndarray) -> np.ndarray:
    if not len(sites):
        return np.full(len(q), NO_SITE, dtype=np.int64)
    after = np.searchsorted(sites, q, side="right")
    left = q - sites[(after - 1).clip(0)] + 1
    right = q - sites[after.clip(max=len(sites) - 1)]
    left = np.where(after > 0, left, NO_SITE)
    right = np.where(after < len(sites), right, -NO_SITE)
    return np.where(np.abs(left) <= np.abs(right), left, right)
