"""The ops as PyTorch sees them: schemas, fakes, autograd, compile, autocast, scaler, checkpoint, second derivatives."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

from seqkit import kernels
from seqkit.kernels.testing import POSITIONAL, STATEFUL, Problem, assert_close, error_ratio, gradients, make_problem

OPS = tuple(POSITIONAL)


def raw_arguments(problem, provider):
    """Arguments of the forward custom op behind a public function."""
    t, s = problem.tensors, problem.settings
    cu = s.get("cu_seqlens")
    if problem.op == "selective_scan":
        wide = [x if x.dim() == 4 else x.unsqueeze(2) for x in (t["B"], t["C"])]
        optional = [t.get(k) for k in ("D", "z", "delta_bias", "initial_state")]
        return (t["u"], t["delta"], t["A"], *wide, *optional, cu, True, False, provider)
    if problem.op == "ssd_scan":
        optional = [t.get(k) for k in ("D", "z", "dt_bias", "initial_state")]
        operands = [t[k] for k in ("x", "dt", "A", "B", "C")]
        return (*operands, *optional, cu, True, 0.0, 1.0, False, 16, provider)
    if problem.op == "mamba3_scan":
        rank_at = {"B": 2, "C": 2, "B_bias": 1, "C_bias": 1}
        t = {k: v.unsqueeze(rank_at[k]) if k in rank_at else v for k, v in t.items()}
        ranks = (None, None, None)
        operands = [x for k, x in t.items() if not k.startswith("initial_state")]
        state = [x for k, x in t.items() if k.startswith("initial_state")]
        return (*operands, *ranks, *state, cu, False, "heavy-tail", "halves", 1e-4, 16, provider)
    if problem.op == "causal_conv":
        return (t["x"], t["weight"], t.get("bias"), t.get("initial_state"), cu, "silu", False, provider)
    if problem.op == "rms_norm":
        return (t["x"], t["weight"], t.get("residual"), t["x"].dtype, 1e-5, provider)
    return (t["x"], t["z"], t["weight"], 1e-5, 3, False, provider)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("packed", [False, True])
def test_opcheck_forward(provider, device, op, packed):
    if packed and op not in STATEFUL:
        pytest.skip("norms know no segments")
    problem = make_problem(op, length=20, segments=[0, 3, 3, 20] if packed else None, device=device).leaves()
    torch.library.opcheck(getattr(torch.ops.seqkit, op + "_fwd").default, raw_arguments(problem, provider))


@pytest.mark.parametrize("op", STATEFUL)
def test_opcheck_backward(provider, device, op):
    problem = make_problem(op, length=20, device=device)
    arguments = raw_arguments(problem, provider)
    out = getattr(torch.ops.seqkit, op + "_fwd")(*arguments)
    outputs = 5 if op == "mamba3_scan" else 2
    torch.library.opcheck(
        getattr(torch.ops.seqkit, op + "_bwd").default,
        (*map(torch.randn_like, out[:outputs]), *out[outputs:], *arguments),
    )


@pytest.mark.parametrize("op", OPS)
def test_compiles_without_graph_breaks(provider, device, op):
    problem = make_problem(op, length=37, device=device).leaves()

    def call(tensors):
        return Problem(op, tensors).run()

    torch._dynamo.reset()
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    got, want = compiled(problem.tensors), call(problem.tensors)
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)
    got, want = gradients(got, problem.tensors), gradients(want, problem.tensors)
    for name in got:
        assert_close(name, got[name], want[name].double(), 1e-6)


@pytest.mark.parametrize("op", STATEFUL)
def test_compiled_once_for_many_lengths(provider, device, op):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")

    def call(tensors):
        return getattr(kernels, op)(*tensors)

    compiled = torch.compile(call, fullgraph=True, backend=counter, dynamic=True)
    counts = []
    for length in (100, 133, 270):
        tensors = [make_problem(op, length=length, device=device).tensors[k] for k in POSITIONAL[op]]
        assert torch.equal(compiled(tensors), call(tensors))
        counts.append(counter.frame_count)
    assert counts[1:] == counts[:-1]


@pytest.mark.parametrize("op", OPS)
def test_autocast_changes_nothing_inside(provider, device, op):
    problem = make_problem(op, length=40, device=device).leaves()
    want = problem.run()
    with torch.autocast(device, dtype=torch.bfloat16):
        got = problem.run()
    for a, b in zip(got, want, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    got, want = gradients(got, problem.tensors), gradients(want, problem.tensors)
    for name in got:
        assert torch.equal(got[name], want[name]), name


class Inner(torch.nn.Module):
    """A Mamba-1 inner path, small."""

    def __init__(self, device):
        super().__init__()
        self.inp = torch.nn.Linear(8, 2 * 6 + 2 * 3, device=device)
        self.conv = torch.nn.Parameter(torch.randn(6, 4, device=device) * 0.5)
        self.A = torch.nn.Parameter(-torch.rand(6, 3, device=device) - 0.1)
        self.bias = torch.nn.Parameter(torch.zeros(6, device=device))
        self.out = torch.nn.Linear(6, 8, device=device)
        self.drop = torch.nn.Dropout(0.3)

    def forward(self, x):
        u, delta, B, C = self.inp(x).split([6, 6, 3, 3], dim=-1)
        u = kernels.causal_conv(u, self.conv, activation="silu")
        y = kernels.selective_scan(u, delta, self.A, B, C, delta_bias=self.bias, delta_softplus=True)
        return self.out(self.drop(y))


def test_bf16_autocast_trains(provider, device):
    torch.manual_seed(0)
    module, x = Inner(device).eval(), torch.randn(2, 50, 8, device=device)
    exact = torch.autograd.grad(module(x).square().sum(), list(module.parameters()))
    with torch.autocast(device, dtype=torch.bfloat16):
        out = module(x)
        assert out.dtype == torch.bfloat16
        loss = out.float().square().sum()
    rough = torch.autograd.grad(loss, list(module.parameters()))
    for a, b in zip(rough, exact, strict=True):
        assert a.dtype == torch.float32
        assert 0 < error_ratio(a, b) < 5e-2


def test_fp16_grad_scaler(provider, device):
    torch.manual_seed(0)
    module, x = Inner(device).eval(), torch.randn(2, 50, 8, device=device)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler(device, init_scale=1024.0)
    with torch.autocast(device, dtype=torch.float16):
        loss = module(x).float().square().mean()
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    exact = torch.autograd.grad(module(x).square().mean(), list(module.parameters()))
    for parameter, want in zip(module.parameters(), exact, strict=True):
        assert 0 < error_ratio(parameter.grad, want) < 2e-2
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 1024.0  # nothing overflowed


def test_checkpoint_with_dropout(provider, device):
    module, x = Inner(device), torch.randn(2, 50, 8, device=device, requires_grad=True)

    def grads(run):
        torch.manual_seed(3)
        return torch.autograd.grad(run().square().sum(), [x, *module.parameters()])

    plain = grads(lambda: module(x))
    recomputed = grads(lambda: checkpoint(module, x, use_reentrant=False))
    for a, b in zip(plain, recomputed, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("op", OPS)
def test_second_derivatives_are_refused(provider, device, op):
    problem = make_problem(op, length=9, device=device).leaves()
    operand = problem.tensors[POSITIONAL[op][0]]
    (first,) = torch.autograd.grad(problem.run()[0].square().sum(), operand, create_graph=True)
    with pytest.raises(RuntimeError, match=f"{op}: second derivatives are not supported"):
        first.sum().backward()


@pytest.mark.parametrize("op", OPS)
def test_outputs_never_alias_inputs(provider, device, op):
    problem = make_problem(op, length=5, device=device)
    storages = {x.untyped_storage().data_ptr() for x in problem.tensors.values()}
    for out in problem.run():
        assert out.untyped_storage().data_ptr() not in storages
        assert out.is_contiguous()
