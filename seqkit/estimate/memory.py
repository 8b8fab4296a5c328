"""Peak memory of a workload, by parts: counted on tensors without data, plus what ops need inside.

The model runs once, forward and backward, on fake tensors: every tensor that its code would hold is counted at its
size, whatever the settings. What happens inside an op is invisible there: see :mod:`seqkit.estimate.rates`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from seqkit.estimate.live import LiveBytes
from seqkit.estimate.rates import op_bytes
from seqkit.estimate.step import Step
from seqkit.estimate.workload import Workload
from seqkit.kernels import planning_for_gpu

GIB = 1 << 30


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak, by part.

    Attributes:
        parameters: Number of trained values.
        weights: Bytes of the weights.
        optimiser: Bytes of AdamW's two moments.
        kept: Of the forward pass, for the backward pass: block inputs, states between slabs, hidden states.
        passing: What comes on top at the worst moment: gradients, activations of one block.
        workspace: Inside ops, for the tokens that they take at once.
        host: Pinned host memory for offloaded block inputs.
    """

    parameters: int
    weights: int
    optimiser: int
    kept: int
    passing: int
    workspace: int
    host: int = 0

    @property
    def total(self) -> int:
        """Peak of what torch allocates on the device."""
        return self.weights + self.optimiser + self.kept + self.passing + self.workspace

    def parts(self) -> dict[str, int]:
        """Names and bytes, for a table."""
        return {
            "weights": self.weights,
            "optimiser": self.optimiser,
            "kept for the backward pass": self.kept,
            "gradients and one block": self.passing,
            "inside ops": self.workspace,
        }


def peak_memory(workload: Workload, *, gpu: bool) -> Memory:
    """Count the memory of a workload.

    Args:
        workload: What is to be run.
        gpu: Whether it runs on a GPU; ops choose and keep other things there.
    """
    with _no_data(workload, gpu):
        parameters = list(Step(workload).backbone.parameters())
    weights = sum(p.nbytes for p in parameters)
    kept, passing = _by_blocks(workload, gpu)
    moved = _offloaded(workload) if gpu else 0
    training = workload.training
    if training:
        # When the last block is through, all gradients are there and of what was kept next to nothing; the models that
        # were counted had gradients of their own.
        counted = weights * min(3, len(workload.model.blocks)) // len(workload.model.blocks)
        passing = max(passing, weights + max(0, passing - counted) - kept)
    passing += _in_flight(workload) if moved else 0
    return Memory(
        parameters=sum(p.numel() for p in parameters),
        weights=weights,
        optimiser=2 * weights if training else 0,
        kept=kept - moved,
        passing=passing,
        workspace=op_bytes(workload, gpu=gpu),
        host=moved,
    )


@contextmanager
def _no_data(workload: Workload, gpu: bool) -> Iterator[None]:
    """Tensors without data, in the workload's precision."""
    autocast = torch.autocast("cpu", torch.bfloat16) if workload.precision == "bf16-mixed" else nullcontext()
    before = torch.get_default_dtype()
    torch.set_default_dtype(workload.weight_dtype)
    try:
        with planning_for_gpu() if gpu else nullcontext(), FakeTensorMode(), autocast:
            yield
    finally:
        torch.set_default_dtype(before)


def _by_blocks(workload: Workload, gpu: bool) -> tuple[int, int]:
    """(kept, passing) from models of one block a kind, and from what one more of each kind keeps."""
    if workload.model.sequence_chunk is not None:  # the blocks of a chunk are computed again together
        return _by_length(workload, gpu)
    blocks = Counter(workload.model.blocks)
    base = list(blocks)
    kept, passing = _by_length(workload.with_model(layout=" ".join(base)), gpu)
    total = kept
    for mixer, count in blocks.items():
        added = min(count - 1, 2)
        if added:
            more, also = _by_length(workload.with_model(layout=" ".join([*base, *[mixer] * added])), gpu)
            total += (count - 1) * (more - kept) // added
            passing = max(passing, also)
    return total, passing


def _by_length(workload: Workload, gpu: bool) -> tuple[int, int]:
    """(kept, passing); of many slabs or chunks from the straight line through three and five of them."""
    piece = max(workload.model.slab or 0, workload.model.sequence_chunk or 0)
    if not piece or workload.length <= 6 * piece:
        return _count(workload, gpu)
    three, five = (_count(replace(workload, length=n * piece), gpu) for n in (3, 5))
    share = (workload.length / piece - 3) / 2
    return tuple(int(a + share * (b - a)) for a, b in zip(three, five, strict=True))


def _count(workload: Workload, gpu: bool) -> tuple[int, int]:
    """(bytes alive behind the forward pass, what comes on top at most), weights left out."""
    kept = []
    with _no_data(workload, gpu):
        step = Step(workload)
        with LiveBytes() as live:
            step.run(between=lambda: kept.append(live.now))
    return kept[0], live.peak - kept[0]


def _offloaded(workload: Workload) -> int:
    """Bytes of block inputs that wait in host memory: the embedding, and the sums in front of the other blocks."""
    if not (workload.model.offload and workload.training):
        return 0
    embedding = workload.tokens * workload.strands * workload.model.d_model * workload.weight_dtype.itemsize
    return embedding + (len(workload.model.blocks) - 1) * _stream_bytes(workload)


def _in_flight(workload: Workload) -> int:
    """Block inputs that are on their way: one used and one arriving."""
    return 2 * _stream_bytes(workload) // workload.strands


def _stream_bytes(workload: Workload) -> int:
    itemsize = 4 if workload.model.residual_in_fp32 else workload.activation_bytes
    return workload.tokens * workload.strands * workload.model.d_model * itemsize
