import math

import pytest
import torch
import torch.nn.functional as F

from seqkit.backbones import Mamba1


def naive_block(x, w, state_size, rank):
    """The block of the paper, one step at a time, from a plain state dict."""
    length = x.shape[1]
    u, z = (x @ w["in_proj.weight"].T).chunk(2, dim=-1)
    width = w["conv1d.weight"].shape[-1]
    padded = F.pad(u, (0, 0, width - 1, 0))
    taps = [padded[:, t : t + length] * w["conv1d.weight"][:, 0, t] for t in range(width)]
    u = F.silu(sum(taps) + w["conv1d.bias"])
    low_rank, B, C = (u @ w["x_proj.weight"].T).split([rank, state_size, state_size], dim=-1)
    delta = F.softplus(low_rank @ w["dt_proj.weight"].T + w["dt_proj.bias"])
    A = -torch.exp(w["A_log"])
    h = x.new_zeros(x.shape[0], *A.shape)
    outputs = []
    for t in range(length):
        step = delta[:, t, :, None]
        h = torch.exp(step * A) * h + step * B[:, t, None, :] * u[:, t, :, None]
        outputs.append((h * C[:, t, None, :]).sum(-1) + w["D"] * u[:, t])
    return (torch.stack(outputs, dim=1) * F.silu(z)) @ w["out_proj.weight"].T


@pytest.mark.parametrize(
    ("d_model", "options", "length"),
    [(6, {}, 1), (6, {"d_state": 3, "expand": 3}, 17), (20, {"d_conv": 2, "dt_rank": 5}, 33), (5, {}, 2)],
)
def test_equals_a_loop_over_the_definition(d_model, options, length):
    block = Mamba1(d_model, **options).double()
    x = torch.randn(2, length, d_model, dtype=torch.float64, requires_grad=True)
    y, _ = block(x)
    expected = naive_block(x, block.state_dict(keep_vars=True), block.d_state, block.dt_rank)
    torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-11)
    inputs = [x, *block.parameters()]
    ours = torch.autograd.grad(y.square().sum(), inputs)
    theirs = torch.autograd.grad(expected.square().sum(), inputs)
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)


def test_names_and_shapes_of_the_original():
    shapes = {name: tuple(p.shape) for name, p in Mamba1(d_model=128).named_parameters()}
    assert shapes == {
        "in_proj.weight": (512, 128),
        "conv1d.weight": (256, 1, 4),
        "conv1d.bias": (256,),
        "x_proj.weight": (8 + 32, 256),
        "dt_proj.weight": (256, 8),
        "dt_proj.bias": (256,),
        "A_log": (256, 16),
        "D": (256,),
        "out_proj.weight": (128, 256),
    }


def test_initial_values_of_the_original():
    block = Mamba1(d_model=128, d_state=5, dt_min=0.002, dt_max=0.05)
    torch.testing.assert_close(block.A_log, torch.log(torch.arange(1.0, 6)).expand(256, 5))
    assert (block.D == 1).all()
    assert block.dt_proj.weight.abs().max() <= 8**-0.5
    assert block.conv1d.weight.abs().max() <= 0.5
    assert block.in_proj.weight.abs().max() <= 128**-0.5


@pytest.mark.parametrize("redraw", [False, True])
def test_time_steps_are_log_uniform_also_after_a_redraw(redraw):
    block = Mamba1(d_model=1000, dt_min=0.002, dt_max=0.05)
    if redraw:
        for module in block.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
    log_dt = F.softplus(block.dt_proj.bias.double()).log()
    low, high = math.log(0.002), math.log(0.05)
    assert low - 1e-3 <= log_dt.min() <= low + 0.05
    assert high - 0.05 <= log_dt.max() <= high + 1e-3
    # The quartiles of a uniform distribution, within five standard errors of 2,000 draws.
    quartiles = torch.quantile((log_dt - low) / (high - low), torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64))
    torch.testing.assert_close(quartiles, torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64), rtol=0, atol=0.06)


def test_floor_of_the_time_step():
    block = Mamba1(d_model=64, dt_min=1e-6, dt_max=1e-3, dt_init_floor=1e-4)
    assert F.softplus(block.dt_proj.bias.double()).min() > 0.99e-4


@pytest.mark.gpu
@pytest.mark.parametrize("slab", [None, 100])
@pytest.mark.parametrize("reverse", [False, True])
def test_on_a_gpu_as_on_a_cpu(slab, reverse):
    """A GPU runs the inner path as one op, a CPU one op per part."""
    torch.manual_seed(0)
    results = []
    block, x = Mamba1(40, slab=slab), torch.randn(2, 333, 40)
    for device in ("cpu", "cuda"):
        block.zero_grad()
        block.to(device)
        y, state = block(x.to(device), reverse=reverse)
        (y.square().mean() + state.ssm.square().mean()).backward()
        results.append([t.detach().cpu() for t in (y, state.conv, state.ssm, *(p.grad for p in block.parameters()))])
    for ours, expected in zip(*results, strict=True):
        assert (ours - expected).norm() < 1e-4 * expected.norm()
