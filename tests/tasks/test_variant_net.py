import pytest
import torch

from seqkit.backbones import Backbone, BackboneConfig
from seqkit.errors import ConfigError
from seqkit.tasks.variant_net import FeatureInputs, Standardise, VariantEffectNet, VariantHeadConfig
from seqkit.tokenizers import DNATokenizer

CHANNEL_COMPLEMENT = [0, 2, 1]


def batch_of(rows=4, length=20, channels=True, features=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    ref = torch.randint(7, 11, (rows, length), generator=g)
    alt = ref.clone()
    centre = torch.arange(rows) + 5
    row = torch.arange(rows)
    alt[row, centre] = 7 + (alt[row, centre] - 7 + 1) % 4
    batch = {
        "ref_ids": ref,
        "alt_ids": alt,
        "centre": centre,
        "index": row,
        "stranded": torch.zeros(rows, dtype=torch.bool),
        "features": torch.randn(rows, features, generator=g),
    }
    if channels:
        batch["ref_channels"] = torch.rand(rows, length, 3, generator=g)
        batch["alt_channels"] = batch["ref_channels"].clone()
    return batch


def net_of(both_strands=True, n_outputs=1, features=3, columns=0, **model):
    torch.manual_seed(1)
    config = BackboneConfig(d_model=16, layout="mamba1", n_channels=3, d_state=4, bidirectional=True, **model)
    net = VariantEffectNet(
        Backbone(config),
        FeatureInputs(features - columns, columns, modifiers=[0] if columns else []),
        n_outputs=n_outputs,
        head=VariantHeadConfig(d_hidden=8, members=3, radius=2),
        complement=torch.from_numpy(DNATokenizer().complement).long() if both_strands else None,
        channel_complement=torch.tensor(CHANNEL_COMPLEMENT),
    ).eval()
    with torch.no_grad():
        for parameter in net.sequence.leave.parameters():
            parameter.normal_()
    return net


def test_standardise_uses_known_values_and_fills_the_mean():
    scale = Standardise(3)
    values = torch.tensor([[1.0, 5.0, 2.0], [3.0, 5.0, float("nan")], [5.0, 5.0, 4.0]])
    scale.fit(values)
    found = scale(values)
    assert torch.allclose(found[:, 0], torch.tensor([-1.0, 0.0, 1.0]) * 1.5**0.5)
    assert torch.equal(found[:, 1], torch.zeros(3))
    assert torch.allclose(found[:, 2], torch.tensor([-1.0, 0.0, 1.0]))


def test_floor_keeps_rare_indicators_small():
    rare = torch.zeros(1000, 1)
    rare[0] = 1
    plain, floored = Standardise(1), Standardise(1, floor=0.2)
    plain.fit(rare)
    floored.fit(rare)
    assert plain(rare).max() > 30
    assert floored(rare).max() < 5.1


def test_feature_inputs_are_hinges_products_and_pairs():
    inputs = FeatureInputs(2, 2, modifiers=[1])
    features = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 2.0, 4.0], [0.0, 1.0, 4.0, 8.0]])
    inputs.fit(features)
    found = inputs(features)
    assert found.shape == (3, inputs.width) == (3, 2 + 2 * 5 + 1)
    z = 1.5**0.5
    # Third row: both columns one and a bit standard deviations above their mean, modifier 1.
    assert found[2, 2:].tolist() == pytest.approx([z, z, z, z, z - 1, z - 1, 0, 0, z, z, z * z])
    # First row: below the mean.
    assert found[0, 2:].tolist() == pytest.approx([-z, -z, 0, 0, 0, 0, z, z, -z, -z, z * z])


def test_a_missing_column_counts_as_the_mean():
    inputs = FeatureInputs(1, 1, modifiers=[0])
    inputs.fit(torch.tensor([[1.0, 2.0], [0.0, 4.0]]))
    found = inputs(torch.tensor([[1.0, float("nan")]]))
    assert torch.equal(found[0, 1:], torch.zeros(5))


def test_outputs_have_members_rows_and_outputs():
    assert net_of(n_outputs=2)(batch_of()).shape == (3, 4, 2)
    assert net_of(features=0)(batch_of(features=0)).shape == (3, 4, 1)


def test_without_a_strand_both_readings_give_the_same():
    net, batch = net_of(), batch_of()
    assert torch.allclose(net(batch), net(net.flipped(batch)), atol=1e-5)


def test_with_a_strand_the_other_reading_differs_and_is_not_used():
    net, batch = net_of(), batch_of()
    batch["stranded"][:] = True
    as_given, other = net.orientations(batch)
    assert other is None
    assert torch.equal(net(batch), as_given)
    assert not torch.allclose(as_given, net(net.flipped(batch)), atol=1e-3)


def test_mixed_batches_average_only_where_the_strand_is_unknown():
    net, batch = net_of(), batch_of()
    batch["stranded"][:2] = True
    as_given, other = net.orientations(batch)
    found = net(batch)
    assert torch.allclose(found[:, :2], as_given[:, :2])
    assert torch.allclose(found[:, 2:], (as_given[:, 2:] + other[:, 2:]) / 2)


def test_flipping_twice_is_the_identity():
    net, batch = net_of(), batch_of()
    twice = net.flipped(net.flipped(batch))
    assert all(torch.equal(twice[name], batch[name]) for name in batch)


def test_the_sequence_has_no_say_at_first_and_gets_one():
    torch.manual_seed(0)
    fresh = VariantEffectNet(
        Backbone(BackboneConfig(d_model=16, layout="mamba1", n_channels=3)),
        FeatureInputs(3, 0, []),
        n_outputs=1,
        head=VariantHeadConfig(d_hidden=4, members=2, dropout=0.0),
    )
    batch = batch_of()
    assert torch.equal(fresh(batch), fresh.head(fresh.features(batch["features"])))
    fresh(batch).square().sum().backward()
    assert fresh.sequence.leave.weight.grad.abs().sum() > 0


def test_every_parameter_gets_a_gradient():
    net = net_of(n_outputs=2)
    with torch.no_grad():
        net.head.wide.normal_()
    net(batch_of()).square().sum().backward()
    assert not [name for name, p in net.named_parameters() if p.grad is None or p.grad.abs().sum() == 0]


def test_an_allele_that_changes_nothing_leaves_only_the_reference_view():
    net, batch = net_of(), batch_of()
    width = net.sequence.backbone.hidden_width
    views = []
    net.sequence.enter[0].register_forward_hook(lambda module, inputs, output: views.append(inputs[0]))
    net(dict(batch, alt_ids=batch["ref_ids"], stranded=torch.ones(4, dtype=torch.bool)))
    assert torch.equal(views[0][:, : 3 * width], torch.zeros(4, 3 * width))
    assert views[0][:, 3 * width :].abs().sum() > 0


@pytest.mark.parametrize("values", [{"members": 0}, {"d_hidden": 0}, {"radius": -1}, {"dropout": 1.0}])
def test_head_settings_out_of_range_are_named(values):
    with pytest.raises(ConfigError, match="head." + next(iter(values))):
        VariantHeadConfig(**values)
