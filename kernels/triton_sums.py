"""Gradients of parameters from the shares of chunks: one launch where sums, masks and transposed copies took six.

Legend: K chunks, D channels, N states of a channel (of a convolution: its taps).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from seqkit.kernels.triton_compiled import launch_settled
from seqkit.kernels.triton_launch import INTERPRETED, CompileCase, ceil_div

BLOCK = 32  # channels of a program: whole lines of memory
ROWS = 4 if INTERPRETED else 64  # chunks on their way at once


@triton.jit
def column_sums(ptr, stride, chunks, on, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Sums [BLOCK] over all chunks, always in the same order; the pointers are those of the first chunk."""
    total = tl.zeros((ROWS, BLOCK), tl.float32)
    rows = tl.arange(0, ROWS)[:, None].to(tl.int64)
    for begin in range(0, chunks, ROWS):
        inside = on[None, :] & (rows + begin < chunks)
        total += tl.load(ptr[None, :] + (rows + begin) * stride, mask=inside, other=0.0)
    return tl.sum(total, 0)


@triton.jit(do_not_specialize=["chunks", "channels", "blocks"])
def chunk_sum_kernel(
    states_ptr, first_ptr, second_ptr, A_ptr, dstates_ptr, dfirst_ptr, dsecond_ptr, chunks, channels, blocks,
    N: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """BLOCK channels of one state, or of one of the vectors, which count as states N and N + 1."""
    n = tl.program_id(0) // blocks
    d = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    on = d < channels
    if n < N:
        total = column_sums(states_ptr + n * channels + d, N * channels, chunks, on, ROWS, BLOCK)
        if A_ptr is not None:
            total = tl.where(tl.load(A_ptr + n * channels + d, mask=on, other=0.0) > 0, 0.0, total)
        tl.store(dstates_ptr + d * N + n, total, mask=on)
    elif n == N:
        if dfirst_ptr is not None:
            tl.store(dfirst_ptr + d, column_sums(first_ptr + d, channels, chunks, on, ROWS, BLOCK), mask=on)
    elif dsecond_ptr is not None:
        tl.store(dsecond_ptr + d, column_sums(second_ptr + d, channels, chunks, on, ROWS, BLOCK), mask=on)


def sum_over_chunks(
    states_KND: torch.Tensor,
    first_KD: torch.Tensor | None,
    second_KD: torch.Tensor | None = None,
    *,
    A_ND: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Sums over the chunks of float32 shares, contiguous all of them: (D, N), (D,), (D,); None where nothing came in.

    Where ``A_ND`` is positive the first sum is 0: such rates are taken as 0, whatever they are.
    """
    (chunks, N, D), blocks = states_KND.shape, ceil_div(states_KND.shape[2], BLOCK)
    dstates = states_KND.new_empty((D, N))
    vectors = [None if x is None else x.new_empty(D) for x in (first_KD, second_KD)]

    def settle():
        return (N + 2) * blocks, (chunks, D, blocks), {"N": N, "ROWS": ROWS, "BLOCK": BLOCK, "num_warps": 4}

    operands = states_KND, first_KD, second_KD, A_ND, dstates, *vectors
    launch_settled(chunk_sum_kernel, (chunks, N, D), settle, *operands)
    return dstates, *vectors


def compile_cases() -> dict[str, CompileCase]:
    """The one kernel, with everything there is to sum."""
    return {"chunk_sum_kernel": CompileCase(chunk_sum_kernel, {"N": 16, "ROWS": ROWS, "BLOCK": BLOCK})}
