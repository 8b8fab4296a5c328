import pytest
import torch

from seqkit.backbones import S4D, Bidirectional, Mamba1, Mamba2
from seqkit.errors import ConfigError

KINDS = {
    "mamba1": (Mamba1, {"d_state": 4}),
    "mamba2": (Mamba2, {"d_state": 4, "headdim": 5}),
    "s4d": (S4D, {"d_state": 4}),
}


@pytest.fixture(params=KINDS)
def both(request):
    """A bidirectional mixer, and two one-directional ones that share its weights."""
    kind, options = KINDS[request.param]
    mixer = Bidirectional(kind, 10, **options).double()
    ways = []
    for core in (mixer.left, mixer.right):
        way = kind(10, **options).double()
        way.load_state_dict(
            core.state_dict() | {"in_proj.weight": mixer.in_proj.weight, "out_proj.weight": mixer.out_proj.weight}
        )
        ways.append(way)
    return mixer, *ways


def test_is_the_sum_of_a_forward_and_a_flipped_pass(both):
    mixer, left, right = both
    x = torch.randn(2, 15, 10, dtype=torch.float64)
    expected = left(x)[0] + right(x.flip(1))[0].flip(1)
    torch.testing.assert_close(mixer(x)[0], expected, rtol=1e-10, atol=1e-12)


def test_state_is_a_pair_that_enters_from_both_sides(both):
    mixer, left, right = both
    x = torch.randn(2, 15, 10, dtype=torch.float64)
    _, from_left = left(x[:, :6])
    _, from_right = right(x[:, 9:], reverse=True)
    state = type(mixer.initial_state(2))(from_left, from_right)
    y, _ = mixer(x[:, 6:9], state)
    torch.testing.assert_close(y, mixer(x)[0][:, 6:9], rtol=1e-10, atol=1e-12)


def test_projections_are_shared(both):
    names = [name for name, _ in both[0].named_parameters()]
    assert names.count("in_proj.weight") == names.count("out_proj.weight") == 1
    assert {name.split(".")[0] for name in names} == {"left", "right", "in_proj", "out_proj"}


def test_projections_run_once(both):
    mixer, calls = both[0], []
    for projection in (mixer.in_proj, mixer.out_proj):
        projection.register_forward_hook(lambda module, *_: calls.append(module))
    mixer(torch.randn(1, 4, 10, dtype=torch.float64))
    assert len(calls) == 2


def test_step_names_the_stream(both):
    with pytest.raises(ConfigError, match="two-sweep stream"):
        both[0].step(torch.zeros(1, 10), both[0].initial_state(1))
