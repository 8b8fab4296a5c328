"""Measured constants, all of them here: what ops need inside, and how fast cards are.

Replace a row when it is measured anew, with its date and device; ``seqkit bench models`` gives the figures. Rates are
those of whole training steps, so they hold what launches, copies and element-wise kernels cost as well.

Legend: E inner channels, D width.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from seqkit.backbones import BackboneConfig
from seqkit.errors import ConfigError
from seqkit.estimate.workload import Workload

GIB = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Speed of training on one kind of card.

    Attributes:
        measured: Date, device and source.
        picoseconds: By mixer: a token, inner channel, direction and strand in scan, convolution, norms and the rest,
            forward, recomputed and backward.
        tflops: Attained in projections, 10^12 operations a second.
        attention_tflops: Attained in softmax attention.
        forward_share: Of the time of a training step that a forward pass alone takes.
        pass_seconds: What the launches for one direction of one scan block on one strand take, whatever the length.
    """

    measured: str
    picoseconds: dict[str, float]
    tflops: float
    attention_tflops: float
    forward_share: float
    pass_seconds: float


# Mamba-2: whole training steps of the DNA model of ``seqkit bench models`` at 131,072 and 1,048,576 tokens. Mamba-1:
# sum of the kernels of such a step at 131,072. Mamba-3: a block of width 512 at 131,072. S4D: not measured, as Mamba-1.
_HOPPER = Rates(
    measured="2026-11-25, H100, whole steps with Mamba-2",
    picoseconds={"mamba1": 103.0, "mamba2": 64.0, "mamba3": 200.0, "s4d": 103.0},
    tflops=400.0,
    attention_tflops=350.0,
    forward_share=0.25,
    pass_seconds=3.4e-3,
)

RATES = {"h100": _HOPPER, "h200": _HOPPER}

CONTEXT_BYTES = int(0.6 * GIB)
"""Of a card's memory, what the CUDA context and libraries take before the first tensor."""

# Bytes inside ops, forward and backward, per token taken at once, in units of E times the bytes of an activation: where
# the block is one op in slabs, and where it is one op a part, whose inputs and outputs are counted as tensors.
_INSIDE_GPU = {
    "mamba1": (11.0, 4.0),
    "mamba2": (11.0, 5.0),
    "mamba3": (16.0, 16.0),
    "s4d": (8.0, 8.0),
    "attention": (4.0, 4.0),
}
# 2026-11-25, Intel Xeon, one thread, torch 2.13: peaks of fresh processes, d_model 64, 2 blocks, 4,096 to 49,152 tokens
_INSIDE_CPU = {
    "mamba1": (17.0, 2.0),
    "mamba2": (17.0, 2.0),
    "mamba3": (5.0, 5.0),
    "s4d": (5.0, 5.0),
    "attention": (15.0, 15.0),
}
_FORWARD_SHARE = 0.5

CPU_PROCESS_BYTES = int(0.41 * GIB)
"""Of a process on a CPU beside its tensors: Python, torch and what its libraries load and keep (same measurement)."""


def op_bytes(workload: Workload, *, gpu: bool) -> int:
    """Bytes inside the ops of the widest block, for the tokens that it takes at once."""
    table, itemsize = (_INSIDE_GPU, workload.activation_bytes) if gpu else (_INSIDE_CPU, 4)
    numbers = max(
        table[mixer][0 if takes_slabs(mixer, workload) else 1] * inner_width(mixer, workload.model)
        for mixer in set(workload.model.blocks)
    )
    share = 1.0 if workload.training else _FORWARD_SHARE
    return int((share * numbers * workload.tokens_at_once + _left_behind(workload)) * itemsize)


def _left_behind(workload: Workload) -> int:
    """Numbers that one direction leaves for the other on all slabs but the first."""
    if "mamba2" not in workload.model.blocks or not (workload.model.bidirectional and takes_slabs("mamba2", workload)):
        return 0
    tokens = workload.batch * min(workload.length, workload.model.sequence_chunk or workload.length)
    return max(0, tokens - workload.tokens_at_once) * inner_width("mamba2", workload.model)


def takes_slabs(mixer: str, workload: Workload) -> bool:
    """Whether a block runs as one op in slabs, projections included."""
    model, length = workload.model, min(workload.length, workload.model.sequence_chunk or workload.length)
    longer = model.slab is not None and length > model.slab
    return mixer != "attention" and (longer or (model.checkpoint and workload.training))


def inner_width(mixer: str, model: BackboneConfig) -> int:
    """E: channels of the scan, or of attention."""
    return model.d_model * (1 if mixer == "attention" else model.expand)


@dataclass(frozen=True)
class Card:
    """A GPU to plan for.

    Attributes:
        name: As given, such as h100-80gb.
        memory: Bytes that tensors can take.
        rates: Its speed; None where it was not measured.
    """

    name: str
    memory: int
    rates: Rates | None


def card(name: str) -> Card:
    """A card by kind and memory.

    Args:
        name: Kind and GB, such as h100-80gb, a100-40gb or 24gb; of the kinds, those in :data:`RATES` have speeds.

    Raises:
        ConfigError: The name does not end in a size.
    """
    match = re.fullmatch(r"(?:(?P<kind>[a-z0-9]+)-)?(?P<size>\d+)gb", name.lower())
    if match is None or not int(match["size"]):
        raise ConfigError("--for", expected="cpu, or a card and its memory such as h100-80gb or 24gb", got=name)
    # Of an "80 GB" card the driver shows 79.2 GiB.
    return Card(name, int(int(match["size"]) * 0.99 * GIB) - CONTEXT_BYTES, RATES.get(match["kind"] or ""))


def seconds(workload: Workload, rates: Rates) -> float:
    """Time of a training step or of a forward pass on a card."""
    model, runs = workload.model, workload.tokens * workload.strands
    total = 0.0
    for mixer in model.blocks:
        width = inner_width(mixer, model)
        if mixer == "attention":
            pairs = runs * workload.length / (1 if model.bidirectional else 2)
            total += 4.0 * pairs * width * 4.5 / (rates.attention_tflops * 1e12)
        else:
            total += runs * workload.directions * width * rates.picoseconds[mixer] * 1e-12
            total += workload.strands * workload.directions * rates.pass_seconds
        total += runs * _projection_operations(mixer, workload) / (rates.tflops * 1e12)
    return total * (1.0 if workload.training else rates.forward_share)


def _projection_operations(mixer: str, workload: Workload) -> float:
    """Of a token in one block: forward, again in the backward pass, and backward."""
    model, width = workload.model, inner_width(mixer, workload.model)
    state = model.d_state or (16 if mixer == "mamba1" else 64)
    wide = {
        "attention": 3 * width,
        "mamba1": 2 * width,
        "mamba2": 2 * width + 2 * model.ngroups * state + width // model.headdim,
        "mamba3": 2 * width + 2 * model.ngroups * state * (model.mimo_rank or 1),
        "s4d": 2 * width,
    }[mixer]
    apart = takes_slabs(mixer, workload) and mixer != "mamba2"  # whose slabs are projected once for both directions
    times = workload.directions if apart else 1
    return 8.0 * model.d_model * (wide + width) * times
