"""Every provider against the float64 oracle: values, final states, every gradient."""

import pytest
import torch

from seqkit.kernels.testing import (
    STATEFUL,
    TOLERANCE_TINY_DELTA,
    TOLERANCES,
    Maker,
    assert_close,
    check,
    gradients,
    make_problem,
    poisoned_memory,
)

LENGTHS = (0, 1, 2, 63, 64, 65, 1000)
PACKED = [0, 0, 1, 17, 17, 81, 211, 275, 275]  # empty, single, straddling and whole chunks


def settled(op, **options):
    problem = make_problem(op, **options)
    if op == "mamba3_scan":
        return problem
    if op == "causal_conv":
        return problem.having(activation="silu")
    return problem.having(**{("delta_softplus" if op == "selective_scan" else "dt_softplus"): True})


@pytest.mark.parametrize("op", STATEFUL)
@pytest.mark.parametrize("length", LENGTHS)
def test_lengths(provider, device, op, length):
    batch = 1 if length == 1000 else 2
    check(settled(op, batch=batch, length=length, device=device), TOLERANCES[torch.float32])


@pytest.mark.parametrize("op", STATEFUL)
@pytest.mark.parametrize("length", [1, 65])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtypes(provider, device, op, length, dtype):
    if provider != "reference" and dtype == torch.float64:
        pytest.skip("float64 is the reference's")
    check(settled(op, length=length, dtype=dtype, device=device), TOLERANCES[dtype])


@pytest.mark.parametrize("op", ["selective_scan", "ssd_scan"])
def test_mixed_dtypes(provider, device, op):
    problem = settled(op, length=33, device=device)
    casts = {"delta": torch.float32, "dt": torch.float32, "B": torch.float16, "C": torch.bfloat16}
    for name, x in problem.tensors.items():
        if name in ("u", "x", "z") or name in casts:
            problem.tensors[name] = x.to(casts.get(name, torch.bfloat16))
    check(problem, TOLERANCES[torch.bfloat16])


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("op", STATEFUL)
def test_packed_segments_with_empty_ones(provider, device, op, reverse):
    problem = settled(op, length=PACKED[-1], segments=PACKED, device=device)
    check(problem.having(reverse=reverse), TOLERANCES[torch.float32])


@pytest.mark.parametrize("op", STATEFUL)
def test_reverse(provider, device, op):
    check(settled(op, length=130, device=device).having(reverse=True), TOLERANCES[torch.float32])


@pytest.mark.parametrize("op", ["selective_scan", "ssd_scan"])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("absent", ["", "D", "z", "bias", "initial_state", "softplus", "all"])
def test_optional_operands(provider, device, op, groups, absent):
    bias = "delta_bias" if op == "selective_scan" else "dt_bias"
    problem = make_problem(op, length=70, groups=groups, device=device)
    if absent not in ("softplus", "all"):
        problem = problem.having(**{bias.replace("bias", "softplus"): True})
    if absent == "all":
        problem = problem.without("D", "z", bias, "initial_state")
    check(problem.without(bias if absent == "bias" else absent), TOLERANCES[torch.float32])


@pytest.mark.parametrize("states", [1, 8, 16, 64, 100, 256])
def test_states_and_channels(provider, device, states):
    """More channels than a warp has lanes, in groups of 35, and every number of states up to the largest."""
    make = Maker(torch.float32, device)
    problem = settled("selective_scan", batch=1, length=21, groups=2, device=device)
    D, shapes = 70, {"B": (1, 21, 2, states), "C": (1, 21, 2, states)}
    tensors = {name: make.activation(*shapes.get(name, (1, 21, D))) for name in ("u", "B", "C", "z")}
    tensors["delta"] = make.uniform(1e-3, 0.5, 1, 21, D)
    tensors["A"] = -make.uniform(0.3, 4.0, D, states)
    tensors["initial_state"] = make.parameter(1, D, states)
    check(type(problem)(problem.op, tensors, problem.settings), TOLERANCES[torch.float32])


@pytest.mark.parametrize("taps", [1, 2, 3, 4, 8, 70])
@pytest.mark.parametrize("absent", ["", "bias", "initial_state"])
def test_conv_taps_and_operands(provider, device, taps, absent):
    problem = make_problem("causal_conv", length=140, device=device)
    problem.tensors["weight"] = torch.randn(5, taps, device=device)
    problem.tensors["initial_state"] = torch.randn(2, taps - 1, 5, device=device)
    check(problem.without(absent), TOLERANCES[torch.float32])


def test_ssd_skip_per_head(provider, device):
    problem = settled("ssd_scan", device=device)
    problem.tensors["D"] = problem.tensors["D"][:, 0].contiguous()
    check(problem, TOLERANCES[torch.float32])


@pytest.mark.parametrize("limits", [(0.05, 0.2), (0.0, 0.1), (0.3, float("inf"))])
def test_ssd_clamp(provider, device, limits):
    problem = settled("ssd_scan", device=device, delta=(1e-2, 2.0)).having(dt_min=limits[0], dt_max=limits[1])
    problem.tensors["dt"] = problem.tensors["dt"] - 2.0  # softplus then spans the limits
    check(problem, TOLERANCES[torch.float32])


@pytest.mark.parametrize("chunk_size", [1, 7, 64, 256])
def test_ssd_chunk_sizes(provider, device, chunk_size):
    check(settled("ssd_scan", length=200, device=device).having(chunk_size=chunk_size), TOLERANCES[torch.float32])


@pytest.mark.parametrize("op", ["selective_scan", "ssd_scan"])
@pytest.mark.parametrize("delta", [(1e-6, 1e-5), (1e-4, 1e-2), (1.0, 50.0), (1e-6, 50.0)])
def test_step_sizes(provider, device, op, delta):
    bias = "delta_bias" if op == "selective_scan" else "dt_bias"
    problem = make_problem(op, length=300, batch=1, delta=delta, device=device).without(bias)
    check(problem, (TOLERANCE_TINY_DELTA if delta[0] < 1e-4 else TOLERANCES)[torch.float32])


@pytest.mark.parametrize("op", ["selective_scan", "ssd_scan"])
def test_small_steps_beside_huge_ones_keep_their_decay(provider, device, op):
    name = "delta" if op == "selective_scan" else "dt"
    problem = make_problem(op, length=130, batch=1, device=device).without(name + "_bias")
    problem.tensors["A"] = torch.full_like(problem.tensors["A"], -16.0)
    problem.tensors[name] = torch.full_like(problem.tensors[name], 1e-2)
    problem.tensors[name][:, ::20] = 50.0
    check(problem, TOLERANCES[torch.float32])


@pytest.mark.parametrize("op", ["selective_scan", "ssd_scan"])
def test_softplus_of_extreme_inputs(provider, device, op):
    name = "delta" if op == "selective_scan" else "dt"
    problem = settled(op, length=71, batch=1, device=device).without(name + "_bias")
    shape = problem.tensors[name].shape
    problem.tensors["A"] *= 2 / 3  # a decay over 50 steps stays where products on tensor cores keep all their digits
    for low, high in [(-20.0, -14.0), (-1.0, 25.0), (40.0, 50.0)]:
        problem.tensors[name] = torch.linspace(low, high, shape.numel(), device=device).view(shape)
        check(problem, TOLERANCE_TINY_DELTA[torch.float32])


@pytest.mark.parametrize("op", STATEFUL)
def test_views_of_a_projection(provider, device, op):
    """Operands cut out of one wide tensor, batch rows strided too: the same result, gradients into the one leaf."""
    problem = settled(op, length=65, device=device).leaves()
    names = ("u", "x", "delta", "dt", "trap", "B", "C", "angles", "z")
    inputs = [name for name in names if name in problem.tensors]
    flat = [problem.tensors[name].detach().flatten(2) for name in inputs]
    wide = torch.cat([torch.cat(flat, 2), torch.full((2, 65, 3), torch.nan, device=device)], 2)
    wide = torch.stack([wide, torch.full_like(wide, torch.nan)], 1)[:, 0].requires_grad_()
    views, begin = dict(problem.tensors), 0
    for name, part in zip(inputs, flat, strict=True):
        shape = problem.tensors[name].shape[2:]
        views[name] = wide[:, :, begin : begin + part.shape[2]].unflatten(2, shape)
        begin += part.shape[2]
    got = type(problem)(op, views, problem.settings).run()
    want = problem.run()
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)
    grad = gradients(got, {"wide": wide})["wide"]
    each = gradients(want, {name: problem.tensors[name] for name in inputs})
    assert_close("dwide", grad[:, :, :-3], torch.cat([g.flatten(2) for g in each.values()], 2).double(), 1e-6)


@pytest.mark.parametrize("op", STATEFUL)
def test_nothing_is_left_unwritten(provider, device, op):
    for options in ({"length": 65}, {"length": PACKED[-1], "segments": PACKED}):
        with poisoned_memory():
            problem = settled(op, device=device, **options).leaves()
            out = problem.run()
            grads = gradients(out, problem.tensors)
        for name, x in [("y", out[0]), *(("state", x) for x in out[1:]), *grads.items()]:
            assert torch.isfinite(x).all(), name


@pytest.mark.parametrize("op", STATEFUL)
def test_a_segment_never_sees_another(provider, device, op):
    """A NaN in one packed segment stays in it, in values and gradients."""
    problem = settled(op, length=PACKED[-1], segments=PACKED, device=device)
    name = "u" if op == "selective_scan" else "x"
    problem.tensors[name][:, 100] = torch.nan  # inside tokens 81 to 211
    problem = problem.leaves()
    y, *states = problem.run()
    clean = torch.ones(PACKED[-1], dtype=torch.bool)
    clean[81:211] = False
    assert torch.isfinite(y[0, clean]).all()
    assert all(torch.isfinite(state[[0, 1, 2, 3, 4, 6, 7]]).all() for state in states)
    grad = gradients((y[:, clean],), {name: problem.tensors[name]})[name]
    assert torch.isfinite(grad[0, clean]).all()


@pytest.mark.parametrize("op", STATEFUL)
def test_empty_segments_hand_their_state_through(provider, device, op):
    problem = settled(op, length=0, segments=[0, 0, 0], device=device).leaves()
    y, *states = problem.run()
    assert y.shape[1] == 0
    entering = [x for name, x in problem.tensors.items() if name.startswith("initial_state")]
    for before, after in zip(entering, states, strict=True):
        assert_close("state", after, before, 1e-8 if after.dtype == torch.float64 else 0)  # angles are rounded once
        assert after.data_ptr() != before.data_ptr()
        grad = torch.autograd.grad((2 * after).sum(), before, retain_graph=True)[0]
        assert torch.equal(grad, torch.full_like(grad, 2))


@pytest.mark.parametrize("op", STATEFUL)
def test_empty_batch(provider, device, op):
    y, *state = settled(op, batch=0, length=9, device=device).run()
    assert y.shape[:2] == (0, 9)
    assert {x.shape[0] for x in state} == {0}


@pytest.mark.parametrize("op", STATEFUL)
@pytest.mark.parametrize("reverse", [False, True])
def test_causality(provider, device, op, reverse):
    """Changing token t leaves every output before it (in scan order) bit for bit alone, and changes output t."""
    problem = settled(op, length=150, batch=1, device=device).having(reverse=reverse)
    before = problem.run()[0]
    name = "u" if op == "selective_scan" else "x"
    for t in (0, 15, 16, 63, 64, 149):
        other = make_problem(op).__class__(op, {k: v.clone() for k, v in problem.tensors.items()}, problem.settings)
        other.tensors[name][0, t] += 1.0
        after = other.run()[0]
        untouched = slice(t + 1, None) if reverse else slice(0, t)
        assert torch.equal(before[:, untouched], after[:, untouched])
        assert not torch.equal(before[:, t], after[:, t])


@pytest.mark.parametrize("op", STATEFUL)
def test_same_bits_twice(provider, device, op):
    first, second = (settled(op, length=333, device=device).leaves() for _ in range(2))
    one, two = first.run(), second.run()
    for a, b in zip(one, two, strict=True):
        assert torch.equal(a, b)
    one, two = gradients(one, first.tensors), gradients(two, second.tensors)
    for name in one:
        assert torch.equal(one[name], two[name]), name


@pytest.mark.parametrize("op", STATEFUL)
def test_gradcheck(op, monkeypatch):
    monkeypatch.setenv("SEQKIT_KERNELS", "reference")
    for options in ({"batch": 1, "length": 19}, {"length": 9, "segments": [0, 0, 4, 9]}):
        problem = settled(op, dtype=torch.float64, **options)
        names = list(problem.tensors)

        def call(*values, names=names, problem=problem):
            return type(problem)(problem.op, dict(zip(names, values, strict=True)), problem.settings).run()

        leaves = [x.clone().requires_grad_() for x in problem.tensors.values()]
        assert torch.autograd.gradcheck(call, leaves, fast_mode=True)


@pytest.mark.parametrize("op", STATEFUL)
def test_gradient_through_one_output_only(provider, device, op):
    problem = settled(op, device=device).leaves()
    exact = problem.oracle()
    for index in range(len(exact)):
        got = gradients(problem.run()[index : index + 1], problem.tensors)
        want = gradients(exact[index : index + 1], problem.tensors)
        for name in got:
            assert_close(f"d{name}", got[name], want[name].double(), TOLERANCES[torch.float32])
        exact = problem.oracle()


@pytest.mark.gpu
@pytest.mark.parametrize("op", STATEFUL)
@pytest.mark.parametrize("segments", [None, PACKED])
def test_the_host_never_waits(provider, op, segments):
    problem = settled(op, length=PACKED[-1], segments=segments, device="cuda").leaves()
    weights = [torch.randn_like(x) for x in problem.run()]
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.autograd.backward(problem.run(), weights)
    finally:
        torch.cuda.set_sync_debug_mode(before)
