"""Left-normalised indels: one place for every way of writing the same insertion or deletion.

Reference: Tan, Abecasis and Kang 2015 (Bioinformatics 31:2202), algorithm 1.
"""

from __future__ import annotations

import polars as pl

from seqkit.data.fasta import Fasta
from seqkit.data.genome import trim_alleles
from seqkit.data.sites import Sites
from seqkit.data.variants import VariantTable

_READ = 256


def left_normalise(fasta: Fasta, contig: str, start: int, ref: str, alt: str) -> tuple[int, str, str]:
    """The leftmost, shortest way of writing an allele.

    Args:
        fasta: The reference, which must hold ``ref`` at ``start``.
        contig: Contig.
        start: 0-based first base of ``ref``.
        ref: Reference allele, upper case.
        alt: Alternate allele, upper case.

    Returns:
        Start, reference and alternate; insertions and deletions with one base before them, as in a VCF.
    """
    left, short_ref, short_alt = trim_alleles(ref, alt)
    start += left
    if bool(short_ref) == bool(short_alt):  # no indel, or one that nothing can shift
        return (start, short_ref, short_alt) if short_ref else (start - left, ref, alt)
    moved = short_ref or short_alt
    before, low = b"", start
    shift = 0
    while True:
        position = start - shift - 1
        if position < low:
            low = max(position - _READ + 1, 0)
            if position < 0:
                break
            before = fasta.fetch(contig, low, position + 1)
        base = chr(before[position - low])
        if base != moved[-1] or base not in "ACGT":
            break
        moved, shift = base + moved[:-1], shift + 1
    start -= shift
    if start == 0:  # nothing stands before it: the base after it anchors it
        anchor = fasta.fetch(contig, len(short_ref), len(short_ref) + 1).decode()
        return (0, moved + anchor, anchor) if short_ref else (0, anchor, moved + anchor)
    anchor = fasta.fetch(contig, start - 1, start).decode()
    return (start - 1, anchor + moved, anchor) if short_ref else (start - 1, anchor, anchor + moved)


def normalised(table: VariantTable, sites: Sites, fasta: Fasta) -> VariantTable | None:
    """The table with every scored indel left-normalised; None where that changes nothing.

    The input records stay as they are: only what is scored moves.
    """
    pos, ref, alt = (table.alleles[name].to_list() for name in ("pos", "ref", "alt"))
    changed = False
    for i in sites.scored_N.nonzero()[0]:
        if len(ref[i]) == len(alt[i]) == 1:
            continue
        found = left_normalise(fasta, sites.contig[i], pos[i] - 1, ref[i], alt[i])
        if found != (pos[i] - 1, ref[i], alt[i]):
            changed = True
            pos[i], ref[i], alt[i] = found[0] + 1, found[1], found[2]
    if not changed:
        return None
    alleles = table.alleles.with_columns(pl.Series("pos", pos), pl.Series("ref", ref), pl.Series("alt", alt))
    return VariantTable(alleles, table.records, table.path, table.kind, table.column_map)
