import pytest
import torch

from seqkit import kernels
from seqkit.kernels.testing import TOLERANCES, assert_close, gradients, make_problem

STEPS = {"selective_scan": kernels.selective_step, "ssd_scan": kernels.ssd_step, "causal_conv": kernels.conv_step}
TIME = ("u", "x", "delta", "dt", "B", "C", "z")


def settings_of(op):
    return {
        "selective_scan": {"delta_softplus": True},
        "ssd_scan": {"dt_softplus": True, "dt_min": 0.6, "dt_max": 0.9},
        "causal_conv": {"activation": "silu"},
    }[op]


def walk(problem):
    tensors = dict(problem.tensors)
    state = tensors.pop("initial_state")
    fixed = {k: v for k, v in tensors.items() if k not in TIME}
    ys = []
    length = tensors["u" if "u" in tensors else "x"].shape[1]
    for t in range(length):
        now = {k: v[:, t] for k, v in tensors.items() if k in TIME}
        if problem.op == "selective_scan":
            required = (now.pop("u"), now.pop("delta"), fixed["A"], now.pop("B"), now.pop("C"), state)
        elif problem.op == "ssd_scan":
            required = (now.pop("x"), now.pop("dt"), fixed["A"], now.pop("B"), now.pop("C"), state)
        else:
            required = (now.pop("x"), fixed["weight"], state)
        optional = {k: v for k, v in fixed.items() if k not in ("A", "weight")}
        y, state = STEPS[problem.op](*required, **optional, **now, **problem.settings)
        ys.append(y)
    return torch.stack(ys, 1), state


@pytest.mark.parametrize("op", STEPS)
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_steps_equal_the_scan(provider, device, op, groups, dtype):
    problem = make_problem(op, length=23, groups=groups, dtype=dtype, device=device).having(**settings_of(op)).leaves()
    want, got = problem.run(), walk(problem)
    tolerance = TOLERANCES[dtype]
    for name, a, b in zip(("y", "state"), got, want, strict=True):
        assert a.dtype == b.dtype
        assert_close(name, a, b, tolerance)
    got, want = gradients(got, problem.tensors), gradients(want, problem.tensors)
    for name in got:
        assert_close(f"d{name}", got[name], want[name], tolerance)


@pytest.mark.parametrize("op", STEPS)
def test_a_step_leaves_its_state_alone(op):
    problem = make_problem(op, length=1).having(**settings_of(op))
    before = problem.tensors["initial_state"].clone()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, state = walk(problem)
    assert torch.equal(before, problem.tensors["initial_state"])
    assert state.dtype == torch.float32
    assert torch.equal(y, walk(problem)[0])


def test_a_step_with_a_foreign_state_is_refused():
    with pytest.raises(ValueError, match=r"state: expected shape \(B, W - 1, D\) = \(2, 3, 5\)"):
        kernels.conv_step(torch.zeros(2, 5), torch.zeros(5, 4), torch.zeros(2, 5, 3))
