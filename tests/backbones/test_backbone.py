import pytest
import torch
from torch.utils._pytree import tree_leaves

from seqkit.backbones import Backbone, BackboneConfig
from seqkit.errors import ConfigError, ShapeError

SMALL = {"d_model": 16, "headdim": 8, "d_state": 6, "attention_headdim": 8}
LAYOUTS = ["mamba1*2", "mamba2*2", "mamba2 attention mamba1"]


def make(layout="mamba1 mamba2", **settings):
    return Backbone(BackboneConfig(**SMALL, layout=layout, **settings))


def tokens(length, batch=2):
    return torch.randint(7, 11, (batch, length))


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_reach_every_parameter(layout, bidirectional):
    model = make(layout, bidirectional=bidirectional, n_channels=2)
    hidden, _ = model(tokens(10), channels=torch.randn(2, 10, 2))
    assert hidden.shape == (2, 10, 16)
    hidden.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_chunks_and_steps_equal_the_whole(layout):
    model, ids = make(layout, n_channels=1).double(), tokens(12)
    channels = torch.randn(2, 12, 1, dtype=torch.float64)
    whole, final = model(ids, channels=channels)
    first, state = model(ids[:, :7], channels=channels[:, :7])
    parts = [first]
    for t in range(7, 12):
        hidden, state = model.step(ids[:, t], state, channels=channels[:, t])
        parts.append(hidden[:, None])
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(tree_leaves(state), tree_leaves(final), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_causal_models_do_not_see_the_future(layout):
    model, ids = make(layout), tokens(12)
    assert model.is_causal
    model.require_causal("anything")
    changed = ids.clone()
    changed[:, 5] = 17 - changed[:, 5]
    before, after = model(ids)[0], model(changed)[0]
    torch.testing.assert_close(after[:, :5], before[:, :5], rtol=0, atol=0)
    assert ((after[:, 5:] - before[:, 5:]).abs().amax(-1) > 0).all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_bidirectional_models_see_both_sides(layout):
    model, ids = make(layout, bidirectional=True), tokens(12)
    assert not model.is_causal
    changed = ids.clone()
    changed[:, 5] = 17 - changed[:, 5]
    assert ((model(ids)[0] - model(changed)[0]).abs().amax(-1) > 0).all()
    with pytest.raises(ConfigError, match="bidirectional"):
        model.step(ids[:, 0], model.initial_state(2))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_packed_equals_separate(layout):
    model, parts = make(layout).double(), [tokens(n, batch=1) for n in (3, 8, 1)]
    packed, state = model(torch.cat(parts, dim=1), cu_seqlens=torch.tensor([0, 3, 11, 12], dtype=torch.int32))
    separate = [model(part) for part in parts]
    torch.testing.assert_close(packed, torch.cat([h for h, _ in separate], dim=1), rtol=1e-9, atol=1e-11)
    mamba = len(model.stack.blocks) - 1
    for i, (_, own) in enumerate(separate):
        torch.testing.assert_close(state.blocks[mamba].ssm[i : i + 1], own.blocks[mamba].ssm)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_recomputing_activations_changes_nothing(layout):
    ids, gradients = tokens(10), []
    plain = make(layout, dropout=0.3)
    for checkpoint in (False, True):
        model = make(layout, dropout=0.3, checkpoint=checkpoint)
        model.load_state_dict(plain.state_dict())
        torch.manual_seed(1)
        hidden, _ = model(ids)
        hidden.square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("layout", ["mamba1*2", "mamba2*2"])
@pytest.mark.parametrize("settings", [{}, {"bidirectional": True}, {"rc_equivariant": True}])
@pytest.mark.parametrize("packed", [False, True])
def test_slabs_change_nothing(layout, settings, packed):
    ids, results = tokens(23, batch=1), []
    bounds = torch.tensor([0, 3, 3, 23], dtype=torch.int32) if packed else None
    plain = make(layout, slab=None, **settings)
    for slab in (None, 7):
        model = make(layout, slab=slab, **settings).double()
        model.load_state_dict(plain.state_dict())
        hidden, state = model(ids, cu_seqlens=bounds)
        hidden.square().sum().backward()
        results.append([hidden, *tree_leaves(state), *(p.grad for p in model.parameters())])
    torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(("layout", "widest"), [("mamba1", 32), ("mamba2", 80)])
def test_slabs_keep_nothing_of_the_inner_width(layout, widest):
    """What autograd keeps for the whole length is as wide as the model: 16, not the 32 inner channels and more."""
    widths = {}
    for slab in (None, 10):
        model, longest = make(layout, slab=slab), []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, seen=longest: seen.append(x) or x, lambda x: x):
            model(tokens(60, batch=1))
        widths[slab] = max(x.shape[-1] for x in longest if x.ndim == 3 and x.shape[1] == 60)
    assert widths == {None: widest, 10: 16}


@pytest.mark.parametrize(("layout", "checkpoint"), [("mamba1*8", False), ("mamba1*8", True), ("mamba2*8", True)])
def test_a_deep_model_trains_in_slabs(layout, checkpoint):
    torch.manual_seed(0)
    model = make(layout, slab=16, checkpoint=checkpoint, dropout=0.1)
    ids = tokens(50)
    wanted = torch.nn.functional.one_hot(ids.roll(2, 1) - 7, 16).float()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    losses = []
    for _ in range(12):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden, _ = model(ids)
        losses.append(torch.nn.functional.mse_loss(hidden.float()[:, 2:], wanted[:, 2:]))
        optimizer.zero_grad()
        losses[-1].backward()
        assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
    assert losses[-1] < 0.6 * losses[0]


def test_dropout_only_in_training():
    model, ids = make(dropout=0.5), tokens(9)
    assert not torch.equal(model(ids)[0], model(ids)[0])
    model.eval()
    assert torch.equal(model(ids)[0], model(ids)[0])


def test_numeric_input_only():
    model = Backbone(BackboneConfig(**SMALL, layout="mamba1", vocab_size=0, n_channels=4))
    values = torch.randn(2, 9, 4)
    hidden, _ = model(channels=values)
    assert hidden.shape == (2, 9, 16)
    step, _ = model.step(None, model.initial_state(2), channels=values[:, 0])
    torch.testing.assert_close(step, hidden[:, 0])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_ids_of_any_integer_type(dtype):
    model, ids = make(), tokens(5)
    torch.testing.assert_close(model(ids.to(dtype))[0], model(ids)[0])


@pytest.mark.parametrize(
    ("settings", "ids", "channels", "message"),
    [
        ({}, None, None, "ids: expected a tensor"),
        ({}, tokens(3), torch.randn(2, 3, 1), "channels: expected None"),
        ({"n_channels": 2}, tokens(3), None, "channels: expected a tensor"),
        ({"n_channels": 2}, tokens(3), torch.randn(2, 3, 1), "2 in the last dimension"),
        ({"n_channels": 2, "vocab_size": 0}, tokens(3), torch.randn(2, 3, 2), "ids: expected None"),
    ],
)
def test_inputs_that_do_not_fit(settings, ids, channels, message):
    with pytest.raises(ShapeError, match=message):
        make(**settings)(ids, channels=channels)


def test_hidden_width():
    assert make().hidden_width == 16
    assert make(rc_equivariant=True).hidden_width == 32


def test_long_context_setting_reaches_the_time_steps():
    model = Backbone(BackboneConfig(d_model=256, layout="mamba1", dt_min=1e-6, dt_max=1e-4))
    dt = torch.nn.functional.softplus(model.stack.blocks[0].mixer.dt_proj.bias.double())
    assert dt.min() < 2e-6
    assert dt.max() < 1.01e-4


@pytest.mark.parametrize(
    "settings", [{"checkpoint": True}, {"checkpoint": True, "slab": 4}, {"bidirectional": True, "rc_equivariant": True}]
)
def test_compiles_as_one_graph(settings):
    model, ids = make("mamba1 mamba2 attention", **settings), tokens(9)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    hidden, state = compiled(ids)
    expected, expected_state = model(ids)
    torch.testing.assert_close(hidden, expected)
    torch.testing.assert_close(tree_leaves(state), tree_leaves(expected_state))
    hidden.square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def timed_backbone(layout, **options):
    sizes = {"d_model": 16, "d_state": 8, "headdim": 8, "vocab_size": 0, "n_channels": 2}
    return Backbone(BackboneConfig(layout=layout, **(sizes | options))).double()


@pytest.mark.parametrize("layout", ["mamba1", "mamba2", "s4d", "mamba1 mamba2"])
def test_even_distances_change_nothing(layout):
    backbone, x = timed_backbone(layout), torch.randn(2, 33, 2).double()
    even, state = backbone(channels=x, step_size=torch.ones(2, 33).double())
    plain, expected = backbone(channels=x)
    torch.testing.assert_close(even, plain)
    torch.testing.assert_close(tree_leaves(state), tree_leaves(expected))


@pytest.mark.parametrize("layout", ["mamba1", "mamba2", "s4d"])
def test_distances_enter_the_decay_and_continue_in_chunks(layout):
    backbone, x = timed_backbone(layout), torch.randn(2, 30, 2).double()
    step = torch.rand(2, 30).double() * 3
    whole, _ = backbone(channels=x, step_size=step)
    first, state = backbone(channels=x[:, :13], step_size=step[:, :13])
    second, _ = backbone(channels=x[:, 13:], state=state, step_size=step[:, 13:])
    torch.testing.assert_close(torch.cat([first, second], 1), whole)
    # After a very long pause, nothing of the past is left but what the convolution holds.
    step[:, 20] = 1e6
    fresh, _ = backbone(channels=x[:, 17:], step_size=step[:, 17:])
    late, _ = backbone(channels=x, step_size=step)
    torch.testing.assert_close(late[:, 20:], fresh[:, 3:])


@pytest.mark.parametrize("options", [{"layout": "mamba3"}, {"layout": "mamba2 attention"},
                                     {"layout": "mamba2", "bidirectional": True},
                                     {"layout": "mamba2", "checkpoint": True}])  # fmt: skip
def test_blocks_that_cannot_read_time_refuse_it(options):
    backbone = timed_backbone(attention_headdim=8, **options)
    with pytest.raises(ConfigError, match="irregular times"):
        backbone(channels=torch.randn(1, 4, 2).double(), step_size=torch.ones(1, 4).double())
