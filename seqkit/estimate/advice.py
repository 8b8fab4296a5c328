"""What would make a workload fit, and the one line that says so."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from seqkit.errors import MemoryLimitError
from seqkit.estimate.limits import free_bytes, host_bytes
from seqkit.estimate.memory import GIB, Memory, peak_memory
from seqkit.estimate.workload import Workload

Flags = Mapping[str, Callable[[int], str]]
FLAGS: Flags = {"batch": "--batch {}".format, "length": "--length {}".format}
SMALL_SLAB = 16_384
MARGIN = 1.05
"""An allocator needs a little more than the tensors it hands out."""


@dataclass(frozen=True)
class Change:
    """A setting that saves memory.

    Attributes:
        text: As it is written on the command line.
        workload: What it makes of the workload.
    """

    text: str
    workload: Workload


def fits(workload: Workload, limit: int, *, gpu: bool, host_limit: int | None = None) -> Memory | None:
    """The memory of a workload if it is within the limit, else None."""
    memory = peak_memory(workload, gpu=gpu)
    within = memory.total * MARGIN <= limit
    return memory if within and (host_limit is None or memory.host <= host_limit) else None


def changes(workload: Workload, *, gpu: bool) -> Iterator[Change]:
    """Settings one by one, each on top of those before, from those that cost least to those that cost most."""
    text: list[str] = []

    def change(setting: str, changed: Workload) -> Change:
        text.append(setting)
        return Change(" ".join(text), changed)

    model = workload.model
    if workload.training and not model.checkpoint:
        workload = workload.with_model(checkpoint=True)
        yield change("--model.checkpoint true", workload)
    scans = set(model.blocks) != {"attention"}
    if scans and workload.length > SMALL_SLAB and (model.slab is None or model.slab > SMALL_SLAB):
        workload = workload.with_model(slab=SMALL_SLAB)
        yield change(f"--model.slab {SMALL_SLAB}", workload)
    if gpu and workload.precision == "32-true":
        workload = replace(workload, precision="bf16-true")
        yield change("--precision bf16-true", workload)
    if workload.precision != "32-true" and model.residual_in_fp32:
        workload = workload.with_model(residual_in_fp32=False)
        yield change("--model.residual_in_fp32 false", workload)
    both_sides = model.bidirectional or model.rc_equivariant
    if workload.training and not both_sides and "attention" not in model.blocks and not model.sequence_chunk:
        chunked = workload.with_model(sequence_chunk=max(1, min(8 * SMALL_SLAB, workload.length // 2)))
        yield Change(" ".join([*text, f"--model.sequence_chunk {chunked.model.sequence_chunk}"]), chunked)
    if gpu and workload.training and not model.offload:
        workload = workload.with_model(offload=True)
        yield change("--model.offload true", workload)


def what_fits(
    workload: Workload,
    limit: int,
    *,
    gpu: bool,
    host_limit: int | None = None,
    flags: Flags = FLAGS,
    fixed_model: bool = False,
) -> str:
    """The first change that fits with its memory, or the batch or length that would.

    Args:
        workload: What does not fit.
        limit: Bytes of the device.
        gpu: Whether that is a GPU.
        host_limit: Bytes of host memory, for offloading.
        flags: How the command writes a ``batch`` and a ``length``, as far as it can set them.
        fixed_model: Whether the model's settings are what they are.
    """
    last, text = workload, ""
    for step in () if fixed_model else changes(workload, gpu=gpu):
        last, text = step.workload, step.text
        memory = fits(step.workload, limit, gpu=gpu, host_limit=host_limit)
        if memory is not None:
            return f"fits with {step.text}: {in_gib(memory.total)}"

    def smaller(name: str) -> str | None:
        if name not in flags or getattr(workload, name) == 1:
            return None
        value = _largest(lambda n: fits(replace(last, **{name: n}), limit, gpu=gpu), getattr(workload, name))
        return None if value is None else flags[name](value)

    found = smaller("batch") or smaller("length")
    return f"fits with {' '.join(x for x in (text, found) if x)}" if found else "nothing but a smaller model fits"


def _largest(fitting: Callable[[int], object], value: int) -> int | None:
    """The largest of value / 2, / 4, ... that fits."""
    while value > 1:
        value //= 2
        if fitting(value):
            return value
    return None


def in_gib(size: int) -> str:
    """Bytes for people."""
    return f"{size / GIB:.2f} GiB"


def plainly_small(workload: Workload, limit: int) -> bool:
    """Whether a generous bound is far below the limit, so that counting would cost more than it tells.

    The bound is 256 bytes of an inner channel, token, block, direction and strand, about twice what the most wasteful
    setting keeps in float32 (measured on a CPU without recomputing).
    """
    model = workload.model
    widths = workload.tokens * workload.strands * workload.directions * len(model.blocks) * model.expand * model.d_model
    return 256 * widths < limit // 2


@contextmanager
def within_memory(
    workload: Workload, device: torch.device, what: str, flags: Flags = FLAGS, *, fixed_model: bool = False
) -> Iterator[None]:
    """Refuse work that cannot fit, and turn running out of memory into the same one line.

    Args:
        workload: The largest step of the work.
        device: Where it runs.
        what: Name of the command's argument that asks for it, for the message.
        flags: How the command writes a ``batch`` and a ``length``, as far as it can set them.
        fixed_model: Whether the model's settings are what they are.

    Raises:
        MemoryLimitError: Before anything runs, or when memory runs out all the same.
    """
    gpu, limit = device.type == "cuda", free_bytes(device)
    host_limit = host_bytes() if gpu else None

    def refusal(needed: str) -> MemoryLimitError:
        advice = "a smaller batch, length or model may fit"
        if limit is not None:
            options = {"gpu": gpu, "host_limit": host_limit, "flags": flags, "fixed_model": fixed_model}
            advice = what_fits(workload, int(limit * 0.97), **options)
        free = "the memory there is" if limit is None else f"the {in_gib(limit)} free on {device}"
        got = f"{needed} for {workload.batch} x {workload.length:,} tokens"
        return MemoryLimitError(
            what, expected=f"work that fits {free}", got=got, remedy=advice[0].upper() + advice[1:] + "."
        )

    if limit is not None and not plainly_small(workload, limit):
        memory = peak_memory(workload, gpu=gpu)
        too_much = memory.total * MARGIN > limit or (host_limit is not None and memory.host > host_limit)
        if too_much:
            raise refusal(in_gib(memory.total))
    try:
        yield
    except Exception as error:
        if not ran_out(error):
            raise
        raise refusal("more than that") from error


def ran_out(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or on the host."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
