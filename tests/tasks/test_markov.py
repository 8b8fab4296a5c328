import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqkit.errors import ConfigError
from seqkit.tasks.markov import MarkovModel, complement_codes, kmer_codes, scored
from seqkit.tokenizers import DNATokenizer

encode = DNATokenizer().encode


def test_single_order_known_by_hand():
    """AACA: A is followed by A and C, C by A. One is added to each of four counts."""
    model = MarkovModel(1, both_strands=False).fit([encode("AACA")])
    text = encode("A" * 12 + "AC" + "A")
    bits = model.single_bits(text, 1)
    assert np.isnan(bits[:12]).all()
    np.testing.assert_allclose(bits[12:], -np.log2([2 / 6, 2 / 6, 2 / 5]), rtol=1e-6)


def test_mixture_known_by_hand():
    """Order 0 counts bases that have a context: A 2, C 1; order 1: A to A 1, A to C 1, C to A 1; strength 2."""
    model = MarkovModel(1, both_strands=False).fit([encode("AACA")])
    p_c = (1 + 2 / 4) / (3 + 2)
    expected = (1 + 2 * p_c) / (2 + 2)
    bits = model.mixed_bits(encode("A" * 12 + "C"), strength=2.0)
    assert bits[12] == pytest.approx(-np.log2(expected), rel=1e-6)


def test_both_strands_are_counted():
    """AAC on one strand is GTT on the other: G is followed by T."""
    model = MarkovModel(1).fit([encode("AAC")])
    bits = model.single_bits(encode("ACGTACGTACGGT"), 1)
    assert bits[12] == pytest.approx(-np.log2(2 / 5), rel=1e-6)


@settings(max_examples=30, deadline=None)
@given(text=st.text("ACGTN", max_size=80), width=st.integers(1, 6))
def test_kmers_are_those_of_a_plain_loop(text, width):
    codes, last = kmer_codes(encode(text), width)
    found = [
        (i + width - 1, int("".join(str("ACGT".index(c)) for c in text[i : i + width]), 4))
        for i in range(len(text) - width + 1)
        if "N" not in text[i : i + width]
    ]
    assert list(zip(last.tolist(), codes.tolist(), strict=True)) == found


@settings(max_examples=30, deadline=None)
@given(kmers=st.integers(1, 16).flatmap(lambda k: st.lists(st.text("ACGT", min_size=k, max_size=k), min_size=1)))
def test_complements_are_those_of_the_letters(kmers):
    width, number = len(kmers[0]), str.maketrans("ACGT", "0123")
    codes = np.array([int(kmer.translate(number), 4) for kmer in kmers])
    others = [int(kmer[::-1].translate(str.maketrans("ACGT", "3210")), 4) for kmer in kmers]
    assert complement_codes(codes, width).tolist() == others


@settings(max_examples=30, deadline=None)
@given(text=st.text("ACGTN", max_size=60), known=st.integers(0, 8))
def test_scored_bases_have_known_ones_before_them(text, known):
    expected = ["N" not in text[max(0, i - known) : i + 1] and i >= known for i in range(len(text))]
    assert scored(encode(text), known).tolist() == expected


def test_cutting_into_pieces_changes_nothing(monkeypatch):
    from seqkit.tasks import markov

    random = np.random.default_rng(0)
    train, text = (random.choice([7, 8, 9, 10, 11], 500, p=[0.3, 0.2, 0.2, 0.28, 0.02]).astype(np.uint8) for _ in "ab")
    whole = MarkovModel(3).fit([train])
    before = whole.mixed_bits(text), whole.single_bits(text, 2)
    monkeypatch.setattr(markov, "_POSITIONS_AT_ONCE", 37)
    pieces = MarkovModel(3).fit([train])
    np.testing.assert_array_equal(pieces.mixed_bits(text), before[0])
    np.testing.assert_array_equal(pieces.single_bits(text, 2), before[1])


def test_probabilities_add_up_to_one():
    model = MarkovModel(2).fit([encode("ACGGTAACGTTAGACCAGT")])
    for bits in (model.mixed_bits, lambda ids: model.single_bits(ids, 2)):
        total = sum(2.0 ** -bits(encode("ACGTACGTACGT" + base))[12] for base in "ACGT")
        assert total == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("order", [-1, 16])
def test_orders_beyond_memory_are_refused(order):
    with pytest.raises(ConfigError, match="order"):
        MarkovModel(order)


@pytest.mark.slow
def test_bacterium_reaches_the_published_figure(shared_data, tmp_path, monkeypatch):
    """E. coli, first 4 Mb for training: 1.9163 bits mixed, 1.9642 at order 2 (measured independently)."""
    from seqkit.data.encoded import open_genome

    monkeypatch.setenv("SEQKIT_CACHE", str(tmp_path))
    genome = open_genome(shared_data / "ecoli-k12-mg1655" / "GCF_000005845.2_ASM584v2_genomic.fna.gz")
    model = MarkovModel().fit([genome.ids(0, 4_000_000)])
    held_out = genome.ids(4_000_000, len(genome))
    assert (~np.isnan(model.mixed_bits(held_out))).sum() == 641_640
    assert np.nanmean(model.mixed_bits(held_out).astype(float)) == pytest.approx(1.9163, abs=5e-5)
    assert np.nanmean(model.single_bits(held_out, 2).astype(float)) == pytest.approx(1.9642, abs=5e-5)
