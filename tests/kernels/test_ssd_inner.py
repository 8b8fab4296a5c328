"""The inner path of the Mamba-2 block: one op against its parts, slabs against no slabs."""

import random

import pytest
import torch
import torch.nn.functional as F

from seqkit.errors import ConfigError, ShapeError
from seqkit.kernels import causal_conv, gated_rms_norm, ssd_inner, ssd_scan
from seqkit.kernels.testing import TOLERANCES, assert_close, check_alike, doubled, gradients, poisoned_memory

D, H, P, G, N, W = 7, 4, 3, 2, 5, 4
EPS = 0.3  # groups of a few channels may all but vanish, and a norm with less would magnify their rounding
E, MIXED, INNER = H * P, H * P + 2 * G * N, 2 * H * P + 2 * G * N + H
PACKED = [0, 0, 1, 9, 30, 30, 37]  # empty, single and longer than a slab
WIDE = ("conv_bias", "dt_bias", "A", "D", "norm_weight", "conv_state", "ssm_state")
SHAPES = {
    "in_weight": (INNER, D), "in_bias": (INNER,), "conv_weight": (MIXED, W), "conv_bias": (MIXED,), "dt_bias": (H,),
    "A": (H,), "D": (H,), "norm_weight": (E,), "out_weight": (D, E), "out_bias": (D,),
}  # fmt: skip


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    return request.param


def operands(*, batch=2, length=37, packed=None, whole=True, dtype=torch.float32, device="cpu", seed=0):
    """Every operand as a leaf, by name, and the settings; without projections unless ``whole``."""
    generator = torch.Generator().manual_seed(seed)
    batch, segments = (1, len(packed) - 1) if packed else (batch, batch)
    shapes = {"x": (batch, length, D if whole else INNER), **SHAPES}
    shapes |= {"conv_state": (segments, W - 1, MIXED), "ssm_state": (segments, H, P, N)}
    tensors = {}
    for name, shape in shapes.items():
        if whole or not name.startswith(("in_", "out_")):
            value = torch.randn(shape, generator=generator, dtype=torch.float64)
            if name == "A":
                value = -value.exp()
            elif name.endswith("weight") and len(shape) == 2:
                value = value * shape[1] ** -0.5
            wide = name in WIDE and dtype != torch.float64
            value = value.to(device, torch.float32 if wide else dtype)
            tensors[name] = value.requires_grad_()
    options = {"groups": G, "eps": EPS}
    if packed:
        options["cu_seqlens"] = torch.tensor(packed, dtype=torch.int32, device=device)
    return tensors, options


def parts(tensors, *, reverse=False, cu_seqlens=None, groups=G, eps=EPS):
    """The same from the public ops, in the operands' dtype."""
    t, x = tensors, tensors["x"]
    projected = F.linear(x, t["in_weight"], t["in_bias"].to(x.dtype)) if "in_weight" in t else x
    z, xbc, dt = projected.split([E, MIXED, H], -1)
    settings = {"reverse": reverse, "cu_seqlens": cu_seqlens, "return_final_state": True}
    xbc, conv = causal_conv(
        xbc, t["conv_weight"], bias=t["conv_bias"], activation="silu", initial_state=t["conv_state"], **settings
    )
    u, B, C = xbc.split([E, G * N, G * N], -1)
    B, C = (weight.unflatten(-1, (groups, N)) for weight in (B, C))
    y, ssm = ssd_scan(
        u.unflatten(-1, (H, P)), dt, t["A"], B, C, D=t["D"], dt_bias=t["dt_bias"], dt_softplus=True,
        initial_state=t["ssm_state"], **settings,
    )  # fmt: skip
    y = gated_rms_norm(y.flatten(-2), z, t["norm_weight"], eps=eps, group_size=E // groups)
    return F.linear(y, t["out_weight"], t["out_bias"].to(x.dtype)) if "out_weight" in t else y, conv, ssm


def check_against_parts(tensors, options, slab, tolerance, reverse=False, exact=None, together=None, **inner):
    leaves, names = exact or tensors, ("y", "conv", "ssm")
    got = ssd_inner(**tensors, **options, slab=slab, reverse=reverse, **inner)
    want = parts(leaves, reverse=reverse, **options)
    got, want = (dict(zip(names, outputs, strict=True)) for outputs in (got, want))
    check_alike(got, want, tensors, leaves, tolerance, together)


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("packed", [None, PACKED])
@pytest.mark.parametrize("slab", [None, 1, 7, 36])
def test_equals_its_parts(device, whole, reverse, packed, slab):
    """Values, states and every gradient; slabs of 1 are shorter than the convolution."""
    check_against_parts(*operands(whole=whole, packed=packed, device=device), slab, 1e-5, reverse)


@pytest.mark.parametrize("packed", [None, PACKED])
def test_equals_its_parts_with_everything_kept(device, packed):
    check_against_parts(*operands(packed=packed, device=device), None, 1e-5, reverse=True, keep=True)


def test_what_is_kept_stays(device):
    """A second backward pass finds what the first one found."""
    tensors, options = operands(device=device)
    y = ssd_inner(**tensors, **options, keep=True)[0]
    first, second = (torch.autograd.grad(y.sum(), list(tensors.values()), retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("slab", [None, 1000, 4096])
def test_long_slabs_in_half_precision(slab, reverse):
    """Against float64: every part rounds, so two ways in half precision lie as far from each other as from it."""
    tensors, options = operands(length=9001, dtype=torch.bfloat16, device="cuda")
    check_against_parts(tensors, options, slab, 5e-2, reverse, exact=doubled(tensors), together=2e-2)


@pytest.mark.parametrize("seed", range(25))
def test_slabs_end_anywhere(seed):
    """Random lengths, segments and slabs."""
    draw = random.Random(seed)
    length, slab = draw.randint(0, 30), draw.randint(1, 31)
    bounds = [0, *sorted(draw.randint(0, length) for _ in range(draw.randint(0, 4))), length]
    tensors, options = operands(length=length, packed=bounds, whole=draw.random() < 0.5, dtype=torch.float64)
    check_against_parts(tensors, options, slab, 1e-10, reverse=draw.random() < 0.5)


@pytest.mark.parametrize("slab", [None, 4])
def test_gradcheck(slab):
    tensors, options = operands(batch=1, length=9, dtype=torch.float64)

    def call(*values):
        return ssd_inner(**dict(zip(tensors, values, strict=True)), **options, slab=slab, chunk_size=3)

    assert torch.autograd.gradcheck(call, list(tensors.values()), fast_mode=True)


@pytest.mark.parametrize("slab", [None, 5])
def test_absent_operands(slab):
    """No biases, no states: the same as zeros."""
    absent = ("in_bias", "conv_bias", "out_bias", "conv_state", "ssm_state")
    tensors, options = operands()
    zeros = {name: torch.zeros_like(x) if name in absent else x for name, x in tensors.items()}
    given = {name: x for name, x in tensors.items() if name not in absent}
    got, want = ssd_inner(**given, **options, slab=slab), ssd_inner(**zeros, **options, slab=slab)
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)
    ours, theirs = gradients(got, given), gradients(want, given)
    for name in given:
        assert torch.equal(ours[name], theirs[name]), name


@pytest.mark.parametrize("index", [0, 1, 2])
def test_gradient_through_one_output_only(index):
    tensors, options = operands()
    got = gradients(ssd_inner(**tensors, **options, slab=8)[index : index + 1], tensors)
    want = gradients(parts(tensors)[index : index + 1], tensors)
    for name in tensors:
        assert_close("d" + name, got[name], want[name], 1e-5)


@pytest.mark.parametrize("slab", [None, 16])
def test_projects_in_the_dtype_asked_for(device, slab):
    """float32 weights and input, bfloat16 projections: what autocast does to the parts, gradients kept in float32."""
    tensors, options = operands(device=device)
    got = ssd_inner(**tensors, **options, slab=slab, dtype=torch.bfloat16)
    with torch.autocast(device, dtype=torch.bfloat16):
        rough = parts(tensors)
    exact = parts(tensors)
    assert [x.dtype for x in got] == [x.dtype for x in rough] == [torch.bfloat16, torch.float32, torch.float32]
    ours, autocasts, want = (gradients(out, tensors) for out in (got, rough, exact))
    assert_close("y", got[0], rough[0], 2e-2)
    for name, grad in ours.items():
        assert grad.dtype == torch.float32
        assert_close("d" + name, grad, want[name], 5e-2)
        assert_close("d" + name, grad, autocasts[name], 5e-2)


def test_weight_gradients_of_many_slabs_are_summed_in_float32(device):
    """A bfloat16 sum of 250 equal shares would stall far below the total."""
    tensors, options = operands(batch=1, length=500, dtype=torch.bfloat16, device=device)
    fine = gradients(ssd_inner(**tensors, **options, slab=2), tensors)
    whole = gradients(ssd_inner(**tensors, **options), tensors)
    for name in ("in_weight", "conv_weight", "norm_weight", "out_weight"):
        assert_close("d" + name, fine[name], whole[name], TOLERANCES[torch.bfloat16])


def test_nothing_is_left_unwritten(device):
    with poisoned_memory():
        tensors, options = operands(packed=PACKED, device=device)
        out = ssd_inner(**tensors, **options, slab=10)
        grads = gradients(out, tensors)
    for name, x in [*zip(("y", "conv", "ssm"), out, strict=True), *grads.items()]:
        assert torch.isfinite(x).all(), name


@pytest.mark.parametrize("slab", [None, 9])
def test_same_bits_twice(device, slab):
    runs = []
    for _ in range(2):
        tensors, options = operands(device=device, dtype=torch.bfloat16)
        out = ssd_inner(**tensors, **options, slab=slab)
        runs.append([*out, *gradients(out, tensors).values()])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def raw_arguments(tensors, cu_seqlens, slab, keep=False):
    order = ("x", *SHAPES, "conv_state", "ssm_state")
    settings = (slab, False, tensors["x"].dtype, "reference", G, EPS, None, keep)
    return *(tensors.get(name) for name in order), cu_seqlens, *settings


@pytest.mark.parametrize(("slab", "whole", "keep"), [(0, 0, 0), (0, 1, 0), (8, 0, 0), (8, 1, 0), (0, 1, 1)])
def test_opcheck(slab, whole, keep):
    tensors, options = operands(packed=PACKED, whole=bool(whole))
    arguments = raw_arguments(tensors, options["cu_seqlens"], slab, bool(keep))
    torch.library.opcheck(torch.ops.seqkit.ssd_inner_fwd.default, arguments)
    with torch.no_grad():
        y, conv, ssm, *kept = torch.ops.seqkit.ssd_inner_fwd(*arguments)
    plain = [x.detach() if isinstance(x, torch.Tensor) else x for x in arguments]
    torch.library.opcheck(torch.ops.seqkit.ssd_inner_bwd.default, (y, conv, ssm, *kept, *plain))


@pytest.mark.parametrize("slab", [None, 8])
def test_compiles_without_graph_breaks(slab):
    tensors, options = operands()

    def call(tensors):
        return ssd_inner(**tensors, **options, slab=slab)

    torch._dynamo.reset()
    got, want = torch.compile(call, fullgraph=True, backend="aot_eager")(tensors), call(tensors)
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)
    ours, theirs = gradients(got, tensors), gradients(want, tensors)
    for name in tensors:
        assert_close("d" + name, ours[name], theirs[name], 1e-6)


def test_second_derivatives_are_refused():
    tensors, options = operands()
    y = ssd_inner(**tensors, **options)[0]
    (first,) = torch.autograd.grad(y.square().sum(), tensors["x"], create_graph=True)
    with pytest.raises(RuntimeError, match="ssd_inner: second derivatives are not supported"):
        first.sum().backward()


def test_outputs_never_alias_inputs():
    for slab in (None, 3):
        tensors, options = operands(length=5)
        storages = {x.untyped_storage().data_ptr() for x in tensors.values()}
        for out in ssd_inner(**tensors, **options, slab=slab):
            assert out.untyped_storage().data_ptr() not in storages
            assert out.is_contiguous()


@pytest.mark.parametrize("slab", [None, 500])
def test_keeps_states_between_slabs_only(slab):
    """What autograd holds between forward and backward, operands aside."""
    tensors, options = operands(batch=1, length=4000)
    own, kept = {x.untyped_storage().data_ptr() for x in tensors.values()}, {}

    def pack(x):
        if x.untyped_storage().data_ptr() not in own:
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = ssd_inner(**tensors, **options, slab=slab)
    assert out[0].requires_grad
    assert sum(kept.values()) == (0 if slab is None else 7 * 4 * (E * N + (W - 1) * MIXED))


def test_packed_slabs_keep_one_state_a_border():
    """However many segments there are: only one can reach across."""
    tensors, options = operands(length=60, packed=list(range(0, 61, 2)))
    kept = torch.ops.seqkit.ssd_inner_fwd(*raw_arguments(tensors, options["cu_seqlens"], 10))[3:5]
    assert [tuple(x.shape) for x in kept] == [(5, 1, W - 1, MIXED), (5, 1, H, P, N)]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"slab": 0}, ConfigError),
        ({"slab": 2, "keep": True}, ConfigError),
        ({"chunk_size": 0}, ConfigError),
        ({"x": torch.zeros(2, 5, INNER)}, ShapeError),
        ({"groups": 3}, ShapeError),
        ({"conv_weight": torch.zeros(MIXED + 1, W)}, ShapeError),
        ({"out_weight": torch.zeros(D, E + 1)}, ShapeError),
        ({"A": torch.zeros(H, dtype=torch.bfloat16)}, ShapeError),
        ({"ssm_state": torch.zeros(3, H, P, N)}, ShapeError),
        ({"in_weight": None, "x": torch.zeros(2, 5, INNER), "dtype": torch.bfloat16}, ShapeError),
    ],
)
def test_refusals_name_the_argument(change, error):
    tensors, options = operands(length=5)
    with pytest.raises(error, match=next(reversed(change))):
        ssd_inner(**(tensors | options | change))
