"""Both directions of a Mamba-2 block in one op, against one op for each."""

import random

import pytest
import torch

from seqkit.errors import ConfigError, ShapeError
from seqkit.kernels import DirectionOperands, ssd_bidirectional, ssd_inner
from seqkit.kernels.testing import assert_close, check_alike, doubled, gradients, poisoned_memory

D, H, P, G, N, W = 7, 4, 3, 2, 5, 4
EPS = 0.3  # groups of a few channels may all but vanish, and a norm with less would magnify their rounding
E, MIXED, INNER = H * P, H * P + 2 * G * N, 2 * H * P + 2 * G * N + H
PACKED = [0, 0, 1, 9, 30, 30, 37]  # empty, single and longer than a slab
SHARED = {"in_weight": (INNER, D), "in_bias": (INNER,), "out_weight": (D, E), "out_bias": (D,)}
OWN = {
    "conv_weight": (MIXED, W), "conv_bias": (MIXED,), "dt_bias": (H,), "A": (H,), "D": (H,), "norm_weight": (E,)
}  # fmt: skip


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    return request.param


def operands(*, batch=2, length=37, packed=None, dtype=torch.float32, device="cpu"):
    """Every operand as a leaf, by name, and the settings."""
    generator = torch.Generator().manual_seed(0)
    batch, segments = (1, len(packed) - 1) if packed else (batch, batch)
    own = OWN | {"conv_state": (segments, W - 1, MIXED), "ssm_state": (segments, H, P, N)}
    shapes = {"x": (batch, length, D), **SHARED}
    shapes |= {f"{side}.{name}": shape for side in ("left", "right") for name, shape in own.items()}
    tensors = {}
    for name, shape in shapes.items():
        value = torch.randn(shape, generator=generator, dtype=torch.float64)
        if name.endswith(".A"):
            value = -value.exp()
        elif name.endswith("weight") and len(shape) == 2:
            value = value * shape[1] ** -0.5
        wide = "." in name and not name.endswith("conv_weight") and dtype != torch.float64
        tensors[name] = value.to(device, torch.float32 if wide else dtype).requires_grad_()
    options = {"groups": G, "eps": EPS}
    if packed:
        options["cu_seqlens"] = torch.tensor(packed, dtype=torch.int32, device=device)
    return tensors, options


def side_of(tensors, side):
    return {name.partition(".")[2]: x for name, x in tensors.items() if name.startswith(side)}


def both(tensors, **options):
    left, right = (DirectionOperands(**side_of(tensors, side)) for side in ("left", "right"))
    shared = {name: x for name, x in tensors.items() if "." not in name}
    y, from_left, from_right = ssd_bidirectional(shared.pop("x"), left, right, **shared, **options)
    return y, *from_left, *from_right


def each(tensors, *, reverse=False, slab=None, **options):
    """The sum of two blocks; the output's bias goes in once."""
    shared = {name: x for name, x in tensors.items() if "." not in name}
    a = ssd_inner(**shared, **side_of(tensors, "left"), reverse=reverse, **options)
    b = ssd_inner(**shared | {"out_bias": None}, **side_of(tensors, "right"), reverse=not reverse, **options)
    return a[0] + b[0], *a[1:], *b[1:]


def check(tensors, options, tolerance, exact=None, together=None, **more):
    leaves, names = exact or tensors, ("y", "conv", "ssm", "right conv", "right ssm")
    outputs = both(tensors, **options, **more), each(leaves, **options, **more)
    got, want = (dict(zip(names, values, strict=True)) for values in outputs)
    check_alike(got, want, tensors, leaves, tolerance, together)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("packed", [None, PACKED])
@pytest.mark.parametrize("slab", [None, 1, 7, 36])
def test_equals_the_directions(device, reverse, packed, slab):
    """Values, states and every gradient; slabs of 1 are shorter than the convolution."""
    check(*operands(packed=packed, device=device), 1e-5, reverse=reverse, slab=slab)


@pytest.mark.gpu
@pytest.mark.parametrize("slab", [None, 1000, 4096])
def test_long_slabs_in_half_precision(slab):
    tensors, options = operands(length=9001, dtype=torch.bfloat16, device="cuda")
    check(tensors, options, 5e-2, exact=doubled(tensors), together=2e-2, slab=slab)


@pytest.mark.parametrize("seed", range(12))
def test_slabs_end_anywhere(seed):
    """Random lengths, segments and slabs."""
    draw = random.Random(seed)
    length, slab = draw.randint(0, 30), draw.randint(1, 31)
    bounds = [0, *sorted(draw.randint(0, length) for _ in range(draw.randint(0, 4))), length]
    tensors, options = operands(length=length, packed=bounds, dtype=torch.float64)
    check(tensors, options, 1e-10, slab=slab, reverse=draw.random() < 0.5)


@pytest.mark.parametrize("slab", [None, 5])
def test_absent_operands(slab):
    """No biases, no states: the same as zeros."""
    absent = ("in_bias", "conv_bias", "out_bias", "conv_state", "ssm_state")
    tensors, options = operands()
    zeros = {name: torch.zeros_like(x) if name.endswith(absent) else x for name, x in tensors.items()}
    given = {name: None if name.endswith(absent) else x for name, x in tensors.items()}
    for a, b in zip(both(given, **options, slab=slab), both(zeros, **options, slab=slab), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("index", range(5))
def test_gradient_through_one_output_only(index):
    tensors, options = operands()
    got = gradients(both(tensors, **options, slab=8)[index : index + 1], tensors)
    want = gradients(each(tensors, **options)[index : index + 1], tensors)
    for name in tensors:
        assert_close("d" + name, got[name], want[name], 1e-5)


@pytest.mark.parametrize("slab", [None, 16])
def test_projects_in_the_dtype_asked_for(device, slab):
    tensors, options = operands(device=device)
    got, want = both(tensors, **options, slab=slab, dtype=torch.bfloat16), both(tensors, **options)
    assert [x.dtype for x in got] == [torch.bfloat16] + [torch.float32] * 4
    ours, exact = gradients(got, tensors), gradients(want, tensors)
    for name, grad in ours.items():
        assert grad.dtype == torch.float32
        assert_close("d" + name, grad, exact[name], 5e-2)


def test_nothing_is_left_unwritten(device):
    with poisoned_memory():
        tensors, options = operands(packed=PACKED, device=device)
        out = both(tensors, **options, slab=10)
        grads = gradients(out, tensors)
    for name, x in [*zip(("y", "a", "b", "c", "d"), out, strict=True), *grads.items()]:
        assert torch.isfinite(x).all(), name


@pytest.mark.parametrize("slab", [0, 8])
def test_opcheck(slab):
    tensors, options = operands(packed=PACKED)
    settings = options["cu_seqlens"], slab, False, torch.float32, "reference", G, EPS, None
    torch.library.opcheck(torch.ops.seqkit.ssd_bidirectional_fwd.default, (*tensors_in_order(tensors), *settings))
    plain = [x.detach() for x in tensors_in_order(tensors)]
    y, *states = torch.ops.seqkit.ssd_bidirectional_fwd(*plain, *settings)
    torch.library.opcheck(torch.ops.seqkit.ssd_bidirectional_bwd.default, (y, *states, *plain, *settings))


def tensors_in_order(tensors):
    shared = [tensors[name] for name in ("x", *SHARED)]
    own = [[tensors[f"{side}.{name}"] for name in DirectionOperands._fields] for side in ("left", "right")]
    return [*shared, *own[0], *own[1]]


def test_compiles_without_graph_breaks():
    tensors, options = operands()
    torch._dynamo.reset()
    call = torch.compile(lambda t: both(t, **options, slab=8), fullgraph=True, backend="aot_eager")
    for a, b in zip(call(tensors), both(tensors, **options, slab=8), strict=True):
        assert torch.equal(a, b)


def test_second_derivatives_are_refused():
    tensors, options = operands()
    (first,) = torch.autograd.grad(both(tensors, **options)[0].square().sum(), tensors["x"], create_graph=True)
    with pytest.raises(RuntimeError, match="ssd_bidirectional: second derivatives are not supported"):
        first.sum().backward()


def test_keeps_states_between_slabs_only():
    tensors, options = operands(batch=1, length=4000)
    own, kept = {x.untyped_storage().data_ptr() for x in tensors.values()}, {}

    def pack(x):
        if x.untyped_storage().data_ptr() not in own:
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        both(tensors, **options, slab=500)
    assert sum(kept.values()) == 2 * 7 * 4 * (E * N + (W - 1) * MIXED)


@pytest.mark.parametrize(
    ("change", "error", "named"),
    [
        ({"slab": 0}, ConfigError, "slab"),
        ({"chunk_size": 0}, ConfigError, "chunk_size"),
        ({"right.A": torch.zeros(H + 1)}, ShapeError, "A"),
        ({"out_weight": torch.zeros(D, E + 1)}, ShapeError, "out_weight"),
    ],
)
def test_refusals_name_the_argument(change, error, named):
    tensors, options = operands(length=5)
    options |= {name: x for name, x in change.items() if not isinstance(x, torch.Tensor)}
    tensors |= {name: x for name, x in change.items() if isinstance(x, torch.Tensor)}
    with pytest.raises(error, match=named):
        both(tensors, **options)
