import json

import pytest
import torch

from seqkit.backbones import Backbone, BackboneConfig, adapt_upstream_keys, load_backbone, load_weights, save_backbone
from seqkit.backbones.load import start_from
from seqkit.errors import CheckpointError, ConfigError

CONFIG = BackboneConfig(d_model=16, layout="mamba1 mamba2", headdim=8, n_channels=2, channel_complement=(1, 0))


@pytest.mark.parametrize("cast", [torch.float32, torch.bfloat16])
def test_round_trip(tmp_path, cast):
    model = Backbone(CONFIG).to(cast)
    save_backbone(tmp_path / "new" / "folder", model)
    loaded = load_backbone(tmp_path / "new" / "folder")
    assert loaded.config == CONFIG
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
        assert loaded.state_dict()[name].dtype == tensor.dtype, name


def test_saving_leaves_two_files_and_replaces_old_ones(tmp_path):
    save_backbone(tmp_path, Backbone(CONFIG))
    second = Backbone(CONFIG)
    save_backbone(tmp_path, second)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    assert torch.equal(load_backbone(tmp_path).embed.tokens.weight, second.embed.tokens.weight)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_missing_and_broken_files(tmp_path, name):
    save_backbone(tmp_path, Backbone(CONFIG))
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError):
        load_backbone(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        load_backbone(tmp_path)


def test_unknown_setting(tmp_path):
    save_backbone(tmp_path, Backbone(CONFIG))
    settings = json.loads((tmp_path / "config.json").read_text()) | {"headdin": 3}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match="headdim"):
        load_backbone(tmp_path)


def test_weights_that_do_not_fit():
    model = Backbone(CONFIG)
    weights = dict(model.state_dict())
    with pytest.raises(CheckpointError, match=r"stack\.norm\.weight"):
        load_weights(model, {k: v for k, v in weights.items() if k != "stack.norm.weight"})
    with pytest.raises(CheckpointError, match="surplus"):
        load_weights(model, weights | {"surplus": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="shape"):
        load_weights(model, weights | {"stack.norm.weight": torch.zeros(3)})


MIXER_KEYS = {
    "mamba1": [
        ("in_proj.weight", (64, 16)),
        ("conv1d.weight", (32, 1, 4)),
        ("conv1d.bias", (32,)),
        ("x_proj.weight", (33, 32)),
        ("dt_proj.weight", (32, 1)),
        ("dt_proj.bias", (32,)),
        ("A_log", (32, 16)),
        ("D", (32,)),
        ("out_proj.weight", (16, 32)),
    ],
    "mamba2": [
        ("in_proj.weight", (196, 16)),
        ("conv1d.weight", (160, 1, 4)),
        ("conv1d.bias", (160,)),
        ("dt_bias", (4,)),
        ("A_log", (4,)),
        ("D", (4,)),
        ("norm.weight", (32,)),
        ("out_proj.weight", (16, 32)),
    ],
}


@pytest.mark.parametrize("mixer", MIXER_KEYS)
@pytest.mark.parametrize("embedding", ["backbone.embedding.weight", "backbone.embeddings.weight"])
def test_published_names_load_one_to_one(mixer, embedding):
    published = {embedding: torch.randn(24, 16), "backbone.norm_f.weight": torch.rand(16)}
    published["lm_head.weight"] = published[embedding].clone()
    for layer in range(2):
        published[f"backbone.layers.{layer}.norm.weight"] = torch.rand(16)
        for key, shape in MIXER_KEYS[mixer]:
            published[f"backbone.layers.{layer}.mixer.{key}"] = torch.randn(shape)
    renamed = adapt_upstream_keys(published)
    model = Backbone(BackboneConfig(d_model=16, layout=f"{mixer}*2", headdim=8))
    load_weights(model, renamed)
    assert torch.equal(model.embed.tokens.weight, published[embedding])
    assert torch.equal(model.stack.norm.weight, published["backbone.norm_f.weight"])
    assert torch.equal(model.stack.blocks[1].mixer.A_log, published["backbone.layers.1.mixer.A_log"])
    assert torch.equal(model.stack.blocks[0].norm.weight, published["backbone.layers.0.norm.weight"])


def test_unknown_published_name():
    with pytest.raises(CheckpointError, match=r"transformer\.h\.0"):
        adapt_upstream_keys({"transformer.h.0.weight": torch.zeros(1)})


def test_a_backbone_with_new_channels_starts_from_a_trained_one():
    trained = Backbone(BackboneConfig(d_model=16, layout="mamba1 mamba2", headdim=8))
    model = Backbone(CONFIG)
    channels = model.embed.channels.weight.clone()
    start_from(model, trained)
    assert torch.equal(model.embed.channels.weight, channels)
    for name, tensor in trained.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


@pytest.mark.parametrize("changes", [{"layout": "mamba1"}, {"d_model": 32}])
def test_starting_from_another_architecture_is_refused(changes):
    trained = Backbone(BackboneConfig(**{"d_model": 16, "layout": "mamba1 mamba2", "headdim": 8} | changes))
    with pytest.raises(CheckpointError, match="one architecture"):
        start_from(Backbone(CONFIG), trained)
