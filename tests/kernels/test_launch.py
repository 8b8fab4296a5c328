"""Launches by key: two that Triton would compile apart never share one, and what is launched is what was asked for.

The driver here has no GPU behind it: its device is that of CPU tensors, its compiler notes what it was asked for.
"""

import os
import sys
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seqkit.kernels import dispatch

if not dispatch.triton_installed() or os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("needs Triton, and not its interpreter", allow_module_level=True)

import triton
import triton.language as tl
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel
from triton.runtime import JITFunction, driver

from seqkit.kernels import triton_compiled
from seqkit.kernels.steps import triton_provider as steps
from seqkit.kernels.testing import STATEFUL, Problem, gradients, make_problem
from seqkit.kernels.triton_compiled import Launches, launch

TARGET = GPUTarget("cuda", 90, 32)
DEVICE = torch.empty(0).get_device()
STEPS = {"selective_step", "ssd_step", "conv_step"}
INTEGERS = (0, 1, 2, 15, 16, 17, -1, -16, 2**31 - 16, 2**31 - 1, 2**31, -(2**31), -(2**31) - 1, 2**40, 2**63 - 1, 2**63)


class Driver:
    """What Triton asks of a driver between a launch and the compiler."""

    device = DEVICE

    def get_current_target(self):
        return TARGET

    def get_current_device(self):
        return self.device

    def get_current_stream(self, device):
        return 5


@triton.jit(do_not_specialize=["loose", "loose_ptr"])
def plain_kernel(
    x_ptr, loose_ptr, loose, stride: tl.constexpr, strict, scale, flag, N: tl.constexpr, KIND: tl.constexpr
):
    pass


@triton.jit(do_not_specialize_on_alignment=["x_ptr"])
def typed_kernel(x_ptr, y_ptr, wide: tl.int64, narrow, scale: tl.float32, N: tl.constexpr, KIND: tl.constexpr):
    pass


def compiled(run, backend="cuda"):
    kernel = object.__new__(CompiledKernel)
    kernel.module, kernel._module_pid, kernel._run = object(), None, run
    kernel.function, kernel.packed_metadata = 7, (4, 1, 0)
    kernel.metadata = SimpleNamespace(target=GPUTarget(backend, 90, 32))
    return kernel


@pytest.fixture
def launched(monkeypatch):
    """Arguments of every launch that reaches the launcher."""
    calls, filled = [], []

    def compile_nothing(self, key, signature, device, *rest):
        filled.append((self.device_caches, device))
        return self.device_caches[device][0].setdefault(key, compiled(lambda *args: calls.append(args)))

    monkeypatch.setattr(driver, "_active", Driver())
    monkeypatch.setattr(JITFunction, "_do_compile", compile_nothing)
    monkeypatch.setattr(CompiledKernel, "launch_metadata", lambda self, *args: "metadata")
    monkeypatch.setattr(triton_compiled, "_LAUNCHES", {})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(major=9, minor=0))
    for kernel in (plain_kernel, typed_kernel):
        kernel.device_caches.clear()
    yield calls
    for caches, device in filled:  # the next test's driver may want a kernel that was compiled
        caches.pop(device, None)


def aligned(dtype=torch.float32, offset=0):
    return torch.empty(64, dtype=dtype)[offset:]


tensors = st.builds(
    aligned, st.sampled_from([torch.float32, torch.float32, torch.bfloat16]), st.sampled_from([0, 1, 2, 4, 8])
)
integers = st.sampled_from(INTEGERS) | st.integers(-(2**63), 2**63)
scalars = integers | st.none() | st.booleans() | st.floats(allow_nan=False)
POINTERS = tensors | st.none()
STRIDES = st.sampled_from([1, 2, 32, 2**40, True])
ARGUMENTS = {
    plain_kernel: (tensors, POINTERS, scalars, STRIDES, scalars, scalars, scalars),
    typed_kernel: (POINTERS, tensors, integers, scalars, st.floats(allow_nan=False)),
}
CONSTANTS = {
    "N": st.sampled_from([0, 1, 2, 16, True, False, None]),
    "KIND": st.sampled_from(["a", "b", tl.float16, tl.bfloat16, 1, True]),
    "num_warps": st.sampled_from([1, 4]),
    "num_stages": st.sampled_from([1, 4]),
}


def drawn(data, kernel):
    """Two launches that differ in a few arguments."""
    kinds = ARGUMENTS[kernel]
    first, constants = [data.draw(kind) for kind in kinds], {k: data.draw(v) for k, v in CONSTANTS.items()}
    second, others = list(first), dict(constants)
    places = st.sampled_from(range(len(kinds) + len(CONSTANTS)))
    for place in data.draw(st.sets(places, min_size=1, max_size=2)):
        if place < len(kinds):
            second[place] = data.draw(kinds[place])
        else:
            name = list(CONSTANTS)[place - len(kinds)]
            others[name] = data.draw(CONSTANTS[name])
    return (tuple(first), constants), (tuple(second), others)


def triton_key(kernel, args, constants):
    """What Triton compiles for, types and all: repr tells 1, True and 1.0 apart."""
    _, specialization, options = kernel.create_binder()[-1](*args, **constants)
    return repr((specialization, sorted(options.items())))


def own_key(kernel, args, constants, device=DEVICE):
    launches, types = Launches(kernel), tuple(map(type, args))
    plan = launches.plan(types)
    return None if plan is None else launches.key(device, types, plan, args, constants)[0]


@pytest.mark.parametrize("kernel", list(ARGUMENTS), ids=lambda kernel: kernel.__name__)
@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_equal_keys_are_compiled_alike(kernel, data):
    before, driver._active = driver._active, Driver()
    try:
        one, other = drawn(data, kernel)
        key = own_key(kernel, *one)
        if key is not None and key == own_key(kernel, *other):
            assert triton_key(kernel, *one) == triton_key(kernel, *other)
    finally:
        driver._active = before


def plain(x, loose=1000, strict=32, **constants):
    launch(plain_kernel, 3, x, None, loose, 24, strict, 0.5, True, **{"N": 8, "KIND": "a"} | constants)


def ways(calls):
    """Of every launch, whether it found a compiled form: Triton's own way passes tensors and hooks on."""
    return [not any(isinstance(value, torch.Tensor) for value in call) for call in calls]


def test_the_second_launch_passes_addresses(launched):
    x, view = aligned(), aligned(offset=4)
    plain(x)
    plain(view, loose=77, strict=48)
    assert ways(launched) == [False, True]
    assert launched[0][:6] == (3, 1, 1, 5, 7, (4, 1, 0))
    assert launched[1][:9] == (3, 1, 1, 5, 7, (4, 1, 0), None, None, None)
    assert launched[1][9:16] == (view.data_ptr(), None, 77, 24, 48, 0.5, True)
    assert len(launched[1]) == len(launched[0])


@pytest.mark.parametrize(
    "change",
    [{"loose": 2**31}, {"strict": 1}, {"strict": 33}, {"strict": 2**31}, {"N": 9}, {"N": True}, {"num_warps": 8}],
)
def test_what_is_compiled_in_goes_to_the_compiler_once(launched, change):
    x = aligned()
    for more in ({}, change, change, {}):
        plain(x, **{"N": 1} | more)
    assert ways(launched) == [False, False, True, True]


@pytest.mark.parametrize("other", [aligned(offset=1), aligned(torch.bfloat16), torch.nn.Parameter(aligned(offset=3))])
def test_alignment_and_dtype_go_to_the_compiler_once(launched, other):
    for x in (aligned(), other, other):
        plain(x)
    assert ways(launched) == [False, False, True]


@pytest.mark.parametrize("hook", ["launch_enter_hook", "launch_exit_hook"])
def test_hooks_see_every_launch(launched, monkeypatch, hook):
    plain(aligned())
    watch = type(getattr(knobs.runtime, hook))()
    monkeypatch.setattr(knobs.runtime, hook, watch)
    plain(aligned())
    watch.add(lambda metadata: None)
    plain(aligned())
    assert ways(launched) == [False, True, False]
    assert watch in launched[2]


@pytest.mark.parametrize(
    ("knob", "value"), [("debug", True), ("add_stages_inspection_hook", lambda *args: ("key", "hash"))]
)
def test_settings_of_the_compiler_are_triton_s(launched, monkeypatch, knob, value):
    plain(aligned())
    monkeypatch.setattr(knobs.runtime, knob, value)
    plain(aligned())
    assert ways(launched) == [False, False]


def test_unknown_versions_go_triton_s_way(launched, monkeypatch):
    monkeypatch.setattr(triton_compiled, "KNOWN", False)
    for _ in range(2):
        plain(aligned())
    assert ways(launched) == [False, False]


def test_tensors_that_are_not_on_the_device_are_triton_s_to_refuse(launched, monkeypatch):
    monkeypatch.setattr(Driver, "device", 0)
    for _ in range(2):
        plain(aligned())
    assert ways(launched) == [False, False]


def test_other_backends_go_triton_s_way(launched, monkeypatch):
    run = launched.append
    monkeypatch.setattr(JITFunction, "_do_compile", lambda *args: compiled(lambda *given: run(given), "hip"))
    for _ in range(2):
        plain(aligned())
    assert ways(launched) == [False, False]


def test_devices_have_forms_of_their_own():
    args = (aligned(), None, 1, 1, 1, 1.0, True)
    assert own_key(plain_kernel, args, {"N": 1}, device=0) != own_key(plain_kernel, args, {"N": 1}, device=1)


def run_steps(length):
    x, state = torch.randn(length // 8, 32).bfloat16(), torch.zeros(length // 8, 32, 16)
    heads, weights, states = x.unflatten(1, (2, 16)), x[:, None, :16], state.unflatten(1, (2, 16))
    steps.selective_step_forward(x, x, -torch.rand(32, 16), weights, weights, state, torch.ones(32), x, None, True)
    rates = -torch.rand(2), weights, weights, states, torch.ones(2), heads, None, True, 0.0, 1.0
    steps.ssd_step_forward(heads, x[:, :2], *rates)
    steps.conv_step_forward(x, torch.randn(32, 4), state[..., :3].mT, None, "silu")


def run_op(op):
    def run(length):
        problem = make_problem(op, length=length, dtype=torch.bfloat16).leaves()
        gradients(problem.run(), problem.tensors)

    return run


@pytest.mark.parametrize("op", [*sorted(dispatch.PROVIDERS["triton"].keys() - STEPS), "steps"])
def test_every_launch_of_an_op_finds_its_form_the_second_time(launched, monkeypatch, op):
    """Whatever the length, if it is divisible by as much as the first."""
    monkeypatch.setattr(dispatch, "provider_for", lambda op, *operands: "triton")
    run = run_steps if op == "steps" else run_op(op)
    run(40)
    count = len(launched)
    run(56)
    assert count
    assert ways(launched[count:]) == [True] * count


OWN_SETTINGS = {
    "selective_scan": [{"delta_softplus": True}],
    "ssd_scan": [{"dt_softplus": True}, {"dt_min": 0.5}, {"dt_max": 0.5}, {"chunk_size": 16}],
    "causal_conv": [{"activation": "silu"}],
    "rms_norm": [{"eps": 0.1}],
    "gated_rms_norm": [{"eps": 0.1}, {"group_size": 3}, {"norm_before_gate": True}],
}


def varied(op):
    """Problems that differ in what scalars and constants of launches depend on."""
    for dtype in (torch.float32, torch.bfloat16):
        plain = make_problem(op, length=40, dtype=dtype)
        yield from (plain, *(plain.having(**own) for own in OWN_SETTINGS[op]))
        yield from (make_problem(op, batch=batch, length=length, dtype=dtype) for batch, length in ((1, 80), (3, 300)))
        if op not in STATEFUL:
            continue
        packed = make_problem(op, length=80, segments=[0, 3, 3, 80], dtype=dtype)
        yield from (plain.having(reverse=True), packed, packed.having(reverse=True))
        yield make_problem(op, length=80, segments=[0, 80], dtype=dtype)
        yield make_problem(op, length=40, groups=2, dtype=dtype)
        yield plain.without("z", "D", "bias")
    if "B" in plain.tensors:
        yield Problem(op, plain.tensors | {"B": plain.tensors["B"].half()}, plain.settings)
        yield Problem(op, plain.tensors | {"D": plain.tensors["D"].view(len(plain.tensors["D"]), -1)[:, 0]}, {})


@pytest.mark.parametrize(
    ("op", "sites"),
    [("selective_scan", 7), ("ssd_scan", 8), ("causal_conv", 5), ("rms_norm", 2), ("gated_rms_norm", 2)],
)
def test_keys_of_a_site_determine_what_it_settles(launched, monkeypatch, op, sites):
    monkeypatch.setattr(dispatch, "provider_for", lambda op, *operands: "triton")
    seen = {}

    def compare(kernel, key, settle, *tensors):
        settled = repr(settle())
        assert seen.setdefault((kernel.__name__, key), settled) == settled

    dispatch.implementation(op, "triton")
    for name, module in list(sys.modules.items()):
        if name.startswith("seqkit.kernels") and hasattr(module, "launch_settled"):
            monkeypatch.setattr(module, "launch_settled", compare)
    for problem in varied(op):
        problem = problem.leaves()
        gradients(problem.run(), problem.tensors)
    assert len({name for name, _ in seen}) == sites
    assert len(seen) > 2 * sites


@pytest.mark.gpu
@pytest.mark.parametrize("op", sorted(dispatch.PROVIDERS["triton"].keys() - STEPS))
def test_a_found_form_computes_the_same_bits(monkeypatch, op):
    problem = make_problem(op, length=1000, dtype=torch.bfloat16, device="cuda").leaves()
    launches: dict = {}
    monkeypatch.setattr(triton_compiled, "_LAUNCHES", launches)
    first = gradients(problem.run(), problem.tensors)
    if triton_compiled.KNOWN:
        assert all(kernel.forms for kernel in launches.values())
        monkeypatch.setattr(Launches, "_remember", None)  # nothing is left to remember
    for name, grad in gradients(problem.run(), problem.tensors).items():
        assert torch.equal(grad, first[name]), name
