"""How much an allele changes splice sites: bits of the consensus, at the annotated site and at new ones.

Positions are those of the reading strand. A donor motif spans 3 exonic and 6 intronic bases, an acceptor motif 20
intronic and 3 exonic ones.

Legend: N alleles, W window length, M motif length.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from seqkit.data.fasta import Fasta
from seqkit.data.sites import Sites
from seqkit.data.windows import build_windows
from seqkit.tokenizers.dna import Token

RADIUS = 30
WEAK_DONOR_BITS = 8.0
"""Below this a donor is weak: what it loses counts once more."""

# Rounded base frequencies (A C G T) of the human consensus (Shapiro and Senapathy 1987, Nucleic Acids Res. 15:7155).
_DONOR = (
    (0.33, 0.36, 0.19, 0.12), (0.60, 0.13, 0.13, 0.14), (0.09, 0.03, 0.81, 0.07),
    (0.002, 0.002, 0.994, 0.002), (0.002, 0.01, 0.002, 0.986), (0.52, 0.03, 0.42, 0.03),
    (0.70, 0.08, 0.12, 0.10), (0.08, 0.06, 0.79, 0.07), (0.17, 0.16, 0.19, 0.48),
)  # fmt: skip
_ACCEPTOR = (
    *(((0.18, 0.28, 0.15, 0.39),) * 5), *(((0.13, 0.30, 0.12, 0.45),) * 5), *(((0.10, 0.33, 0.10, 0.47),) * 6),
    (0.23, 0.29, 0.21, 0.27), (0.05, 0.65, 0.01, 0.29), (0.994, 0.002, 0.002, 0.002), (0.002, 0.002, 0.994, 0.002),
    (0.25, 0.15, 0.48, 0.12), (0.25, 0.19, 0.20, 0.36), (0.26, 0.23, 0.27, 0.24),
)  # fmt: skip
DONOR_EXONIC = 3
ACCEPTOR_INTRONIC = 20
_UNKNOWN = 4


class SpliceChange(NamedTuple):
    """Change of splice sites by each allele, in bits; 0 where there is no site near.

    Attributes:
        donor: Consensus score of the annotated donor, alternate minus reference, (N,).
        donor_reference: Score of that donor on the reference, (N,).
        acceptor: The same change of the annotated acceptor, (N,).
        new_donor: Gain of the best other donor (GT) that overlaps the change, at least 0, (N,).
        new_acceptor: Gain of the best other acceptor (AG) that overlaps it, at least 0, (N,).
        new_ag: Whether the changed base makes an AG that was not there, (N,) of 0 and 1.
    """

    donor: NDArray
    donor_reference: NDArray
    acceptor: NDArray
    new_donor: NDArray
    new_acceptor: NDArray
    new_ag: NDArray


@lru_cache(maxsize=1)
def motif_bits() -> dict[str, NDArray]:
    """Log-odds in bits against even base frequencies, (M, 5) over A C G T and unknown (0)."""
    tables = {}
    for name, rows in (("donor", _DONOR), ("acceptor", _ACCEPTOR)):
        frequency = np.array(rows)
        bits = np.log2(frequency / frequency.sum(1, keepdims=True) / 0.25)
        tables[name] = np.concatenate([bits, np.zeros((len(bits), 1))], axis=1)
    return tables


def splice_changes(sites: Sites, fasta: Fasta, donor: NDArray, acceptor: NDArray) -> SpliceChange:
    """Score annotated and new splice sites on both alleles.

    Args:
        sites: Placed alleles, with the strand of their gene; those without a window get zeros.
        fasta: The reference.
        donor: (N,) signed distance to the nearest donor, as :func:`seqkit.data.consequence.predict_consequences` gives
            it (no 0; last exonic base -1, first intronic base +1); NaN where there is none.
        acceptor: (N,) the same for the nearest acceptor (last intronic base -1, first exonic base +1).
    """
    n = len(sites)
    out = SpliceChange(*(np.zeros(n) for _ in SpliceChange._fields))
    rows = np.flatnonzero(sites.scored_N)
    if len(rows) == 0:
        return out
    windows = build_windows(sites, fasta, rows, 2 * RADIUS + 1, centre=RADIUS)
    ref_NW, alt_NW = bases(windows.ref_ids_BW), bases(windows.alt_ids_BW)
    shift = np.array([len(sites.alt[i]) - len(sites.ref[i]) for i in rows])
    # Index of the first intronic base of the donor and of the first exonic base of the acceptor.
    donor_start = border(donor[rows]) - DONOR_EXONIC
    acceptor_start = border(acceptor[rows]) - ACCEPTOR_INTRONIC
    bits = motif_bits()
    for name, start, before, motif in (
        ("donor", donor_start, DONOR_EXONIC, bits["donor"]),
        ("acceptor", acceptor_start, ACCEPTOR_INTRONIC, bits["acceptor"]),
    ):
        reference = site_bits(ref_NW, start, np.zeros_like(shift), motif)
        # A border behind the change moves with it; one before the change reads on into what has moved up.
        alternate = site_bits(alt_NW, start, np.where(start + before > RADIUS, shift, 0), motif)
        getattr(out, name)[rows] = np.nan_to_num(alternate - reference)
        if name == "donor":
            out.donor_reference[rows] = np.nan_to_num(reference)
    for name, start, motif, core, at in (
        ("new_donor", donor_start, bits["donor"], (2, 3), DONOR_EXONIC),
        ("new_acceptor", acceptor_start, bits["acceptor"], (0, 2), ACCEPTOR_INTRONIC - 2),
    ):
        gain = best_other(alt_NW, start, motif, core, at) - best_other(ref_NW, start, motif, core, at)
        getattr(out, name)[rows] = gain.clip(min=0)
    out.new_ag[rows] = has_ag(alt_NW) & ~has_ag(ref_NW)
    return out


def has_ag(bases_NW: NDArray) -> NDArray:
    """Whether the base at the change is part of an AG."""
    before, at, after = (bases_NW[:, RADIUS + offset] for offset in (-1, 0, 1))
    return ((before == 0) & (at == 2)) | ((at == 0) & (after == 2))


def bases(ids_NW: NDArray) -> NDArray:
    """Token ids to 0..3 for A C G T and 4 for all else."""
    number = ids_NW.astype(np.int64) - int(Token.A)
    return np.where((number >= 0) & (number < 4), number, _UNKNOWN)


def border(distance: NDArray) -> NDArray:
    """Window index of the base behind a border (distance +1), for an allele at ``distance``; NaN stays far away."""
    distance = np.nan_to_num(distance, nan=1e6).astype(np.int64)
    return np.where(distance > 0, RADIUS - (distance - 1), RADIUS - distance)


def site_bits(bases_NW: NDArray, start: NDArray, moved: NDArray, motif: NDArray) -> NDArray:
    """Bits of the motif of each row's site, NaN where the site leaves the window or does not hold the change.

    Args:
        bases_NW: Base numbers.
        start: Start index of the site on the reference.
        moved: Bases by which the site has moved on this allele.
        motif: (M, 5) bits.
    """
    length = len(motif)
    holds = (start <= RADIUS) & (start + length > RADIUS)
    first = start + moved
    inside = holds & (first >= 0) & (first + length <= bases_NW.shape[1])
    index_NM = first.clip(0, bases_NW.shape[1] - length)[:, None] + np.arange(length)
    found = bases_NW[np.arange(len(start))[:, None], index_NM]
    return np.where(inside, motif[np.arange(length), found].sum(1), np.nan)


def best_other(bases_NW: NDArray, annotated: NDArray, motif: NDArray, core: tuple[int, int], at: int) -> NDArray:
    """Best score of a motif that overlaps the change and is not the annotated one; 0 where none has its two core bases.

    Args:
        bases_NW: Base numbers.
        annotated: Start index of the annotated site.
        motif: (M, 5) bits.
        core: The two bases every site must have.
        at: Their place in the motif.
    """
    first, last = RADIUS - len(motif) + 1, RADIUS
    windows_NSM = sliding_window_view(bases_NW, len(motif), axis=1)[:, first : last + 1]
    score_NS = motif[np.arange(len(motif)), windows_NSM].sum(-1)
    is_site = (windows_NSM[..., at] == core[0]) & (windows_NSM[..., at + 1] == core[1])
    is_site &= np.arange(first, last + 1) != annotated[:, None]
    return np.where(is_site, score_NS, 0.0).max(1).clip(min=0)
