import pytest
import torch
from torch.utils import _pytree

from seqkit.backbones import (
    S4D,
    Attention,
    Backbone,
    BackboneConfig,
    Bidirectional,
    BidirectionalState,
    Mamba1,
    Mamba1State,
    Mamba2,
    Mamba3,
    StackState,
    StrandState,
)

STATES = {
    "mamba1": (lambda: Mamba1(8, d_state=3).initial_state(2), 2),
    "mamba2": (lambda: Mamba2(8, headdim=4).initial_state(2), 2),
    "mamba3": (lambda: Mamba3(8, headdim=4).initial_state(2), 4),
    "s4d": (lambda: S4D(8).initial_state(2), 1),
    "attention": (lambda: Attention(8, headdim=4).initial_state(2), 4),
    "bidirectional": (lambda: Bidirectional(Mamba1, 8).initial_state(2), 4),
    "stack": (lambda: Backbone(BackboneConfig(d_model=8, layout="mamba1*3")).initial_state(2), 6),
    "strands": (
        lambda: Backbone(BackboneConfig(d_model=8, layout="mamba1", rc_equivariant=True)).initial_state(2),
        4,
    ),
}


@pytest.mark.parametrize("name", STATES)
def test_flatten_and_rebuild(name):
    make, count = STATES[name]
    state = make()
    leaves, spec = _pytree.tree_flatten(state)
    assert len(leaves) == count
    rebuilt = _pytree.tree_unflatten(leaves, spec)
    assert type(rebuilt) is type(state)
    assert all(a is b for a, b in zip(_pytree.tree_leaves(rebuilt), leaves, strict=True))


def test_tree_map_reaches_every_tensor():
    state = BidirectionalState(Mamba1State(torch.zeros(1, 3, 2), torch.zeros(1, 2, 4)), None)
    moved = _pytree.tree_map(lambda t: None if t is None else t + 1, state)
    assert moved.left.ssm.sum() == 8
    assert moved.right is None


def test_paths_name_the_fields():
    state = StackState((Mamba1State(torch.zeros(1), torch.zeros(1)),))
    paths = [_pytree.keystr(path) for path, _ in _pytree.tree_flatten_with_path(state)[0]]
    assert paths == [".blocks[0].conv", ".blocks[0].ssm"]


def test_shapes():
    state = Mamba2(d_model=16, headdim=8, d_state=5, ngroups=2, d_conv=3).initial_state(7)
    assert state.conv.shape == (7, 2, 32 + 2 * 2 * 5)
    assert state.ssm.shape == (7, 4, 8, 5)
    state = Mamba1(d_model=16, d_state=5).bfloat16().initial_state(7)
    assert (state.conv.shape, state.ssm.shape) == ((7, 3, 32), (7, 32, 5))
    assert state.conv.dtype == state.ssm.dtype == torch.float32
    state = Mamba3(d_model=16, headdim=8, d_state=6, mimo_rank=3).bfloat16().initial_state(7)
    assert (state.theta.shape, state.ssm.shape) == ((7, 4, 1), (7, 4, 8, 6))
    assert (state.k.shape, state.v.shape) == ((7, 3, 4, 6), (7, 4, 8))
    assert [x.dtype for x in state.tensors] == [torch.float64, *[torch.float32] * 3]


def test_shape_of_complex_modes():
    state = S4D(d_model=16, d_state=6, expand=3).bfloat16().initial_state(7)
    assert state.modes.shape == (7, 48, 3, 2)
    assert state.modes.dtype == torch.float32


def test_strand_state_type():
    assert isinstance(STATES["strands"][0](), StrandState)
