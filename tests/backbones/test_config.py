import dataclasses
import json
import re

import pytest

from seqkit.backbones import BackboneConfig
from seqkit.backbones.config import DNA_COMPLEMENT
from seqkit.errors import ConfigError
from seqkit.tokenizers import DNATokenizer


def test_complement_is_the_tokenizers():
    assert list(DNA_COMPLEMENT[:23]) == DNATokenizer().complement.tolist()
    assert DNA_COMPLEMENT[23] == 23


def test_complement_fits_other_vocabularies():
    assert BackboneConfig(d_model=64, layout="mamba1", vocab_size=12).token_complement == DNA_COMPLEMENT[:12]
    assert BackboneConfig(d_model=64, layout="mamba1", vocab_size=32).token_complement[24:] == tuple(range(24, 32))


def test_dict_round_trip_through_json():
    config = BackboneConfig(
        d_model=48, layout="mamba1*2", n_channels=3, channel_complement=(1, 0, 2), d_state=8, dt_rank=5
    )
    assert BackboneConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_unknown_key_names_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean d_model"):
        BackboneConfig.from_dict({"d_modl": 3, "layout": "mamba1"})


def test_missing_key_is_named():
    with pytest.raises(ConfigError, match="layout"):
        BackboneConfig.from_dict({"d_model": 64})


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("d_model", 0),
        ("layout", "mamba2**"),
        ("vocab_size", -1),
        ("vocab_size", 0),
        ("dropout", 1.0),
        ("headdim", 48),
        ("ngroups", 3),
        ("dt_min", 0.0),
        ("dt_min", 0.5),
        ("attention_headdim", 24),
        ("d_state", 0),
        ("mimo_rank", 0),
        ("rope_fraction", 0.0),
        ("rotary_pairing", "thirds"),
        ("decay_form", "relu"),
        ("slab", 0),
        ("complement", (1, 2, 0)),
        ("channel_complement", (0,)),
    ],
)
def test_out_of_range(setting, value):
    settings = {"d_model": 64, "layout": "mamba2 attention", setting: value}
    with pytest.raises(ConfigError):
        BackboneConfig(**settings)


def test_frozen_and_keyword_only():
    with pytest.raises(TypeError):
        BackboneConfig(64, "mamba1")
    with pytest.raises(dataclasses.FrozenInstanceError):
        BackboneConfig(d_model=64, layout="mamba1").d_model = 3


def test_every_field_is_documented():
    for field in dataclasses.fields(BackboneConfig):
        assert re.search(rf"^\s+{field.name}: ", BackboneConfig.__doc__, flags=re.MULTILINE), field.name
