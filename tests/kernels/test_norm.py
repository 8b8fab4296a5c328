import pytest
import torch

from seqkit.kernels import gated_rms_norm, rms_norm
from seqkit.kernels.testing import TOLERANCES, check, make_problem, poisoned_memory


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("residual", [True, False])
def test_rms_norm(provider, device, dtype, residual):
    problem = make_problem("rms_norm", dtype=dtype, device=device)
    check(problem if residual else problem.without("residual"), TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("group_size", [None, 3, 1])
@pytest.mark.parametrize("norm_before_gate", [True, False])
def test_gated_rms_norm(provider, device, dtype, group_size, norm_before_gate):
    problem = make_problem("gated_rms_norm", dtype=dtype, device=device)
    check(problem.having(group_size=group_size, norm_before_gate=norm_before_gate, eps=1e-3), TOLERANCES[dtype])


@pytest.mark.parametrize("shape", [(7,), (0, 7), (3, 0, 7), (2, 3, 4, 7)])
def test_any_leading_dimensions(provider, device, shape):
    x, weight = torch.randn(shape, device=device), torch.ones(7, device=device)
    y = rms_norm(x, weight)
    assert torch.allclose(y, torch.nn.functional.rms_norm(x, (7,), weight, 1e-5), atol=1e-6)
    y, total = rms_norm(x, weight, residual=torch.zeros_like(x))
    assert torch.equal(total, x)
    assert gated_rms_norm(x, x, weight).shape == shape


@pytest.mark.parametrize("rows", [(1, 40_000), (3, 14_000), (40_000, 1)])
def test_blocks_of_rows_cover_everything(provider, device, rows):
    x = torch.randn(*rows, 9, device=device, requires_grad=True)
    weight = torch.rand(9, device=device)
    with poisoned_memory():
        y, total = rms_norm(x, weight, residual=torch.ones_like(x))
        (dx,) = torch.autograd.grad((y + total).sum(), x)
    exact = torch.nn.functional.rms_norm(x + 1, (9,), weight, 1e-5)
    assert torch.allclose(y, exact, atol=1e-5)
    assert torch.allclose(dx, torch.autograd.grad((exact + x).sum(), x)[0], atol=1e-4)


def test_residual_stays_float32(provider, device):
    x = torch.full((1, 4), 2.0**-10, dtype=torch.bfloat16, device=device)
    y, total = rms_norm(x, torch.ones(4, device=device), residual=torch.ones(1, 4, device=device))
    assert y.dtype == torch.bfloat16
    assert total.dtype == torch.float32
    assert (total == 1 + 2.0**-10).all()  # bfloat16 would have lost it


def test_rows_may_be_strided(provider, device):
    wide = torch.randn(4, 5, 12, device=device)
    x, z = wide[..., :6], wide[..., 6:]
    weight = torch.rand(6, device=device)
    assert torch.allclose(rms_norm(x, weight), rms_norm(x.contiguous(), weight), atol=1e-6)
    copied = gated_rms_norm(x.contiguous(), z.contiguous(), weight)
    assert torch.allclose(gated_rms_norm(x, z, weight), copied, atol=1e-6)


@pytest.mark.parametrize("residual", [True, False])
def test_normalises_into_another_dtype(provider, device, residual):
    """What the sum of float32 is normalised to for bfloat16 blocks, and its gradient, rounded once."""
    x = torch.randn(3, 5, 7, device=device, requires_grad=True)
    weight, more = torch.rand(7, device=device), {"residual": torch.ones_like(x)} if residual else {}
    got, want = (rms_norm(x, weight, dtype=dtype, **more) for dtype in (torch.bfloat16, None))
    got, want = (y[0] if residual else y for y in (got, want))
    assert torch.equal(got, want.bfloat16())
    dy = torch.randn(x.shape, device=device).bfloat16()
    ours, theirs = torch.autograd.grad(got, x, dy)[0], torch.autograd.grad(want, x, dy.float())[0]
    assert ours.dtype == torch.float32
    assert torch.allclose(ours, theirs, atol=1e-6)
