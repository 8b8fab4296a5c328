"""Check one provider against float64, then time it: eager calls, CUDA-graph replay, peak memory.

Times are milliseconds. Forward + backward is one call of the op and of ``torch.autograd.grad`` for all operands, with
gradients of the outputs that exist before.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
from torch import Tensor

from seqkit.kernels.bench.operations import OPERATIONS, Draw, Sample, Tensors, index_of
from seqkit.kernels.bench.providers import PROVIDERS, chosen
from seqkit.kernels.bench.suites import Case
from seqkit.kernels.testing import TOLERANCE_TINY_DELTA, error_ratio

SECONDS = 0.25  # spent on repeated calls of one kind
MOST_REPEATS = 100
HOST_CALLS, HOST_ROUNDS = 5, 9  # so few that a GPU takes all their launches without making the host wait
SMALL = 1 << 24  # activations of an operand up to which launches, not the GPU, may set the pace: graphs are timed too


class Runner:
    """One provider on one case, in the layout it wants."""

    def __init__(self, case: Case, provider: str, operands: Tensors):
        self.case, self.provider = case, provider
        self.op, self.implementation = OPERATIONS[case.op], PROVIDERS[case.op][provider]
        native = {name: self.implementation.native(name, x) for name, x in operands.items()}
        self.leaves = {name: x.detach().requires_grad_() for name, x in native.items()}
        self.dys: tuple[Tensor, ...] = ()

    def outputs(self) -> tuple[Tensor, ...]:
        """What the provider returns, in its layout."""
        with chosen(self.provider):
            return self.implementation.run(self.leaves, self.case.sizes)

    def forward(self) -> None:
        """One forward pass that keeps nothing."""
        with torch.no_grad():
            self.outputs()

    def both(self) -> tuple[Tensor, ...]:
        """Outputs and gradients of all operands."""
        outputs = self.outputs()
        return (*outputs, *torch.autograd.grad(outputs, list(self.leaves.values()), self.dys))

    def errors(self, seed: int) -> dict[str, float]:
        """RMS(error) / RMS(value) against float64 of sampled outputs and of the gradients that the sample gives."""
        device = next(iter(self.leaves.values())).device
        sample, native = self.op.sample(self.case.sizes, device), self.implementation.native
        got, weights = self._sampled(sample, Draw(torch.float32, device, seed))
        exact = {n: taken(sample, n, native(n, x.detach())).double().requires_grad_() for n, x in self.leaves.items()}
        values = self.op.exact(exact, sample)
        want = dict(zip(self.op.outputs, values, strict=True))
        gradients = torch.autograd.grad(values, list(exact.values()), weights)
        want |= {f"d{name}": grad for name, grad in zip(exact, gradients, strict=True)}
        return {name: error_ratio(got[name], want[name]) for name in want}

    def _sampled(self, sample: Sample, draw: Draw) -> tuple[Tensors, list[Tensor]]:
        """(outputs and gradients at the sample, gradients of the outputs there, which are zero everywhere else)."""
        native, names = self.implementation.native, self.op.outputs
        outputs = [native(name, y) for name, y in zip(names, self.outputs(), strict=True)]
        dys = [torch.zeros_like(y) for y in outputs]
        for name, dy in zip(names, dys, strict=True):
            at = index_of(sample, name, dy.dim())
            dy[at] = draw.normal(*dy[at].shape).to(dy.dtype)
        grads = torch.autograd.grad(outputs, list(self.leaves.values()), dys)
        got = {name: taken(sample, name, y.detach()) for name, y in zip(names, outputs, strict=True)}
        got |= {f"d{n}": taken(sample, n, native(n, x)) for n, x in zip(self.leaves, grads, strict=True)}
        return got, [taken(sample, name, dy).double() for name, dy in zip(names, dys, strict=True)]

    def tolerance(self) -> float:
        """Largest ratio that passes; independent roundings add up in squares."""
        return TOLERANCE_TINY_DELTA[getattr(torch, self.case.dtype)] * math.sqrt(self.op.roundings)

    def prepare(self) -> None:
        """Gradients of the outputs, made before the clock starts."""
        with torch.no_grad():
            self.dys = tuple(torch.randn_like(y) for y in self.outputs())


def taken(sample: Sample, name: str, x: Tensor) -> Tensor:
    """The sampled part of an operand or output."""
    return x[index_of(sample, name, x.dim())]


def milliseconds(run: Callable[[], object], device: str) -> float:
    """Time of one call; on a GPU between two events on its stream."""
    if device != "cuda":
        begin = time.perf_counter()
        run()
        return (time.perf_counter() - begin) * 1e3
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def repeated(runs: list[Callable[[], object]], device: str, least: int) -> list[list[float]]:
    """Times of all calls, taking turns, so that a busy moment hits all of them; the first round is not counted."""
    begin = time.perf_counter()
    for run in runs:
        milliseconds(run, device)
    rounds = max(least, min(MOST_REPEATS, int(SECONDS / max(time.perf_counter() - begin, 1e-6))))
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(rounds):
        for i, run in enumerate(runs):
            times[i].append(milliseconds(run, device))
    return times


def quartiles(times: list[float]) -> list[float]:
    """Lower quartile, median, upper quartile."""
    return torch.tensor(times, dtype=torch.float64).quantile(torch.tensor([0.25, 0.5, 0.75]).double()).tolist()


def graphed(run: Callable[[], object]) -> Callable[[], None]:
    """Replay of a CUDA graph that holds ``run``."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def host_microseconds(run: Callable[[], object]) -> float:
    """What a call costs the host, whatever the GPU does meanwhile: median of a few that are not waited for."""
    times = []
    for _ in range(HOST_ROUNDS):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(HOST_CALLS):
            run()
        times.append((time.perf_counter() - begin) / HOST_CALLS * 1e6)
    torch.cuda.synchronize()
    return quartiles(times)[1]


def peak_bytes(run: Callable[[], tuple[Tensor, ...]]) -> tuple[int, int]:
    """(peak above what was allocated before, of which results) of one call on a GPU."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    results = run()
    torch.cuda.synchronize()
    storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in results}
    return torch.cuda.max_memory_allocated() - before, sum(storages.values())


def small(case: Case) -> bool:
    """Whether the launches of a case may take longer than its kernels."""
    sizes = case.sizes
    width = sizes.get("D", sizes.get("M", 1)) * sizes.get("H", 1) * sizes.get("P", 1)
    return sizes["B"] * sizes["L"] * width <= SMALL
