"""What a launch may count on, by compute capability: one small table instead of tuning at the first call.

Source: CUDA C++ Programming Guide, technical specifications per compute capability. Every row has 65,536 registers per
multiprocessor.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

REGISTERS = 65_536  # of a multiprocessor, 32 bits each
KIB = 1024


@dataclass(frozen=True, kw_only=True)
class LaunchRow:
    """One compute capability.

    Attributes:
        shared_memory: Largest of one program, bytes.
        warps: Resident on a multiprocessor.
        programs: Resident on a multiprocessor.
    """

    shared_memory: int
    warps: int
    programs: int

    def programs_per_multiprocessor(self, warps: int, registers: int) -> int:
        """Programs of so many warps and registers per thread that a multiprocessor holds at once; at least 1."""
        return max(1, min(self.programs, self.warps // warps, REGISTERS // (registers * 32 * warps)))


ROWS = {
    (7, 5): LaunchRow(shared_memory=64 * KIB, warps=32, programs=16),
    (8, 0): LaunchRow(shared_memory=163 * KIB, warps=64, programs=32),
    (8, 6): LaunchRow(shared_memory=99 * KIB, warps=48, programs=16),
    (8, 9): LaunchRow(shared_memory=99 * KIB, warps=48, programs=24),
    (9, 0): LaunchRow(shared_memory=227 * KIB, warps=64, programs=32),
    (12, 0): LaunchRow(shared_memory=99 * KIB, warps=48, programs=24),
}


def capability(index: int) -> tuple[int, int]:
    """Compute capability of a GPU; torch.compile folds the question itself into a constant, and nothing around it."""
    if torch.compiler.is_compiling():
        properties = torch.cuda.get_device_properties(index)
        return properties.major, properties.minor
    return _capability(index)


@cache
def _capability(index: int) -> tuple[int, int]:
    properties = torch.cuda.get_device_properties(index)
    return properties.major, properties.minor


def has_bfloat16(version: tuple[int, int]) -> bool:
    """Whether a compute capability has instructions for bfloat16."""
    return version >= (8, 0)


@cache
def multiprocessors(index: int) -> int:
    """Multiprocessors of a GPU."""
    return torch.cuda.get_device_properties(index).multi_processor_count


@cache
def row_for(version: tuple[int, int]) -> LaunchRow:
    """Row of the newest capability that is not above ``version``; the oldest for what is older than all."""
    return ROWS[max((known for known in ROWS if known <= version), default=min(ROWS))]


def launch_row(x: torch.Tensor) -> LaunchRow:
    """Row of ``x``'s device; in the interpreter, which has no limits of its own, that of 9.0."""
    return row_for(capability(x.device.index)) if x.is_cuda else ROWS[9, 0]
