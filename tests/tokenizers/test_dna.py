import numpy as np
import pytest
import torch

from seqkit.errors import InputError, SeqkitError
from seqkit.tokenizers import AMBIGUITY_CODES, GAP, DNATokenizer, Token

TOKENIZER = DNATokenizer()


def test_published_ids():
    assert [token.value for token in Token] == list(range(12))
    assert [token.name for token in Token][:7] == ["CLS", "SEP", "BOS", "MASK", "PAD", "RESERVED", "UNK"]
    assert TOKENIZER.encode("ACGTN").tolist() == [7, 8, 9, 10, 11]


def test_remaining_codes_follow_in_the_documented_order():
    assert TOKENIZER.encode(AMBIGUITY_CODES).tolist() == list(range(12, 22))
    assert (TOKENIZER.vocab_size, GAP) == (23, 22)


def test_u_is_t_and_case_is_kept_apart():
    assert TOKENIZER.encode("acguU").tolist() == [7, 8, 9, 10, 10]
    assert TOKENIZER.soft_mask("AcGt").tolist() == [False, True, False, True]


@pytest.mark.parametrize("make", [str, str.encode, lambda text: np.frombuffer(text.encode(), dtype=np.uint8)])
def test_text_bytes_and_arrays_agree(make):
    ids = TOKENIZER.encode(make("GATTACAn"))
    assert ids.dtype == np.uint8
    assert ids.tolist() == [9, 7, 10, 10, 7, 8, 7, 11]


def test_two_dimensional_array_keeps_its_shape():
    characters = np.frombuffer(b"ACGTTG", dtype=np.uint8).reshape(2, 3)
    assert TOKENIZER.encode(characters).tolist() == [[7, 8, 9], [10, 10, 9]]


@pytest.mark.parametrize(
    ("sequence", "character", "position"),
    [
        ("ACGTX", "X", 4),
        ("AC-T", "-", 2),
        ("A C", " ", 1),
        ("ACé", "é", 2),
        ("ACΩT", "Ω", 2),
        (b"AC\nG", "\n", 2),
    ],
)
def test_unknown_character_is_named_with_its_position(sequence, character, position):
    with pytest.raises(InputError) as caught:
        TOKENIZER.encode(sequence)
    assert f"{character!r} at position {position}" in str(caught.value)


def test_wrong_array_type_is_refused():
    with pytest.raises(SeqkitError, match="int64"):
        TOKENIZER.encode(np.arange(3))


@pytest.mark.parametrize(
    ("code", "complement"),
    list(zip("ACGTNRYSWKMBDHV", "TGCANYRSWMKVHDB", strict=True)),
)
def test_complement_of_every_code(code, complement):
    assert TOKENIZER.complement[TOKENIZER.encode(code)] == TOKENIZER.encode(complement)


@pytest.mark.parametrize("token", [*range(7), GAP])
def test_special_tokens_are_their_own_complement(token):
    assert TOKENIZER.complement[token] == token


def test_complement_agrees_with_base_membership():
    # A code's probability vector, reversed (A C G T -> T G C A), is that of its complement.
    one_hot = TOKENIZER.one_hot(np.arange(23))
    np.testing.assert_array_equal(one_hot[TOKENIZER.complement], one_hot[:, ::-1])


def test_reverse_complement_in_both_libraries():
    ids = TOKENIZER.encode("AACGR")
    assert TOKENIZER.decode(TOKENIZER.reverse_complement(ids)) == "YCGTT"
    for dtype in (torch.uint8, torch.int64):
        flipped = TOKENIZER.reverse_complement(torch.from_numpy(ids).to(dtype))
        assert flipped.dtype == dtype
        assert TOKENIZER.decode(flipped) == "YCGTT"


def test_reverse_complement_of_a_batch_keeps_rows():
    batch = np.stack([TOKENIZER.encode("AAC"), TOKENIZER.encode("GGT")])
    assert [TOKENIZER.decode(row) for row in TOKENIZER.reverse_complement(batch)] == ["GTT", "ACC"]


def test_decode_marks_special_tokens_and_checks_range():
    assert TOKENIZER.decode(np.array([3, 7, 4, 22, 21])) == ".A.-V"
    assert TOKENIZER.decode(np.array([], dtype=np.uint8)) == ""
    with pytest.raises(InputError, match="23"):
        TOKENIZER.decode(np.array([7, 23]))
    with pytest.raises(SeqkitError, match="shape"):
        TOKENIZER.decode(np.zeros((2, 2), dtype=np.uint8))


def test_collapse_to_the_published_twelve():
    ids = np.arange(23, dtype=np.uint8)
    assert TOKENIZER.collapse(ids).tolist() == [*range(12), *[11] * 11]
    assert TOKENIZER.collapse(torch.arange(23)).tolist() == [*range(12), *[11] * 11]


def test_one_hot():
    rows = TOKENIZER.one_hot(np.array([7, 10, 11, 12, 4]))
    expected = [[1, 0, 0, 0], [0, 0, 0, 1], [0.25] * 4, [0.5, 0, 0.5, 0], [0] * 4]
    np.testing.assert_array_equal(rows, np.array(expected, dtype=np.float32))
    torch.testing.assert_close(TOKENIZER.one_hot(torch.tensor([7, 10, 11, 12, 4])), torch.tensor(rows))


def test_empty_sequence():
    assert TOKENIZER.encode("").shape == (0,)
    assert TOKENIZER.reverse_complement(TOKENIZER.encode("")).shape == (0,)
