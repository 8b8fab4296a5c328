"""Lengths and sizes that only a GPU reaches: a million tokens, more elements than 32 bits count."""

import pytest
import torch

from seqkit import kernels
from seqkit.kernels.testing import TOLERANCES, Maker, assert_close

LENGTH = 2**20 + 3
pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _triton(monkeypatch):
    monkeypatch.setenv("SEQKIT_KERNELS", "triton")


def operands(channels, dtype, states=2):
    make = Maker(torch.float32, "cuda")
    torch.manual_seed(0)
    u = torch.randn(1, LENGTH, channels, device="cuda", dtype=dtype)
    delta = torch.rand(1, LENGTH, channels, device="cuda", dtype=dtype)
    B, C = (make.activation(1, LENGTH, states).to(dtype) for _ in range(2))
    return u, delta, -make.uniform(1e-4, 1.0, channels, states), B, C


def test_a_million_tokens_at_once_or_in_two_parts():
    u, delta, A, B, C = operands(40, torch.float32)
    want, final = kernels.selective_scan(u, delta, A, B, C, return_final_state=True)
    cut = 600_001  # not at the border of a chunk
    head, state = kernels.selective_scan(
        *(x[:, :cut] for x in (u, delta)), A, *(x[:, :cut] for x in (B, C)), return_final_state=True
    )
    tail, last = kernels.selective_scan(
        *(x[:, cut:] for x in (u, delta)),
        A,
        *(x[:, cut:] for x in (B, C)),
        initial_state=state,
        return_final_state=True,
    )
    assert_close("y", torch.cat([head, tail], 1), want.double(), TOLERANCES[torch.float32])
    assert_close("state", last, final.double(), TOLERANCES[torch.float32])


@pytest.mark.parametrize("block", [0, 1024, 2048])
def test_channels_beyond_32_bits_of_elements(block):
    """A block of channels in a tensor of more than 2^31 elements gives the bits that it gives alone."""
    if torch.cuda.get_device_properties(0).total_memory < 60 * 2**30:
        pytest.skip("needs 60 GiB of GPU memory")
    whole = operands(2080, torch.bfloat16)
    part = slice(block, block + 32)
    u, delta, A, B, C = whole
    assert u.numel() > 2**31
    dy = torch.zeros_like(u)
    dy[..., part] = u[..., part]
    results = []
    for tensors, gradient in ((whole, dy), ((u[..., part], delta[..., part], A[part], B, C), u[..., part])):
        leaves = [x.detach().requires_grad_() for x in tensors]
        y = kernels.selective_scan(*leaves)
        results.append([y.detach(), *torch.autograd.grad(y, leaves, gradient)])
    for name, full, alone in zip(("y", "u", "delta", "A", "B", "C"), *results, strict=True):
        cut = full[part] if name == "A" else full if name in "BC" else full[..., part]
        if name == "A":  # its partial sums are added up in an order that depends on the width
            assert_close("dA", cut, alone.double(), TOLERANCES[torch.float32])
        else:
            assert torch.equal(cut, alone), name


@pytest.mark.parametrize("block", [0, 1024, 2048])
def test_convolution_beyond_32_bits_of_elements(block):
    if torch.cuda.get_device_properties(0).total_memory < 40 * 2**30:
        pytest.skip("needs 40 GiB of GPU memory")
    part, make = slice(block, block + 32), Maker(torch.float32, "cuda")
    torch.manual_seed(0)
    x = torch.randn(1, LENGTH, 2080, device="cuda", dtype=torch.bfloat16)
    weight, bias = make.parameter(2080, 4), make.parameter(2080)
    assert x.numel() > 2**31
    dy = torch.zeros_like(x)
    dy[..., part] = x[..., part]
    results = []
    for tensors, gradient in (((x, weight, bias), dy), ((x[..., part], weight[part], bias[part]), x[..., part])):
        leaves = [t.detach().requires_grad_() for t in tensors]
        y = kernels.causal_conv(leaves[0], leaves[1], bias=leaves[2], activation="silu")
        results.append([y.detach(), *torch.autograd.grad(y, leaves, gradient)])
    (y, dx, *dparameters), (y_alone, dx_alone, *dparameters_alone) = results
    assert torch.equal(y[..., part], y_alone)
    assert torch.equal(dx[..., part], dx_alone)
    for name, full, alone in zip(("dweight", "dbias"), dparameters, dparameters_alone, strict=True):
        assert_close(name, full[part], alone.double(), TOLERANCES[torch.float32])


def ssd_operands(heads, dtype, states=16, head_channels=64):
    torch.manual_seed(0)
    x = torch.randn(1, LENGTH, heads, head_channels, device="cuda", dtype=dtype)
    dt = torch.rand(1, LENGTH, heads, device="cuda", dtype=dtype)
    B, C = (torch.randn(1, LENGTH, 1, states, device="cuda", dtype=dtype) for _ in range(2))
    return x, dt, -torch.logspace(-4, 0, heads, device="cuda"), B, C


def test_ssd_over_a_million_tokens_at_once_or_in_two_parts():
    x, dt, A, B, C = ssd_operands(3, torch.float32, head_channels=20)
    want, final = kernels.ssd_scan(x, dt, A, B, C, return_final_state=True)
    cut = 600_001  # not at the border of a chunk
    parts, state = [], None
    for part in (slice(0, cut), slice(cut, None)):
        y, state = kernels.ssd_scan(
            x[:, part], dt[:, part], A, B[:, part], C[:, part], initial_state=state, return_final_state=True
        )
        parts.append(y)
    assert_close("y", torch.cat(parts, 1), want.double(), TOLERANCES[torch.float32])
    assert_close("state", state, final.double(), TOLERANCES[torch.float32])


@pytest.mark.parametrize("head", [0, 16, 32])
def test_ssd_heads_beyond_32_bits_of_elements(head):
    """A head among more than 2^31 elements gives what it gives alone; alone it is cut into other spans."""
    if torch.cuda.get_device_properties(0).total_memory < 60 * 2**30:
        pytest.skip("needs 60 GiB of GPU memory")
    x, dt, A, B, C = ssd_operands(33, torch.bfloat16)
    assert x.numel() > 2**31
    part = slice(head, head + 1)
    dy = torch.zeros_like(x)
    dy[:, :, part] = x[:, :, part]
    results = []
    for tensors, gradient in (((x, dt, A, B, C), dy), ((x[:, :, part], dt[:, :, part], A[part], B, C), x[:, :, part])):
        leaves = [t.detach().requires_grad_() for t in tensors]
        y = kernels.ssd_scan(*leaves)
        results.append([y.detach(), *torch.autograd.grad(y, leaves, gradient)])
    for name, full, alone in zip(("y", "x", "dt", "A", "B", "C"), *results, strict=True):
        cut = full[part] if name == "A" else full if name in "BC" else full[:, :, part]
        assert_close(name, cut, alone.double(), TOLERANCES[torch.bfloat16])
