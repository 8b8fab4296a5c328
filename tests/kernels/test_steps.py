import os
import subprocess
import sys

import numpy
import pytest
import torch

from seqkit import kernels
from seqkit.errors import ConfigError
from seqkit.kernels import dispatch
from seqkit.kernels.testing import TOLERANCES, assert_close, gradients, make_problem

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
STEPS = {"selective_scan": kernels.selective_step, "ssd_scan": kernels.ssd_step, "causal_conv": kernels.conv_step}
TIME = ("u", "x", "delta", "dt", "B", "C", "z")


def settings_of(op):
    return {
        "selective_scan": {"delta_softplus": True},
        "ssd_scan": {"dt_softplus": True, "dt_min": 0.6, "dt_max": 0.9},
        "causal_conv": {"activation": "silu"},
    }[op]


def step(problem, t, state):
    """(y, new state) of token ``t``; operands are views that skip the other tokens."""
    positional = {
        "selective_scan": ("u", "delta", "A", "B", "C"),
        "ssd_scan": ("x", "dt", "A", "B", "C"),
        "causal_conv": ("x", "weight"),
    }[problem.op]
    now = {k: v[:, t] if k in TIME else v for k, v in problem.tensors.items() if k != "initial_state"}
    return STEPS[problem.op](*(now.pop(name) for name in positional), state, **now, **problem.settings)


def walk(problem):
    ys, state = [], problem.tensors["initial_state"]
    for t in range(problem.tensors["u" if "u" in problem.tensors else "x"].shape[1]):
        y, state = step(problem, t, state)
        ys.append(y)
    return torch.stack(ys, 1), state


def raw_arguments(problem, provider):
    """Arguments of the forward custom op for the first token."""
    t = {k: v[:, 0] if k in TIME else v for k, v in problem.tensors.items()}
    if problem.op == "causal_conv":
        return (t["x"], t["weight"], t["initial_state"], t.get("bias"), "silu", provider)
    first, step_size, bias = ("u", "delta", "delta_bias") if problem.op == "selective_scan" else ("x", "dt", "dt_bias")
    B, C = (w if w.dim() == 3 else w.unsqueeze(1) for w in (t["B"], t["C"]))
    operands = (t[first], t[step_size], t["A"], B, C, t["initial_state"], t.get("D"), t.get("z"), t.get(bias))
    return (*operands, True, provider) if problem.op == "selective_scan" else (*operands, True, 0.6, 0.9, provider)


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


def test_a_step_with_a_foreign_skip_weight_is_refused():
    problem = make_problem("selective_scan", length=1)
    problem.tensors["D"] = torch.ones(4)
    with pytest.raises(ValueError, match=r"D: expected shape \(D,\) = \(5,\)"):
        walk(problem)
    with pytest.raises(ConfigError, match="dt_min, dt_max: expected 0 <= dt_min <= dt_max"):
        walk(make_problem("ssd_scan", length=1).having(dt_min=1.0, dt_max=0.5))


@pytest.mark.parametrize("op", STEPS)
@pytest.mark.parametrize("bare", [False, True])
def test_opcheck(op, bare):
    problem = make_problem(op, length=1)
    problem = problem.without("D", "z", "delta_bias", "dt_bias", "bias") if bare else problem
    arguments = raw_arguments(problem.leaves(), "reference")
    name = dict(zip(STEPS, ("selective_step", "ssd_step", "conv_step"), strict=True))[op]
    forward, backward = (getattr(torch.ops.seqkit, f"{name}_{way}").default for way in ("fwd", "bwd"))
    torch.library.opcheck(forward, arguments)
    constant = tuple(x.detach() if isinstance(x, torch.Tensor) else x for x in arguments)
    torch.library.opcheck(backward, (*(torch.randn_like(out) for out in forward(*constant)), *constant[:-1]))


@pytest.mark.parametrize("op", STEPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])  # bfloat16 asks what the card can do
def test_a_step_compiles_without_graph_breaks(provider, device, op, dtype):
    problem = make_problem(op, length=1, device=device, dtype=dtype).having(**settings_of(op)).leaves()
    state = problem.tensors["initial_state"]
    torch._dynamo.reset()
    compiled = torch.compile(lambda p, s: step(p, 0, s), fullgraph=True, backend="aot_eager")
    got, want = compiled(problem, state), step(problem, 0, state)
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)
    got, want = gradients(got, problem.tensors), gradients(want, problem.tensors)
    for name in got:
        assert_close(name, got[name], want[name].double(), 1e-6)


@pytest.mark.parametrize("op", STEPS)
def test_second_derivatives_of_a_step_are_refused(op):
    problem = make_problem(op, length=1).leaves()
    x = problem.tensors["u" if "u" in problem.tensors else "x"]
    (first,) = torch.autograd.grad(walk(problem)[0].square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="step: second derivatives are not supported"):
        first.sum().backward()


def triton_step_equals_the_reference(problem, monkeypatch):
    """Values and states of every token, and gradients, which are the reference's from the same operands."""
    monkeypatch.setenv(dispatch.ENVIRONMENT_VARIABLE, "reference")
    want = walk(problem)
    monkeypatch.setenv(dispatch.ENVIRONMENT_VARIABLE, "triton")
    got = walk(problem)
    dtype = want[0].dtype
    for name, a, b in zip(("y", "state"), got, want, strict=True):
        assert a.dtype == b.dtype
        assert_close(name, a, b.double(), 3e-6 if dtype == torch.float32 else TOLERANCES[dtype])
    got, want = gradients(got, problem.tensors), gradients(want, problem.tensors)
    for name in got:
        assert_close(f"d{name}", got[name], want[name].double(), 1e-5 if dtype == torch.float32 else TOLERANCES[dtype])


VARIANTS = {
    "all operands": {},
    "groups": {"groups": 2},
    "half precision": {"dtype": torch.bfloat16},
    "one sequence": {"batch": 1},
}


@pytest.mark.gpu
@pytest.mark.parametrize("op", STEPS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_triton_steps_on_cuda(monkeypatch, op, variant):
    problem = make_problem(op, length=3, device="cuda", **VARIANTS[variant]).having(**settings_of(op)).leaves()
    triton_step_equals_the_reference(problem, monkeypatch)


@pytest.mark.gpu
@pytest.mark.parametrize("op", STEPS)
def test_a_cuda_graph_replays_a_step(monkeypatch, op):
    """The runner's way: the graph copies the new state into the static one, so that replays walk on."""
    monkeypatch.setenv(dispatch.ENVIRONMENT_VARIABLE, "triton")
    problem = make_problem(op, length=5, device="cuda").having(**settings_of(op))
    names = [name for name in problem.tensors if name in TIME]
    want = walk(problem)
    static = make_problem(op, length=1, device="cuda").having(**settings_of(op))
    static.tensors.update({k: v.clone() for k, v in problem.tensors.items() if k not in TIME})
    state, start = static.tensors["initial_state"], problem.tensors["initial_state"]
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        step(static, 0, state)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y, new = step(static, 0, state)
        state.copy_(new)
    state.copy_(start)
    ys = []
    for t in range(5):
        for name in names:
            static.tensors[name].copy_(problem.tensors[name][:, t : t + 1])
        graph.replay()
        ys.append(y.clone())
    assert torch.equal(torch.stack(ys, 1), want[0])
    assert torch.equal(state, want[1])


@pytest.mark.skipif(not INTERPRETED, reason="runs in the session that the next test starts")
@pytest.mark.parametrize("op", STEPS)
@pytest.mark.parametrize("variant", [*VARIANTS, "no options"])
def test_interpreted_steps(monkeypatch, op, variant):
    problem = make_problem(op, length=2, **VARIANTS.get(variant, {}))
    if variant == "no options":
        problem = problem.without("D", "z", "delta_bias", "dt_bias", "bias")
    else:
        problem = problem.having(**settings_of(op))
    triton_step_equals_the_reference(problem.leaves(), monkeypatch)


def version(module) -> tuple[int, ...]:
    return tuple(int(part) for part in module.__version__.split(".")[:2])


@pytest.mark.skipif(INTERPRETED, reason="this is that session")
def test_steps_in_the_interpreter():
    triton = pytest.importorskip("triton")
    if version(numpy) >= (2, 4) and version(triton) < (3, 9):
        pytest.skip(f"the interpreter of Triton {triton.__version__} does not work with NumPy {numpy.__version__}")
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    selection = [__file__, "-k", "test_interpreted_steps"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *selection]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "15 passed" in done.stdout
