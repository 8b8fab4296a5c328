import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from seqkit.tokenizers import DNATokenizer

TOKENIZER = DNATokenizer()
CODES = "ACGTNRYSWKMBDHV"
sequences = st.text(alphabet=CODES + CODES.lower() + "Uu", max_size=200)
ids = st.lists(st.integers(0, 22), max_size=100).map(lambda values: np.array(values, dtype=np.uint8))


@given(sequences)
def test_decode_undoes_encode_up_to_case_and_u(sequence):
    assert TOKENIZER.decode(TOKENIZER.encode(sequence)) == sequence.upper().replace("U", "T")


@given(sequences)
def test_ids_and_soft_mask_together_keep_the_text(sequence):
    sequence = sequence.replace("U", "T").replace("u", "t")
    text = TOKENIZER.decode(TOKENIZER.encode(sequence))
    mask = TOKENIZER.soft_mask(sequence)
    assert "".join(c.lower() if low else c for c, low in zip(text, mask, strict=True)) == sequence


@given(ids)
def test_reverse_complement_is_an_involution(values):
    twice = TOKENIZER.reverse_complement(TOKENIZER.reverse_complement(values))
    np.testing.assert_array_equal(twice, values)


@given(ids, ids)
def test_reverse_complement_reverses_concatenation(left, right):
    joined = TOKENIZER.reverse_complement(np.concatenate([left, right]))
    apart = [TOKENIZER.reverse_complement(right), TOKENIZER.reverse_complement(left)]
    np.testing.assert_array_equal(joined, np.concatenate(apart))


@given(ids)
def test_collapse_commutes_with_complement_and_is_idempotent(values):
    collapsed = TOKENIZER.collapse(values)
    np.testing.assert_array_equal(TOKENIZER.collapse(collapsed), collapsed)
    np.testing.assert_array_equal(
        TOKENIZER.collapse(TOKENIZER.reverse_complement(values)), TOKENIZER.reverse_complement(collapsed)
    )


@given(st.text(max_size=30))
def test_encode_accepts_exactly_the_codes(text):
    valid = all(character in CODES + CODES.lower() + "Uu" for character in text)
    try:
        TOKENIZER.encode(text)
    except ValueError:
        assert not valid
    else:
        assert valid
