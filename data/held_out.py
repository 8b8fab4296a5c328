"""Which bases of a genome a model learns from, and which it is measured on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from seqkit.data.encoded import EncodedGenome, Stretch
from seqkit.data.genome import canonical_contig
from seqkit.data.selection import Regions, read_regions
from seqkit.errors import ConfigError

SHARE = 0.05
_WHOLE_CONTIG = (0.02, 0.10)


class Span(NamedTuple):
    """Bases ``start`` to ``end`` of an encoded genome, as offsets in its file; within one record."""

    start: int
    end: int


@dataclass(frozen=True)
class GenomeSplit:
    """The two parts of a genome; no base is in both.

    Attributes:
        train: Stretches to learn from, ascending.
        held_out: Stretches to measure on, ascending.
        description: One line that says how they were chosen.
    """

    train: tuple[Span, ...]
    held_out: tuple[Span, ...]
    description: str

    @property
    def bases(self) -> dict[str, int]:
        """Number of bases by part."""
        return {"train": _total(self.train), "held out": _total(self.held_out)}


def split_genome(genome: EncodedGenome, held_out: str | None = None, exclude: str | None = None) -> GenomeSplit:
    """Divide a genome.

    Args:
        genome: The genome.
        held_out: Regions (``chr20:53025521-63025520``, 1-based, several separated by spaces), a BED file, or a share
            such as ``0.1``: that much of every contig's end. Left out: the contig nearest to 5 % of all bases where
            one has 2 to 10 %; every twentieth contig where all are smaller; else the last 5 % of every contig.
        exclude: Regions or a BED file that belong to neither part.

    Raises:
        ConfigError: A part would be empty, a region lies on no contig of the genome, or the share is not in (0, 1).
    """
    kept_out, description = _held_out_regions(genome, held_out)
    without = _resolve(genome, "data.exclude", read_regions(exclude)) if exclude else {}
    if exclude:
        description += f"; {exclude} left out of both"
    train: list[Span] = []
    measured: list[Span] = []
    for number, stretch in enumerate(genome.stretches):
        none = without.get(number, [])
        measured += _subtract(kept_out.get(number, []), none)
        whole = [Span(stretch.offset, stretch.offset + stretch.length)]
        train += _subtract(whole, [*kept_out.get(number, []), *none])
    for name, spans in (("held_out", measured), ("train", train)):
        if not _total(spans):
            raise ConfigError("data.held_out", expected=f"bases in both parts of {genome.source}",
                              got=f"an empty {name} part ({description})")  # fmt: skip
    return GenomeSplit(tuple(train), tuple(measured), description)


def _held_out_regions(genome: EncodedGenome, held_out: str | None) -> tuple[dict[int, list[Span]], str]:
    if held_out is None:
        return _default(genome)
    try:
        share = float(held_out)
    except ValueError:
        return _resolve(genome, "data.held_out", read_regions(held_out)), f"held out: {held_out}"
    if not 0 < share < 1:
        raise ConfigError("data.held_out", expected="a share between 0 and 1, regions, or a BED file", got=held_out)
    return _ends(genome, share), f"held out: the last {share:.3g} of every contig"


def _default(genome: EncodedGenome) -> tuple[dict[int, list[Span]], str]:
    shares = [stretch.length / len(genome) for stretch in genome.stretches]
    low, high = _WHOLE_CONTIG
    candidates = [i for i, share in enumerate(shares) if low <= share <= high]
    if candidates:
        chosen = [min(candidates, key=lambda i: abs(shares[i] - SHARE))]
        description = f"held out: contig {genome.stretches[chosen[0]].contig}, {shares[chosen[0]]:.1%} of all bases"
    elif max(shares) < low:
        chosen = list(range(round(1 / SHARE) - 1, len(shares), round(1 / SHARE)))
        description = f"held out: every {round(1 / SHARE)}th contig, {len(chosen)} of {len(shares)}"
    else:
        return _ends(genome, SHARE), f"held out: the last {SHARE:.0%} of every contig"
    return {i: [_all_of(genome.stretches[i])] for i in chosen}, description


def _ends(genome: EncodedGenome, share: float) -> dict[int, list[Span]]:
    return {
        i: [Span(stretch.offset + stretch.length - round(stretch.length * share), stretch.offset + stretch.length)]
        for i, stretch in enumerate(genome.stretches)
    }


def _resolve(genome: EncodedGenome, name: str, regions: Regions) -> dict[int, list[Span]]:
    """Regions as offsets, by number of the record."""
    known = {canonical_contig(stretch.contig) for stretch in genome.stretches}
    missing = [contig for contig in regions.contigs if contig not in known]
    if missing:
        contigs = list(dict.fromkeys(stretch.contig for stretch in genome.stretches))
        raise ConfigError(name, expected=f"contigs of {genome.source}: {', '.join(contigs[:8])}", got=missing[0])
    found: dict[int, list[Span]] = {}
    for i, stretch in enumerate(genome.stretches):
        for start, end in regions.spans(stretch.contig):
            low, high = max(start, stretch.start), min(end, stretch.end)
            if low < high:
                shift = stretch.offset - stretch.start
                found.setdefault(i, []).append(Span(low + shift, high + shift))
    if not found:
        raise ConfigError(name, expected="regions with bases in the genome", got="regions beyond its ends")
    return found


def _subtract(spans: Sequence[Span], others: Iterable[Span]) -> list[Span]:
    """What of ``spans`` lies in none of ``others``."""
    left = list(spans)
    for start, end in sorted(others):
        cut: list[Span] = []
        for span in left:
            pieces = Span(span.start, min(span.end, start)), Span(max(span.start, end), span.end)
            cut += [piece for piece in pieces if piece.start < piece.end]
        left = cut
    return left


def _all_of(stretch: Stretch) -> Span:
    return Span(stretch.offset, stretch.offset + stretch.length)


def _total(spans: Iterable[Span]) -> int:
    return sum(end - start for start, end in spans)
