import numpy as np
import pytest

from seqkit.tasks.neighbours import NeighbourModel
from seqkit.tokenizers import DNATokenizer

encode = DNATokenizer().encode


def test_bits_known_by_hand():
    """ACG alone, and on the other strand CGT: between A and G a C, between C and T a G; strength 2."""
    model = NeighbourModel(1).fit([encode("ACG")])
    prior = (1 + 2 / 4) / (2 + 2)
    bits = model.bits(encode("ACGTN"), strength=2.0)
    expected = -np.log2([(1 + 2 * prior) / 3, (1 + 2 * prior) / 3])
    np.testing.assert_allclose(bits[1:3], expected, rtol=1e-6)
    assert np.isnan(bits[[0, 3, 4]]).all()


def test_probabilities_add_up_to_one():
    model = NeighbourModel(2).fit([encode("ACGGTAACGTTAGACCAGT")])
    assert sum(2.0 ** -model.bits(encode(f"AC{base}TG"))[2] for base in "ACGT") == pytest.approx(1, rel=1e-5)


def test_both_strands_say_the_same():
    tokenizer = DNATokenizer()
    text = encode("ACGGTAACGTTAGACCAGTNACCA")
    model = NeighbourModel(2).fit([encode("GATTACAGGCCATTAG")])
    np.testing.assert_allclose(model.bits(text), model.bits(tokenizer.reverse_complement(text))[::-1], rtol=1e-6)


def test_a_base_that_its_neighbours_tell_costs_little():
    model = NeighbourModel(3).fit([encode("ACGT" * 2000)])
    assert np.nanmax(model.bits(encode("ACGT" * 5))) < 0.15
