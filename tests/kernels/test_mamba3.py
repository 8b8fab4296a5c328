"""The Mamba-3 scan: hand-known cases, every option against the float64 oracle, exact angles, steps, refusals."""

import math

import pytest
import torch
from torch.utils._pytree import tree_flatten, tree_unflatten

from seqkit import kernels
from seqkit.errors import ConfigError, ShapeError
from seqkit.kernels.mamba3 import phase
from seqkit.kernels.testing import (
    TOLERANCE_TINY_DELTA,
    TOLERANCES,
    Maker,
    Problem,
    assert_close,
    check,
    gradients,
    make_problem,
)

TIME = ("x", "dt", "A", "trap", "B", "C", "angles", "z")
PACKED = [0, 0, 1, 17, 17, 81, 150, 150]  # empty, single, straddling and whole chunks
OPTIONAL = ("B_bias", "C_bias", "dt_bias", "D", "z")
STATE = ("initial_state.theta", "initial_state.ssm", "initial_state.k", "initial_state.v")
FORMS = [{"decay": "heavy-tail", "pairing": "halves"}, {"decay": "softplus", "pairing": "adjacent", "A_floor": 0.3}]


def problem_of(**options):
    return make_problem("mamba3_scan", **options)


def steps_of(problem, begin, end, step_like=False):
    """Tensors of tokens ``begin`` to ``end``, or of the one token ``begin``."""
    span = begin if step_like else slice(begin, end)
    return {k: v[:, span] if k in TIME else v for k, v in problem.tensors.items()}


@pytest.mark.parametrize("settings", FORMS)
@pytest.mark.parametrize("rank", [None, 1, 3])
@pytest.mark.parametrize("reverse", [False, True])
def test_forms_and_ranks(provider, device, settings, rank, reverse):
    if provider != "reference" and rank:
        pytest.skip("ranks are the reference's")
    problem = problem_of(length=70, groups=2, rank=rank, device=device)
    check(problem.having(reverse=reverse, **settings), TOLERANCES[torch.float32])


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("absent", [*((name,) for name in OPTIONAL), STATE, OPTIONAL + STATE])
def test_optional_operands(device, rank, absent):
    problem = problem_of(length=40, rank=rank, device=device)
    if rank and "z" in absent:
        absent = (*absent, "mimo_z")
    check(problem.without(*absent), TOLERANCES[torch.float32])


@pytest.mark.parametrize("absent", [("z", "mimo_z"), ("z", "mimo_z", "mimo_o")])
@pytest.mark.parametrize("segments", [None, PACKED])
def test_ranks_without_gate_or_kept_apart(device, absent, segments):
    check(problem_of(length=150, rank=2, segments=segments, device=device).without(*absent), TOLERANCES[torch.float32])


def test_skip_per_head(device):
    problem = problem_of(length=20, device=device)
    problem.tensors["D"] = problem.tensors["D"][:, 0].contiguous()
    check(problem, TOLERANCES[torch.float32])


@pytest.mark.parametrize("chunk_size", [1, 7, 256])
@pytest.mark.parametrize("rank", [None, 2])
def test_chunk_sizes(device, chunk_size, rank):
    check(problem_of(length=40, rank=rank, device=device).having(chunk_size=chunk_size), TOLERANCES[torch.float32])


@pytest.mark.parametrize("pairs", [0, 1, 3])
@pytest.mark.parametrize("pairing", phase.PAIRINGS)
def test_numbers_of_pairs(device, pairs, pairing):
    problem = problem_of(length=20, device=device)
    problem.tensors["angles"] = problem.tensors["angles"][..., :pairs].contiguous()
    problem.tensors["initial_state.theta"] = problem.tensors["initial_state.theta"][..., :pairs].contiguous()
    check(problem.having(pairing=pairing), TOLERANCES[torch.float32])


def operands_of_a_model(states, device):
    make, tokens = Maker(torch.bfloat16, device), (1, 100)
    times, weights = (*tokens, 2), (*tokens, 1, states)
    return {
        "x": make.activation(*times, 64),
        "dt": make.uniform(-6.0, -1.0, *times),
        "A": make.activation(*times),
        "trap": make.activation(*times),
        "B": make.activation(*weights),
        "C": make.activation(*weights),
        "angles": make.activation(*tokens, states // 4),
        "z": make.activation(*times, 64),
        "B_bias": make.parameter(2, states),
        "C_bias": make.parameter(2, states),
        "dt_bias": make.uniform(0.01, 0.1, 2, wide=True),
        "D": make.parameter(2),
    }


@pytest.mark.parametrize(("pairing", "reverse"), [("adjacent", False), ("halves", True)])
@pytest.mark.parametrize("states", [64, 128])
def test_sizes_of_models_in_bfloat16(device, states, pairing, reverse):
    """Whole tiles: on a GPU their products take other instructions than those of odd sizes."""
    problem = Problem("mamba3_scan", operands_of_a_model(states, device), {"pairing": pairing, "reverse": reverse})
    check(problem, TOLERANCES[torch.bfloat16])


@pytest.mark.parametrize("delta", [(1e-6, 1e-5), (1e-4, 1e-2), (1.0, 50.0)])
def test_step_sizes(provider, device, delta):
    problem = problem_of(length=300, batch=1, delta=delta, device=device).without("dt_bias")
    check(problem, (TOLERANCE_TINY_DELTA if delta[0] < 1e-4 else TOLERANCES)[torch.float32])


def test_gradcheck_with_ranks():
    for options in ({"batch": 1, "length": 9}, {"length": 9, "segments": [0, 0, 4, 9]}):
        problem = problem_of(dtype=torch.float64, rank=2, **options).having(chunk_size=4)
        names = list(problem.tensors)

        def call(*values, names=names, problem=problem):
            return Problem(problem.op, dict(zip(names, values, strict=True)), problem.settings).run()

        leaves = [x.clone().requires_grad_() for x in problem.tensors.values()]
        assert torch.autograd.gradcheck(call, leaves, fast_mode=True)


def test_without_trap_and_rotation_it_is_the_ssd_scan(provider, device):
    """lambda = 1 and theta = 0: the rate is per head, the biases join B and C."""
    problem = problem_of(length=130, groups=1, device=device).without(*STATE)
    t = problem.tensors
    t["trap"].fill_(60.0)
    t["angles"].zero_()
    t["A"] = torch.tensor([0.5, 1.0, 2.0], device=device).expand_as(t["A"]).contiguous()
    y, state = kernels.mamba3_scan(
        *(t[name] for name in ("x", "dt", "A", "trap", "B", "C", "angles")),
        **{name: t[name] for name in OPTIONAL},
        return_final_state=True,
    )
    B, C = (t[name] + t[name + "_bias"] for name in ("B", "C"))  # groups of one head each
    want, final = kernels.ssd_scan(
        t["x"], t["dt"], -1 - t["A"][0, 0], B, C, D=t["D"], z=t["z"], dt_bias=t["dt_bias"], dt_softplus=True,
        return_final_state=True,
    )  # fmt: skip
    assert_close("y", y, want, TOLERANCES[torch.float32])
    assert_close("ssm", state.ssm, final, TOLERANCES[torch.float32])
    assert not state.theta.any()


def test_two_tokens_by_hand():
    """One head, channel and pair: delta = 1, rate 1, lambda = 1/2, a quarter turn a token."""
    quarter = math.atanh(0.5)
    one = torch.ones(1, 2, 1, dtype=torch.float64)
    B = torch.tensor([1.0, 0.0], dtype=torch.float64).expand(1, 2, 1, 2)
    y, state = kernels.mamba3_scan(
        one.unsqueeze(-1) * torch.tensor([[[[1.0]], [[2.0]]]], dtype=torch.float64),
        one * math.log(math.e - 1),
        one * 0.0,
        one * 0.0,
        B,
        B,
        one * quarter,
        return_final_state=True,
    )
    # keys at 90 and 180 degrees are orthogonal: token 2 sees itself only, with weight 1/2
    torch.testing.assert_close(y.flatten(), torch.tensor([0.5, 1.0], dtype=torch.float64))
    # token 1 was written with 1/2 and, at token 2, with 1/2 again, both decayed once
    expected = torch.tensor([[-1.0, 1.0 / math.e]], dtype=torch.float64)
    torch.testing.assert_close(state.ssm[0, 0], expected)
    torch.testing.assert_close(state.theta.abs().item(), math.pi)
    torch.testing.assert_close(state.k.flatten(), torch.tensor([-1.0, 0.0], dtype=torch.float64))
    assert state.v.item() == 2.0


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("cuts", [(20, 20, 77), (64, 128)])
def test_pieces_equal_the_whole_and_their_angles_are_the_same_bits(device, rank, cuts):
    problem = problem_of(length=150, rank=rank, device=device).leaves()
    want = problem.run()
    pieces, tensors, begin = [], dict(problem.tensors), 0
    for end in (*cuts, 150):
        y, *state = Problem(problem.op, steps_of(Problem(problem.op, tensors), begin, end)).run()
        tensors |= dict(zip(STATE, state, strict=True))
        pieces.append(y)
        begin = end
    got = (torch.cat(pieces, 1), *state)
    assert torch.equal(got[1], want[1])
    for name, a, b in zip(("y", "theta", "ssm", "k", "v"), got, want, strict=True):
        assert_close(name, a, b, TOLERANCES[torch.float32])
    got, want = gradients(got, problem.tensors), gradients(want, problem.tensors)
    for name in got:
        assert_close(f"d{name}", got[name], want[name], TOLERANCES[torch.float32])


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("settings", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_steps_equal_the_scan(device, rank, settings, dtype):
    problem = problem_of(length=13, groups=2, rank=rank, dtype=dtype, device=device).having(**settings).leaves()
    want, ys = problem.run(), []
    state = kernels.Mamba3State(*(problem.tensors[name] for name in STATE))
    for t in range(13):
        now = steps_of(problem, t, t, step_like=True)
        required = [now.pop(name) for name in TIME[:-1]]
        optional = {k: v for k, v in now.items() if k not in STATE}
        with torch.autocast(device, dtype=torch.bfloat16):
            y, state = kernels.mamba3_step(*required, state, **optional, **settings)
        ys.append(y)
    got = (torch.stack(ys, 1), *state.tensors)
    assert dtype == torch.float64 or torch.equal(got[1], want[1])
    for name, a, b in zip(("y", "theta", "ssm", "k", "v"), got, want, strict=True):
        assert a.dtype == b.dtype
        assert_close(name, a, b, TOLERANCES[dtype])
    got, want = gradients(got, problem.tensors), gradients(want, problem.tensors)
    for name in got:
        assert_close(f"d{name}", got[name], want[name], TOLERANCES[dtype])


def test_angles_of_a_million_steps(provider, device):
    """Wrapped difference from float64 on the same rounded inputs, for steady and for changing rates."""
    length = 1 << 20
    generator = torch.Generator().manual_seed(0)
    dt = (torch.randn(1, length, 2, generator=generator) - 3).bfloat16()
    angles = torch.randn(1, length, 2, generator=generator).bfloat16()
    dt[..., 1], angles[..., 1] = -2.3, 0.7
    bias = torch.tensor([0.1, -0.2])
    one = torch.ones(1, length, 2, 1, dtype=torch.bfloat16, device=device)
    weight, dt, angles = one[:, :, :1].expand(-1, -1, 1, 4), dt.to(device), angles.to(device)
    rates = torch.zeros_like(dt)
    _, state = kernels.mamba3_scan(
        one, dt, rates, rates, weight.contiguous(), weight.contiguous(), angles, dt_bias=bias.to(device),
        return_final_state=True,
    )  # fmt: skip
    delta = torch.nn.functional.softplus(dt.double().cpu() + bias.double())
    turns = delta.unsqueeze(-1) * math.pi * torch.tanh(angles.double().cpu()).unsqueeze(-2)
    difference = state.theta[0].cpu() - turns.sum((0, 1))
    assert turns.sum((0, 1)).abs().max() > 1e4
    assert torch.remainder(difference + math.pi, 2 * math.pi).sub(math.pi).abs().max() < 1e-3


def test_a_nan_stays_in_its_segment(provider, device):
    """In every gradient of a token, those that sum over all later tokens included."""
    problem = problem_of(length=PACKED[-1], segments=PACKED, device=device)
    problem.tensors["x"][:, 20] = torch.nan  # inside tokens 17 to 81
    problem = problem.leaves()
    y, *_ = problem.run()
    clean = torch.ones(PACKED[-1], dtype=torch.bool)
    clean[17:81] = False
    grads = gradients((y[:, clean],), {name: problem.tensors[name] for name in TIME})
    for name, grad in grads.items():
        assert torch.isfinite(grad[0, clean]).all(), name


def test_phases_wrap_without_loss():
    turns = torch.tensor([0.0, 0.25, -0.25, 0.5, 1.75, -3.0, 1e4 + 2**-20], dtype=torch.float64)
    whole = phase.to_phase(turns, 32)
    assert whole.tolist() == [0, 1 << 30, 3 << 30, 1 << 31, 3 << 30, 0, 1 << 12]
    every = torch.arange(0, 1 << 32, 65_537 * 3 + 1)
    for bits, phases in ((32, every), (44, every << 12)):
        back = phase.to_phase(phase.turns_of(phase.to_radians(phases, bits)), bits)
        assert torch.equal(back, phases)


def test_states_are_trees():
    state = kernels.Mamba3State(*(torch.full((1,), float(i)) for i in range(4)))
    leaves, spec = tree_flatten(state)
    assert [leaf.item() for leaf in leaves] == [0, 1, 2, 3]
    assert tree_unflatten(leaves, spec) == state


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"angles": torch.zeros(2, 9, 4)}, "at most N / 2 = 3 pairs"),
        ({"trap": torch.zeros(2, 9, 1)}, "trap: expected shape"),
        ({"B_bias": torch.zeros(3, 2, 7)}, "B_bias: expected shape"),
        ({"mimo_o": torch.zeros(3, 2, 5)}, "mimo_o: expected none without mimo_x"),
        ({"initial_state.k": torch.zeros(2, 2, 3, 7)}, "initial_state.k: expected shape"),
        ({"initial_state.v": torch.zeros(2, 3, 5, dtype=torch.bfloat16)}, "initial_state.v: expected dtype"),
    ],
)
def test_operands_that_do_not_fit(change, match):
    problem = problem_of(length=9)
    problem.tensors.update(change)
    with pytest.raises(ShapeError, match=match):
        problem.run()


@pytest.mark.parametrize("absent", ["z", "mimo_z", "mimo_o"])
def test_rank_weights_that_do_not_fit_together(absent):
    with pytest.raises(ShapeError, match=r"mimo_z: expected both|z: expected none"):
        problem_of(length=9, rank=2).without(absent).run()


@pytest.mark.parametrize(
    "settings", [{"decay": "relu"}, {"pairing": "thirds"}, {"A_floor": 0.0}, {"chunk_size": 0}, {"chunk_size": 1025}]
)
def test_settings_out_of_range(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        problem_of(length=9).having(**settings).run()
