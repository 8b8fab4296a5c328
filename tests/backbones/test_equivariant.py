import pytest
import torch

from seqkit.backbones import (
    Backbone,
    BackboneConfig,
    LanguageHead,
    PooledHead,
    PositionHead,
    reverse_complement_hidden,
)
from seqkit.errors import ConfigError
from seqkit.tokenizers import DNATokenizer

SMALL = {"d_model": 16, "headdim": 8, "d_state": 6, "attention_headdim": 8, "rc_equivariant": True}
CASES = {
    "mamba1": {"layout": "mamba1*2"},
    "mamba2": {"layout": "mamba2*2", "bidirectional": True},
    "hybrid": {"layout": "mamba2 attention mamba1", "bidirectional": True},
    "causal-attention": {"layout": "attention mamba2"},
    "channels": {
        "layout": "mamba2*2",
        "bidirectional": True,
        "n_channels": 3,
        "channel_complement": (0, 2, 1),
    },
}
CHANNEL_ORDER = [0, 2, 1]


@pytest.fixture(params=CASES)
def backbone(request):
    return Backbone(BackboneConfig(**SMALL, **CASES[request.param]))


def both_strands(backbone, length):
    """Hidden states of a sequence, and of its reverse complement."""
    tokenizer = DNATokenizer()
    ids = torch.randint(0, 23, (2, length))
    channels = torch.randn(2, length, 3) if backbone.config.n_channels else None
    other = None if channels is None else channels.flip(1)[..., CHANNEL_ORDER]
    hidden, _ = backbone(ids, channels=channels)
    return hidden, backbone(tokenizer.reverse_complement(ids), channels=other)[0]


@pytest.mark.parametrize("length", [1, 2, 31, 64])
def test_hidden_states(backbone, length):
    hidden, other = both_strands(backbone, length)
    assert hidden.shape == (2, length, 32)
    torch.testing.assert_close(other, reverse_complement_hidden(hidden), rtol=1e-5, atol=1e-5)
    assert (hidden[..., :16] - hidden[..., 16:]).abs().max() > 0.01, "both halves are the same"


@pytest.mark.parametrize("pooling", ["mean", "centre", "last"])
@pytest.mark.parametrize("length", [1, 2, 8, 31])
def test_pooled_answers_do_not_change(backbone, pooling, length):
    head = PooledHead(16, 5, pooling)
    hidden, other = both_strands(backbone, length)
    torch.testing.assert_close(head(other), head(hidden), rtol=1e-5, atol=1e-5)


def test_pooled_answers_do_not_change_with_padding(backbone):
    hidden, other = both_strands(backbone, 9)
    valid = torch.arange(9) < torch.tensor([[5], [9]])
    for pooling in ("mean", "last"):
        head = PooledHead(16, 5, pooling)
        torch.testing.assert_close(head(other, valid.flip(1)), head(hidden, valid), rtol=1e-5, atol=1e-5)


def test_position_answers_reverse_and_permute(backbone):
    order = [1, 0, 2, 3]
    head = PositionHead(16, 4, order)
    hidden, other = both_strands(backbone, 13)
    torch.testing.assert_close(head(other), head(hidden).flip(1)[..., order], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tied", [False, True])
def test_token_scores_move_to_the_complement(backbone, tied):
    complement = list(backbone.config.token_complement)
    head = LanguageHead(16, 24, complement=complement, tied=backbone.embed.tokens if tied else None)
    hidden, other = both_strands(backbone, 13)
    torch.testing.assert_close(head(other), head(hidden).flip(1)[..., complement], rtol=1e-5, atol=1e-5)


def test_packed_segments(backbone):
    ids = torch.randint(7, 11, (1, 14))
    channels = torch.randn(1, 14, 3) if backbone.config.n_channels else None
    cut = None if channels is None else channels[:, 5:]
    bounds = torch.tensor([0, 5, 14], dtype=torch.int32)
    packed, _ = backbone(ids, channels=channels, cu_seqlens=bounds)
    separate, _ = backbone(ids[:, 5:], channels=cut)
    torch.testing.assert_close(packed[:, 5:], separate, rtol=1e-5, atol=1e-5)


def test_without_the_channel_permutation_the_property_fails():
    backbone = Backbone(BackboneConfig(**SMALL, layout="mamba2", n_channels=3))
    hidden, other = both_strands(backbone, 12)
    assert (other - reverse_complement_hidden(hidden)).abs().max() > 1e-3


def test_causal_use_is_refused(backbone):
    assert not backbone.is_causal
    with pytest.raises(ConfigError, match="rc_equivariant"):
        backbone.require_causal("next-token prediction")
    with pytest.raises(ConfigError, match="two-sweep stream"):
        backbone.step(torch.tensor([7]), backbone.initial_state(1))


def test_weights_fit_the_plain_backbone():
    settings = {key: value for key, value in SMALL.items() if key != "rc_equivariant"}
    equivariant = Backbone(BackboneConfig(**SMALL, layout="mamba2"))
    plain = Backbone(BackboneConfig(**settings, layout="mamba2"))
    plain.load_state_dict(equivariant.state_dict())
    ids = torch.randint(7, 11, (2, 10))
    torch.testing.assert_close(equivariant(ids)[0][..., :16], plain(ids)[0])
