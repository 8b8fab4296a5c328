import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqkit.data.builds import CHROMOSOME_LENGTHS, known_shift
from seqkit.data.genome import (
    Interval,
    Variant,
    build_in_text,
    canonical_contig,
    guess_build,
    match_contig,
    trim_alleles,
)
from seqkit.errors import InputError

bases = st.text("ACGT", min_size=1, max_size=8)
contigs = st.sampled_from(["chr1", "17", "X", "chrUn_KI270302v1", "HLA-A*01:01:01:01", "NC_000017.11"])


@given(contigs, st.integers(0, 10**9), st.integers(1, 10**6))
def test_intervals_survive_their_text(contig, start, length):
    interval = Interval(contig, start, start + length)
    assert Interval.parse(str(interval)) == interval
    assert len(interval) == length


@given(st.integers(-50, 50), st.integers(0, 30), st.integers(0, 60))
def test_resizing_keeps_the_centre(start, size, length):
    interval = Interval("1", start, start + size)
    resized = interval.resized(length)
    assert len(resized) == length
    assert abs((resized.start + resized.end) - (interval.start + interval.end)) <= 1


@given(st.integers(-20, 20), st.integers(0, 9), st.integers(-20, 20), st.integers(0, 9))
def test_overlap_is_a_shared_base(a, m, b, n):
    one, two = Interval("1", a, a + m), Interval("1", b, b + n)
    shared = set(range(a, a + m)) & set(range(b, b + n))
    assert one.overlaps(two) == two.overlaps(one)
    if m and n:
        assert one.overlaps(two) == bool(shared)
    assert all(one.contains(p) == (p in range(a, a + m)) for p in range(-25, 35))


@given(bases, bases)
def test_trimmed_alleles_are_the_middle_of_the_full_ones(ref, alt):
    left, short_ref, short_alt = trim_alleles(ref, alt)
    right = len(ref) - left - len(short_ref)
    assert ref[:left] == alt[:left]
    assert ref == ref[:left] + short_ref + ref[len(ref) - right :]
    assert alt == ref[:left] + short_alt + ref[len(ref) - right :]
    if short_ref and short_alt:
        assert short_ref[0] != short_alt[0]
        assert short_ref[-1] != short_alt[-1]


@given(st.sampled_from(["chr17", "17", "chrX"]), st.integers(0, 10**8), bases, bases)
def test_variants_survive_every_notation(contig, start, ref, alt):
    variant = Variant(contig, start, ref, alt)
    pos = start + 1
    for text in (f"{contig}:{pos}:{ref}:{alt}", f"{contig}-{pos}-{ref}-{alt}", f"{contig}_{pos}_{ref}/{alt}",
                 f"{contig}:g.{pos}{ref}>{alt}", str(variant)):  # fmt: skip
        assert Variant.parse(text) == variant
    assert (variant.pos, variant.end) == (pos, start + len(ref))


@pytest.mark.parametrize(
    ("ref", "alt", "kind"),
    [("A", "C", "snv"), ("AC", "GT", "mnv"), ("AC", "AT", "snv"), ("A", "AT", "insertion"), ("TA", "T", "deletion"),
     ("AC", "GTT", "complex"), ("A", "a", "none"), ("", "T", "insertion")],
)  # fmt: skip
def test_kinds(ref, alt, kind):
    assert Variant("1", 5, ref, alt).kind == kind


@pytest.mark.parametrize(
    ("names", "bare"),
    [
        (["chr1", "1", "NC_000001.10", "NC_000001.11", "NC_060925.1"], "1"),
        (["chrX", "X", "x", "NC_000023.11"], "X"),
        (["chrM", "MT", "M", "chrMT", "NC_012920.1"], "MT"),
        (["chr17_random"], "17_random"),
        (["chr"], "chr"),
    ],
)
def test_aliases_meet(names, bare):
    assert {canonical_contig(name) for name in names} == {bare}


def test_matching_prefers_the_same_name_and_never_another_assembly():
    assert match_contig("chr1", ["1", "chr1"]) == "chr1"
    assert match_contig("NC_000017.10", ["NC_000017.11", "NC_000018.10"]) is None
    assert match_contig("NC_000017", ["NC_000017.11"]) == "NC_000017.11"
    assert match_contig("chr10", ["1", "chr1"]) is None


@pytest.mark.parametrize("build", list(CHROMOSOME_LENGTHS))
@pytest.mark.parametrize("prefix", ["", "chr"])
def test_builds_are_known_by_their_lengths(build, prefix):
    lengths = {prefix + name: length for name, length in CHROMOSOME_LENGTHS[build].items()}
    assert guess_build(lengths) == build
    assert guess_build({name: length + 1 for name, length in lengths.items()}) is None
    first = next(iter(lengths.items()))
    assert guess_build({**dict([first]), "scaffold_1": 12345}) == build
    assert guess_build({}) is None


def test_builds_named_in_text():
    assert build_in_text("position (hg19)") == "GRCh37"
    assert build_in_text("Homo_sapiens.GRCh38.dna.fa.gz") == "GRCh38"
    assert build_in_text("lifted_hg19_to_hg38.tsv") is None
    assert build_in_text("genome.fa") is None


def test_known_shift_covers_its_stretch_only():
    assert known_shift("17", 41_276_134) == 1_847_983
    assert known_shift("17", 1) is None
    assert known_shift("16", 41_276_134) is None


@pytest.mark.parametrize("text", ["chr1", "chr1:5", "chr1:a-b", ""])
def test_unreadable_regions(text):
    with pytest.raises(InputError, match="region"):
        Interval.parse(text)


def test_impossible_values():
    with pytest.raises(InputError, match="end >= start"):
        Interval("1", 5, 4)
    with pytest.raises(InputError, match="strand"):
        Interval("1", 1, 4, "x")
    with pytest.raises(InputError, match="variant"):
        Variant.parse("rs123")
