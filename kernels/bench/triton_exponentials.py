"""A kernel that does nothing but exponentials: what it reaches is the ceiling of the scans."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from seqkit.kernels.devices import multiprocessors
from seqkit.kernels.triton_launch import CompileCase
from seqkit.kernels.triton_math import exp2

ROUNDS, BLOCK, WARPS = 1024, 1024, 4


@triton.jit
def exponentials_kernel(out_ptr, ROUNDS: tl.constexpr, BLOCK: tl.constexpr):
    """Independent chains of x <- 2^-x, which stay in [0, 1]."""
    i = tl.arange(0, BLOCK)
    x = i.to(tl.float32) / BLOCK
    for _ in range(ROUNDS):
        x = exp2(-x)
    tl.store(out_ptr + tl.program_id(0) * BLOCK + i, x)


def launch(device: torch.device) -> tuple[torch.Tensor, int]:
    """(result, exponentials done) of one launch that fills the GPU."""
    programs = multiprocessors(device.index) * 16
    out = torch.empty(programs * BLOCK, device=device)
    exponentials_kernel[(programs,)](out, ROUNDS=ROUNDS, BLOCK=BLOCK, num_warps=WARPS)
    return out, programs * BLOCK * ROUNDS


def compile_cases() -> dict[str, CompileCase]:
    """The one kernel."""
    return {"exponentials_kernel": CompileCase(exponentials_kernel, {"ROUNDS": ROUNDS, "BLOCK": BLOCK}, WARPS)}
