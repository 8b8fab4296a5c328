import math

import pytest
import torch
import torch.nn.functional as F

from seqkit.backbones import Mamba2
from seqkit.errors import ConfigError


def naive_block(x, w, block):
    """The block of the paper, one step at a time, from a plain state dict."""
    batch, length, _ = x.shape
    heads, headdim, groups, states = block.nheads, block.headdim, block.ngroups, block.d_state
    inner = heads * headdim
    z, xbc, dt = (x @ w["in_proj.weight"].T).split([inner, inner + 2 * groups * states, heads], dim=-1)
    width = w["conv1d.weight"].shape[-1]
    padded = F.pad(xbc, (0, 0, width - 1, 0))
    taps = [padded[:, t : t + length] * w["conv1d.weight"][:, 0, t] for t in range(width)]
    xbc = F.silu(sum(taps) + w["conv1d.bias"])
    v, B, C = xbc.split([inner, groups * states, groups * states], dim=-1)
    v = v.reshape(batch, length, heads, headdim)
    B, C = (m.reshape(batch, length, groups, states).repeat_interleave(heads // groups, dim=2) for m in (B, C))
    dt = F.softplus(dt + w["dt_bias"])
    A = -torch.exp(w["A_log"])
    h = x.new_zeros(batch, heads, headdim, states)
    outputs = []
    for t in range(length):
        step = dt[:, t, :, None, None]
        h = torch.exp(step * A[:, None, None]) * h + step * v[:, t, :, :, None] * B[:, t, :, None, :]
        outputs.append((h * C[:, t, :, None, :]).sum(-1) + w["D"][:, None] * v[:, t])
    y = torch.stack(outputs, dim=1).reshape(batch, length, inner) * F.silu(z)
    grouped = y.reshape(batch, length, groups, inner // groups)
    grouped = grouped * torch.rsqrt(grouped.square().mean(-1, keepdim=True) + 1e-5)
    return (grouped.reshape(batch, length, inner) * w["norm.weight"]) @ w["out_proj.weight"].T


@pytest.mark.parametrize(
    ("d_model", "options", "length"),
    [
        (8, {"headdim": 4, "d_state": 5}, 1),
        (12, {"headdim": 3, "d_state": 7, "ngroups": 4}, 19),
        (6, {"headdim": 12, "d_state": 3, "d_conv": 3}, 40),
        (6, {"headdim": 4, "d_state": 3, "chunk_size": 16}, 37),
    ],
)
def test_equals_a_loop_over_the_definition(d_model, options, length):
    block = Mamba2(d_model, **options).double()
    torch.nn.init.uniform_(block.norm.weight, 0.5, 1.5)
    x = torch.randn(2, length, d_model, dtype=torch.float64, requires_grad=True)
    y, _ = block(x)
    expected = naive_block(x, block.state_dict(keep_vars=True), block)
    torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-11)
    inputs = [x, *block.parameters()]
    ours = torch.autograd.grad(y.square().sum(), inputs)
    theirs = torch.autograd.grad(expected.square().sum(), inputs)
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-9)


def test_names_and_shapes_of_the_original():
    shapes = {name: tuple(p.shape) for name, p in Mamba2(d_model=128).named_parameters()}
    assert shapes == {
        "in_proj.weight": (256 + 256 + 2 * 128 + 4, 128),
        "conv1d.weight": (512, 1, 4),
        "conv1d.bias": (512,),
        "dt_bias": (4,),
        "A_log": (4,),
        "D": (4,),
        "norm.weight": (256,),
        "out_proj.weight": (128, 256),
    }


@pytest.mark.parametrize("redraw", [False, True])
def test_initial_values_of_the_original(redraw):
    block = Mamba2(d_model=1024, headdim=1, dt_min=0.002, dt_max=0.05)
    if redraw:
        for module in block.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
    rates = block.A_log.exp()
    assert 1 <= rates.min() < 1.1
    assert 15.9 < rates.max() <= 16.001
    assert (block.D == 1).all()
    assert (block.norm.weight == 1).all()
    log_dt = F.softplus(block.dt_bias.double()).log()
    assert math.log(0.002) - 1e-3 <= log_dt.min() <= math.log(0.002) + 0.05
    assert math.log(0.05) - 0.05 <= log_dt.max() <= math.log(0.05) + 1e-3
    middle = (math.log(0.002) + math.log(0.05)) / 2
    assert abs(log_dt.median() - middle) < 0.2


@pytest.mark.parametrize("options", [{"headdim": 7}, {"headdim": 8, "ngroups": 3}])
def test_sizes_that_do_not_divide(options):
    with pytest.raises(ConfigError, match="divisor"):
        Mamba2(16, **options)
