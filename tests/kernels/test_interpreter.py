"""The Triton kernels without a GPU, in Triton's interpreter: small problems that still cross every kind of border.

The interpreter is chosen when Triton is imported, so the cases run in a session of their own that one test starts.
"""

import os
import subprocess
import sys

import numpy
import pytest
import torch

from seqkit.backbones import Bidirectional, Mamba1, Mamba2
from seqkit.kernels.testing import TOLERANCES, Maker, assert_close, check, make_problem

INSIDE = os.environ.get("TRITON_INTERPRET") == "1"
SETTINGS = {
    "selective_scan": {"delta_softplus": True},
    "ssd_scan": {"dt_softplus": True, "dt_min": 0.72},
    "mamba3_scan": {"decay": "softplus", "pairing": "halves"},
    "causal_conv": {"activation": "silu"},
}
SCANNED = tuple(SETTINGS)
PACKED = [0, 0, 1, 18, 18, 20]  # empty, single, more than a chunk of 16
inside = pytest.mark.skipif(not INSIDE, reason="runs in the session that test_kernels_in_the_interpreter starts")


def version(module) -> tuple[int, ...]:
    return tuple(int(part) for part in module.__version__.split(".")[:2])


@pytest.mark.skipif(INSIDE, reason="this is that session")
def test_kernels_in_the_interpreter():
    triton = pytest.importorskip("triton")
    if version(numpy) >= (2, 4) and version(triton) < (3, 9):
        pytest.skip(f"the interpreter of Triton {triton.__version__} does not work with NumPy {numpy.__version__}")
    environment = {
        **os.environ, "TRITON_INTERPRET": "1", "SEQKIT_KERNELS": "triton", "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "34 passed" in done.stdout


@inside
@pytest.mark.parametrize("op", SCANNED)
def test_a_batch_of_several_chunks(op):
    check(make_problem(op, length=18).having(**SETTINGS[op]), TOLERANCES[torch.float32])


@inside
@pytest.mark.parametrize("op", SCANNED)
def test_packed_and_reversed(op):
    problem = make_problem(op, length=PACKED[-1], segments=PACKED)
    check(problem.having(reverse=True, **SETTINGS[op]), TOLERANCES[torch.float32])


@inside
@pytest.mark.parametrize("op", SCANNED)
def test_no_tokens(op):
    check(make_problem(op, length=0).having(**SETTINGS[op]), TOLERANCES[torch.float32])


@inside
def test_bfloat16_in_groups_without_options():
    problem = make_problem("selective_scan", batch=1, length=5, groups=2, dtype=torch.bfloat16)
    check(problem.without("D", "z", "delta_bias", "initial_state"), TOLERANCES[torch.bfloat16])


@inside
def test_mamba3_in_groups_without_options():
    problem = make_problem("mamba3_scan", batch=1, length=14, groups=2)
    entering = [name for name in problem.tensors if name.startswith("initial_state")]
    check(problem.without("B_bias", "C_bias", "dt_bias", "D", "z", *entering), TOLERANCES[torch.float32])


@inside
def test_mamba3_heads_in_parts():
    problem = make_problem("mamba3_scan", batch=1, length=10, groups=2)
    for name in ("x", "z", "D", "initial_state.v"):
        problem.tensors[name] = problem.tensors[name][..., :4].contiguous()
    problem.tensors["initial_state.ssm"] = problem.tensors["initial_state.ssm"][..., :4, :].contiguous()
    check(problem, TOLERANCES[torch.float32])


@inside
def test_ssd_gradients_into_slices_of_one_tensor():
    from seqkit.kernels.ssd import triton_provider

    t = make_problem("ssd_scan", batch=1, length=9).tensors
    operands = [t[k] for k in ("x", "dt", "A", "B", "C", "D", "z", "dt_bias", "initial_state")]
    arguments = (*operands, None, True, 0.0, float("inf"), True, None)
    y, _, starts = triton_provider.forward(*arguments)
    want = triton_provider.backward(torch.ones_like(y), None, starts, *arguments)
    shapes = {"y": (3, 5), "dx": (3, 5), "dz": (3, 5), "dB": (1, 7), "dC": (1, 7), "ddt": (3, 1)}
    parts = torch.full((1, 9, 62), torch.nan).split([15, 15, 15, 7, 7, 3], dim=2)
    into = {name: part.unflatten(2, shapes[name]) for name, part in zip(shapes, parts, strict=True)}
    into["ddt"] = into["ddt"][..., 0]
    got = triton_provider.backward(torch.ones_like(y), None, starts, *arguments, into=into)
    for ours, alone in zip(got, want, strict=True):
        assert torch.equal(ours, alone)
    assert torch.equal(into["y"], y)
    assert torch.equal(into["dC"], want[4])


@inside
@pytest.mark.parametrize("skip", ["per head", "per channel"])
def test_ssd_heads_in_groups_and_parts(skip):
    """States of 16 numbers are too wide for the interpreter's programs: heads are cut into halves and quarters."""
    make = Maker(torch.float32)
    problem = make_problem("ssd_scan", batch=1, length=11, groups=2).without("z", "dt_bias")
    problem.tensors["x"], problem.tensors["D"] = make.activation(1, 11, 4, 4), make.parameter(4, 4)
    problem.tensors["initial_state"] = make.parameter(1, 4, 4, 7)
    if skip == "per head":
        problem.tensors["D"] = make.parameter(4)
    check(problem, TOLERANCES[torch.float32])


@inside
@pytest.mark.parametrize(
    ("kind", "options", "length", "reverse"),
    [
        (Mamba1, {"d_state": 3}, 18, False),
        (Mamba1, {"d_state": 3}, 18, True),
        (Mamba2, {"d_state": 2, "headdim": 4}, 9, True),
    ],
)
def test_the_inner_path_in_slabs(kind, options, length, reverse):
    """Gradients written side by side, y written again by the backward pass, states and adjoints between slabs."""
    results = []
    for provider in ("triton", "reference"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SEQKIT_KERNELS", provider)
            torch.manual_seed(0)
            block = kind(4, slab=7, **options)
            x = torch.randn(2, length, 4, requires_grad=True)
            y, state = block(x, reverse=reverse)
            loss = y.square().sum() + state.conv.sum() + state.ssm.square().sum()
            results.append([y, *torch.autograd.grad(loss, [x, *block.parameters()])])
    for ours, want in zip(*results, strict=True):
        assert_close("inner", ours, want.double(), TOLERANCES[torch.float32])


@inside
def test_both_directions_in_slabs():
    """One more slab than a sweep needs: outputs written ahead, states kept for the gradient, gradients added up."""
    results = []
    for provider in ("triton", "reference"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SEQKIT_KERNELS", provider)
            torch.manual_seed(0)
            block = Bidirectional(Mamba2, 4, slab=5, d_state=2, headdim=4)
            x = torch.randn(1, 11, 4, requires_grad=True)
            y, state = block(x)
            loss = y.square().sum() + state.left.conv.sum() + state.right.ssm.square().sum()
            results.append([y, *torch.autograd.grad(loss, [x, *block.parameters()])])
    for ours, want in zip(*results, strict=True):
        assert_close("both", ours, want.double(), TOLERANCES[torch.float32])


@inside
def test_residual_norm():
    check(make_problem("rms_norm", length=9), TOLERANCES[torch.float32])


@inside
@pytest.mark.parametrize("norm_before_gate", [True, False])
def test_gated_norm(norm_before_gate):
    problem = make_problem("gated_rms_norm", length=9)
    check(problem.having(group_size=3, norm_before_gate=norm_before_gate), TOLERANCES[torch.float32])


@inside
@pytest.mark.parametrize("scans", [1, 2])
def test_sum_of_gated_norms(scans):
    from seqkit.kernels.norm import reference, triton_provider

    dy, x, other, z = torch.randn(4, 2, 5, 9).unbind(0)
    results = []
    for module in (triton_provider, reference):
        given, xs, dz = dy.clone(), [x.clone(), other.clone()][:scans], torch.empty(2, 5, 10)[..., :9]
        arguments = z, [torch.ones(9)] * scans, 1e-1, 3
        y = module.gated_rms_norm_sum_forward(xs, *arguments)
        dweights = module.gated_rms_norm_sum_backward(given, xs, *arguments, dz, keep_sum=True)
        results.append([y, given, *xs, dz, *dweights])
    for ours, want in zip(*results, strict=True):
        assert_close("sum", ours, want.double(), TOLERANCES[torch.float32])


@inside
@pytest.mark.parametrize(("count", "shape"), [(1, (1, 5, 1, 3)), (3, (2, 9, 2, 16))])
@pytest.mark.parametrize("together", [False, True])
def test_sums_of_shares(count, shape, together):
    from seqkit.kernels.triton_sums import sum_shares

    N = shape[3]
    shares = torch.randn((count, *shape[:3], 2, N) if together else (2, count, *shape))
    strides = (shares.stride(0), N, 2 * N) if together else (shares.stride(1), shares.stride(0), N)
    wide = torch.zeros(*shape[:3], 2 * N + 1)
    dB, dC = wide[..., :N], torch.empty(shape, dtype=torch.float16)
    sum_shares(shares, count, strides, dB, dC)
    B, C = shares.unbind(4) if together else shares.unbind(0)
    torch.testing.assert_close(dB, B.sum(0))
    torch.testing.assert_close(dC, C.sum(0).half())
    assert not wide[..., N:].any()


@inside
@pytest.mark.parametrize(("chunks", "channels"), [(0, 5), (1, 33), (9, 40)])
def test_sums_over_chunks(chunks, channels):
    from seqkit.kernels.triton_sums import sum_over_chunks

    states, first, second = (torch.randn(chunks, *tail, channels) for tail in ((3,), (), ()))
    rates = torch.randn(3, channels)
    got = sum_over_chunks(states, first, second, A_ND=rates)
    want = states.sum(0).masked_fill(rates > 0, 0).T, first.sum(0), second.sum(0)
    torch.testing.assert_close(got, want)
    assert sum_over_chunks(states, None)[1:] == (None, None)
