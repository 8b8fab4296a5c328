"""Windows on a sample's own phased haplotypes. Legend: B windows, W window length, N alleles."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from seqkit.data.fasta import Fasta
from seqkit.data.genome import trim_alleles
from seqkit.data.sites import Sites
from seqkit.data.stream import Chunk
from seqkit.data.windows import VariantWindows
from seqkit.errors import ConfigError
from seqkit.tokenizers.dna import DNATokenizer

_TOKENIZER = DNATokenizer()
_BASES = frozenset("ACGT")
Carried = tuple[str, int, "Edit"]
"""Contig, haplotype, and what is carried there."""
UNCALLED, REFERENCE, UNPHASED, OVERLAP = "MISSING", "REF", "UNPHASED", "OVERLAP"


@dataclass(frozen=True, order=True)
class Edit:
    """An allele a haplotype carries, without what it shares with the reference at its ends.

    Attributes:
        start: 0-based first base that is replaced.
        end: One past the last.
        new: What stands in their place.
    """

    start: int
    end: int
    new: str


@dataclass(frozen=True)
class Genotype:
    """Allele numbers of a sample at a record: 0 the reference, None not called.

    Attributes:
        alleles: One a haplotype.
        phased: False for a heterozygote whose alleles are on unknown haplotypes.
    """

    alleles: tuple[int | None, ...]
    phased: bool


def read_genotype(text: str) -> Genotype:
    """Read GT: ``0|1``, ``1/1``, ``.``, ``1``; equal alleles need no phase."""
    parts = text.replace("/", "|").split("|")
    alleles = tuple(int(part) if part.isdigit() else None for part in parts if part)
    return Genotype(alleles, "/" not in text or len(set(alleles)) == 1)


def genotypes(fields: pl.DataFrame, sample: int) -> list[Genotype | None]:
    """Genotypes of a sample in the text fields of records; None where a record has no GT.

    Args:
        fields: See :data:`seqkit.data.vcf_stream.TEXT_FIELDS`.
        sample: Its number, 0-based.
    """
    found: list[Genotype | None] = []
    for text in fields["GENOTYPES"].to_list() if "GENOTYPES" in fields.columns else [None] * fields.height:
        cells = text.split("\t") if text else []
        has = len(cells) > sample + 1 and cells[0].split(":", 1)[0] == "GT"
        found.append(read_genotype(cells[sample + 1].split(":", 1)[0]) if has else None)
    return found


@dataclass(frozen=True)
class Phased:
    """A chunk with the alleles its sample carries in and around it.

    Attributes:
        chunk: The chunk.
        genotypes: One a record.
        edits: By contig name and number of the haplotype.
    """

    chunk: Chunk
    genotypes: list[Genotype | None]
    edits: dict[tuple[str, int], Haplotype]


def with_neighbours(chunks: Iterable[Chunk], sample: int, reach: int) -> Iterator[Phased]:
    """Chunks of a sorted VCF with every phased allele within ``reach`` bases of their records.

    Args:
        chunks: Chunks whose records are text fields.
        sample: Number of the sample.
        reach: Bases.
    """
    source, ahead = iter(chunks), deque()
    behind: list[Carried] = []
    while True:
        if not ahead:
            chunk = next(source, None)
            if chunk is None:
                return
            ahead.append((chunk, genotypes(chunk.records, sample)))
        chunk, found = ahead.popleft()
        contig, last = chunk.table.alleles["contig"][-1], chunk.table.alleles["pos"][-1]
        while not ahead or _reaches(ahead[-1][0], contig, last + reach):
            following = next(source, None)
            if following is None:
                break
            ahead.append((following, genotypes(following.records, sample)))
        own = list(_carried(chunk, found))
        after = [edit for one, g in ahead for edit in _carried(one, g)]
        yield Phased(chunk, found, _by_haplotype([*behind, *own, *after]))
        behind = [e for e in (*behind, *own) if e[0] == contig and e[2].end >= last - reach]


def _reaches(chunk: Chunk, contig: str, place: int) -> bool:
    """True where a chunk ends on the contig before the place, so that what follows may still matter."""
    alleles = chunk.table.alleles
    return alleles["contig"][-1] == contig and alleles["pos"][-1] <= place


def _carried(chunk: Chunk, found: list[Genotype | None]) -> Iterator[Carried]:
    """Contig, haplotype and edit of every allele with a known phase."""
    alleles = chunk.table.alleles.select("row", "allele", "contig", "pos", "ref", "alt")
    for row, number, contig, pos, ref, alt in alleles.iter_rows():
        genotype = found[row]
        if genotype is None or not genotype.phased or not alt or not _BASES.issuperset(ref + alt):
            continue
        left, short_ref, short_alt = trim_alleles(ref, alt)
        start = pos - 1 + left
        for haplotype, carried in enumerate(genotype.alleles):
            if carried == number + 1:
                yield contig, haplotype, Edit(start, start + len(short_ref), short_alt)


class Haplotype:
    """Edits of one haplotype of a contig, ascending; of two that replace the same base the first one counts.

    Args:
        edits: In any order.
    """

    def __init__(self, edits: Iterable[Edit] = ()):
        self.edits: list[Edit] = []
        self._crowded: set[Edit] = set()
        for edit in sorted(edits):
            if self.edits and conflicts(self.edits[-1], edit):
                self._crowded |= {self.edits[-1], edit}
            else:
                self.edits.append(edit)
        self._starts = [edit.start for edit in self.edits]
        self._longest = max((edit.end - edit.start for edit in self.edits), default=0)

    def near(self, low: int, high: int) -> list[Edit]:
        """Edits that touch [low, high], ascending."""
        first = bisect_left(self._starts, low - self._longest)
        return [e for e in self.edits[first : bisect_right(self._starts, high)] if e.end >= low]

    def without(self, own: Edit) -> bool:
        """True where every other edit, made or not, leaves the bases of ``own`` alone."""
        return own not in self._crowded and not any(
            e != own and conflicts(e, own) for e in self.near(own.start, own.end)
        )


def _by_haplotype(carried: Iterable[Carried]) -> dict[tuple[str, int], Haplotype]:
    edits: dict[tuple[str, int], list[Edit]] = {}
    for contig, haplotype, edit in carried:
        edits.setdefault((contig, haplotype), []).append(edit)
    return {key: Haplotype(found) for key, found in edits.items()}


def conflicts(one: Edit, other: Edit) -> bool:
    """True where two edits cannot both be made: they share a base or insert at the same place."""
    if one.start == one.end and other.start == other.end:
        return one.start == other.start
    return one.start < other.end and other.start < one.end


def own_edit(sites: Sites, i: int) -> Edit:
    """The edit of an allele itself."""
    left, ref, alt = trim_alleles(sites.ref[i], sites.alt[i])
    start = int(sites.start_N[i]) + left
    return Edit(start, start + len(ref), alt)


def spliced(fasta: Fasta, contig: str, low: int, high: int, edits: Iterable[Edit]) -> tuple[np.ndarray, np.ndarray]:
    """Letters and reference positions of a stretch with edits made; inserted letters carry the base before them.

    Args:
        fasta: The reference.
        contig: Contig.
        low: First base, 0-based; may lie outside of the contig.
        high: One past the last.
        edits: Inside the stretch, ascending, without overlaps.
    """
    letters, source = [], []
    bases, at = fasta.fetch_array(contig, low, high), low
    for edit in edits:
        letters.append(bases[at - low : edit.start - low])
        source.append(np.arange(at, edit.start))
        new = np.frombuffer(edit.new.encode(), dtype=np.uint8)
        letters.append(new)
        # Replaced bases keep their place one for one; the rest hangs on the last of them, or on the base before.
        source.append(np.minimum(edit.start + np.arange(len(new)), max(edit.end, edit.start) - 1))
        at = edit.end
    letters.append(bases[at - low : high - low])
    source.append(np.arange(at, high))
    return np.concatenate(letters), np.concatenate(source)


def _side(
    fasta: Fasta, contig: str, place: int, count: int, carried: Haplotype, own: Edit, *, left: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The ``count`` letters of a haplotype, and their places, that end before ``place`` or that begin at it."""
    span = count
    while count:
        low, high = (place - span, place) if left else (place, place + span)
        near = [e for e in carried.near(low, high) if e != own]
        letters, source = spliced(fasta, contig, low, high, [e for e in near if low <= e.start and e.end <= high])
        cut = any(e.start < (low if left else high) < e.end for e in near)  # the stretch must not end inside an edit
        if len(letters) >= count and not cut:
            return (letters[-count:], source[-count:]) if left else (letters[:count], source[:count])
        span += max(count - len(letters), 1)
    return np.zeros(0, dtype=np.uint8), np.zeros(0, dtype=np.int64)


def haplotype_windows(
    sites: Sites,
    fasta: Fasta,
    indices: np.ndarray,
    length: int,
    carried: Mapping[str, Haplotype],
    contigs: Sequence[str],
) -> VariantWindows:
    """Both windows of alleles on a haplotype: its other alleles are in both, the allele itself in the second.

    Args:
        sites: Placed alleles.
        fasta: The reference.
        indices: (B,) allele numbers.
        length: W.
        carried: What the haplotype carries, by the variants' names of contigs.
        contigs: The variants' name of every allele's contig.
    """
    centre = length // 2
    shape = (len(indices), length)
    ids, sources = np.zeros((2, *shape), dtype=np.uint8), np.zeros((2, *shape), dtype=np.int64)
    inserted_BW = np.zeros(shape, dtype=bool)
    for row, i in enumerate(indices):
        own, contig = own_edit(sites, i), sites.contig[i]
        edits = carried.get(contigs[i], Haplotype())
        forward = sites.strand_N[i] >= 0
        ref = fasta.fetch(contig, own.start, own.end).decode()
        for number, allele in enumerate((ref, own.new)):
            after = length - centre - len(allele)
            counts = (centre, after) if forward else (after, centre)
            left = _side(fasta, contig, own.start, counts[0], edits, own, left=True)
            right = _side(fasta, contig, own.end, counts[1], edits, own, left=False)
            middle = np.frombuffer(allele.encode(), dtype=np.uint8)
            place = np.minimum(own.start + np.arange(len(allele)), max(own.end, own.start) - 1)
            letters = _TOKENIZER.encode(np.concatenate([left[0], middle, right[0]]))
            source = np.concatenate([left[1], place, right[1]])
            ids[number, row] = letters if forward else _TOKENIZER.reverse_complement(letters)
            around = fasta.circle(contig)
            source = source if around is None else source % around
            sources[number, row] = source if forward else source[::-1]
        inserted_BW[row, centre + len(ref) : centre + len(own.new)] = True
    centre_B = np.full(len(indices), centre, dtype=np.int64)
    return VariantWindows(ids[0], ids[1], centre_B, sources[0], sources[1], inserted_BW)


def sample_number(samples: list[str], name: str) -> int:
    """Place of a sample in the header.

    Raises:
        ConfigError: It is not there; names the nearest.
    """
    if name in samples:
        return samples.index(name)
    import difflib

    near = difflib.get_close_matches(name, samples, n=1)
    shown = ", ".join(samples[:8]) + (f", ... ({len(samples)} in all)" if len(samples) > 8 else "")
    raise ConfigError(
        "--sample", expected=f"a sample of the VCF: {shown or 'it has none'}", got=repr(name),
        remedy=f"Did you mean {near[0]!r}?" if near else "",
    )  # fmt: skip
