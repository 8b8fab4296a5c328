import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from seqkit.backbones import Backbone, BackboneConfig, LanguageHead
from seqkit.errors import ConfigError, ShapeError
from seqkit.inference.generate import StepRunner, generate
from seqkit.inference.stream import stream
from seqkit.inference.stream_state import load_state, save_state

SMALL = {"d_model": 16, "headdim": 8, "d_state": 6, "attention_headdim": 8}
LAYOUTS = ["mamba1*2", "mamba2*2", "mamba3*2", "s4d*2"]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def make(layout="mamba2*2", **settings):
    torch.manual_seed(0)
    return Backbone(BackboneConfig(**SMALL, layout=layout, **settings))


def tokens(length, batch=2):
    return torch.randint(7, 11, (batch, length))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_steps_go_on_where_a_stream_stopped(layout, device):
    model, ids = make(layout).to(device), tokens(30).to(device)
    *_, read = stream(model, [ids[:, :20]])
    runner = StepRunner(model, 2)
    assert runner.graphed == (device == "cuda")
    runner.load(read.state)
    hidden = torch.stack([runner(ids[:, t]).clone() for t in range(20, 30)], dim=1)
    *_, whole = stream(model, [ids])
    torch.testing.assert_close(hidden, whole.hidden[:, 20:], rtol=1e-4, atol=1e-4)
    assert runner.state.position == 30
    torch.testing.assert_close(tree_leaves(runner.state.inner), tree_leaves(whole.state.inner), rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_graph_has_the_bits_of_plain_steps(layout):
    model, ids = make(layout).cuda(), tokens(12).cuda()
    runner, state = StepRunner(model, 2), model.initial_state(2)
    for t in range(12):
        with torch.no_grad():
            hidden, state = model.step(ids[:, t], state)
        torch.testing.assert_close(runner(ids[:, t]), hidden, rtol=0, atol=0)
    torch.testing.assert_close(tree_leaves(runner.state.inner), tree_leaves(state), rtol=0, atol=0)


@pytest.mark.parametrize("device", DEVICES)
def test_a_runner_starts_at_zero_and_can_start_again(device, tmp_path):
    model, ids = make(n_channels=2).to(device), tokens(6).to(device)
    values = torch.randn(2, 6, 2).to(device)
    runner = StepRunner(model, 2)
    first = [runner(ids[:, t], values[:, t]).clone() for t in range(3)]
    save_state(tmp_path / "state", runner.state, model)
    for t in range(3, 6):
        last = runner(ids[:, t], values[:, t]).clone()
    runner.load(load_state(tmp_path / "state", model))
    assert runner.position == 3
    again = [runner(ids[:, t], values[:, t]).clone() for t in range(3, 6)]
    torch.testing.assert_close(again[-1], last, rtol=0, atol=0)
    torch.testing.assert_close(first[0], model.step(ids[:, 0], model.initial_state(2), channels=values[:, 0])[0])


def test_a_state_that_was_handed_out_stays():
    runner = StepRunner(make(), 2)
    before = runner.state
    runner(tokens(1)[:, 0])
    assert all((leaf == 0).all() for leaf in tree_leaves(before.inner))
    assert any((leaf != 0).any() for leaf in tree_leaves(runner.state.inner))


def test_attention_steps_but_says_that_it_grows():
    model, ids = make("mamba2 attention"), tokens(5)
    with pytest.warns(UserWarning, match="grows"):
        runner = StepRunner(model, 2)
    hidden = torch.stack([runner(ids[:, t]) for t in range(5)], dim=1)
    torch.testing.assert_close(hidden, model(ids)[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("allowed", [None, [7, 8, 9, 10]])
def test_the_likeliest_continuation(allowed):
    model, head, ids = make(), LanguageHead(16, 24), tokens(9)
    nn.init.normal_(head.output.weight, std=3.0)
    made = generate(model, head, ids, 6, allowed=allowed)
    for _ in range(6):
        logits = head(model(ids)[0][:, -1])
        columns = torch.arange(24) if allowed is None else torch.tensor(allowed)
        ids = torch.cat([ids, columns[logits[:, columns].argmax(-1)][:, None]], dim=1)
    assert torch.equal(made.ids, ids[:, 9:])
    assert made.state.position == 9 + 5


def test_samples_follow_the_softmax_and_the_generator():
    wanted = torch.tensor([0.1, 0.2, 0.3, 0.4])
    head = nn.Linear(16, 24)
    nn.init.zeros_(head.weight)
    head.bias.data = torch.cat([torch.full((7,), 9.0), 2 * wanted.log(), torch.full((13,), 9.0)])

    def sample(seed):
        generator = torch.Generator().manual_seed(seed)
        options = {"temperature": 2.0, "allowed": range(7, 11), "generator": generator}
        return generate(make(), head, tokens(1, batch=500), 8, **options).ids

    shares = torch.bincount(sample(1).flatten() - 7, minlength=4) / 4000
    torch.testing.assert_close(shares, wanted, atol=0.03, rtol=0)
    assert torch.equal(sample(1), sample(1))
    assert not torch.equal(sample(1), sample(2))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: StepRunner(make(bidirectional=True), 1), ConfigError, "steps"),
        (lambda m: StepRunner(m, 2)(tokens(1, batch=3)[:, 0]), ShapeError, r"ids: expected shape \(2,\)"),
        (lambda m: StepRunner(m, 2)(), ShapeError, "got shape None"),
        (lambda m: generate(m, nn.Identity(), tokens(0), 1), ShapeError, "L >= 1"),
        (lambda m: generate(m, nn.Identity(), tokens(1), 0), ConfigError, "at least 1"),
        (lambda m: generate(m, nn.Identity(), tokens(1), 1, temperature=1.0), ConfigError, "torch.Generator"),
    ],
)
def test_what_does_not_fit_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call(make())
