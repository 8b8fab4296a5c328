"""Laws that hold for every scan, whatever the sizes."""

from itertools import pairwise

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seqkit.kernels.testing import SCANS, Problem, assert_close, gradients, make_problem

TIME = ("u", "x", "delta", "dt", "B", "C", "z")
FEW = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
LENGTHS = st.integers(0, 150)
SEEDS = st.integers(0, 1000)

pytestmark = pytest.mark.parametrize("op", SCANS)


def problem_of(op, length, seed, **options):
    problem = make_problem(op, length=length, seed=seed, dtype=torch.float64, **options)
    extra = {"selective_scan": {"delta_softplus": True}, "ssd_scan": {"dt_softplus": True}}
    return problem.having(**extra.get(op, {"activation": "silu"}))


def cut(problem, begin, end, state):
    tensors = {k: v[:, begin:end] if k in TIME else v for k, v in problem.tensors.items()}
    tensors["initial_state"] = state
    return Problem(problem.op, tensors, problem.settings)


def same(got, want, tolerance=1e-10):
    for name, a, b in zip(("y", "state"), got, want, strict=True):
        assert_close(name, a, b, tolerance)


@FEW
@given(length=LENGTHS, seed=SEEDS, reverse=st.booleans(), data=st.data())
def test_pieces_equal_the_whole(op, length, seed, reverse, data):
    """Values and gradients: the adjoint too is carried from piece to piece."""
    at = data.draw(st.integers(0, length))
    problem = problem_of(op, length, seed).having(reverse=reverse).leaves()
    want = problem.run()
    spans = [(0, at), (at, length)]
    state, ys = problem.tensors["initial_state"], {}
    for begin, end in reversed(spans) if reverse else spans:
        ys[begin, end], state = cut(problem, begin, end, state).run()
    got = torch.cat([ys[span] for span in spans], 1) if at not in (0, length) else max(ys.values(), key=torch.numel)
    same((got, state), want)
    got_grads, want_grads = gradients((got, state), problem.tensors), gradients(want, problem.tensors)
    for name, grad in got_grads.items():
        assert_close(f"d{name}", grad, want_grads[name], 1e-9)


@FEW
@given(length=LENGTHS, seed=SEEDS)
def test_reverse_is_flip(op, length, seed):
    problem = problem_of(op, length, seed)
    flipped = Problem(op, {k: v.flip(1) if k in TIME else v for k, v in problem.tensors.items()}, problem.settings)
    y, state = flipped.run()
    same(problem.having(reverse=True).run(), (y.flip(1), state))


@FEW
@given(lengths=st.lists(st.integers(0, 70), min_size=1, max_size=5), seed=SEEDS, reverse=st.booleans())
def test_packed_equals_separate(op, lengths, seed, reverse):
    bounds = [0]
    for length in lengths:
        bounds.append(bounds[-1] + length)
    packed = problem_of(op, bounds[-1], seed, segments=bounds).having(reverse=reverse)
    y, state = packed.run()
    alone = Problem(op, packed.tensors, {k: v for k, v in packed.settings.items() if k != "cu_seqlens"})
    for s, (begin, end) in enumerate(pairwise(bounds)):
        same(
            (y[:, begin:end], state[s : s + 1]),
            cut(alone, begin, end, packed.tensors["initial_state"][s : s + 1]).run(),
        )


@FEW
@given(length=st.integers(1, 100), pad=st.integers(1, 40), seed=SEEDS)
def test_padding_is_inert(op, length, pad, seed):
    """Step size 0 after the last token: outputs before it and the final state stay. A conv drops padding by packing."""
    problem = problem_of(op, length + pad, seed, batch=1)
    short = cut(problem, 0, length, problem.tensors["initial_state"])
    if op == "causal_conv":
        bounds = torch.tensor([0, length, length + pad], dtype=torch.int32)
        twice = {**problem.tensors, "initial_state": problem.tensors["initial_state"].repeat(2, 1, 1)}
        y, state = Problem(op, twice, problem.settings).having(cu_seqlens=bounds).run()
    else:
        name = "delta" if op == "selective_scan" else "dt"
        problem.tensors[name][:, length:] = -torch.inf  # softplus makes it 0
        y, state = problem.run()
    same((y[:, :length], state[:1]), short.run())
