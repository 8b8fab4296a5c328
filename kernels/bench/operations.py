"""What is timed: operands of every op, the sample that is checked, and the least work it takes.

Legend: B batch, L length, D channels, N states, H heads, P head channels, W taps, M model width, R rank of dt.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from seqkit.kernels.bench import exact

Sizes = dict[str, int]
Tensors = dict[str, Tensor]
Sample = dict[str, tuple[tuple[int, Tensor], ...]]  # operand or output -> (dimension, indices); what is absent is whole
CHANNELS, TOKENS = 4, 256  # sampled
WARM_UP = 4096  # tokens of a block that run in float64: with dt >= 0.01 nothing older is left


@dataclass(frozen=True)
class Work:
    """The least that an op has to do: every operand read once, every result written once, no state recomputed.

    Attributes:
        bytes: Moved to and from memory.
        exponentials: Of decays.
        operations: Floating point, of matrix products.
    """

    bytes: float
    exponentials: float = 0.0
    operations: float = 0.0


@dataclass(frozen=True)
class Operation:
    """One op.

    Attributes:
        operands: For sizes, from a :class:`Draw`.
        outputs: Names of what a provider returns.
        sample: What of operands and outputs is compared with float64.
        exact: Sampled outputs from sampled operands in float64.
        work: (forward, forward and backward) for sizes and bytes per activation.
        cpu: Default sizes on a CPU.
        gpu: Default sizes on a GPU.
        lengths: Default L on a CPU.
        roundings: Times that values are rounded to the activations' dtype one after the other.
    """

    operands: Callable[[Sizes, Draw], Tensors]
    outputs: tuple[str, ...]
    sample: Callable[[Sizes, torch.device], Sample]
    exact: Callable[[Tensors, Sample], tuple[Tensor, ...]]
    work: Callable[[Sizes, int], tuple[Work, Work]]
    cpu: Sizes
    gpu: Sizes
    lengths: tuple[int, ...]
    roundings: int = 1


class Draw:
    """Seeded random operands, made on the device where they are used."""

    def __init__(self, dtype: torch.dtype, device: torch.device, seed: int):
        self.dtype, self.device = dtype, device
        self._generator = torch.Generator(device).manual_seed(seed)

    def normal(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Standard normal; in the activations' dtype by default."""
        return torch.randn(shape, generator=self._generator, device=self.device, dtype=dtype or self.dtype)

    def wide(self, *shape: int) -> Tensor:
        """Standard normal in float32."""
        return self.normal(*shape, dtype=torch.float32)

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Uniform in float32."""
        return torch.rand(shape, generator=self._generator, device=self.device) * (high - low) + low

    def decays(self, channels: int, states: int) -> Tensor:
        """-1, -2, ..., -N for every channel."""
        return -torch.arange(1, states + 1, device=self.device, dtype=torch.float32).repeat(channels, 1)


def spread(count: int, wanted: int, device: torch.device) -> Tensor:
    """First, last and evenly spread indices."""
    return torch.linspace(0, count - 1, min(wanted, count), device=device, dtype=torch.float64).round().long().unique()


def index_of(sample: Sample, name: str, dims: int) -> tuple:
    """Index that takes the sample from a tensor; two dimensions are crossed with each other."""
    parts = sample.get(name, ())
    index: list = [slice(None)] * dims
    for i, (dim, indices) in enumerate(parts):
        index[dim] = indices.unsqueeze(1) if len(parts) == 2 and i == 0 else indices
    return tuple(index)


def _channels(**dims: int) -> Callable[[Sizes, torch.device], Sample]:
    def sample(s: Sizes, device: torch.device) -> Sample:
        indices = spread(s["D"], CHANNELS, device)
        return {name: ((dim, indices),) for name, dim in dims.items()}

    return sample


def _tokens(*names: str, dim: int = 1) -> Callable[[Sizes, torch.device], Sample]:
    def sample(s: Sizes, device: torch.device) -> Sample:
        indices = spread(s["L"], TOKENS, device)
        return dict.fromkeys(names, ((dim, indices),))

    return sample


def _ssd_sample(s: Sizes, device: torch.device) -> Sample:
    heads, channels = spread(s["H"], 2, device), spread(s["P"], 2, device)
    both = ((2, heads), (3, channels))
    return {"x": both, "y": both, "dt": ((2, heads),), **dict.fromkeys(("A", "D", "dt_bias"), ((0, heads),))}


def _inner_sample(s: Sizes, device: torch.device) -> Sample:
    tokens = torch.arange(max(0, s["L"] - WARM_UP), s["L"], device=device)
    return {"x": ((1, tokens),), "y": ((1, tokens[-TOKENS:]),)}


def _selective_operands(s: Sizes, draw: Draw) -> Tensors:
    tokens = s["B"], s["L"]
    return {
        "u": draw.normal(*tokens, s["D"]),
        "delta": draw.normal(*tokens, s["D"]),
        "A": draw.decays(s["D"], s["N"]),
        "B": draw.normal(*tokens, s["N"]),
        "C": draw.normal(*tokens, s["N"]),
        "D": draw.wide(s["D"]),
        "z": draw.normal(*tokens, s["D"]),
        "delta_bias": draw.uniform(-7.0, -2.0, s["D"]),
    }


def _ssd_operands(s: Sizes, draw: Draw) -> Tensors:
    tokens = s["B"], s["L"]
    return {
        "x": draw.normal(*tokens, s["H"], s["P"]),
        "dt": draw.normal(*tokens, s["H"]),
        "A": -draw.uniform(1.0, 16.0, s["H"]),
        "B": draw.normal(*tokens, 1, s["N"]),
        "C": draw.normal(*tokens, 1, s["N"]),
        "D": draw.wide(s["H"]),
        "dt_bias": draw.uniform(-7.0, -2.0, s["H"]),
    }


def _conv_operands(s: Sizes, draw: Draw) -> Tensors:
    shape = s["B"], s["L"], s["D"]
    return {"x": draw.normal(*shape), "weight": draw.wide(s["D"], s["W"]), "bias": draw.wide(s["D"])}


def _norm_operands(s: Sizes, draw: Draw) -> Tensors:
    shape = s["B"], s["L"], s["D"]
    return {"x": draw.normal(*shape), "weight": draw.wide(s["D"]), "residual": draw.wide(*shape)}


def _gated_operands(s: Sizes, draw: Draw) -> Tensors:
    shape = s["B"], s["L"], s["D"]
    return {"x": draw.normal(*shape), "z": draw.normal(*shape), "weight": draw.wide(s["D"])}


def _inner_operands(s: Sizes, draw: Draw) -> Tensors:
    M, D, N, R = s["M"], 2 * s["M"], s["N"], s["R"]
    return {
        "x": draw.normal(s["B"], s["L"], M),
        "in_weight": draw.normal(2 * D, M) * M**-0.5,
        "conv_weight": draw.normal(D, s["W"]) * s["W"] ** -0.5,
        "conv_bias": draw.normal(D) * 0.1,
        "x_weight": draw.normal(R + 2 * N, D) * D**-0.5,
        "dt_weight": draw.normal(D, R) * R**-0.5,
        "dt_bias": draw.uniform(-4.6, -2.3, D),
        "A": draw.decays(D, N),
        "D": torch.ones(D, device=draw.device),
        "out_weight": draw.normal(M, D) * D**-0.5,
    }


def _mamba2_operands(s: Sizes, draw: Draw) -> Tensors:
    M, E = s["M"], 2 * s["M"]
    H, mixed = E // s["P"], E + 2 * s["N"]
    return {
        "x": draw.normal(s["B"], s["L"], M),
        "in_weight": draw.normal(E + mixed + H, M) * M**-0.5,
        "conv_weight": draw.normal(mixed, s["W"]) * s["W"] ** -0.5,
        "conv_bias": draw.wide(mixed) * 0.1,
        "dt_bias": draw.uniform(-4.6, -2.3, H),
        "A": -draw.uniform(1.0, 16.0, H),
        "D": torch.ones(H, device=draw.device),
        "norm_weight": draw.uniform(0.5, 1.5, E),
        "out_weight": draw.normal(M, E) * E**-0.5,
    }


def _attention_operands(s: Sizes, draw: Draw) -> Tensors:
    shape = s["B"], s["H"], s["L"], s["P"]
    return {name: draw.normal(*shape) for name in ("q", "k", "v")}


def _selective_work(s: Sizes, size: int) -> tuple[Work, Work]:
    tokens = s["B"] * s["L"]
    wide, narrow, decays = tokens * s["D"] * size, tokens * s["N"] * size, tokens * s["D"] * s["N"]
    return Work(4 * wide + 2 * narrow, decays), Work(11 * wide + 6 * narrow, 2 * decays)


def _ssd_work(s: Sizes, size: int) -> tuple[Work, Work]:
    tokens, states = s["B"] * s["L"], s["H"] * s["P"] * s["N"]
    wide, narrow = tokens * s["H"] * s["P"] * size, tokens * (2 * s["N"] + s["H"]) * size
    one = Work(2 * wide + narrow, 0, 4.0 * tokens * states)
    return one, Work(5 * wide + 3 * narrow, 0, 3 * one.operations)


def _rows_work(forward: float, both: float) -> Callable[[Sizes, int], tuple[Work, Work]]:
    """Activations moved, each in their own dtype."""

    def work(s: Sizes, size: int) -> tuple[Work, Work]:
        elements = s["B"] * s["L"] * s["D"] * size
        return Work(forward * elements), Work(both * elements)

    return work


def _norm_work(s: Sizes, size: int) -> tuple[Work, Work]:
    elements = s["B"] * s["L"] * s["D"]
    forward = elements * (2 * size + 2 * 4)  # x, y; residual, total in float32
    return Work(forward), Work(forward + elements * (2 * size + 3 * 4))  # dy, dx; total, dtotal, dresidual


def _inner_work(s: Sizes, size: int) -> tuple[Work, Work]:
    tokens, M, D = s["B"] * s["L"], s["M"], 2 * s["M"]
    weights = M * 2 * D + D * (s["R"] + 2 * s["N"]) + s["R"] * D + D * M
    one = Work(2 * tokens * M * size, tokens * D * s["N"], 2.0 * tokens * weights)
    return one, Work(5 * tokens * M * size, 2 * one.exponentials, 3 * one.operations)


def _mamba2_work(s: Sizes, size: int) -> tuple[Work, Work]:
    tokens, M, E = s["B"] * s["L"], s["M"], 2 * s["M"]
    weights = M * (2 * E + 2 * s["N"] + E // s["P"]) + E * M
    one = Work(2 * tokens * M * size, 0, 2.0 * tokens * (weights + 2 * E * s["N"]))
    return one, Work(5 * tokens * M * size, 0, 3 * one.operations)


def _attention_work(s: Sizes, size: int) -> tuple[Work, Work]:
    heads = s["B"] * s["H"]
    moved, products = heads * s["L"] * s["P"] * size, 2.0 * heads * s["L"] ** 2 * s["P"]  # half the square, twice
    return Work(4 * moved, 0, products), Work(12 * moved, 0, 3.5 * products)


OPERATIONS = {
    "selective_scan": Operation(
        _selective_operands,
        ("y",),
        _channels(u=2, delta=2, z=2, y=2, A=0, D=0, delta_bias=0),
        lambda t, sample: exact.selective_scan(t),
        _selective_work,
        {"B": 1, "D": 256, "N": 16},
        {"B": 1, "D": 512, "N": 16, "L": 131_072},
        (1024, 4096, 16_384),
    ),
    "ssd_scan": Operation(
        _ssd_operands,
        ("y",),
        _ssd_sample,
        lambda t, sample: exact.ssd_scan(t),
        _ssd_work,
        {"B": 1, "H": 4, "P": 64, "N": 64},
        {"B": 1, "H": 16, "P": 64, "N": 64, "L": 131_072},
        (1024, 4096, 16_384),
    ),
    "causal_conv": Operation(
        _conv_operands,
        ("y",),
        _channels(x=2, y=2, weight=0, bias=0),
        lambda t, sample: exact.causal_conv(t),
        _rows_work(2, 5),
        {"B": 1, "D": 256, "W": 4},
        {"B": 1, "D": 1024, "W": 4, "L": 1_048_576},
        (4096, 16_384),
    ),
    "rms_norm": Operation(
        _norm_operands,
        ("y", "total"),
        _tokens("x", "residual", "y", "total"),
        lambda t, sample: exact.rms_norm(t),
        _norm_work,
        {"B": 1, "D": 256},
        {"B": 1, "D": 1024, "L": 1_048_576},
        (4096, 16_384),
    ),
    "gated_rms_norm": Operation(
        _gated_operands,
        ("y",),
        _tokens("x", "z", "y"),
        lambda t, sample: exact.gated_rms_norm(t),
        _rows_work(3, 8),
        {"B": 1, "D": 256},
        {"B": 1, "D": 1024, "L": 1_048_576},
        (4096, 16_384),
    ),
    "mamba1_inner": Operation(
        _inner_operands,
        ("y",),
        _inner_sample,
        lambda t, sample: tuple(y[:, -len(sample["y"][0][1]) :] for y in exact.mamba1_inner(t)),
        _inner_work,
        {"B": 1, "M": 128, "N": 16, "W": 4, "R": 8, "slab": 0},
        {"B": 1, "M": 512, "N": 16, "W": 4, "R": 32, "slab": 0, "L": 1_048_576},
        (1024, 4096, 16_384),
        roundings=5,  # projection, convolution, projection, scan, projection
    ),
    "mamba2_inner": Operation(
        _mamba2_operands,
        ("y",),
        _inner_sample,
        lambda t, sample: tuple(y[:, -len(sample["y"][0][1]) :] for y in exact.mamba2_inner(t)),
        _mamba2_work,
        {"B": 1, "M": 128, "P": 64, "N": 64, "W": 4, "slab": 0},
        {"B": 1, "M": 256, "P": 64, "N": 64, "W": 4, "slab": 0, "L": 1_048_576},
        (1024, 4096, 16_384),
        roundings=5,  # projection, convolution, scan, norm, projection
    ),
    "attention": Operation(
        _attention_operands,
        ("y",),
        _tokens("q", "y", dim=2),
        lambda t, sample: exact.attention(t, sample["q"][0][1]),
        _attention_work,
        {"B": 1, "H": 2, "P": 64},
        {"B": 1, "H": 8, "P": 64, "L": 32_768},
        (1024, 4096),
    ),
}
