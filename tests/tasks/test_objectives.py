import pytest
import torch

from seqkit.backbones.loss import IGNORED
from seqkit.errors import ConfigError
from seqkit.tasks.objectives import ObjectiveConfig, ask
from seqkit.tokenizers import DNATokenizer, Token


def encode(text):
    return torch.from_numpy(DNATokenizer().encode(text))[None]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_causal_targets_are_the_next_bases():
    question = ask(ObjectiveConfig(), encode("ACGTNA"), None, seeded())
    assert question.input_BL.tolist() == encode("ACGTN").tolist()
    assert question.target_BL.tolist() == [[Token.C, Token.G, Token.T, IGNORED, Token.A]]
    assert question.weight_BL is None


def test_padding_and_codes_are_never_asked_for():
    ids = torch.tensor([[Token.A, Token.PAD, Token.MASK, 12, Token.C]], dtype=torch.uint8)
    for objective in (ObjectiveConfig(), ObjectiveConfig(name="masked", mask_rate=0.999)):
        asked = ask(objective, ids, None, seeded()).target_BL
        assert set(asked.flatten().tolist()) <= {Token.A, Token.C, IGNORED}


def test_soft_masked_bases_weigh_less():
    soft = torch.tensor([[True, False, True, False]])
    question = ask(ObjectiveConfig(soft_mask_weight=0.25), encode("ACGT"), soft, seeded())
    assert question.weight_BL.tolist() == [[1.0, 0.25, 1.0]]


def test_shares_of_a_masked_question():
    ids = torch.randint(7, 11, (50, 2000), dtype=torch.uint8)
    shown, target, _ = ask(ObjectiveConfig(name="masked"), ids, None, seeded())
    asked = target != IGNORED
    assert torch.equal(target[asked], ids[asked].long())
    assert torch.equal(shown[~asked], ids[~asked])
    masked, kept = (shown == Token.MASK)[asked], (shown == ids)[asked]
    assert asked.float().mean().item() == pytest.approx(0.15, abs=0.005)
    assert masked.float().mean().item() == pytest.approx(0.8, abs=0.01)
    assert kept.float().mean().item() == pytest.approx(0.1 + 0.1 / 4, abs=0.01)
    assert shown[~(shown == Token.MASK)].min() >= Token.A
    assert shown.max() <= Token.T


def test_the_same_seed_hides_the_same_bases():
    ids = torch.randint(7, 11, (3, 100), dtype=torch.uint8)
    first, again, other = (ask(ObjectiveConfig(name="masked"), ids, None, seeded(s)).input_BL for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    "values",
    [{"name": "both"}, {"soft_mask_weight": 1.5}, {"mask_rate": 0.0}, {"mask_token": 0.9, "mask_random": 0.2}],
)
def test_settings_out_of_range_are_named(values):
    with pytest.raises(ConfigError, match="objective." + next(iter(values))):
        ObjectiveConfig(**values)
