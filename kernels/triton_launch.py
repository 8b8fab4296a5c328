"""What all Triton providers share on the host: device guard, sizes, tables of packed segments, partial sums."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from seqkit.kernels.chunks import count_chunks, segment_bounds
from seqkit.kernels.devices import multiprocessors

# Triton 3.9 asks for a choice and warns without one: a product and a sum are one instruction, as they always were.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # read once, as Triton itself does when it decorates a kernel
TINY = 4  # chunk lengths in the interpreter, where a step costs milliseconds, are divided so that borders are crossed


def guard(x: torch.Tensor) -> AbstractContextManager:
    """Context in which kernels on ``x`` are launched: its device is the current one."""
    if not x.is_cuda or x.get_device() == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(x.device)


def resident_programs(x: torch.Tensor, per_multiprocessor: int) -> int:
    """Programs that run at once on ``x``'s device if a multiprocessor holds this many; 3 in the interpreter."""
    return multiprocessors(x.device.index) * per_multiprocessor if x.is_cuda else 3


def next_power(n: int) -> int:
    """Smallest power of two that is at least ``n``."""
    return 1 << max(n - 1, 0).bit_length()


def ceil_div(a: int, b: int) -> int:
    """Quotient a / b rounded up."""
    return -(-a // b)


@dataclass(frozen=True)
class CompileCase:
    """A kernel as it is launched, for compiling it without a GPU.

    Attributes:
        kernel: The jitted function.
        constants: Its compile-time arguments by name; an absent operand is None here.
        num_warps: Warps of a program.
        types: Types of the arguments that are neither a float32 pointer (``..._ptr``) nor an int32. Cards without
            bfloat16 get float16 in its place.
        least: Lowest compute capability on which it is launched so.
    """

    kernel: Any
    constants: dict[str, Any]
    num_warps: int = 4
    types: dict[str, str] = field(default_factory=dict)
    least: tuple[int, int] = (7, 5)


class Segments:
    """How the tokens of a call fall into chunks of equal length; packed segments are looked up on the device.

    Attributes:
        count: S.
        chunks: K, chunk slots; under packing an upper bound, unused slots have no tokens.
        per_row: Chunks of one row of a dense batch.
        chunk_segment: Segment of each chunk slot (K,), int64.
        table: First token, number of tokens and first chunk of each segment (3, S), int64.
    """

    def __init__(self, like: torch.Tensor, chunk: int, cu_seqlens: torch.Tensor | None):
        batch, self.length = like.shape[:2]
        self.packed = cu_seqlens is not None
        self.count = cu_seqlens.shape[0] - 1 if self.packed else batch
        self.chunks = count_chunks(batch, self.length, chunk, self.count if self.packed else None)
        self.per_row = ceil_div(self.length, chunk)
        self.chunk_segment = self.table = like  # never read for a dense batch
        if self.packed:
            bounds = segment_bounds(batch, self.length, cu_seqlens, like.device)
            lengths = bounds[1:] - bounds[:-1]
            ends = torch.cumsum((lengths + chunk - 1) // chunk, 0)
            first = torch.cat([ends.new_zeros(1), ends[:-1]])
            self.table = torch.stack([bounds[:-1], lengths, first])
            slots = torch.arange(self.chunks, device=like.device)
            self.chunk_segment = torch.searchsorted(ends, slots, right=True).clamp_(max=self.count - 1)


def rows_contiguous(x: torch.Tensor) -> torch.Tensor:
    """``x`` with a contiguous last dimension: an incoming gradient may be an expanded one."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def token_strides(x: torch.Tensor) -> tuple[int, int]:
    """Strides of the rows and tokens of (B, L, ...).

    Kernels take that of tokens as a constant: what a compiler knows of it decides whether the rows of a slice can be
    read 16 bytes at a time. A single row needs no stride, which would follow the length.
    """
    return (0 if x.shape[0] == 1 else x.stride(0)), x.stride(1)
