"""Do variants and reference belong together? A pre-scan with evidence for the error message."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from seqkit.data.builds import known_shift
from seqkit.data.fasta import Fasta
from seqkit.data.genome import build_in_text, canonical_contig, guess_build
from seqkit.data.sites import Sites, Status, locate
from seqkit.data.variants import VariantTable
from seqkit.errors import ReferenceMismatchError

_PROBES = 48
_CLUSTER_BASES = 200_000
_SEARCH_BASES = 3_000_000
_SHIFT_AGREEMENT = 0.95
_SCAN_LENGTH = 2


@dataclass(frozen=True)
class ReferenceReport:
    """How the alleles meet the reference.

    Attributes:
        counts: Alleles by status, windows aside.
        missing_contigs: Contig names of the table that the reference does not have.
        checked: Alleles with sequence in REF and ALT (neither symbolic nor ``*``).
        mismatch_rate: Share of those whose REF is not on the reference, missing places included; in [0, 1].
        table_build: Assembly that the table names, or None.
        fasta_build: Assembly of the reference by its contig lengths, or None.
        shift: Constant that must be added to the positions to make REF agree; None where none was looked for or found.
    """

    counts: dict[str, int]
    missing_contigs: tuple[str, ...]
    checked: int
    mismatch_rate: float
    table_build: str | None
    fasta_build: str | None
    shift: int | None


def check_reference(
    table: VariantTable,
    fasta: Fasta,
    *,
    max_mismatch: float = 0.1,
    header_lengths: Mapping[str, int | None] | None = None,
) -> ReferenceReport:
    """Compare every REF with the reference before any work is done.

    Args:
        table: The alleles.
        fasta: The reference.
        max_mismatch: Largest tolerated share of alleles whose REF is not on the reference; in [0, 1].
        header_lengths: Contig lengths that the variants' own header states; evidence for the message.

    Raises:
        ReferenceMismatchError: The share is larger. Names the likely assembly from what is known: the name of the
            position column, contig lengths, the reference's file name, and a constant shift under which REF agrees.
    """
    sites = locate(table, fasta, length=_SCAN_LENGTH, max_n_fraction=1.0)
    sequence = ~np.isin(sites.status_N, [Status.SYMBOLIC, Status.STAR])
    wrong = np.isin(sites.status_N, [Status.REF_MISMATCH, Status.CONTIG_MISSING])
    checked = int(sequence.sum())
    rate = float(wrong.sum() / checked) if checked else 0.0
    names = table.alleles["contig"].to_list()
    missing = tuple(dict.fromkeys(name for name, found in zip(names, sites.contig, strict=True) if found is None))
    shift = find_shift(sites, fasta, np.flatnonzero(sequence)) if rate > max_mismatch else None
    stated = {name: length for name, length in (header_lengths or {}).items() if length}
    of_table = table.build_hint or guess_build(stated)
    report = ReferenceReport(sites.counts(), missing, checked, rate, of_table, fasta.build, shift)
    if rate > max_mismatch:
        raise ReferenceMismatchError(
            "variants",
            expected=f"REF as in {fasta.path.name} at {1 - max_mismatch:.0%} of the alleles or more",
            got=f"{1 - rate:.1%} of {checked} ({', '.join(f'{v} {k}' for k, v in report.counts.items())})",
            remedy=_explain(report, sites, fasta, table),
        )
    return report


def wrong_share(counts: Mapping[str, int]) -> float:
    """Share of alleles with sequence whose REF is not on the reference, from counts by status name; in [0, 1]."""
    checked = sum(counts.values()) - sum(counts.get(s.name, 0) for s in (Status.SYMBOLIC, Status.STAR))
    wrong = sum(counts.get(s.name, 0) for s in (Status.REF_MISMATCH, Status.CONTIG_MISSING))
    return wrong / checked if checked else 0.0


def mismatch_error(counts: Mapping[str, int], fasta: Fasta, max_mismatch: float) -> ReferenceMismatchError:
    """The error for a whole file whose first alleles agreed with the reference and whose others did not."""
    found = ", ".join(f"{count} {name}" for name, count in counts.items())
    return ReferenceMismatchError(
        "variants",
        expected=f"REF as in {fasta.path.name} at {1 - max_mismatch:.0%} of the alleles or more",
        got=f"{1 - wrong_share(counts):.1%} ({found})",
        remedy="The first alleles agreed: the file may hold several assemblies or contigs the reference lacks.",
    )


def contig_report(
    table: VariantTable, fasta: Fasta, header_lengths: Mapping[str, int | None] | None = None
) -> list[str]:
    """Lines for people: which contigs go by another name, which are missing, which have another length.

    Args:
        table: The alleles.
        fasta: The reference.
        header_lengths: Contig lengths that the variants' own header states.
    """
    used = table.alleles["contig"].unique(maintain_order=True).to_list()
    found = {name: fasta.resolve(name) for name in used}
    lines = []
    renamed = [f"{name} is {other}" for name, other in found.items() if other not in (None, name)]
    if renamed:
        lines.append(f"contigs by another name in {fasta.path.name}: {_some(renamed)}")
    missing = [name for name, other in found.items() if other is None]
    if missing:
        lines.append(f"contigs that {fasta.path.name} does not have: {_some(missing)}")
    whole = {record.contig: record.length for record in fasta.records if not record.is_piece}
    stated = header_lengths or {}
    other = [
        f"{name} {stated[name]:,} against {whole[found[name]]:,}"
        for name in used
        if stated.get(name) and found[name] in whole and whole[found[name]] != stated[name]
    ]
    if other:
        guess = guess_build({name: length for name, length in stated.items() if length})
        builds = f" (header: {guess}, reference: {fasta.build})" if guess and fasta.build else ""
        lines.append(f"contig lengths of the header differ from the reference's: {_some(other)}{builds}")
    return lines


def _some(words: list[str], most: int = 6) -> str:
    return ", ".join(words[:most]) + (f" and {len(words) - most} more" if len(words) > most else "")


def find_shift(sites: Sites, fasta: Fasta, rows: np.ndarray) -> int | None:
    """The one constant that, added to the positions of a dense cluster of alleles, makes REF agree.

    Up to 48 distinct positions are compared with the reference at every shift within 3 Mb (anywhere within a region of
    at most 6 Mb); a wrong shift agrees at about a quarter of them.

    Returns:
        The shift in bases (0 where the positions are right), or None where no shift or several agree at 95 %.
    """
    rows = rows[[sites.contig[i] is not None for i in rows]] if len(rows) else rows
    if not len(rows):
        return None
    names = np.array([sites.contig[i] for i in rows], dtype=object)
    name = max(dict.fromkeys(names.tolist()), key=lambda n: int((names == n).sum()))
    rows = rows[names == name]
    starts, first = np.unique(sites.start_N[rows], return_index=True)
    rows = rows[first]
    # The stretch of 200 kb with most positions: within it a shift between assemblies is nearly always constant.
    reach = np.searchsorted(starts, starts + _CLUSTER_BASES)
    begin = int((reach - np.arange(len(starts))).argmax())
    chosen = rows[begin : reach[begin]]
    if len(chosen) < _PROBES // 2:
        return None
    chosen = chosen[np.linspace(0, len(chosen) - 1, min(_PROBES, len(chosen))).astype(int)]
    pos = sites.start_N[chosen]
    agree, low = _agreement(sites, fasta, name, chosen, pos)
    if agree is None:
        return None
    best = np.flatnonzero(agree >= _SHIFT_AGREEMENT * len(chosen))
    return int(best[0] + low - pos[0]) if len(best) == 1 else None


def _agreement(
    sites: Sites, fasta: Fasta, name: str, chosen: np.ndarray, pos: np.ndarray
) -> tuple[np.ndarray | None, int]:
    """Number of probes whose first REF base agrees, by the place at which the first probe would lie; and that place."""
    span = int(pos[-1] - pos[0]) + 1
    pieces = fasta.pieces(name)
    low, high = pieces[0].start, pieces[-1].end
    if high - low > 2 * _SEARCH_BASES:
        low, high = max(low, int(pos[0]) - _SEARCH_BASES), min(high, int(pos[-1]) + _SEARCH_BASES)
    if high - low < span:
        return None, low
    bases = fasta.fetch_array(name, low, high)
    places = high - low - span + 1
    agree = np.zeros(places, dtype=np.uint8)
    for i, position in zip(chosen, pos, strict=True):
        offset = int(position - pos[0])
        agree += bases[offset : offset + places] == ord(sites.ref[i][0])
    return agree, low


def _explain(report: ReferenceReport, sites: Sites, fasta: Fasta, table: VariantTable) -> str:
    """What the evidence says, strongest first, and what to do."""
    says, of_table, of_fasta = [], report.table_build, report.fasta_build
    if report.shift:
        says.append(f"REF agrees after adding {report.shift:+,} to the positions")
        known = _known_builds(sites, report.shift)
        if known is not None:
            of_table, of_fasta = of_table or known[0], of_fasta or known[1]
            says.append(f"which is the distance from {known[0]} to {known[1]} there")
    if table.build_hint:
        says.append(f"the column {table.column_map['pos']!r} names {report.table_build}")
    elif report.table_build:
        says.append(f"the contig lengths of the header are those of {report.table_build}")
    if report.fasta_build:
        says.append(f"the contig lengths of the reference are those of {report.fasta_build}")
    named = build_in_text(fasta.path.name)
    if named and not of_fasta:
        of_fasta = named
        says.append(f"the reference's file name says {named}")
    if report.missing_contigs:
        says.append(f"the reference has no contig {', '.join(report.missing_contigs[:5])}")
    beyond = next(
        (c for c, start in zip(sites.contig, sites.start_N, strict=True) if _is_beyond(fasta, c, start)), None
    )
    if beyond is not None:
        says.append(f"positions lie beyond the end of {beyond} (a region must be named {beyond}:START-END)")
    evidence = "; ".join(says)
    if of_table and of_fasta and of_table != of_fasta:
        common = " (hg19)" if of_table == "GRCh37" else ""
        return (
            f"The positions look like {of_table}{common} while the reference is {of_fasta}: {evidence}. "
            f"Use the {of_table} reference or lift the positions over."
        )
    if report.shift:
        return f"The positions belong to another assembly: {evidence}."
    if evidence:
        return f"Evidence: {evidence}. Check that positions are 1-based and of the reference's assembly."
    return "Check that positions are 1-based, alleles on the plus strand, and both of one assembly."


def _known_builds(sites: Sites, shift: int) -> tuple[str, str] | None:
    """Assemblies of table and reference where ``shift`` is the known distance between them at the first allele."""
    contig, start = next((c, int(s)) for c, s in zip(sites.contig, sites.start_N, strict=True) if c is not None)
    bare = canonical_contig(contig)
    if known_shift(bare, start) == shift:
        return "GRCh37", "GRCh38"
    return ("GRCh38", "GRCh37") if known_shift(bare, start + shift) == -shift else None


def _is_beyond(fasta: Fasta, contig: str | None, start: int) -> bool:
    if contig is None:
        return False
    last = fasta.pieces(contig)[-1]
    return not last.is_piece and start >= last.end
