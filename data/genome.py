"""Intervals, variants, contig names and genome builds. Coordinates are 0-based half-open inside, 1-based in text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from seqkit.data.builds import ACCESSIONS, CHROMOSOME_LENGTHS, MITOCHONDRIA
from seqkit.errors import InputError

REGION_TEXT = re.compile(r"^(?P<contig>.+):(?P<start>[\d,]+)-(?P<end>[\d,]+)$")
_VARIANT_TEXT = re.compile(
    r"^(?P<contig>.+?)[:\-_ ](?:g\.)?(?P<pos>[\d,]+)[:\-_ ]?(?P<ref>[A-Za-z]+)[:\-_>/](?P<alt>[A-Za-z]+)$"
)
_ACCESSION_TEXT = re.compile(r"^(NC_\d{6})(?:\.(\d+))?$", re.IGNORECASE)


@dataclass(frozen=True, slots=True, order=True)
class Interval:
    """A stretch of a contig, 0-based half-open.

    Attributes:
        contig: Name of the contig.
        start: First base, 0-based. May be negative where a window hangs over the contig's start.
        end: One past the last base; not before ``start``.
        strand: ``+``, ``-`` or ``.`` (unknown).
    """

    contig: str
    start: int
    end: int
    strand: str = "."

    def __post_init__(self) -> None:
        if self.end < self.start:
            raise InputError("interval", expected="end >= start", got=f"{self.start}-{self.end}")
        if self.strand not in ("+", "-", "."):
            raise InputError("strand", expected="one of + - .", got=repr(self.strand))

    @classmethod
    def parse(cls, text: str, strand: str = ".") -> Interval:
        """Read ``chr17:41,100,001-41,300,000`` (1-based, both ends included)."""
        match = REGION_TEXT.match(text.strip())
        if match is None:
            raise InputError("region", expected="text such as chr17:41,100,001-41,300,000", got=repr(text))
        start, end = (int(match[key].replace(",", "")) for key in ("start", "end"))
        return cls(match["contig"], start - 1, end, strand)

    def __str__(self) -> str:
        return f"{self.contig}:{self.start + 1}-{self.end}"

    def __len__(self) -> int:
        return self.end - self.start

    def overlaps(self, other: Interval, gap: int = 0) -> bool:
        """True where both share a base, or come within ``gap`` bases of each other, on the same contig."""
        return self.contig == other.contig and self.start < other.end + gap and other.start < self.end + gap

    def contains(self, position: int) -> bool:
        """True where the 0-based ``position`` lies inside."""
        return self.start <= position < self.end

    def resized(self, length: int) -> Interval:
        """The interval of ``length`` bases around the same centre (one more base on the right if uneven)."""
        start = self.start + (len(self) - length) // 2
        return Interval(self.contig, start, start + length, self.strand)


@dataclass(frozen=True, slots=True, order=True)
class Variant:
    """One alternate allele.

    Attributes:
        contig: Name of the contig.
        start: 0-based position of the first base of ``ref``.
        ref: Reference allele, upper case.
        alt: Alternate allele, upper case.
    """

    contig: str
    start: int
    ref: str
    alt: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "ref", self.ref.upper())
        object.__setattr__(self, "alt", self.alt.upper())

    @classmethod
    def parse(cls, text: str) -> Variant:
        """Read ``chr17:41276135:T:G``, ``chr17-41276135-T-G``, ``17_41276135_T/G`` or ``chr17:g.41276135T>G``."""
        match = _VARIANT_TEXT.match(text.strip())
        if match is None:
            raise InputError("variant", expected="text such as chr17:41276135:T:G (1-based)", got=repr(text))
        return cls(match["contig"], int(match["pos"].replace(",", "")) - 1, match["ref"], match["alt"])

    def __str__(self) -> str:
        return f"{self.contig}:{self.pos}:{self.ref}:{self.alt}"

    @property
    def pos(self) -> int:
        """1-based position, as in a VCF."""
        return self.start + 1

    @property
    def end(self) -> int:
        """One past the last reference base, 0-based."""
        return self.start + len(self.ref)

    @property
    def kind(self) -> str:
        """``snv``, ``mnv``, ``insertion``, ``deletion``, ``complex`` or ``none`` (both alleles equal)."""
        _, ref, alt = trim_alleles(self.ref, self.alt)
        if not ref and not alt:
            return "none"
        if len(ref) == len(alt):
            return "snv" if len(ref) == 1 else "mnv"
        if ref and alt:
            return "complex"
        return "insertion" if alt else "deletion"


def trim_alleles(ref: str, alt: str) -> tuple[int, str, str]:
    """Cut what both alleles share: first the common prefix, then the common suffix.

    Returns:
        Number of bases cut on the left, and both alleles without the shared ends (either may be empty).
    """
    shortest, left = min(len(ref), len(alt)), 0
    while left < shortest and ref[left] == alt[left]:
        left += 1
    right = 0
    while right < shortest - left and ref[-1 - right] == alt[-1 - right]:
        right += 1
    return left, ref[left : len(ref) - right], alt[left : len(alt) - right]


def canonical_contig(name: str) -> str:
    """The bare name by which aliases meet: chr1, 1 and NC_000001.11 give ``1``; chrM, M and MT give ``MT``."""
    name = name.strip()
    match = _ACCESSION_TEXT.match(name)
    if match is not None:
        return ACCESSIONS.get(match[1].upper(), match[1].upper())
    bare = name[3:] if name[:3].lower() == "chr" and len(name) > 3 else name
    upper = bare.upper()
    if upper in MITOCHONDRIA:
        return "MT"
    return upper if upper in ("X", "Y", "W", "Z") else bare


def match_contig(name: str, available: Iterable[str]) -> str | None:
    """The name in ``available`` that means the same contig as ``name``, or None.

    An exact match wins. A RefSeq accession with another version never matches an accession: it is another assembly.
    """
    names = list(available)
    if name in names:
        return name
    accession = _ACCESSION_TEXT.match(name.strip())
    wanted = canonical_contig(name)
    for candidate in names:
        if canonical_contig(candidate) != wanted:
            continue
        other = _ACCESSION_TEXT.match(candidate.strip())
        if accession and other and accession[2] and other[2] and accession[2] != other[2]:
            continue
        return candidate
    return None


def guess_build(lengths: Mapping[str, int]) -> str | None:
    """The assembly whose main chromosomes have these lengths, or None where fewer than one or not most agree.

    Args:
        lengths: Contig name to length in bases; names may be aliases. Pieces of contigs must be left out.
    """
    bare = {canonical_contig(name): length for name, length in lengths.items()}
    best, best_hits = None, 0
    for build, expected in CHROMOSOME_LENGTHS.items():
        known = [name for name in bare if name in expected]
        hits = sum(bare[name] == expected[name] for name in known)
        if hits > best_hits and 2 * hits > len(known):
            best, best_hits = build, hits
    return best


def build_in_text(text: str) -> str | None:
    """The assembly that a file or column name mentions (``position (hg19)`` gives GRCh37), or None."""
    found = {build for pattern, build in _BUILD_WORDS if pattern.search(text)}
    return found.pop() if len(found) == 1 else None


_BUILD_WORDS = tuple(
    (re.compile(rf"(?<![a-z]){words}(?!\d)", re.IGNORECASE), build)
    for words, build in (
        (r"(?:hg19|grch37|b37|hs37d5)", "GRCh37"),
        (r"(?:hg38|grch38|b38|hs38)", "GRCh38"),
        (r"(?:t2t|chm13|hs1)", "T2T-CHM13"),
        (r"(?:mm10|grcm38)", "mm10"),
        (r"(?:mm39|grcm39)", "mm39"),
    )
)
