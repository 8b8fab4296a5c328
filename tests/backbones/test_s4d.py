import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from seqkit.backbones import S4D, Backbone, BackboneConfig
from seqkit.backbones.diagonal import diagonal_scan, diagonal_step, timed_scan
from seqkit.errors import ConfigError


def naive_block(x, w):
    """The block of the paper, one step at a time, from a plain state dict."""
    u, z = (x @ w["in_proj.weight"].T).chunk(2, dim=-1)
    A = torch.complex(-w["A_log"].exp(), w["A_imag"])
    a = torch.exp(F.softplus(w["dt_bias"])[:, None] * A)
    b, c = (a - 1) / A, torch.complex(*w["C"].unbind(-1))
    h, outputs = torch.zeros(x.shape[0], *A.shape, dtype=a.dtype), []
    for t in range(x.shape[1]):
        h = a * h + b * u[:, t, :, None]
        outputs.append(2 * (c * h).real.sum(-1) + w["D"] * u[:, t])
    return (torch.stack(outputs, 1) * F.silu(z)) @ w["out_proj.weight"].T


@pytest.mark.parametrize(
    ("d_model", "d_state", "expand", "length"), [(5, 2, 1, 1), (6, 8, 2, 63), (3, 6, 3, 65), (4, 4, 1, 200)]
)
def test_equals_a_loop_over_the_definition(d_model, d_state, expand, length):
    block = S4D(d_model, d_state=d_state, expand=expand).double()
    x = torch.randn(2, length, d_model, dtype=torch.float64, requires_grad=True)
    y, _ = block(x)
    expected = naive_block(x, block.state_dict(keep_vars=True))
    torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-11)
    inputs = [x, *block.parameters()]
    ours = torch.autograd.grad(y.square().sum(), inputs)
    theirs = torch.autograd.grad(expected.square().sum(), inputs)
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-9)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=5).filter(any), st.integers(1, 9), st.booleans())
def test_any_chunk_size_and_packing_give_the_same(lengths, chunk, reverse):
    torch.manual_seed(0)
    modes = S4D(3, d_state=4).double().modes()
    u = torch.randn(1, sum(lengths), 6, dtype=torch.float64)
    state = torch.randn(len(lengths), 6, 2, 2, dtype=torch.float64)
    bounds = torch.tensor([0, *lengths]).cumsum(0).int()
    y, final = diagonal_scan(u, modes, state, cu_seqlens=bounds, reverse=reverse, chunk_size=chunk)
    for i, part in enumerate(u.split(lengths, dim=1)):
        alone, after = diagonal_scan(part, modes, state[i : i + 1], reverse=reverse)
        torch.testing.assert_close(y[:, bounds[i] : bounds[i + 1]], alone, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(final[i : i + 1], after, rtol=1e-9, atol=1e-11)


def test_a_quarter_of_a_million_steps_in_float32():
    """Slow modes with many turns: phases and states agree with float64 as at short length."""
    torch.manual_seed(1)
    modes = S4D(2, d_state=8, dt_min=1e-5, dt_max=1e-3, dt_init_floor=1e-5).modes()
    u = torch.randn(1, 250_001, 4)
    y, final = diagonal_scan(u, modes)
    exact, exact_final = diagonal_scan(u.double(), modes)
    assert (y - exact).norm() < 1e-5 * exact.norm()
    assert (final - exact_final).norm() < 1e-5 * exact_final.norm()


def test_many_single_steps_in_float32_end_where_the_full_pass_does():
    modes = S4D(2, d_state=4, dt_min=1e-3, dt_max=1e-2).modes()
    u = torch.randn(1, 3000, 4)
    _, final = diagonal_scan(u, modes)
    state = torch.zeros_like(final)
    with torch.no_grad():
        for t in range(3000):
            _, state = diagonal_step(u[:, t], modes, state)
    assert (state - final).norm() < 1e-5 * final.norm()


def test_a_pulse_rings_at_the_frequency_of_its_mode():
    """Mode n turns pi n times the time step, and fades with half of it."""
    block, dt = S4D(1, d_state=4, expand=1), 0.01
    with torch.no_grad():
        block.dt_bias.fill_(math.log(math.expm1(dt)))
        block.C.copy_(torch.tensor([[[0.0, 0.0], [1.0, 0.0]]]))
        block.D.zero_()
    pulse = torch.zeros(1, 2001, 1)
    pulse[0, 0] = 1
    y, _ = diagonal_scan(pulse, block.modes())
    t = torch.arange(2001, dtype=torch.float64)
    envelope = y[0, :, 0] / torch.exp(-0.5 * dt * t)
    phase = (block.modes().input_EM[0, 1]).angle()
    expected = torch.cos(math.pi * dt * t + phase) * 2 * block.modes().input_EM[0, 1].abs()
    torch.testing.assert_close(envelope, expected, rtol=1e-3, atol=1e-5)


def test_autocast_and_bfloat16_keep_the_recurrence_in_float32():
    block, x = S4D(8, d_state=4), torch.randn(1, 300, 8)
    reference, _ = block(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, state = block(x)
    assert state.modes.dtype == torch.float32
    assert (y.float() - reference).norm() < 2e-2 * reference.norm()
    y, state = block.bfloat16()(x.bfloat16())
    assert y.dtype == torch.bfloat16
    assert block.C.dtype == block.A_imag.dtype == state.modes.dtype == torch.float32


def test_an_odd_number_of_states_is_refused():
    with pytest.raises(ConfigError, match="d_state"):
        S4D(4, d_state=5)
    with pytest.raises(ConfigError, match="d_state"):
        BackboneConfig(d_model=8, layout="s4d", d_state=5)


def test_a_hybrid_of_layout_words():
    model = Backbone(BackboneConfig(d_model=8, layout="s4d*2 mamba2", headdim=4, d_state=6, vocab_size=0, n_channels=3))
    hidden, state = model(channels=torch.randn(2, 70, 3))
    assert hidden.shape == (2, 70, 8)
    assert state.blocks[0].modes.shape == (2, 16, 3, 2)


@pytest.mark.parametrize("options", [{}, {"reverse": True}, {"cu_seqlens": torch.tensor([0, 90, 90, 300]).int()}])
def test_steps_of_length_one_are_the_plain_scan(options):
    modes, u = S4D(3, d_state=4).double().modes(), torch.randn(1, 300, 6, dtype=torch.float64, requires_grad=True)
    state = torch.randn(3 if "cu_seqlens" in options else 1, 6, 2, 2, dtype=torch.float64)
    plain, timed = (
        scan(u, modes, state, *more, **options)
        for scan, more in ((diagonal_scan, ()), (timed_scan, (torch.ones(1, 300),)))
    )
    torch.testing.assert_close(timed, plain, rtol=1e-9, atol=1e-10)
    ours, theirs = (torch.autograd.grad(y.square().sum() + h.sum(), u)[0] for y, h in (timed, plain))
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-9)


def test_a_gap_decays_the_state_as_silence_does():
    """Five steps without input, and one step of length five with input held over it."""
    modes = S4D(2, d_state=4).double().modes()
    u, state = torch.zeros(1, 6, 4, dtype=torch.float64), torch.randn(1, 4, 2, 2, dtype=torch.float64)
    _, silent = diagonal_scan(u[:, :5], modes, state)
    _, jumped = timed_scan(u[:, :1], modes, state, torch.tensor([[5.0]]))
    torch.testing.assert_close(jumped, silent)
    held = u + torch.randn(1, 1, 4, dtype=torch.float64)
    _, stepped = diagonal_scan(held, modes, state)
    _, jumped = timed_scan(held[:, :1], modes, state, torch.tensor([[6.0]]))
    torch.testing.assert_close(jumped, stepped)
