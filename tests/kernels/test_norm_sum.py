"""Gated norms of one or two scans, added up, against the public gated norm."""

import pytest
import torch
import torch.nn.functional as F

from seqkit.kernels import dispatch
from seqkit.kernels.testing import TOLERANCES, assert_close

EPS, GROUP = 0.1, 6


def operands(device, dtype, scans, shape=(2, 19, 12)):
    """dy, scans, gate and place for its gradient as slices of wider tensors, weights."""
    torch.manual_seed(0)
    wide = torch.randn(*shape[:2], 3 * shape[2] + 5, device=device, dtype=dtype)
    z, dz, x, _ = wide.split([shape[2]] * 3 + [5], dim=-1)
    dy, other = (torch.randn(shape, device=device, dtype=dtype) for _ in range(2))
    return dy, [x, other][:scans], z, dz, [torch.rand(shape[2], device=device) + 0.5 for _ in range(scans)]


def gated_norm(x, z, weight):
    """The public gated norm, written out: a provider asked for by name need not run float64."""
    gated = (x * F.silu(z)).unflatten(-1, (-1, GROUP))
    return (gated * (gated.square().mean(-1, keepdim=True) + EPS).rsqrt()).flatten(-2) * weight


def wanted(dy, xs, z, weights):
    """The sum and its gradients (scans, gate, weights) in float64."""
    leaves = [t.double().requires_grad_() for t in (*xs, z, *weights)]
    scans, (gate, *scales) = leaves[: len(xs)], leaves[len(xs) :]
    y = sum(gated_norm(x, gate, w) for x, w in zip(scans, scales, strict=True))
    return y, torch.autograd.grad(y, leaves, dy.double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scans", [1, 2])
@pytest.mark.parametrize("keep_sum", [False, True])
def test_equals_the_public_norms(provider, device, dtype, scans, keep_sum):
    module = dispatch.implementation("gated_rms_norm", provider)
    dy, xs, z, dz, weights = operands(device, dtype, scans)
    y, grads = wanted(dy, xs, z, weights)
    assert_close("y", module.gated_rms_norm_sum_forward(xs, z, weights, EPS, GROUP), y, TOLERANCES[dtype])
    given = dy.clone()
    dweights = module.gated_rms_norm_sum_backward(given, xs, z, weights, EPS, GROUP, dz, keep_sum=keep_sum)
    for name, ours, want in zip("abcdef", [*xs, dz, *dweights], grads, strict=False):
        assert_close(name, ours, want, TOLERANCES[dtype])
    assert_close("sum", given, y if keep_sum else dy.double(), TOLERANCES[dtype])


@pytest.mark.parametrize("shape", [(1, 0, 12), (0, 3, 12), (3, 700, 12)])
def test_any_number_of_rows(provider, device, shape):
    module = dispatch.implementation("gated_rms_norm", provider)
    dy, xs, z, dz, weights = operands(device, torch.float32, 2, shape)
    y, grads = wanted(dy, xs, z, weights)
    dweights = module.gated_rms_norm_sum_backward(dy, xs, z, weights, EPS, GROUP, dz, keep_sum=True)
    assert torch.allclose(dy.double(), y, atol=1e-5)
    for ours, want in zip([*xs, dz, *dweights], grads, strict=True):
        assert torch.allclose(ours.double(), want, atol=1e-4)
