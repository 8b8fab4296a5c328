"""What the machine reaches at best, measured in the same run: copying, exponentials, matrix products."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass

import torch

from seqkit.kernels import dispatch
from seqkit.kernels.bench.measure import repeated
from seqkit.kernels.bench.operations import Work


@dataclass(frozen=True)
class Ceilings:
    """Attainable rates.

    Attributes:
        copy_gb_s: 10^9 bytes read and written per second by a copy.
        exp2_g_s: 10^9 exponentials per second; on a GPU by a Triton kernel that does nothing else.
        matmul_tflop_s: 10^12 operations per second of a matrix product, bfloat16 on a GPU, float32 on a CPU.
    """

    copy_gb_s: float
    exp2_g_s: float
    matmul_tflop_s: float

    def least_ms(self, work: Work) -> tuple[float, str]:
        """(time below which the work cannot be done, the ceiling that says so)."""
        times = {
            "copy": work.bytes / self.copy_gb_s / 1e6,
            "exp2": work.exponentials / self.exp2_g_s / 1e6,
            "matmul": work.operations / self.matmul_tflop_s / 1e9,
        }
        binding = max(times, key=times.get)
        return times[binding], binding

    def row(self) -> dict:
        """For the JSON line."""
        return {name: round(value, 3) for name, value in asdict(self).items()}


def measure(device: str) -> Ceilings:
    """Measure all three; a second or two."""
    cuda = device == "cuda"
    moved, copied = _copying(1 << (29 if cuda else 25), device)
    if cuda and dispatch.triton_installed():
        from seqkit.kernels.bench.triton_exponentials import launch

        where = torch.device("cuda", torch.cuda.current_device())
        exponentials, spent = launch(where)[1], _median(lambda: launch(where), device)
    else:
        x = torch.rand(1 << (26 if cuda else 16), device=device)  # on a CPU inside its caches
        out = torch.empty_like(x)
        exponentials, spent = x.numel(), _median(lambda: torch.exp2(x, out=out), device)
    n = 8192 if cuda else 1024
    a = torch.randn(n, n, dtype=torch.bfloat16 if cuda else torch.float32, device=device)
    product = _median(lambda: a @ a, device)
    return Ceilings(moved / copied / 1e6, exponentials / spent / 1e6, 2.0 * n**3 / product / 1e9)


def _copying(elements: int, device: str) -> tuple[int, float]:
    """(bytes read and written, milliseconds)."""
    source, target = torch.zeros(2, elements, device=device)
    return 8 * elements, _median(lambda: target.copy_(source), device)


def _median(run, device: str) -> float:
    return statistics.median(repeated([run], device, 5)[0])
