"""What every mixer promises: states, chunks, packing, reversal, causality."""

import pytest
import torch
from torch.utils._pytree import tree_leaves

from seqkit.backbones import S4D, Attention, Bidirectional, Mamba1, Mamba2, Mamba3
from seqkit.errors import ConfigError

WIDTH = 12
CAUSAL = {
    "mamba1": lambda: Mamba1(WIDTH, d_state=5),
    "mamba1-biased": lambda: Mamba1(WIDTH, d_state=3, d_conv=1, bias=True, conv_bias=False),
    "mamba1-slabs": lambda: Mamba1(WIDTH, d_state=5, bias=True, slab=4),
    "mamba2": lambda: Mamba2(WIDTH, d_state=5, headdim=6, ngroups=2),
    "mamba2-slabs": lambda: Mamba2(WIDTH, d_state=5, headdim=6, ngroups=2, bias=True, slab=4),
    "mamba3": lambda: Mamba3(WIDTH, d_state=5, headdim=6, ngroups=2),
    "mamba3-slabs": lambda: Mamba3(WIDTH, d_state=5, headdim=6, ngroups=2, bias=True, slab=4),
    "mamba3-ranks": lambda: Mamba3(WIDTH, d_state=4, headdim=6, mimo_rank=2, outproj_norm=True, chunk_size=4),
    "s4d": lambda: S4D(WIDTH, d_state=6),
    "s4d-slabs": lambda: S4D(WIDTH, d_state=4, bias=True, slab=4),
    "attention": lambda: Attention(WIDTH, headdim=4),
}
BOTH_SIDES = {
    "bidirectional-mamba1": lambda: Bidirectional(Mamba1, WIDTH, d_state=5),
    "bidirectional-mamba1-slabs": lambda: Bidirectional(Mamba1, WIDTH, d_state=5, bias=True, slab=4),
    "bidirectional-mamba2": lambda: Bidirectional(Mamba2, WIDTH, d_state=5, headdim=6),
    "bidirectional-mamba2-slabs": lambda: Bidirectional(Mamba2, WIDTH, d_state=5, headdim=6, bias=True, slab=4),
    "bidirectional-mamba3-slabs": lambda: Bidirectional(Mamba3, WIDTH, d_state=4, headdim=6, bias=True, slab=4),
    "bidirectional-mamba3": lambda: Bidirectional(Mamba3, WIDTH, d_state=4, headdim=6),
    "bidirectional-s4d": lambda: Bidirectional(S4D, WIDTH, d_state=4),
    "bidirectional-s4d-slabs": lambda: Bidirectional(S4D, WIDTH, d_state=4, bias=True, slab=4),
    "attention-both-sides": lambda: Attention(WIDTH, headdim=4, causal=False, bias=True),
}
ALL = CAUSAL | BOTH_SIDES


def make(name):
    return ALL[name]().double()


def sequence(length, batch=2):
    return torch.randn(batch, length, WIDTH, dtype=torch.float64)


def close(actual, expected):
    torch.testing.assert_close(tree_leaves(actual), tree_leaves(expected), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("length", [1, 3, 37])
def test_shapes_and_gradients_reach_every_parameter(name, length):
    mixer = make(name)
    y, _ = mixer(sequence(length))
    assert y.shape == (2, length, WIDTH)
    y.square().sum().backward()
    dead = [n for n, p in mixer.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not dead
    if length > 1 and "attention" not in name:
        # A_log acts from the second token on; attention's key bias cancels in the softmax.
        assert all(p.grad.abs().sum() > 0 for p in mixer.parameters())


@pytest.mark.parametrize("name", CAUSAL)
def test_stepping_equals_the_full_pass(name):
    mixer, x = make(name), sequence(11)
    y, final = mixer(x)
    state, steps = mixer.initial_state(2), []
    for t in range(11):
        y_t, state = mixer.step(x[:, t], state)
        steps.append(y_t)
    close(torch.stack(steps, dim=1), y)
    close(state, final)


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("cuts", [(4,), (1, 2), (9, 16)])
def test_chunks_with_states_equal_the_whole(name, cuts):
    mixer, x = make(name), sequence(17)
    y, final = mixer(x)
    state, parts = None, []
    for part in x.tensor_split(cuts, dim=1):
        y_part, state = mixer(part, state)
        parts.append(y_part)
    close(torch.cat(parts, dim=1), y)
    close(state, final)


@pytest.mark.parametrize("name", CAUSAL)
def test_the_state_carries_gradients(name):
    mixer, x = make(name), sequence(9).requires_grad_()
    _, state = mixer(x[:, :5])
    y, _ = mixer(x[:, 5:], state)
    (past,) = torch.autograd.grad(y.square().sum(), x)
    whole, _ = mixer(x)
    (expected,) = torch.autograd.grad(whole[:, 5:].square().sum(), x)
    close(past, expected)
    assert past[:, 0].abs().sum() > 0


@pytest.mark.parametrize("name", CAUSAL)
def test_nothing_sees_the_future(name):
    mixer, x = make(name), sequence(13)
    changed = x.clone()
    changed[:, 7:] += 1.0
    y, y_changed = mixer(x)[0], mixer(changed)[0]
    torch.testing.assert_close(y_changed[:, :7], y[:, :7], rtol=0, atol=0)
    assert (y_changed[:, 7] - y[:, 7]).abs().min() > 0


@pytest.mark.parametrize("name", BOTH_SIDES)
def test_both_sides_are_seen(name):
    mixer, x = make(name), sequence(13)
    changed = x.clone()
    changed[:, 7] += 1.0
    difference = (mixer(changed)[0] - mixer(x)[0]).abs().amax(dim=(0, 2))
    assert (difference > 0).all()


@pytest.mark.parametrize("name", ALL)
def test_reverse_is_flip(name):
    mixer, x = make(name), sequence(14)
    y, state = mixer(x, reverse=True)
    flipped, expected_state = mixer(x.flip(1))
    close(y, flipped.flip(1))
    close(state, expected_state)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("reverse", [False, True])
def test_packed_equals_separate(name, reverse):
    mixer, lengths = make(name), [5, 0, 1, 8]
    parts = [sequence(n, batch=1).requires_grad_() for n in lengths]
    bounds = torch.tensor([0, 5, 5, 6, 14], dtype=torch.int32)
    packed, _ = mixer(torch.cat(parts, dim=1), cu_seqlens=bounds, reverse=reverse)
    filled = [part for part in parts if part.shape[1]]
    separate = torch.cat([mixer(part, reverse=reverse)[0] for part in filled], dim=1)
    close(packed, separate)
    ours = torch.autograd.grad(packed.square().sum(), filled)
    theirs = torch.autograd.grad(separate.square().sum(), filled)
    close(ours, theirs)


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("reverse", [False, True])
def test_packed_chunks_continue_each_segment(name, reverse):
    mixer = make(name)
    whole = [sequence(n, batch=1) for n in (7, 4, 9)]
    cuts = [(2, 5), (3, 1), (0, 9)] if not reverse else [(5, 2), (1, 3), (9, 0)]
    halves = [part.split(cut, dim=1) for part, cut in zip(whole, cuts, strict=True)]
    first, second = (1, 0) if reverse else (0, 1)
    state, outputs = None, {}
    for half in (first, second):
        parts = [pair[half] for pair in halves]
        bounds = torch.tensor([0, *[p.shape[1] for p in parts]]).cumsum(0).int()
        y, state = mixer(torch.cat(parts, dim=1), state, cu_seqlens=bounds, reverse=reverse)
        outputs[half] = y.split([p.shape[1] for p in parts], dim=1)
    for i, part in enumerate(whole):
        close(torch.cat([outputs[0][i], outputs[1][i]], dim=1), mixer(part, reverse=reverse)[0])


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("packed", [False, True])
def test_an_empty_sequence_changes_no_state(name, packed):
    mixer, batch = make(name), 1 if packed else 2
    state = None if name == "attention-both-sides" else mixer(sequence(5, batch))[1]
    bounds = torch.tensor([0, 0], dtype=torch.int32) if packed else None
    y, after = mixer(sequence(0, batch), state, cu_seqlens=bounds)
    assert y.shape == (batch, 0, WIDTH)
    if state is not None and not (packed and name == "attention"):
        close(after, state)


@pytest.mark.parametrize("name", BOTH_SIDES)
def test_a_step_on_both_sides_is_refused(name):
    with pytest.raises(ConfigError, match="step"):
        make(name).step(sequence(1)[:, 0], None)


@pytest.mark.parametrize("name", ALL)
def test_initial_state_is_what_none_means(name):
    mixer, x = make(name), sequence(6)
    close(mixer(x, mixer.initial_state(2))[0], mixer(x)[0])
