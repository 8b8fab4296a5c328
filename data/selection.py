"""Which records of a file are worked on: regions, and one of several shards."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from seqkit.data.genome import REGION_TEXT, Interval, canonical_contig
from seqkit.errors import ConfigError, InputError

_SHARD_TEXT = re.compile(r"^(\d+)/(\d+)$")
_END = 1 << 62


class Regions:
    """Stretches of contigs; a record belongs to the one that holds its POS, so that neighbours share none.

    Args:
        intervals: In any order; those that touch are joined. Names of contigs may be aliases.
    """

    def __init__(self, intervals: Sequence[Interval]):
        merged: dict[str, list[list[int]]] = {}
        for one in sorted(intervals, key=lambda i: (canonical_contig(i.contig), i.start)):
            spans = merged.setdefault(canonical_contig(one.contig), [])
            if spans and one.start <= spans[-1][1]:
                spans[-1][1] = max(spans[-1][1], one.end)
            else:
                spans.append([one.start, one.end])
        self._spans = merged
        self._of: dict[str, tuple[list[int], list[int]]] = {}

    @property
    def contigs(self) -> list[str]:
        """Bare names (:func:`seqkit.data.genome.canonical_contig`) of the contigs with a region."""
        return list(self._spans)

    def spans(self, contig: str) -> list[tuple[int, int]]:
        """Start and end (0-based half-open) of what is chosen on a contig, ascending."""
        return [(start, end) for start, end in self._spans.get(canonical_contig(contig), ())]

    def keeps(self, contig: str, start: int) -> bool:
        """True where the 0-based position is chosen."""
        if contig not in self._of:
            spans = self.spans(contig)
            self._of[contig] = [s for s, _ in spans], [e for _, e in spans]
        starts, ends = self._of[contig]
        i = bisect_right(starts, start) - 1
        return i >= 0 and start < ends[i]


def read_regions(text: str) -> Regions:
    """Regions of ``chr17:1-1,000 chr2`` (1-based, ends included, separated by spaces or semicolons) or a BED file.

    Raises:
        ConfigError: The text is neither.
        InputError: A BED line has no contig, start and end.
    """
    path = Path(text)
    if path.suffix.lower() == ".bed" or path.is_file():
        return Regions(_read_bed(path))
    intervals = []
    for word in re.split(r"[;\s]+", text.strip()):
        if not word:
            continue
        if REGION_TEXT.match(word):
            try:
                intervals.append(Interval.parse(word))
            except InputError as error:
                raise ConfigError("--regions", expected="start <= end, 1-based", got=repr(word)) from error
        elif ":" in word and not word.startswith("HLA-"):
            raise ConfigError("--regions", expected="chr17:1-1,000, chr17, or a BED file", got=repr(word))
        else:
            intervals.append(Interval(word, 0, _END))
    if not intervals:
        raise ConfigError("--regions", expected="chr17:1-1,000, chr17, or a BED file", got=repr(text))
    return Regions(intervals)


def _read_bed(path: Path) -> list[Interval]:
    intervals = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip() or line.startswith(("#", "track", "browser")):
            continue
        fields = line.split("\t") if "\t" in line else line.split()
        try:
            intervals.append(Interval(fields[0], int(fields[1]), int(fields[2])))
        except (IndexError, ValueError) as error:
            raise InputError(
                str(path), expected="contig, start and end (0-based) in every line", got=f"line {number}: {line[:60]!r}"
            ) from error
    if not intervals:
        raise InputError(str(path), expected="at least one region", got="none")
    return intervals


@dataclass(frozen=True)
class Shard:
    """One of ``count`` runs of records that follow each other; joined in order they are the whole.

    Attributes:
        number: 1-based.
        count: Number of shards.
    """

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read ``2/8``."""
        match = _SHARD_TEXT.match(text.strip())
        shard = cls(int(match[1]), int(match[2])) if match else None
        if shard is None or not 1 <= shard.number <= shard.count:
            raise ConfigError("--shard", expected="i/n with i from 1 to n, such as 2/8", got=repr(text))
        return shard

    def range(self, records: int) -> tuple[int, int]:
        """First record of the shard and one past its last."""
        return (self.number - 1) * records // self.count, self.number * records // self.count
