"""Predicted consequence of every allele on the chosen transcript of its gene, from annotation and reference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl

from seqkit.data.fasta import Fasta
from seqkit.data.genome import match_contig, trim_alleles
from seqkit.data.regions import Annotation
from seqkit.data.sites import Sites, Status
from seqkit.data.transcripts import (
    NO_SITE,
    TranscriptGeometry,
    amino_acids,
    base_numbers,
    codon_table_of,
    complement,
    find_span,
    start_codons,
)

# Most severe first; where genes overlap, and where several hold, the first one counts.
CONSEQUENCES = (
    "splice_acceptor",
    "splice_donor",
    "stop_gained",
    "frameshift",
    "stop_lost",
    "start_lost",
    "inframe_insertion",
    "inframe_deletion",
    "missense",
    "splice_region",
    "coding_unknown",
    "synonymous",
    "5_prime_UTR",
    "3_prime_UTR",
    "non_coding_exon",
    "intron",
    "unannotated",
    "intergenic",
)
CONTEXT = 12
_RANK = {name: rank for rank, name in enumerate(CONSEQUENCES)}
_INTERGENIC = _RANK["intergenic"]


@dataclass
class _Columns:
    """Output columns under construction, one entry an allele."""

    rank: np.ndarray
    transcript: np.ndarray
    strand: np.ndarray
    coding_number: np.ndarray
    donor: np.ndarray
    acceptor: np.ndarray
    aa_ref: np.ndarray
    aa_alt: np.ndarray
    context: np.ndarray

    @classmethod
    def empty(cls, n: int) -> _Columns:
        return cls(
            rank=np.full(n, _INTERGENIC),
            transcript=np.full(n, -1),
            strand=np.zeros(n, dtype=np.int8),
            coding_number=np.zeros(n, dtype=np.int64),
            donor=np.full(n, NO_SITE, dtype=np.int64),
            acceptor=np.full(n, NO_SITE, dtype=np.int64),
            aa_ref=np.full(n, "", dtype="U1"),
            aa_alt=np.full(n, "", dtype="U1"),
            context=np.full(n, "", dtype=f"U{2 * CONTEXT + 1}"),
        )


def predict_consequences(
    sites: Sites, fasta: Fasta, annotation: Annotation, *, codon_tables: Mapping[str, int] | None = None
) -> pl.DataFrame:
    """Say what every allele does to the transcript it lies on.

    Splice sites follow the Sequence Ontology: donor +1 +2 and acceptor -1 -2 are canonical, the three exonic bases and
    the intronic bases 3 to 8 beside them are the splice region. Distances are signed in reading direction without a 0:
    a donor's last exonic base is -1 and first intronic base +1, an acceptor's last intronic base -1 and first exonic
    base +1. For longer alleles the changed base nearest to a site counts. An amino acid is ``X`` where its codon
    reaches into a part that is not annotated or the frame is lost, and ``*`` for a stop.

    Args:
        sites: Placed alleles; those whose REF is not on the reference become ``intergenic`` with nothing known.
        fasta: The reference.
        annotation: One transcript a gene.
        codon_tables: NCBI genetic code by contig; by default 2 for the mitochondrion and 1 elsewhere.

    Returns:
        One row an allele: ``consequence``, ``gene``, ``transcript``, ``strand`` (1, -1; 0 without a gene),
        ``cds_position``, ``codon_position`` (1 to 3), ``protein_position``, ``aa_ref``, ``aa_alt``, ``aa_context``
        (25 residues around the position, ``X`` beyond the protein), ``donor_distance``, ``acceptor_distance``; null
        where there is none.
    """
    out = _Columns.empty(len(sites))
    transcripts = []
    placed = np.isin(sites.status_N, [Status.OK, Status.EDGE, Status.TOO_LONG, Status.N_IN_WINDOW])
    contigs = np.array(sites.contig, dtype=object)
    for contig in dict.fromkeys(contigs[placed].tolist()):
        members = np.flatnonzero(placed & (contigs == contig))
        members = members[np.argsort(sites.start_N[members], kind="stable")]
        starts = sites.start_N[members]
        given = match_contig(contig, codon_tables) if codon_tables else None
        table = codon_tables[given] if given else codon_table_of(contig)
        for transcript in annotation.on(contig):
            geometry = TranscriptGeometry(transcript)
            low, high = geometry.extent
            chosen = members[np.searchsorted(starts, low) : np.searchsorted(starts, high)]
            if len(chosen):
                _annotate(out, sites, chosen, geometry, len(transcripts), fasta, table)
            transcripts.append(transcript)
    return _frame(out, transcripts)


def _annotate(
    out: _Columns, sites: Sites, chosen: np.ndarray, geometry: TranscriptGeometry, number: int, fasta: Fasta, table: int
) -> None:
    """Annotate alleles on one transcript; keep what is more severe than what another gene gave."""
    new = _Columns.empty(len(chosen))
    new.transcript[:], new.strand[:] = number, geometry.transcript.strand
    single = np.array([len(sites.ref[i]) == len(sites.alt[i]) == 1 for i in chosen], dtype=bool)
    q = geometry.read(sites.start_N[chosen])
    new.rank = _position_rank(geometry, q)
    new.donor, new.acceptor = geometry.donor_distance(q), geometry.acceptor_distance(q)
    new.coding_number = geometry.coding_number(q)
    codons = geometry.codons(fasta)
    protein = amino_acids(table)[tuple(base_numbers(codons).T)] if len(codons) else np.zeros(0, dtype=np.uint8)
    _substitutions(new, sites, chosen, single, geometry, codons, table)
    for row in np.flatnonzero(~single):
        _long_allele(new, row, sites, int(chosen[row]), geometry, codons, table)
    padded = np.pad(protein, CONTEXT, constant_values=ord("X"))
    for row in np.flatnonzero(new.coding_number > 0):
        residue = (new.coding_number[row] - 1) // 3
        new.context[row] = padded[residue : residue + 2 * CONTEXT + 1].tobytes().decode()
    better = (new.rank < out.rank[chosen]) & (new.rank < _INTERGENIC)
    for name, values in vars(new).items():
        getattr(out, name)[chosen[better]] = values[better]


def _position_rank(geometry: TranscriptGeometry, q: np.ndarray) -> np.ndarray:
    """Rank of the class that follows from the position alone; coding bases give ``coding_unknown``."""
    donor, acceptor = geometry.donor_distance(q), geometry.acceptor_distance(q)
    exonic, intronic = find_span(q, geometry.exons)[1], find_span(q, geometry.introns)[1]
    coding = find_span(q, geometry.coding)[1]
    first, last = (geometry.coding[0, 0], geometry.coding[-1, 1]) if len(geometry.coding) else (0, 0)
    inside = (q >= geometry.exons[0, 0]) & (q < geometry.exons[-1, 1])
    region = exonic & (((donor >= -3) & (donor < 0)) | ((acceptor > 0) & (acceptor <= 3)))
    region |= intronic & (((donor >= 3) & (donor <= 8)) | ((acceptor >= -8) & (acceptor <= -3)))
    choices = [
        (intronic & (acceptor >= -2) & (acceptor < 0), "splice_acceptor"),
        (intronic & (donor > 0) & (donor <= 2), "splice_donor"),
        (region, "splice_region"),
        (coding, "coding_unknown"),
        (exonic & (len(geometry.coding) == 0), "non_coding_exon"),
        (exonic & (q < first), "5_prime_UTR"),
        (exonic & (q >= last), "3_prime_UTR"),
        (exonic, "coding_unknown"),
        (intronic, "intron"),
        (inside, "unannotated"),
    ]
    return np.select([mask for mask, _ in choices], [_RANK[name] for _, name in choices], _INTERGENIC)


def _substitutions(
    new: _Columns,
    sites: Sites,
    chosen: np.ndarray,
    single: np.ndarray,
    geometry: TranscriptGeometry,
    codons: np.ndarray,
    table: int,
) -> None:
    """Amino acids and class of single-base changes, all at once."""
    rows = np.flatnonzero(single & (new.coding_number > 0))
    if not len(rows):
        return
    alt = np.frombuffer("".join(sites.alt[i] for i in chosen[rows]).encode(), dtype=np.uint8)
    alt = complement(alt) if geometry.transcript.strand < 0 else alt
    number = new.coding_number[rows] - 1
    old = codons[number // 3]
    changed = old.copy()
    changed[np.arange(len(rows)), number % 3] = alt
    aa = amino_acids(table)
    aa_ref, aa_alt = aa[tuple(base_numbers(old).T)], aa[tuple(base_numbers(changed).T)]
    new.aa_ref[rows] = aa_ref.view("S1").astype("U1")
    new.aa_alt[rows] = aa_alt.view("S1").astype("U1")
    starts = np.array([codon.tobytes().decode() in start_codons(table) for codon in changed])
    first = (number < 3) & np.array([codon.tobytes().decode() in start_codons(table) for codon in old])
    stop = ord("*")
    rank = np.select(
        [
            (aa_ref == ord("X")) | (aa_alt == ord("X")),
            (aa_ref != stop) & (aa_alt == stop),
            (aa_ref == stop) & (aa_alt != stop),
            first & ~starts,
            aa_ref != aa_alt,
        ],
        [_RANK[name] for name in ("coding_unknown", "stop_gained", "stop_lost", "start_lost", "missense")],
        _RANK["synonymous"],
    )
    new.rank[rows] = np.minimum(new.rank[rows], rank)
    # The position alone said coding_unknown, which ranks before synonymous.
    plain = new.rank[rows] == _RANK["coding_unknown"]
    new.rank[rows] = np.where(plain, rank, new.rank[rows])


def _long_allele(
    new: _Columns, row: int, sites: Sites, index: int, geometry: TranscriptGeometry, codons: np.ndarray, table: int
) -> None:
    """Class, distances and first amino acids of an insertion, deletion or longer substitution."""
    left, ref, alt = trim_alleles(sites.ref[index], sites.alt[index])
    start = int(sites.start_N[index]) + left
    low = start if geometry.transcript.strand > 0 else -(start + len(ref) - 1)
    touched = np.arange(low, low + len(ref)) if ref else np.array([low - 1, low])
    donor, acceptor = geometry.donor_distance(touched), geometry.acceptor_distance(touched)
    new.donor[row] = donor[np.abs(donor).argmin()]
    new.acceptor[row] = acceptor[np.abs(acceptor).argmin()]
    ranks = _position_rank(geometry, touched)
    # An insertion belongs to the milder of its two neighbours: beside a splice site it leaves the site intact.
    new.rank[row] = ranks.min() if ref else ranks.max()
    numbers = geometry.coding_number(touched)
    new.coding_number[row] = numbers[0] if ref else numbers[-1]
    if not (numbers > 0).all() or numbers[-1] - numbers[0] != len(touched) - 1:
        if ((numbers > 0) & (numbers <= 3)).any() and ref:
            new.rank[row] = min(new.rank[row], _RANK["start_lost"])
        return
    letters = np.frombuffer(alt.encode(), dtype=np.uint8)
    letters = complement(letters[::-1]) if geometry.transcript.strand < 0 else letters
    begin = int(new.coding_number[row]) - 1
    rank, aa_ref, aa_alt = _coding_change(codons, begin, begin + len(ref), letters, table)
    new.aa_ref[row], new.aa_alt[row] = aa_ref, aa_alt
    plain = new.rank[row] == _RANK["coding_unknown"]
    new.rank[row] = rank if plain else min(new.rank[row], rank)


def _coding_change(codons: np.ndarray, begin: int, end: int, letters: np.ndarray, table: int) -> tuple[int, str, str]:
    """Rank and first changed amino acids when coding bases ``begin:end`` (0-based) become ``letters``."""
    flat, aa = codons.reshape(-1), amino_acids(table)
    first, last = begin // 3, -(-max(end, begin + 1) // 3)
    shift = len(letters) - (end - begin)
    old = flat[3 * first : 3 * last]
    changed = np.concatenate([flat[3 * first : begin], letters, flat[end : 3 * last]])
    aa_old = aa[tuple(base_numbers(old.reshape(-1, 3)).T)].tobytes().decode()
    opens = old[:3].tobytes().decode() in start_codons(table)
    if first == 0 and opens and changed[:3].tobytes().decode() not in start_codons(table):
        return _RANK["start_lost"], aa_old[0], "X"
    if shift % 3:
        return _RANK["frameshift"], aa_old[0], "X"
    aa_new = aa[tuple(base_numbers(changed.reshape(-1, 3)).T)].tobytes().decode()
    differing = next((i for i, (a, b) in enumerate(zip(aa_old, aa_new, strict=False)) if a != b), 0)
    pair = aa_old[min(differing, len(aa_old) - 1)], (aa_new[differing] if differing < len(aa_new) else "X")
    if "*" in aa_new and "*" not in aa_old:
        name = "stop_gained"
    elif "*" in aa_old and "*" not in aa_new:
        name = "stop_lost"
    elif shift:
        name = "inframe_insertion" if shift > 0 else "inframe_deletion"
    elif "X" in aa_old + aa_new:
        name = "coding_unknown"
    else:
        name = "synonymous" if aa_old == aa_new else "missense"
    return _RANK[name], *pair


def _frame(out: _Columns, transcripts: list) -> pl.DataFrame:
    coding, hit = out.coding_number > 0, out.transcript >= 0
    genes = [transcripts[i].gene_name if i >= 0 else None for i in out.transcript]
    names = [transcripts[i].transcript_id if i >= 0 else None for i in out.transcript]

    def nullable(values: np.ndarray, present: np.ndarray) -> pl.Series:
        series = pl.Series(values)
        return series.set(pl.Series(~present), None)

    return pl.DataFrame(
        {
            "consequence": pl.Series([CONSEQUENCES[rank] for rank in out.rank], dtype=pl.String),
            "gene": pl.Series(genes, dtype=pl.String),
            "transcript": pl.Series(names, dtype=pl.String),
            "strand": out.strand,
            "cds_position": nullable(out.coding_number, coding),
            "codon_position": nullable((out.coding_number - 1) % 3 + 1, coding),
            "protein_position": nullable((out.coding_number - 1) // 3 + 1, coding),
            "aa_ref": nullable(out.aa_ref, out.aa_ref != ""),
            "aa_alt": nullable(out.aa_alt, out.aa_alt != ""),
            "aa_context": nullable(out.context, out.context != ""),
            "donor_distance": nullable(out.donor, hit & (np.abs(out.donor) < NO_SITE)),
            "acceptor_distance": nullable(out.acceptor, hit & (np.abs(out.acceptor) < NO_SITE)),
        }
    )
