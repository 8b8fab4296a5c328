import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seqkit.data.fasta import Fasta
from seqkit.data.genome import Variant
from seqkit.data.sites import Sites, Status, clusters, locate
from seqkit.data.windows import build_windows
from seqkit.errors import InputError
from seqkit.tokenizers.dna import DNATokenizer

TOKENIZER = DNATokenizer()
COMPLEMENT = str.maketrans("ACGTN", "TGCAN")
GENOME = "".join(np.random.default_rng(3).choice(list("ACGT"), 90))


def text(ids):
    return TOKENIZER.decode(ids)


def sites_of(variant, strand=1, contig="chr1"):
    array = np.array([strand], dtype=np.int8)
    return Sites((contig,), np.array([variant.start]), (variant.ref,), (variant.alt,), array, np.zeros(1, np.int8))


def spliced(genome, variant, strand):
    """The alternate sequence and both sequences as they are read, by string operations alone."""
    alternate = genome[: variant.start] + variant.alt + genome[variant.end :]
    if strand > 0:
        return genome, alternate
    return genome.translate(COMPLEMENT)[::-1], alternate.translate(COMPLEMENT)[::-1]


variants = st.tuples(
    st.integers(0, 89), st.integers(1, 6), st.text("ACGT", min_size=1, max_size=6), st.booleans(), st.booleans()
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(variants, st.integers(8, 33), st.sampled_from([1, -1]), st.integers(0, 7))
def test_windows_are_those_of_the_spliced_string(write_fasta, drawn, length, strand, centre):
    start, reach, alt, anchored, trailing = drawn
    ref = GENOME[start : start + reach]
    alt = (ref[0] if anchored else "") + alt + (ref[-1] if trailing else "")
    variant = Variant("chr1", start, ref, alt)
    if ref == alt or max(len(ref), len(alt)) > length - centre:
        return
    fasta = Fasta(write_fasta({"chr1": GENOME}))
    windows = build_windows(sites_of(variant, strand), fasta, [0], length, centre=centre)
    pad = "N" * 100
    reference, alternate = (pad + sequence + pad for sequence in spliced(GENOME, variant, strand))
    begin = next(i for i, (a, b) in enumerate(zip(reference, alternate, strict=False)) if a != b)
    shown_ref, shown_alt = text(windows.ref_ids_BW[0]), text(windows.alt_ids_BW[0])
    assert shown_ref[:centre] == shown_alt[:centre]
    at = int(windows.centre_B[0])
    assert at == centre
    left, gone, new = trimmed(variant, strand)
    offset = len(pad) + left
    # In a repeat the notation decides which of several equal places counts as changed.
    assert offset <= begin
    assert shown_ref == reference[offset - centre : offset - centre + length]
    assert shown_alt == alternate[offset - centre : offset - centre + length]
    # The inverse edit: reference letters put back in place of the alternate ones give the reference window.
    back = shown_alt[:centre] + shown_ref[centre : centre + gone] + shown_alt[centre + new :]
    shared = min(len(back), length)
    assert back[:shared] == shown_ref[:shared]


def trimmed(variant, strand):
    """Bases before the change in reading direction, and how many go and come."""
    from seqkit.data.genome import trim_alleles

    cut, ref, alt = trim_alleles(variant.ref, variant.alt)
    left = variant.start + cut
    if strand < 0:
        left = len(GENOME) - (variant.start + cut + len(ref))
    return left, len(ref), len(alt)


@pytest.mark.parametrize(
    ("pos", "ref", "alt", "strand", "shown_ref", "shown_alt"),
    [
        (5, "A", "C", 1, "GTACGT", "GTCCGT"),
        (5, "A", "C", -1, "CGTACG", "CGGACG"),
        (5, "A", "ATT", 1, "TACGTA", "TATTCG"),
        (4, "TAC", "T", 1, "GTACGT", "GTGTAC"),
        (4, "TAC", "T", -1, "ACGTAC", "ACACGT"),
        (1, "A", "G", 1, "NNACGT", "NNGCGT"),
        (12, "T", "G", 1, "CGTNNN", "CGGNNN"),
        (5, "AC", "GT", 1, "GTACGT", "GTGTGT"),
    ],
)
def test_known_windows(write_fasta, pos, ref, alt, strand, shown_ref, shown_alt):
    fasta = Fasta(write_fasta({"chr1": "ACGTACGTACGT"}))
    variant = Variant("chr1", pos - 1, ref, alt)
    centre = 2
    windows = build_windows(sites_of(variant, strand), fasta, [0], 6, centre=centre)
    assert (text(windows.ref_ids_BW[0]), text(windows.alt_ids_BW[0])) == (shown_ref, shown_alt)


def test_strands_agree_on_a_single_base_change(write_fasta):
    fasta = Fasta(write_fasta({"chr1": GENOME}))
    variant = Variant("chr1", 40, GENOME[40], "A" if GENOME[40] != "A" else "C")
    plus = build_windows(sites_of(variant, 1), fasta, [0], 21)
    minus = build_windows(sites_of(variant, -1), fasta, [0], 21)
    np.testing.assert_array_equal(TOKENIZER.reverse_complement(plus.alt_ids_BW), minus.alt_ids_BW)
    np.testing.assert_array_equal(plus.ref_source_BW[:, ::-1], minus.ref_source_BW)


def test_inserted_bases_carry_the_place_before_them(write_fasta):
    fasta = Fasta(write_fasta({"chr1": GENOME}))
    windows = build_windows(sites_of(Variant("chr1", 40, GENOME[40], GENOME[40] + "TTT")), fasta, [0], 11, centre=5)
    assert windows.inserted_BW[0].tolist() == [False] * 5 + [True] * 3 + [False] * 3
    assert windows.alt_source_BW[0].tolist() == [36, 37, 38, 39, 40, 40, 40, 40, 41, 42, 43]


def test_bad_centre_and_unscored_alleles_are_refused(write_fasta, table_of):
    fasta = Fasta(write_fasta({"chr1": "ACGT" * 20}))
    sites = locate(table_of(("1", 1, "A", "<DEL>"), ("1", 41, "A", "C" * 9)), fasta, length=8)
    with pytest.raises(InputError, match="SYMBOLIC"):
        build_windows(sites, fasta, [0], 8)
    with pytest.raises(InputError, match=r"\[0, 8\)"):
        build_windows(sites_of(Variant("chr1", 0, "A", "C")), fasta, [0], 8, centre=8)
    with pytest.raises(InputError, match="room"):
        build_windows(sites_of(Variant("chr1", 40, "A", "C" * 9)), fasta, [0], 8)


def test_statuses(write_fasta, table_of):
    fasta = Fasta(write_fasta({"chr1": "ACGT" * 10 + "N" * 20 + "ACGT" * 10, "chr2:101-140": "ACGT" * 10}))
    cases = [
        (("1", 21, "A", "C"), Status.OK),
        (("chr1", 21, "A", "C,<DEL>"), None),
        (("1", 1, "A", "C"), Status.EDGE),
        (("1", 21, "C", "A"), Status.REF_MISMATCH),
        (("9", 21, "C", "A"), Status.CONTIG_MISSING),
        (("1", 999, "C", "A"), Status.CONTIG_MISSING),
        (("2", 90, "C", "A"), Status.CONTIG_MISSING),
        (("2", 121, "A", "C"), Status.OK),
        (("2", 101, "A", "C"), Status.EDGE),
        (("1", 40, "T", "A"), Status.N_IN_WINDOW),
        (("1", 21, "A", "R"), Status.N_IN_WINDOW),
        (("1", 21, "A", "*"), Status.STAR),
        (("1", 21, "A", "."), Status.SYMBOLIC),
        (("1", 21, "A", "-"), Status.SYMBOLIC),
        (("1", 21, "A", "A[chr2:5["), Status.SYMBOLIC),
        (("1", 21, "A", "A" + "C" * 8), Status.OK),
        (("1", 21, "A", "A" + "C" * 9), Status.TOO_LONG),
        (("1", 21, "ACGT" * 3, "A"), Status.TOO_LONG),
    ]
    expected = []
    for _, status in cases:
        expected += [Status.OK, Status.SYMBOLIC] if status is None else [status]
    sites = locate(table_of(*(row for row, _ in cases)), fasta, length=16)
    assert sites.status_names() == [status.name for status in expected]
    assert sum(sites.counts().values()) == len(sites)
    assert sites.scored_N.tolist() == [status in (Status.OK, Status.EDGE) for status in expected]
    lenient = locate(table_of(("1", 40, "T", "A")), fasta, length=16, max_n_fraction=0.5)
    assert lenient.status_names() == ["OK"]


def test_clusters_cover_everything_in_order():
    starts, ends = np.array([0, 5, 100, 104, 300]), np.array([10, 12, 110, 400, 310])
    runs = clusters(starts, ends, 1000)
    assert [(run.start, run.stop) for run in runs] == [(0, 2), (2, 5)]
    assert [(run.start, run.stop) for run in clusters(starts, ends, 8)] == [(i, i + 1) for i in range(5)]
