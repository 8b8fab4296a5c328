"""The inner path of the Mamba-1 block: one op against its parts, slabs against no slabs."""

import random

import pytest
import torch
import torch.nn.functional as F

from seqkit.errors import ConfigError, ShapeError
from seqkit.kernels import causal_conv, selective_inner, selective_scan
from seqkit.kernels.testing import assert_close, check_alike, doubled, gradients, poisoned_memory

D, E, N, R, W = 7, 10, 3, 2, 4
PACKED = [0, 0, 1, 9, 30, 30, 37]  # empty, single and longer than a slab
WIDE = ("dt_bias", "A", "D", "conv_bias", "conv_state", "ssm_state")
SHAPES = {
    "in_weight": (2 * E, D), "in_bias": (2 * E,), "conv_weight": (E, W), "conv_bias": (E,),
    "x_weight": (R + 2 * N, E), "dt_weight": (E, R), "dt_bias": (E,), "A": (E, N), "D": (E,),
    "out_weight": (D, E), "out_bias": (D,),
}  # fmt: skip


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    return request.param


def operands(*, batch=2, length=37, packed=None, whole=True, dtype=torch.float32, device="cpu", seed=0):
    """Every operand as a leaf, by name, and the settings; without projections unless ``whole``."""
    generator = torch.Generator().manual_seed(seed)
    batch, segments = (1, len(packed) - 1) if packed else (batch, batch)
    shapes = {"x": (batch, length, D if whole else 2 * E), **SHAPES}
    shapes |= {"conv_state": (segments, W - 1, E), "ssm_state": (segments, E, N)}
    tensors = {}
    for name, shape in shapes.items():
        if whole or not name.startswith(("in_", "out_")):
            value = torch.randn(shape, generator=generator, dtype=torch.float64)
            if name == "A":
                value = -value.exp()
            wide = name in WIDE and dtype != torch.float64
            value = value.to(device, torch.float32 if wide else dtype)
            tensors[name] = value.requires_grad_()
    options = {"cu_seqlens": torch.tensor(packed, dtype=torch.int32, device=device)} if packed else {}
    return tensors, options


def parts(tensors, *, reverse=False, cu_seqlens=None):
    """The same from the public ops, in the operands' dtype."""
    t, x = tensors, tensors["x"]
    uz = F.linear(x, t["in_weight"], t["in_bias"].to(x.dtype)) if "in_weight" in t else x
    u, z = uz.chunk(2, -1)
    settings = {"reverse": reverse, "cu_seqlens": cu_seqlens, "return_final_state": True}
    u, conv = causal_conv(
        u, t["conv_weight"], bias=t["conv_bias"], activation="silu", initial_state=t["conv_state"], **settings
    )
    low_rank, B, C = F.linear(u, t["x_weight"]).split([R, N, N], -1)
    y, ssm = selective_scan(
        u, F.linear(low_rank, t["dt_weight"]), t["A"], B, C, D=t["D"], z=z, delta_bias=t["dt_bias"],
        delta_softplus=True, initial_state=t["ssm_state"], **settings,
    )  # fmt: skip
    return F.linear(y, t["out_weight"], t["out_bias"].to(x.dtype)) if "out_weight" in t else y, conv, ssm


def check_against_parts(tensors, options, slab, tolerance, reverse=False, exact=None, together=None, **inner):
    leaves, names = exact or tensors, ("y", "conv", "ssm")
    got = selective_inner(**tensors, **options, slab=slab, reverse=reverse, **inner)
    want = parts(leaves, reverse=reverse, **options)
    got, want = (dict(zip(names, outputs, strict=True)) for outputs in (got, want))
    check_alike(got, want, tensors, leaves, tolerance, together)


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("packed", [None, PACKED])
@pytest.mark.parametrize("slab", [None, 1, 7, 36, 37])
def test_equals_its_parts(device, whole, reverse, packed, slab):
    """Values, states and every gradient; slabs of 1 are shorter than the convolution."""
    check_against_parts(*operands(whole=whole, packed=packed, device=device), slab, 1e-5, reverse)


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
        return selective_inner(**dict(zip(tensors, values, strict=True)), **options, slab=slab)

    assert torch.autograd.gradcheck(call, list(tensors.values()), fast_mode=True)


@pytest.mark.parametrize("slab", [None, 5])
def test_absent_operands(slab):
    """No biases, no states: the same as zeros."""
    absent = ("in_bias", "conv_bias", "out_bias", "conv_state", "ssm_state")
    tensors, _ = operands()
    zeros = {name: torch.zeros_like(x) if name in absent else x for name, x in tensors.items()}
    given = {name: x for name, x in tensors.items() if name not in absent}
    got, want = selective_inner(**given, slab=slab), selective_inner(**zeros, slab=slab)
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)
    ours, theirs = gradients(got, given), gradients(want, given)
    for name in given:
        assert torch.equal(ours[name], theirs[name]), name


@pytest.mark.parametrize("index", [0, 1, 2])
def test_gradient_through_one_output_only(index):
    tensors, _ = operands()
    got = gradients(selective_inner(**tensors, slab=8)[index : index + 1], tensors)
    want = gradients(parts(tensors)[index : index + 1], tensors)
    for name in tensors:
        assert_close("d" + name, got[name], want[name], 1e-5)


@pytest.mark.parametrize("slab", [None, 16])
def test_projects_in_the_dtype_asked_for(device, slab):
    """float32 weights and input, bfloat16 projections: what autocast does to the parts, gradients kept in float32."""
    tensors, _ = operands(device=device)
    got = selective_inner(**tensors, slab=slab, dtype=torch.bfloat16)
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
    tensors, _ = operands(batch=1, length=500, dtype=torch.bfloat16, device=device)
    fine = gradients(selective_inner(**tensors, slab=2), tensors)
    whole = gradients(selective_inner(**tensors), tensors)
    for name in ("in_weight", "x_weight", "dt_weight", "out_weight"):
        assert_close("d" + name, fine[name], whole[name], 5e-3)


def test_nothing_is_left_unwritten(device):
    with poisoned_memory():
        tensors, options = operands(packed=PACKED, device=device)
        out = selective_inner(**tensors, **options, slab=10)
        grads = gradients(out, tensors)
    for name, x in [*zip(("y", "conv", "ssm"), out, strict=True), *grads.items()]:
        assert torch.isfinite(x).all(), name


@pytest.mark.parametrize("slab", [None, 9])
def test_same_bits_twice(device, slab):
    runs = []
    for _ in range(2):
        tensors, _ = operands(device=device, dtype=torch.bfloat16)
        out = selective_inner(**tensors, slab=slab)
        runs.append([*out, *gradients(out, tensors).values()])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def raw_arguments(tensors, cu_seqlens, slab):
    order = ("x", *list(SHAPES)[:-2], "out_weight", "out_bias", "conv_state", "ssm_state")
    return *(tensors.get(name) for name in order), cu_seqlens, slab, False, tensors["x"].dtype, "reference"


@pytest.mark.parametrize("slab", [0, 8])
@pytest.mark.parametrize("whole", [False, True])
def test_opcheck(slab, whole):
    tensors, options = operands(packed=PACKED, whole=whole)
    arguments = raw_arguments(tensors, options["cu_seqlens"], slab)
    torch.library.opcheck(torch.ops.seqkit.selective_inner_fwd.default, arguments)
    with torch.no_grad():
        y, conv, ssm, *kept = torch.ops.seqkit.selective_inner_fwd(*arguments)
    plain = [x.detach() if isinstance(x, torch.Tensor) else x for x in arguments]
    torch.library.opcheck(torch.ops.seqkit.selective_inner_bwd.default, (y, conv, ssm, *kept, *plain))


@pytest.mark.parametrize("slab", [None, 8])
def test_compiles_without_graph_breaks(slab):
    tensors, _ = operands()

    def call(tensors):
        return selective_inner(**tensors, slab=slab)

    torch._dynamo.reset()
    got, want = torch.compile(call, fullgraph=True, backend="aot_eager")(tensors), call(tensors)
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)
    ours, theirs = gradients(got, tensors), gradients(want, tensors)
    for name in tensors:
        assert_close("d" + name, ours[name], theirs[name], 1e-6)


def test_second_derivatives_are_refused():
    tensors, _ = operands()
    (first,) = torch.autograd.grad(selective_inner(**tensors)[0].square().sum(), tensors["x"], create_graph=True)
    with pytest.raises(RuntimeError, match="selective_inner: second derivatives are not supported"):
        first.sum().backward()


def test_outputs_never_alias_inputs():
    for slab in (None, 3):
        tensors, _ = operands(length=5)
        storages = {x.untyped_storage().data_ptr() for x in tensors.values()}
        for out in selective_inner(**tensors, slab=slab):
            assert out.untyped_storage().data_ptr() not in storages
            assert out.is_contiguous()


def kept_bytes(slab):
    """What autograd holds between forward and backward, operands aside."""
    tensors, _ = operands(batch=1, length=4000)
    own, kept = {x.untyped_storage().data_ptr() for x in tensors.values()}, {}

    def pack(x):
        if x.untyped_storage().data_ptr() not in own:
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = selective_inner(**tensors, slab=slab)
    assert out[0].requires_grad
    return sum(kept.values())


def test_packed_slabs_keep_one_state_a_border():
    """However many segments there are: only one can reach across."""
    tensors, options = operands(length=60, packed=list(range(0, 61, 2)))
    kept = torch.ops.seqkit.selective_inner_fwd(*raw_arguments(tensors, options["cu_seqlens"], 10))[3:5]
    assert [tuple(x.shape) for x in kept] == [(5, 1, W - 1, E), (5, 1, E, N)]


@pytest.mark.parametrize("slab", [None, 500])
def test_keeps_no_activation(slab):
    """Chunk-start states of the reference: N E / 16 numbers a token; an activation would be E of them."""
    assert kept_bytes(slab) < 4000 * E * 4 * (N / 16 + 0.1)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"slab": 0}, ConfigError),
        ({"x": torch.zeros(2, 5, 2 * E)}, ShapeError),
        ({"x_weight": torch.zeros(R + N, E)}, ShapeError),
        ({"out_weight": torch.zeros(D, E + 1)}, ShapeError),
        ({"A": torch.zeros(E, N, dtype=torch.bfloat16)}, ShapeError),
        ({"ssm_state": torch.zeros(3, E, N)}, ShapeError),
        ({"in_weight": None, "x": torch.zeros(2, 5, 2 * E), "dtype": torch.bfloat16}, ShapeError),
    ],
)
def test_refusals_name_the_argument(change, error):
    tensors, _ = operands(length=5)
    with pytest.raises(error, match=next(reversed(change))):
        selective_inner(**(tensors | change))
