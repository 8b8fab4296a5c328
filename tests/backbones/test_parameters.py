import copy

import pytest
import torch

from seqkit.backbones import Backbone, BackboneConfig, Mamba1, Mamba2, Mamba3, parameter_groups
from seqkit.backbones.parameters import Linear

KEPT = ("A_log", "A_imag", "mixer.C", "D", "dt_bias", "bias", "norm.weight", "mimo_x", "mimo_z", "mimo_o")


def backbone(**settings):
    layout = "mamba1 mamba2 mamba3 attention s4d"
    return Backbone(BackboneConfig(d_model=16, layout=layout, headdim=8, attention_headdim=8, **settings))


def is_kept(name):
    return name.endswith(KEPT)


@pytest.mark.parametrize("cast", [torch.nn.Module.bfloat16, torch.nn.Module.half], ids=["bf16", "fp16"])
def test_time_constants_stay_float32_under_a_cast(cast):
    model = backbone()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    cast(model)
    for name, parameter in model.named_parameters():
        assert (parameter.dtype == torch.float32) == is_kept(name), name
        if is_kept(name):
            assert torch.equal(parameter, before[name]), f"{name} was rounded on the way"


def test_also_inside_a_foreign_module_and_with_gradients():
    model = torch.nn.Sequential(backbone()).requires_grad_()
    model[0](torch.randint(7, 11, (1, 5)))[0].sum().backward()
    model.to(torch.bfloat16)
    for name, parameter in model.named_parameters():
        assert parameter.grad.dtype == parameter.dtype == (torch.float32 if is_kept(name) else torch.bfloat16)


def test_built_under_a_half_precision_default():
    torch.set_default_dtype(torch.bfloat16)
    try:
        model = backbone()
    finally:
        torch.set_default_dtype(torch.float32)
    assert {p.dtype for name, p in model.named_parameters() if is_kept(name)} == {torch.float32}
    assert model.stack.blocks[0].mixer.in_proj.weight.dtype == torch.bfloat16


def test_double_and_back():
    model = backbone().double()
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert {p.dtype for p in model.float().parameters()} == {torch.float32}


def test_bf16_runs_forward_backward_and_step():
    model = backbone().bfloat16()
    ids = torch.randint(7, 11, (2, 9))
    hidden, _ = model(ids)
    assert hidden.dtype == torch.bfloat16
    hidden.float().square().mean().backward()
    assert all(p.grad is not None for p in model.parameters())
    full = backbone()
    full.load_state_dict(model.state_dict())
    reference, _ = full(ids)
    assert (hidden.float() - reference).norm() < 0.03 * reference.norm()
    state = model.initial_state(2)
    for t in range(9):
        step, state = model.step(ids[:, t], state)
    assert (step - hidden[:, -1]).float().norm() < 0.03 * hidden[:, -1].float().norm()


def test_autocast_runs_and_states_stay_float32():
    model, ids = backbone(), torch.randint(7, 11, (2, 9))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden, state = model(ids)
    hidden.float().square().mean().backward()
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())
    assert state.blocks[0].ssm.dtype == state.blocks[1].ssm.dtype == torch.float32
    reference, _ = model(ids)
    assert (hidden.float() - reference).norm() < 0.03 * reference.norm()


@pytest.mark.parametrize("residual_in_fp32", [True, False])
def test_residual_precision(residual_in_fp32):
    model = backbone(residual_in_fp32=residual_in_fp32).bfloat16()
    seen = []
    model.stack.blocks[1].register_forward_pre_hook(lambda _, args: seen.append(args[1].dtype))
    model(torch.randint(7, 11, (1, 4)))
    assert seen == [torch.float32 if residual_in_fp32 else torch.bfloat16]


@pytest.mark.parametrize("duplicate", [lambda m: m, copy.deepcopy, torch.nn.Module.bfloat16])
def test_groups_spare_time_constants_from_decay(duplicate):
    model = duplicate(backbone())
    decayed, spared = parameter_groups(model, 0.1)
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
    names = {id(p): name for name, p in model.named_parameters()}
    assert {names[id(p)] for p in spared["params"]} == {name for name in names.values() if is_kept(name)}
    assert len(decayed["params"]) + len(spared["params"]) == len(names)


def test_marks_on_the_parameters():
    for module in (Mamba1(8), Mamba2(8, headdim=4), Mamba3(8, headdim=4, mimo_rank=2)):
        marked = {name for name, p in module.named_parameters() if getattr(p, "_no_weight_decay", False)}
        assert marked == {name for name, _ in module.named_parameters() if is_kept(name)}


def test_frozen_parameters_are_left_out():
    model = backbone()
    model.embed.requires_grad_(False)
    assert not any(p is model.embed.tokens.weight for group in parameter_groups(model, 0.1) for p in group["params"])


def test_output_projections_shrink_with_depth_also_after_a_redraw():
    model = Backbone(BackboneConfig(d_model=64, layout="mamba1*16"))
    projection = model.stack.blocks[3].mixer.out_proj
    for _ in range(2):
        assert 0.9 < projection.weight.abs().max() * 4 * 128**0.5 <= 1
        projection.reset_parameters()


def test_linear_without_bias_and_with():
    layer, x = Linear(3, 2, bias=True), torch.randn(4, 3)
    torch.testing.assert_close(layer(x), x @ layer.weight.T + layer.bias)
    torch.testing.assert_close(layer.without_bias(x), x @ layer.weight.T)


def test_built_without_memory_and_filled_later():
    with torch.device("meta"):
        model = backbone()
    model.to_empty(device="cpu")
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, torch.nan)
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    assert all(p.isfinite().all() for p in model.parameters())
    assert model(torch.randint(7, 11, (1, 5)))[0].isfinite().all()
    assert {p.dtype for p in model.parameters()} == {torch.float32}
