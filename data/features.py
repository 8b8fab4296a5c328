"""Numeric features of alleles from predicted consequence and sequence context. Legend: N alleles, F features.

Every group is one entry of :data:`GROUPS`: a function from the shared inputs to named columns. Groups are chosen by
name, so that adding or leaving one out touches one line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import polars as pl

from seqkit.data.consequence import CONSEQUENCES, CONTEXT
from seqkit.data.fasta import Fasta
from seqkit.data.genome import trim_alleles
from seqkit.data.residues import RESIDUES, blosum62, grantham, properties
from seqkit.data.sites import Sites
from seqkit.data.windows import build_windows
from seqkit.errors import ConfigError
from seqkit.tokenizers.dna import DNATokenizer

SPLICE_CLIP = 60
DONOR_OFFSETS = (-3, -2, -1, 1, 2, 3, 4, 5, 6)
ACCEPTOR_OFFSETS = (*range(-10, 0), 1)
CONTEXT_PROPERTIES = ("hydropathy", "volume", "charge", "helix")
TRINUCLEOTIDES = tuple(f"{a}{ref}{b}>{alt}" for a, ref, b, alt in product("ACGT", "ACGT", "ACGT", "ACGT") if ref != alt)

_FIRST_BASE = int(DNATokenizer().encode("A")[0])
Columns = Iterator[tuple[str, np.ndarray]]


@dataclass(frozen=True)
class FeatureInputs:
    """What the groups are made from, one entry an allele.

    Attributes:
        consequences: Frame of :func:`seqkit.data.consequence.predict_consequences`.
        aa_ref: uint8 ASCII of the reference residue, 0 where none.
        aa_alt: The same of the alternate residue.
        context_N11: uint8 ASCII of the residues around, ``X`` where unknown.
        donor: int64 signed distance, clipped; far inside the exon where there is no donor.
        acceptor: int64 signed distance, clipped; far inside the exon where there is no acceptor.
        ref_base: uint8 ASCII of the first changed base on the coding strand, 0 where none.
        alt_base: The same of the alternate.
        ref_length: int64, reference bases that change.
        alt_length: int64, alternate bases that differ.
    """

    consequences: pl.DataFrame
    aa_ref: np.ndarray
    aa_alt: np.ndarray
    context_N11: np.ndarray
    donor: np.ndarray
    acceptor: np.ndarray
    ref_base: np.ndarray
    alt_base: np.ndarray
    ref_length: np.ndarray
    alt_length: np.ndarray


def _class(x: FeatureInputs) -> Columns:
    values = x.consequences["consequence"].to_numpy()
    for name in CONSEQUENCES:
        yield f"class={name}", values == name


def _residue(x: FeatureInputs) -> Columns:
    for side, values in (("ref", x.aa_ref), ("alt", x.aa_alt)):
        for residue in RESIDUES + "*":
            yield f"aa_{side}={residue}", values == ord(residue)


def _substitution(x: FeatureInputs) -> Columns:
    changed = (x.aa_ref != x.aa_alt) & (x.aa_ref > 0)
    known = changed & _is_residue(x.aa_ref) & _is_residue(x.aa_alt)
    yield "aa_changed", changed
    yield "blosum62", np.where(changed, blosum62()[x.aa_ref, x.aa_alt], 0)
    yield "grantham", np.where(known, grantham()[x.aa_ref, x.aa_alt], 0)
    for name, table in properties().items():
        delta = np.where(known, table[x.aa_alt] - table[x.aa_ref], 0)
        yield f"{name}_change", delta
        yield f"{name}_abs_change", np.abs(delta)
    yield "to_proline", known & (x.aa_alt == ord("P"))
    yield "from_glycine", known & (x.aa_ref == ord("G"))
    yield "from_cysteine", known & (x.aa_ref == ord("C"))


def _codon(x: FeatureInputs) -> Columns:
    values = x.consequences["codon_position"].fill_null(0).to_numpy()
    for place in (1, 2, 3):
        yield f"codon_position={place}", values == place


def _splice_distance(x: FeatureInputs) -> Columns:
    yield "donor_distance", x.donor
    yield "acceptor_distance", x.acceptor
    yield "donor_closeness", 1.0 / np.abs(x.donor)
    yield "acceptor_closeness", 1.0 / np.abs(x.acceptor)


def _splice_offset(x: FeatureInputs) -> Columns:
    for offset in DONOR_OFFSETS:
        yield f"donor={offset:+d}", x.donor == offset
    for offset in ACCEPTOR_OFFSETS:
        yield f"acceptor={offset:+d}", x.acceptor == offset


def _letters(x: FeatureInputs) -> Columns:
    for side, values in (("ref", x.ref_base), ("alt", x.alt_base)):
        for base in "ACGT":
            yield f"{side}={base}", values == ord(base)


def _length(x: FeatureInputs) -> Columns:
    yield "deleted", np.log1p((x.ref_length - x.alt_length).clip(0))
    yield "inserted", np.log1p((x.alt_length - x.ref_length).clip(0))
    yield "substituted", np.log1p((np.minimum(x.ref_length, x.alt_length) - 1).clip(0))


def _neighbours(x: FeatureInputs) -> Columns:
    coding = x.context_N11[:, CONTEXT] > 0
    for name in CONTEXT_PROPERTIES:
        values_N11 = properties()[name][x.context_N11]
        known_N11 = _is_residue(x.context_N11)
        for place in range(2 * CONTEXT + 1):
            if place != CONTEXT:
                yield f"{name}{place - CONTEXT:+d}", values_N11[:, place]
        yield f"{name}_around", np.where(coding, values_N11.sum(1) / known_N11.sum(1).clip(1), 0)


GROUPS: dict[str, Callable[[FeatureInputs], Columns]] = {
    "class": _class,
    "residue": _residue,
    "substitution": _substitution,
    "codon": _codon,
    "splice_distance": _splice_distance,
    "splice_offset": _splice_offset,
    "letters": _letters,
    "length": _length,
    "neighbours": _neighbours,
}


def consequence_features(
    sites: Sites, consequences: pl.DataFrame, *, groups: Sequence[str] | None = None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Features that follow from the predicted consequence; nothing measured, nothing from positions.

    Args:
        sites: Placed alleles.
        consequences: Frame of :func:`seqkit.data.consequence.predict_consequences` for the same alleles.
        groups: Names among :data:`GROUPS`; all by default.

    Returns:
        float32 (N, F), finite, and the F names.

    Raises:
        ConfigError: A group is unknown.
    """
    chosen = list(GROUPS) if groups is None else list(groups)
    for name in chosen:
        if name not in GROUPS:
            raise ConfigError("groups", expected=f"names among {', '.join(GROUPS)}", got=repr(name))
    inputs = _inputs(sites, consequences)
    columns = [column for name in chosen for column in GROUPS[name](inputs)]
    if not columns:
        return np.zeros((len(sites), 0), dtype=np.float32), ()
    matrix = np.stack([np.asarray(values, dtype=np.float32) for _, values in columns], axis=1)
    return matrix, tuple(name for name, _ in columns)


def contexts(sites: Sites, fasta: Fasta) -> np.ndarray:
    """Trinucleotide context of every allele on the strand of ``sites.strand_N``, e.g. ``ACG>T``.

    Returns:
        (N,) strings; empty for alleles that are no single-base change, have no window or an unknown neighbour.
    """
    out = np.full(len(sites), "", dtype="U5")
    single = np.array([len(r) == len(a) == 1 for r, a in zip(sites.ref, sites.alt, strict=True)], dtype=bool)
    rows = np.flatnonzero(sites.scored_N & single)
    if not len(rows):
        return out
    windows = build_windows(sites, fasta, rows, 3, centre=1)
    ids = np.concatenate([windows.ref_ids_BW, windows.alt_ids_BW[:, 1:2]], axis=1).astype(np.int64) - _FIRST_BASE
    known = (ids < 4).all(axis=1)
    letters = np.array(list("ACGT"))[ids[known]]
    out[rows[known]] = [f"{a}{b}{c}>{d}" for a, b, c, d in letters]
    return out


def context_features(sites: Sites, fasta: Fasta) -> tuple[np.ndarray, tuple[str, ...]]:
    """One-hot trinucleotide context (192), reference base (4) and alternate base (4) on the strand of the sites.

    Returns:
        float32 (N, 200) and the names.
    """
    values = contexts(sites, fasta)
    ref = np.array([value[1:2] for value in values])
    alt = np.array([value[4:5] for value in values])
    columns = [values == name for name in TRINUCLEOTIDES]
    columns += [ref == base for base in "ACGT"] + [alt == base for base in "ACGT"]
    names = (*TRINUCLEOTIDES, *(f"ref={base}" for base in "ACGT"), *(f"alt={base}" for base in "ACGT"))
    return np.stack(columns, axis=1).astype(np.float32), names


def _inputs(sites: Sites, consequences: pl.DataFrame) -> FeatureInputs:
    strand = consequences["strand"].to_numpy()
    trimmed = [trim_alleles(ref, alt)[1:] for ref, alt in zip(sites.ref, sites.alt, strict=True)]
    context = consequences["aa_context"].fill_null("\0" * (2 * CONTEXT + 1)).to_list()
    return FeatureInputs(
        consequences=consequences,
        aa_ref=_letters_of(consequences["aa_ref"]),
        aa_alt=_letters_of(consequences["aa_alt"]),
        context_N11=np.frombuffer("".join(context).encode(), dtype=np.uint8).reshape(-1, 2 * CONTEXT + 1),
        donor=consequences["donor_distance"].fill_null(-SPLICE_CLIP).to_numpy().clip(-SPLICE_CLIP, SPLICE_CLIP),
        acceptor=consequences["acceptor_distance"].fill_null(SPLICE_CLIP).to_numpy().clip(-SPLICE_CLIP, SPLICE_CLIP),
        ref_base=_first_base([pair[0] for pair in trimmed], strand),
        alt_base=_first_base([pair[1] for pair in trimmed], strand),
        ref_length=np.array([len(pair[0]) for pair in trimmed], dtype=np.int64),
        alt_length=np.array([len(pair[1]) for pair in trimmed], dtype=np.int64),
    )


def _letters_of(series: pl.Series) -> np.ndarray:
    return np.frombuffer("".join(series.fill_null("\0").to_list()).encode(), dtype=np.uint8)


_COMPLEMENT = str.maketrans("ACGT", "TGCA")


def _first_base(alleles: list[str], strand: np.ndarray) -> np.ndarray:
    """First changed base in reading direction on the coding strand, 0 for an empty or symbolic allele."""
    bases = [
        (allele[0] if sign >= 0 else allele[-1].translate(_COMPLEMENT)) if allele else "\0"
        for allele, sign in zip(alleles, strand, strict=True)
    ]
    return np.array([ord(base) if base in "ACGT" else 0 for base in bases], dtype=np.uint8)


def _is_residue(codes: np.ndarray) -> np.ndarray:
    return properties()["volume"][codes] > 0
