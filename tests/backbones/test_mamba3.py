import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils._pytree import tree_leaves

from seqkit.backbones import Backbone, BackboneConfig, Mamba3, adapt_upstream_keys, load_weights
from seqkit.errors import ConfigError


def rotated(x, theta, halves):
    """Turn states (..., N) as complex numbers, pair by pair."""
    pairs = theta.shape[-1]
    columns = list(x.unbind(-1))
    for m in range(pairs):
        i, j = (m, m + x.shape[-1] // 2) if halves else (2 * m, 2 * m + 1)
        turned = torch.complex(x[..., i], x[..., j]) * torch.polar(torch.ones_like(theta[..., m]), theta[..., m])
        columns[i], columns[j] = turned.real, turned.imag
    return torch.stack(columns, -1)


def naive_block(x, w, block, softplus, halves):
    """The block of the paper, one step at a time, from a plain state dict."""
    (batch, length, _), (heads, P, G, N) = x.shape, (block.nheads, block.headdim, block.ngroups, block.d_state)
    R, E = block.mimo_rank or 1, block.d_inner
    widths = [E, E, R * G * N, R * G * N, heads, heads, heads, block.pairs]
    z, v, B, C, dt, A, trap, angles = (x @ w["in_proj.weight"].T).split(widths, dim=-1)
    z, v = (t.reshape(batch, length, 1, heads, P) for t in (z, v))
    ranked = {}
    for name, t in (("B", B), ("C", C)):
        t = t.reshape(batch, length, R, G, N)
        t = t * torch.rsqrt(t.square().mean(-1, keepdim=True) + 1e-5) * w[name + "_norm.weight"]
        ranked[name] = t.repeat_interleave(heads // G, dim=3) + w[name + "_bias"].transpose(0, 1)
    ones = x.new_ones(R, heads, P)
    mimo = {name: w[name].transpose(0, 1) if name in w else ones for name in ("mimo_x", "mimo_z", "mimo_o")}
    dt, share = F.softplus(dt + w["dt_bias"]), torch.sigmoid(trap)
    rate = F.softplus(A) if softplus else torch.where(A < 0, 1 / (1 + A.abs()), 1 + A)
    keep = torch.exp(-dt * rate.clamp(min=1e-4))[..., None, None]
    theta = (dt[..., None] * math.pi * torch.tanh(angles)[:, :, None]).cumsum(1)
    h, before, outputs = x.new_zeros(batch, heads, P, N), x.new_zeros(batch, heads, P, N), []
    for t in range(length):
        k, q = (rotated(ranked[name][:, t], theta[:, None, t], halves) for name in ("B", "C"))
        now = torch.einsum("brhp,brhn->bhpn", v[:, t] * mimo["mimo_x"], k)
        beta, gamma = ((s * dt)[:, t, :, None, None] for s in (1 - share, share))
        h = keep[:, t] * (h + beta * before) + gamma * now
        before = now
        outputs.append(torch.einsum("bhpn,brhn->brhp", h, q) + w["D"][:, None] * v[:, t] * mimo["mimo_x"])
    y = torch.stack(outputs, 1)
    if "norm.weight" in w:
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + 1e-5) * w["norm.weight"].reshape(heads, P)
    y = (y * F.silu(z * mimo["mimo_z"]) * mimo["mimo_o"]).sum(2)
    return y.reshape(batch, length, E) @ w["out_proj.weight"].T


@pytest.mark.parametrize(
    ("d_model", "options", "length", "softplus", "halves"),
    [
        (8, {"headdim": 4, "d_state": 5}, 1, False, False),
        (12, {"headdim": 3, "d_state": 6, "ngroups": 4, "rope_fraction": 1.0, "outproj_norm": True}, 19, False, False),
        (6, {"headdim": 4, "d_state": 4, "decay": "softplus", "pairing": "halves"}, 20, True, True),
        (6, {"headdim": 4, "d_state": 6, "mimo_rank": 3, "chunk_size": 16}, 37, False, True),
        (6, {"headdim": 6, "d_state": 4, "mimo_rank": 2, "outproj_norm": True, "ngroups": 2}, 9, False, True),
    ],
)
def test_equals_a_loop_over_the_definition(d_model, options, length, softplus, halves):
    block = Mamba3(d_model, **options).double()
    for name, parameter in block.named_parameters():
        if "proj" not in name and name != "dt_bias":
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    x = torch.randn(2, length, d_model, dtype=torch.float64, requires_grad=True)
    y, _ = block(x)
    expected = naive_block(x, block.state_dict(keep_vars=True), block, softplus, halves)
    torch.testing.assert_close(y, expected, rtol=1e-8, atol=1e-10)
    inputs = [x, *block.parameters()]
    ours = torch.autograd.grad(y.square().sum(), inputs)
    theirs = torch.autograd.grad(expected.square().sum(), inputs)
    torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-8)


def test_names_and_shapes_of_the_original():
    shapes = {
        name: tuple(p.shape) for name, p in Mamba3(d_model=128, mimo_rank=2, outproj_norm=True).named_parameters()
    }
    assert shapes == {
        "in_proj.weight": (256 + 256 + 2 * 2 * 128 + 3 * 4 + 32, 128),
        "B_norm.weight": (128,),
        "C_norm.weight": (128,),
        "dt_bias": (4,),
        "B_bias": (4, 2, 128),
        "C_bias": (4, 2, 128),
        "D": (4,),
        "mimo_x": (4, 2, 64),
        "mimo_z": (4, 2, 64),
        "mimo_o": (4, 2, 64),
        "norm.weight": (256,),
        "out_proj.weight": (128, 256),
    }
    plain = {name: tuple(p.shape) for name, p in Mamba3(d_model=128, rope_fraction=1.0).named_parameters()}
    assert plain["in_proj.weight"] == (256 + 256 + 2 * 128 + 3 * 4 + 64, 128)
    assert plain["B_bias"] == (4, 1, 128)
    assert not {"norm.weight", "mimo_x"} & plain.keys()


@pytest.mark.parametrize("redraw", [False, True])
def test_initial_values_of_the_original(redraw):
    block = Mamba3(d_model=1024, headdim=1, dt_min=0.002, dt_max=0.05, mimo_rank=4)
    if redraw:
        for parameter in block.parameters():
            torch.nn.init.constant_(parameter, torch.nan)
        for module in block.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
    for name in ("B_bias", "C_bias", "D", "B_norm.weight", "C_norm.weight", "mimo_z"):
        assert (block.get_parameter(name) == 1).all(), name
    assert (block.mimo_x == 0.25).all()
    assert (block.mimo_o == 0.25).all()
    log_dt = F.softplus(block.dt_bias.double()).log()
    assert math.log(0.002) - 1e-3 <= log_dt.min() <= math.log(0.002) + 0.05
    assert math.log(0.05) - 0.05 <= log_dt.max() <= math.log(0.05) + 1e-3


def test_all_but_the_projections_stay_float32_and_undecayed():
    block = Mamba3(16, headdim=8, mimo_rank=2, outproj_norm=True).bfloat16()
    kept = {name for name, p in block.named_parameters() if p.dtype == torch.float32}
    assert kept == {name for name, _ in block.named_parameters() if "proj" not in name}
    assert kept == {name for name, p in block.named_parameters() if getattr(p, "_no_weight_decay", False)}
    y, state = block(torch.randn(1, 5, 16, dtype=torch.bfloat16))
    assert y.dtype == torch.bfloat16
    assert [x.dtype for x in tree_leaves(state)] == [torch.float64, *[torch.float32] * 3]


@pytest.mark.parametrize(
    "options",
    [{"headdim": 7}, {"headdim": 8, "ngroups": 3}, {"headdim": 8, "rope_fraction": 0.0}],
)
def test_sizes_that_do_not_fit(options):
    with pytest.raises(ConfigError, match=next(reversed(options))):
        Mamba3(16, **options)


def test_published_weights_load_by_name():
    model = Backbone(BackboneConfig(d_model=16, layout="mamba3*2", headdim=8, d_state=6))
    published = {"lm_head.weight": torch.zeros(24, 16)}
    for name, tensor in model.state_dict().items():
        name = name.replace("embed.tokens", "backbone.embedding").replace("stack.norm", "backbone.norm_f")
        published[name.replace("stack.blocks", "backbone.layers")] = torch.randn_like(tensor)
    load_weights(model, adapt_upstream_keys(published))
    assert torch.equal(model.stack.blocks[1].mixer.B_bias, published["backbone.layers.1.mixer.B_bias"])


def test_a_hybrid_streams_as_it_reads():
    config = BackboneConfig(
        d_model=16, layout="mamba3 mamba2 mamba3", headdim=8, d_state=6, mimo_rank=2, decay_form="softplus",
        rotary_pairing="adjacent", outproj_norm=True,
    )  # fmt: skip
    model, ids = Backbone(config).double(), torch.randint(7, 11, (2, 12))
    hidden, final = model(ids)
    state, steps = model.initial_state(2), []
    for t in range(12):
        step, state = model.step(ids[:, t], state)
        steps.append(step)
    torch.testing.assert_close(torch.stack(steps, 1), hidden, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(tree_leaves(state), tree_leaves(final), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("options", [{}, {"reverse": True}, {"cu_seqlens": torch.tensor([0, 2, 2, 23]).int()}])
def test_slabs_change_nothing_and_keep_less(options):
    plain = Mamba3(12, d_state=6, headdim=6, bias=True)
    x, results, kept = torch.randn(1, 23, 12, dtype=torch.float64, requires_grad=True), [], []
    for slab in (None, 5):
        block, widths = Mamba3(12, d_state=6, headdim=6, bias=True, slab=slab).double(), []
        block.load_state_dict(plain.state_dict())
        with torch.autograd.graph.saved_tensors_hooks(lambda t, seen=widths: seen.append(t.shape) or t, lambda t: t):
            y, state = block(x, **options)
        outputs = [y, *tree_leaves(state)]
        loss = sum((out * torch.linspace(1, 2, out.numel()).view_as(out)).sum() for out in outputs)
        results.append([*outputs, *torch.autograd.grad(loss, [x, *block.parameters()])])
        kept.append(max(shape.numel() // 23 for shape in widths if 23 in shape))
    torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-10)
    assert kept[0] >= 24
    assert kept[1] == 12


def test_slabs_train_under_autocast():
    torch.manual_seed(0)
    grads = []
    for slab in (None, 7):
        torch.manual_seed(0)
        block, x = Mamba3(16, d_state=6, headdim=8, slab=slab), torch.randn(2, 20, 16)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y, _ = block(x)
        assert y.dtype == torch.bfloat16
        grads.append(torch.autograd.grad(y.float().square().sum(), list(block.parameters())))
    for one, other in zip(*grads, strict=True):
        assert other.dtype == torch.float32
        assert (one - other).norm() < 2e-2 * one.norm()
