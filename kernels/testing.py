"""What tests and benchmarks of ops share: seeded problems, tolerances, comparison with the float64 oracle.

Legend: B batch, L length, S segments, D channels, N states, G groups, H heads, P head channels, W taps, M rotated
pairs, R rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from seqkit import kernels
from seqkit.kernels.oracle import ORACLES

# largest RMS(error) / RMS(reference); the one place that says what "right" means
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-2}
TOLERANCE_TINY_DELTA = {torch.float64: 1e-8, torch.float32: 1e-4, torch.bfloat16: 1e-2, torch.float16: 1e-2}

# operands in the order of the public signature, up to the first keyword-only one
POSITIONAL = {
    "selective_scan": ("u", "delta", "A", "B", "C"),
    "ssd_scan": ("x", "dt", "A", "B", "C"),
    "mamba3_scan": ("x", "dt", "A", "trap", "B", "C", "angles"),
    "causal_conv": ("x", "weight"),
    "rms_norm": ("x", "weight"),
    "gated_rms_norm": ("x", "z", "weight"),
}
SCANS = ("selective_scan", "ssd_scan", "causal_conv")  # their state is one tensor
STATEFUL = (*SCANS, "mamba3_scan")
PARAMETERS = ("A", "D", "weight", "bias", "delta_bias", "dt_bias", "initial_state", "residual")


@dataclass(frozen=True)
class Problem:
    """One call of an op: operands by name, settings by keyword; ``initial_state.k`` is a field of the state."""

    op: str
    tensors: dict[str, Tensor]
    settings: dict = field(default_factory=dict)

    def run(self) -> tuple[Tensor, ...]:
        """Call the public function; scans also return their final state."""
        names = POSITIONAL[self.op]
        optional = {name: x for name, x in self.tensors.items() if name not in names}
        fields = {name: optional.pop(name) for name in list(optional) if "." in name}
        if fields:
            optional["initial_state"] = kernels.Mamba3State(*fields.values())
        settings = dict(self.settings, return_final_state=True) if self.op in STATEFUL else self.settings
        out = getattr(kernels, self.op)(*(self.tensors[name] for name in names), **optional, **settings)
        return tuple(tree_leaves(out))

    def oracle(self) -> tuple[Tensor, ...]:
        """The same in float64 on the CPU, from the operands as they are (already rounded)."""
        settings = {k: v.cpu() if isinstance(v, Tensor) else v for k, v in self.settings.items()}
        return ORACLES[self.op]({name: x.double().cpu() for name, x in self.tensors.items()}, settings)

    def leaves(self) -> Problem:
        """Copy whose operands are leaves that require gradients (strides kept)."""
        return replace(self, tensors={name: x.detach().clone().requires_grad_() for name, x in self.tensors.items()})

    def without(self, *names: str) -> Problem:
        """Copy that lacks some operands."""
        return replace(self, tensors={name: x for name, x in self.tensors.items() if name not in names})

    def having(self, **settings) -> Problem:
        """Copy with more settings."""
        return replace(self, settings={**self.settings, **settings})


def assert_close(name: str, got: Tensor, want: Tensor, tolerance: float) -> None:
    """Raise unless RMS(got - want) <= tolerance * RMS(want), shapes agree and ``got`` is finite where ``want`` is.

    Args:
        name: Tensor's name for the message.
        got: Result, any dtype and device.
        want: Reference, float64.
        tolerance: Largest ratio.
    """
    if got.shape != want.shape:
        raise AssertionError(f"{name}: shape {tuple(got.shape)}, reference {tuple(want.shape)}")
    if got.numel() == 0:
        return
    ratio = error_ratio(got, want)
    if not ratio <= tolerance:
        raise AssertionError(f"{name}: RMS(error) / RMS(reference) is {ratio:.3g}, tolerance {tolerance:.3g}")


def error_ratio(got: Tensor, want: Tensor) -> float:
    """RMS(got - want) / RMS(want); an exact zero reference asks for an exact zero."""
    got, want = got.detach().double().cpu(), want.detach().double().cpu()
    error, scale = (got - want).square().mean().sqrt().item(), want.square().mean().sqrt().item()
    if scale == 0:
        return 0.0 if error == 0 else float("inf")
    return error / scale


def doubled(leaves: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same numbers as leaves in float64: what half precision is held against."""
    return {name: x.detach().double().requires_grad_() for name, x in leaves.items()}


def gradients(outputs: tuple[Tensor, ...], operands: dict[str, Tensor], seed: int = 1) -> dict[str, Tensor]:
    """Gradients of a fixed random projection of all outputs."""
    generator = torch.Generator().manual_seed(seed)
    loss = 0.0
    for out in outputs:
        weight = torch.randn(out.shape, generator=generator, dtype=torch.float64)
        loss = loss + (out.double() * weight.to(out.device)).sum()
    grads = torch.autograd.grad(loss, list(operands.values()), allow_unused=True)
    return {
        name: torch.zeros_like(x) if grad is None else grad
        for (name, x), grad in zip(operands.items(), grads, strict=True)
    }


def check_alike(
    got: dict[str, Tensor], want: dict[str, Tensor], leaves: dict[str, Tensor], exact: dict[str, Tensor],
    tolerance: float, together: float | None = None,
) -> None:  # fmt: skip
    """Outputs of one way to compute something, and every gradient through them, against those of another.

    Args:
        got: Outputs by name.
        want: Those of the other way.
        leaves: What ``got`` was computed from; gradients have the dtypes of these.
        exact: What ``want`` was computed from.
        tolerance: Largest ratio of RMS error to RMS reference of a tensor.
        together: Largest root mean square of all these ratios: few numbers may be unlucky, all cannot.
    """
    ours, theirs = gradients(tuple(got.values()), leaves), gradients(tuple(want.values()), exact)
    assert all(grad.dtype == leaves[name].dtype for name, grad in ours.items())
    pairs = {name: (x, want[name]) for name, x in got.items()}
    pairs |= {f"d{name}": (grad, theirs[name]) for name, grad in ours.items()}
    for name, pair in pairs.items():
        assert_close(name, *pair, tolerance)
    if together is not None:
        ratio = math.sqrt(sum(error_ratio(*pair) ** 2 for pair in pairs.values()) / len(pairs))
        assert ratio <= together, f"all together: {ratio:.3g}, tolerance {together:.3g}"


def check(problem: Problem, tolerance: float) -> None:
    """Values, final state and every gradient against the oracle; dtypes of results as the contract has them."""
    ours, exact = problem.leaves(), problem.leaves()
    exact = replace(exact, tensors={k: v.detach().double().cpu().requires_grad_() for k, v in exact.tensors.items()})
    got, want = ours.run(), exact.oracle()
    labels = ("y", "theta", "ssm", "k", "v") if problem.op == "mamba3_scan" else ("y", "state")
    for label, a, b in zip(labels, got, want, strict=False):
        assert_close(f"{problem.op} {label}", a, b, tolerance)
    first = next(iter(problem.tensors.values()))
    wide = torch.float64 if first.dtype == torch.float64 else torch.float32
    dtypes = [first.dtype, *(torch.float64 if label == "theta" else wide for label in labels[1:])]
    if [x.dtype for x in got] != dtypes[: len(got)]:
        raise AssertionError(f"{problem.op}: dtypes {[x.dtype for x in got]} for operands in {first.dtype}")
    got_grads, want_grads = gradients(got, ours.tensors), gradients(want, exact.tensors)
    for name, grad in got_grads.items():
        if grad.dtype != problem.tensors[name].dtype:
            raise AssertionError(f"{problem.op} d{name}: dtype {grad.dtype}, operand {problem.tensors[name].dtype}")
        assert_close(f"{problem.op} d{name}", grad, want_grads[name], tolerance)


class Maker:
    """Seeded random operands in one dtype on one device."""

    def __init__(self, dtype: torch.dtype, device: str = "cpu", seed: int = 0):
        self.dtype, self.device = dtype, device
        self.wide = torch.float64 if dtype == torch.float64 else torch.float32
        self._generator = torch.Generator().manual_seed(seed)

    def activation(self, *shape: int) -> Tensor:
        """Standard normal in the activation dtype."""
        return torch.randn(shape, generator=self._generator, dtype=torch.float64).to(self.device, self.dtype)

    def parameter(self, *shape: int) -> Tensor:
        """Standard normal in float32 (float64 in float64)."""
        return torch.randn(shape, generator=self._generator, dtype=torch.float64).to(self.device, self.wide)

    def uniform(self, low: float, high: float, *shape: int, wide: bool = False) -> Tensor:
        """Log-uniform where both ends are positive, else uniform."""
        x = torch.rand(shape, generator=self._generator, dtype=torch.float64)
        x = low * (high / low) ** x if low > 0 else low + (high - low) * x
        return x.to(self.device, self.wide if wide else self.dtype)


def make_problem(
    op: str,
    *,
    batch: int = 2,
    length: int = 65,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    groups: int = 1,
    delta: tuple[float, float] = (1e-3, 0.5),
    segments: list[int] | None = None,
    seed: int = 0,
    rank: int | None = None,
) -> Problem:
    """A problem with every optional operand, odd sizes (D = 6 in groups, else 5; N = 3; H = 4 or 3; P = 5).

    Args:
        op: Public op.
        batch: B; 1 with ``segments``.
        length: L, of all segments together.
        dtype: Of the activations.
        device: Where the operands live.
        groups: G of the scans.
        delta: Range of the step sizes, log-uniform.
        segments: Boundaries of packed sequences.
        seed: Of the random numbers.
        rank: R of a multi-input, multi-output mamba3_scan; None for the plain one.
    """
    make = Maker(dtype, device, seed)
    batch = batch if segments is None else 1
    count = batch if segments is None else len(segments) - 1
    settings = {} if segments is None else {"cu_seqlens": torch.tensor(segments, dtype=torch.int32, device=device)}
    tokens = (batch, length)
    if op == "selective_scan":
        D, N = (6 if groups > 1 else 5), 3
        weights = (*tokens, N) if groups == 1 else (*tokens, groups, N)
        tensors = {
            "u": make.activation(*tokens, D),
            "delta": make.uniform(*delta, *tokens, D),
            "A": -make.uniform(0.3, 4.0, D, N, wide=True),
            "B": make.activation(*weights),
            "C": make.activation(*weights),
            "D": make.parameter(D),
            "z": make.activation(*tokens, D),
            "delta_bias": make.uniform(0.01, 0.1, D, wide=True),
            "initial_state": make.parameter(count, D, N),
        }
    elif op == "ssd_scan":
        H, P, N = (4 if groups > 1 else 3), 5, 7
        tensors = {
            "x": make.activation(*tokens, H, P),
            "dt": make.uniform(*delta, *tokens, H),
            "A": -make.uniform(0.3, 4.0, H, wide=True),
            "B": make.activation(*tokens, groups, N),
            "C": make.activation(*tokens, groups, N),
            "D": make.parameter(H, P),
            "z": make.activation(*tokens, H, P),
            "dt_bias": make.uniform(0.01, 0.1, H, wide=True),
            "initial_state": make.parameter(count, H, P, N),
        }
    elif op == "mamba3_scan":
        tensors = _mamba3_operands(make, tokens, count, groups, delta, rank)
    elif op == "causal_conv":
        D, W = 5, 4
        tensors = {
            "x": make.activation(*tokens, D),
            "weight": make.parameter(D, W),
            "bias": make.parameter(D),
            "initial_state": make.parameter(count, W - 1, D),
        }
    elif op == "rms_norm":
        tensors = {
            "x": make.activation(*tokens, 7),
            "weight": make.parameter(7),
            "residual": make.parameter(*tokens, 7),
        }
    else:
        tensors = {"x": make.activation(*tokens, 6), "z": make.activation(*tokens, 6), "weight": make.parameter(6)}
    return Problem(op, tensors, settings)


def _mamba3_operands(
    make: Maker, tokens: tuple[int, int], count: int, groups: int, delta: tuple[float, float], rank: int | None
) -> dict[str, Tensor]:
    """Operands of a Mamba-3 scan; ``delta`` holds before the softplus undone here, the bias aside."""
    H, P, N, M = (4 if groups > 1 else 3), 5, 7, 3
    ranks = () if rank is None else (rank,)
    dt = make.uniform(*delta, *tokens, H)
    tensors = {
        "x": make.activation(*tokens, H, P),
        "dt": (dt.double() + torch.log(-torch.expm1(-dt.double()))).to(dt.dtype),
        "A": make.activation(*tokens, H),
        "trap": make.activation(*tokens, H),
        "B": make.activation(*tokens, *ranks, groups, N),
        "C": make.activation(*tokens, *ranks, groups, N),
        "angles": make.activation(*tokens, M),
        "B_bias": make.parameter(H, *ranks, N),
        "C_bias": make.parameter(H, *ranks, N),
        "dt_bias": make.uniform(0.01, 0.1, H, wide=True),
        "D": make.parameter(H, P),
        "z": make.activation(*tokens, H, P),
    }
    if rank is not None:
        tensors |= {name: make.parameter(H, rank, P) for name in ("mimo_x", "mimo_z", "mimo_o")}
    return tensors | {
        "initial_state.theta": make.uniform(-3.0, 3.0, count, H, M, wide=True).double(),
        "initial_state.ssm": make.parameter(count, H, P, N),
        "initial_state.k": make.parameter(count, rank or 1, H, N),
        "initial_state.v": make.parameter(count, H, P),
    }


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Fill memory that PyTorch hands out uninitialised with NaN: a result that was never written shows."""
    before, fill = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.utils.deterministic.fill_uninitialized_memory = fill
