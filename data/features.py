"""Numeric features of alleles from predicted consequence and sequence context. Legend: N alleles, F features.

Every group is one entry of :data:`GROUPS`: a function from the shared inputs to named columns. Groups are chosen by
name, so that adding or leaving one out touches one line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl

from seqkit.data.consequence import CONSEQUENCES, CONTEXT
from seqkit.data.fasta import Fasta
from seqkit.data.genome import trim_alleles
from seqkit.data.residues import RESIDUES, blosum62, grantham, properties
from seqkit.data.sites import Sites
from seqkit.data.splice_sites import WEAK_DONOR_BITS, SpliceChange, splice_changes
from seqkit.data.windows import build_windows
from seqkit.tokenizers.dna import DNATokenizer

DONOR_OFFSETS = (-3, -2, -1, 1, 2, 3, 4, 5, 6)
ACCEPTOR_OFFSETS = range(-10, 0)
FAR = 60
NEAR_SITE = 8.0
"""Bases over which closeness to a splice site falls to 1/e."""
CODING = ("stop_gained", "frameshift", "stop_lost", "start_lost", "inframe_insertion", "inframe_deletion", "missense",
          "coding_unknown", "synonymous")  # fmt: skip
IMPACT = {
    "high": ("splice_acceptor", "splice_donor", "stop_gained", "frameshift", "stop_lost", "start_lost"),
    "moderate": ("inframe_insertion", "inframe_deletion", "missense"),
    "low": ("splice_region", "coding_unknown", "synonymous"),
}
"""Consequence classes by the severity usual in variant annotation; a class that no training row has still has one."""
MODIFIERS = (
    "class=missense", "class=synonymous", "noncoding", "blosum62", "grantham", "hydropathy_loss", "volume_abs_change",
    "donor_change", "acceptor_change", "noncoding_near_donor", "noncoding_near_acceptor",
)  # fmt: skip
"""Features that say where and in what a user's numeric column matters; a model may multiply the column by each."""

_FIRST_BASE = int(DNATokenizer().encode("A")[0])
Columns = Iterator[tuple[str, np.ndarray]]


@dataclass(frozen=True)
class FeatureInputs:
    """What the groups are made from, one entry an allele.

    Attributes:
        consequence: Names of consequence classes.
        codon_position: 1 to 3, 0 outside of codons.
        aa_ref: uint8 ASCII of the reference residue, 0 where none.
        aa_alt: The same of the alternate residue.
        around_NC: uint8 ASCII of the residues around, ``X`` where unknown, 0 outside of proteins.
        donor: float signed distance, NaN where there is no donor.
        acceptor: float signed distance, NaN where there is no acceptor.
        ref_base: uint8 ASCII of the first changed base on the coding strand, 0 where none.
        alt_base: The same of the alternate.
        ref_length: int64, reference bases that change.
        alt_length: int64, alternate bases that differ.
        splice: Change of splice sites in bits.
    """

    consequence: np.ndarray
    codon_position: np.ndarray
    aa_ref: np.ndarray
    aa_alt: np.ndarray
    around_NC: np.ndarray
    donor: np.ndarray
    acceptor: np.ndarray
    ref_base: np.ndarray
    alt_base: np.ndarray
    ref_length: np.ndarray
    alt_length: np.ndarray
    splice: SpliceChange

    @property
    def noncoding(self) -> np.ndarray:
        """True where no codon changes: splice sites, introns, untranslated exons."""
        return ~np.isin(self.consequence, CODING)

    @property
    def exchanged(self) -> np.ndarray:
        """True where one residue becomes another."""
        return _is_residue(self.aa_ref) & _is_residue(self.aa_alt) & (self.aa_ref != self.aa_alt)


def _class(x: FeatureInputs) -> Columns:
    for name in CONSEQUENCES:
        yield f"class={name}", x.consequence == name
    for impact, names in IMPACT.items():
        yield f"impact={impact}", np.isin(x.consequence, names)
    yield "noncoding", x.noncoding


def _codon(x: FeatureInputs) -> Columns:
    for place in range(4):
        yield f"codon_position={place or 'none'}", x.codon_position == place


def _residue(x: FeatureInputs) -> Columns:
    for residue in RESIDUES + "*":
        yield f"aa_alt={residue}", x.aa_alt == ord(residue)


def _substitution(x: FeatureInputs) -> Columns:
    known = _is_residue(x.aa_ref) & _is_residue(x.aa_alt)
    stop = x.aa_alt == ord("*")
    yield "blosum62", np.where(known | stop, blosum62()[x.aa_ref, x.aa_alt], 0)
    yield "grantham", np.where(x.exchanged, grantham()[x.aa_ref, x.aa_alt] / 100, 0)
    for name, scale in (("hydropathy", 1.0), ("volume", 50.0)):
        table = properties()[name]
        change = np.where(known, table[x.aa_alt] - table[x.aa_ref], 0) / scale
        yield f"{name}_change", change
        yield f"{name}_abs_change", np.abs(change)
        if name == "hydropathy":
            yield "hydropathy_loss", (-change).clip(0) / 4


def _surroundings(x: FeatureInputs) -> Columns:
    """How buried and how ordered the place of an exchanged residue is, from its neighbours in the sequence."""
    offset = np.arange(-CONTEXT, CONTEXT + 1)
    known_NC = _is_residue(x.around_NC)
    value = {name: np.where(known_NC, table[x.around_NC], 0) for name, table in properties().items()}

    def mean(name: str, radius: int, own: bool) -> np.ndarray:
        chosen_NC = known_NC & (np.abs(offset) <= radius) & (own | (offset != 0))
        return (value[name] * chosen_NC).sum(1) / chosen_NC.sum(1).clip(1)

    hydrophobic = mean("hydropathy", 3, own=False) / 4.5
    # The side of a helix (100 degrees a residue) on which the residue lies.
    side = np.exp(-((offset / 5) ** 2)) * np.cos(np.deg2rad(100) * offset) * (offset != 0)
    face = (value["hydropathy"] / 4.5) @ side
    own = x.around_NC[:, CONTEXT]
    buried = properties()["hydropathy"][own] / 9 + properties()["buried"][own] - 0.7 + 0.5 * hydrophobic + 0.2 * face
    helix, strand = mean("helix", 3, own=True), mean("strand", 2, own=True)
    # Zinc is held by pairs of cysteines three apart, with more cysteines and histidines near.
    cysteine_NC, ligand_NC = x.around_NC == ord("C"), np.isin(x.around_NC, [ord("C"), ord("H")])
    pairs = cysteine_NC[:, CONTEXT - 3].astype(int) + cysteine_NC[:, CONTEXT + 3]
    columns = {
        "hydropathy_around": hydrophobic,
        "burial": buried,
        "buried_around": mean("buried", 4, own=False),
        "helix_around": helix,
        "strand_around": strand,
        "strand_over_helix": strand - helix,
        "cysteine_pair": pairs * (x.aa_ref == ord("C")),
        "metal_ligands_around": (ligand_NC.sum(1) - 1) * np.isin(x.aa_ref, [ord("C"), ord("H")]),
    }
    for name, values in columns.items():
        yield name, np.where(x.exchanged, values, 0)


def _splice_offset(x: FeatureInputs) -> Columns:
    for offset in DONOR_OFFSETS:
        yield f"donor={offset:+d}", x.donor == offset
    for offset in ACCEPTOR_OFFSETS:
        yield f"acceptor={offset:+d}", x.acceptor == offset
    yield "noncoding_near_donor", x.noncoding * np.nan_to_num(np.exp(-np.abs(x.donor) / NEAR_SITE))
    yield "noncoding_near_acceptor", x.noncoding * np.nan_to_num(np.exp(-np.abs(x.acceptor) / NEAR_SITE))


def _splice_change(x: FeatureInputs) -> Columns:
    donor, acceptor = x.splice.donor, x.splice.acceptor
    yield "donor_change", donor
    yield "acceptor_change", acceptor
    yield "weak_donor_loss", donor.clip(max=0) * (x.splice.donor_reference < WEAK_DONOR_BITS)
    yield "donor_gain", donor.clip(min=0)
    yield "acceptor_gain", acceptor.clip(min=0)
    yield "exonic_donor_change", np.abs(donor) * (x.donor < 0)
    for bits in (2, 6):  # saturating: beyond a few bits a site is lost
        yield f"donor_change_within_{bits}", np.tanh(donor / bits)
        yield f"acceptor_change_within_{bits}", np.tanh(acceptor / bits)
    yield "new_donor", x.splice.new_donor
    yield "new_acceptor", x.splice.new_acceptor * (x.acceptor < 0)
    yield "new_ag_before_acceptor", (x.splice.new_ag > 0) & (x.acceptor >= -15) & (x.acceptor <= -3)
    to_purine = np.isin(x.ref_base, [ord("C"), ord("T")]) & np.isin(x.alt_base, [ord("A"), ord("G")])
    yield "purine_in_tract", to_purine & (x.acceptor >= -18) & (x.acceptor <= -5)


def _length(x: FeatureInputs) -> Columns:
    yield "deleted", np.log1p((x.ref_length - x.alt_length).clip(0))
    yield "inserted", np.log1p((x.alt_length - x.ref_length).clip(0))
    yield "substituted", np.log1p((np.minimum(x.ref_length, x.alt_length) - 1).clip(0))


def _plain(x: FeatureInputs) -> Columns:
    """What a plain regression on the consequence would be given besides class, codon and substitution."""
    for residue in RESIDUES + "*":
        yield f"aa_ref={residue}", x.aa_ref == ord(residue)
    for side, values in (("ref", x.ref_base), ("alt", x.alt_base)):
        for base in "ACGT":
            yield f"{side}={base}", values == ord(base)
    for kind, distance in (("donor", x.donor), ("acceptor", x.acceptor)):
        yield f"{kind}_distance", np.nan_to_num(distance, nan=FAR).clip(-FAR, FAR)


GROUPS: dict[str, Callable[[FeatureInputs], Columns]] = {
    "class": _class,
    "codon": _codon,
    "residue": _residue,
    "substitution": _substitution,
    "surroundings": _surroundings,
    "splice_offset": _splice_offset,
    "splice_change": _splice_change,
    "length": _length,
}
PLAIN_GROUPS = {**{name: GROUPS[name] for name in ("class", "codon", "residue", "substitution", "splice_offset")},
                "plain": _plain}  # fmt: skip
"""Groups of the baseline regression, without splice-site bits and without the residue's surroundings."""


def consequence_features(
    sites: Sites,
    fasta: Fasta,
    consequences: pl.DataFrame,
    *,
    groups: Mapping[str, Callable[[FeatureInputs], Columns]] = GROUPS,
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Features that follow from the predicted consequence; nothing measured, nothing from positions.

    Args:
        sites: Placed alleles.
        fasta: The reference.
        consequences: Frame of :func:`seqkit.data.consequence.predict_consequences` for the same alleles.
        groups: :data:`GROUPS`, :data:`PLAIN_GROUPS` or a part of them.

    Returns:
        float32 (N, F), finite, and the F names.
    """
    inputs = _inputs(sites, fasta, consequences)
    columns = [column for group in groups.values() for column in group(inputs)]
    matrix = [np.asarray(values, dtype=np.float32) for _, values in columns]
    if not matrix:
        return np.zeros((len(sites), 0), dtype=np.float32), ()
    return np.stack(matrix, axis=1), tuple(name for name, _ in columns)


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


def _inputs(sites: Sites, fasta: Fasta, consequences: pl.DataFrame) -> FeatureInputs:
    strand = consequences["strand"].to_numpy()
    trimmed = [trim_alleles(ref, alt)[1:] for ref, alt in zip(sites.ref, sites.alt, strict=True)]
    around = consequences["aa_context"].fill_null("\0" * (2 * CONTEXT + 1)).to_list()
    donor, acceptor = (
        consequences[f"{kind}_distance"].cast(pl.Float64).fill_null(np.nan).to_numpy() for kind in ("donor", "acceptor")
    )
    return FeatureInputs(
        consequence=consequences["consequence"].to_numpy(),
        codon_position=consequences["codon_position"].fill_null(0).to_numpy(),
        aa_ref=_letters_of(consequences["aa_ref"]),
        aa_alt=_letters_of(consequences["aa_alt"]),
        around_NC=np.frombuffer("".join(around).encode(), dtype=np.uint8).reshape(-1, 2 * CONTEXT + 1),
        donor=donor,
        acceptor=acceptor,
        ref_base=_first_base([pair[0] for pair in trimmed], strand),
        alt_base=_first_base([pair[1] for pair in trimmed], strand),
        ref_length=np.array([len(pair[0]) for pair in trimmed], dtype=np.int64),
        alt_length=np.array([len(pair[1]) for pair in trimmed], dtype=np.int64),
        splice=splice_changes(sites.with_strand(strand), fasta, donor, acceptor),
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
