from pathlib import Path

import pytest
import torch
import yaml

from seqkit.backbones import Backbone, BackboneConfig

FOLDER = Path(__file__).resolve().parents[2] / "configs" / "model"
PRESETS = sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load(name):
    return Backbone(BackboneConfig.from_dict(yaml.safe_load((FOLDER / f"{name}.yaml").read_text())))


def test_the_promised_presets_exist():
    assert {"dna-tiny", "dna-mamba1", "dna-mamba3", "dna-hybrid", "dna-rc"} <= set(PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_builds_and_runs_one_batch(name):
    model = load(name)
    hidden, _ = model(torch.randint(7, 11, (2, 33)))
    assert hidden.shape == (2, 33, model.hidden_width)
    hidden.square().mean().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_sizes():
    sizes = {name: sum(p.numel() for p in load(name).parameters()) for name in PRESETS}
    assert 7_000_000 < sizes.pop("dna-causal") < 8_000_000
    assert all(100_000 < size < 500_000 for size in sizes.values()), sizes
