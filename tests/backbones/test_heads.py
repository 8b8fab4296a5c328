import pytest
import torch

from seqkit.backbones import LanguageHead, PooledHead, PositionHead
from seqkit.backbones.heads import pool
from seqkit.errors import SeqkitError

HIDDEN = torch.arange(24.0).reshape(2, 4, 3)
VALID = torch.tensor([[True, True, False, False], [False, True, True, True]])


@pytest.mark.parametrize(
    ("how", "valid", "mirrored", "rows"),
    [
        ("mean", None, False, [[4.5, 5.5, 6.5], [16.5, 17.5, 18.5]]),
        ("mean", VALID, False, [[1.5, 2.5, 3.5], [18.0, 19.0, 20.0]]),
        ("centre", None, False, [[6.0, 7.0, 8.0], [18.0, 19.0, 20.0]]),
        ("centre", None, True, [[3.0, 4.0, 5.0], [15.0, 16.0, 17.0]]),
        ("last", None, False, [[9.0, 10.0, 11.0], [21.0, 22.0, 23.0]]),
        ("last", None, True, [[0.0, 1.0, 2.0], [12.0, 13.0, 14.0]]),
        ("last", VALID, False, [[3.0, 4.0, 5.0], [21.0, 22.0, 23.0]]),
        ("last", VALID, True, [[0.0, 1.0, 2.0], [15.0, 16.0, 17.0]]),
    ],
)
def test_pooling_by_hand(how, valid, mirrored, rows):
    torch.testing.assert_close(pool(HIDDEN, how, valid, mirrored=mirrored), torch.tensor(rows))


def test_mean_of_nothing_is_zero():
    assert pool(HIDDEN, "mean", torch.zeros(2, 4, dtype=torch.bool)).abs().sum() == 0


def test_shapes_on_plain_and_equivariant_hidden_states():
    for width in (6, 12):
        hidden = torch.randn(2, 5, width)
        assert PooledHead(6, 4)(hidden).shape == (2, 4)
        assert PooledHead(6, 4).features(hidden).shape == (2, 6)
        assert PositionHead(6, 4)(hidden).shape == (2, 5, 4)
        assert LanguageHead(6, 24)(hidden).shape == (2, 5, 24)


def test_wrong_width_is_named():
    with pytest.raises(SeqkitError, match="6 or 12 channels, got 7"):
        PooledHead(6, 4)(torch.randn(2, 5, 7))


def test_unknown_pooling():
    with pytest.raises(SeqkitError, match="mean, centre or last"):
        PooledHead(6, 4, "max")


def test_output_complement_must_undo_itself():
    with pytest.raises(SeqkitError, match="undoes itself"):
        PositionHead(6, 3, [1, 2, 0])


def test_tied_head_is_the_embedding():
    embedding = torch.nn.Embedding(24, 6)
    head = LanguageHead(6, 24, tied=embedding)
    assert head.output.weight is embedding.weight
    hidden = torch.randn(1, 2, 6)
    torch.testing.assert_close(head(hidden), hidden @ embedding.weight.T)
    assert LanguageHead(6, 24).output.weight is not embedding.weight


def test_heads_keep_their_bias_in_float32():
    head = PooledHead(6, 4).bfloat16()
    assert (head.output.weight.dtype, head.output.bias.dtype) == (torch.bfloat16, torch.float32)
    assert head(torch.randn(2, 3, 6)).dtype == torch.bfloat16
