"""Gradients that several programs have a share in: one launch for what sums, masks, casts and copies took six.

Legend: K chunks, D channels, N states of a channel (of a convolution: its taps), B batch, L length, G groups.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from seqkit.kernels.triton_compiled import launch_settled
from seqkit.kernels.triton_launch import INTERPRETED, CompileCase, ceil_div, next_power

BLOCK = 32  # channels of a program: whole lines of memory
ROWS = 4 if INTERPRETED else 64  # chunks on their way at once
NUMBERS = 64 if INTERPRETED else 2048  # of B and of C, that a program sums


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


@triton.jit(do_not_specialize=["rows", "length", "shares"])
def share_sum_kernel(
    shares_ptr, dB_ptr, dC_ptr, rows, length, groups, shares, s_share, s_which, s_row, sBb, sBl, sBg, sCb, sCl, sCg,
    N: tl.constexpr, NP: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """ROWS rows of N numbers of both, in the dtype and the place of the gradients."""
    r = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    n = tl.arange(0, NP)[None, :]
    on = (r < rows)[:, None] & (n < N)
    at = shares_ptr + (r * s_row)[:, None] + n
    b, c = tl.zeros((ROWS, NP), tl.float32), tl.zeros((ROWS, NP), tl.float32)
    for _ in range(shares):
        b += tl.load(at, mask=on, other=0.0)
        c += tl.load(at + s_which, mask=on, other=0.0)
        at += s_share
    g, token, row = r % groups, r // groups % length, r // groups // length
    dB_ptr += (row * sBb + token * sBl + g * sBg)[:, None] + n
    dC_ptr += (row * sCb + token * sCl + g * sCg)[:, None] + n
    tl.store(dB_ptr, b.to(dB_ptr.dtype.element_ty), mask=on)
    tl.store(dC_ptr, c.to(dC_ptr.dtype.element_ty), mask=on)


def sum_shares(
    shares: torch.Tensor, count: int, strides: tuple[int, int, int], dB_BLGN: torch.Tensor, dC_BLGN: torch.Tensor
) -> None:
    """Write the gradients of B and C, sums of ``count`` float32 shares each.

    Args:
        shares: Where they lie.
        count: Shares of each.
        strides: From share to share, from B's to C's, and from one (token, group) to the next.
        dB_BLGN: Receives that of B; last dimension contiguous.
        dC_BLGN: Receives that of C.
    """
    _, length, groups, N = dB_BLGN.shape
    rows, places = dB_BLGN.numel() // N, (*dB_BLGN.stride()[:3], *dC_BLGN.stride()[:3])

    def settle():
        padded = next_power(N)
        height = max(1, NUMBERS // padded)
        scalars = rows, length, groups, count, *strides, *places
        return ceil_div(rows, height), scalars, {"N": N, "NP": padded, "ROWS": height, "num_warps": 4}

    if rows:
        key = rows, length, groups, N, count, strides, places
        launch_settled(share_sum_kernel, key, settle, shares, dB_BLGN, dC_BLGN)


def compile_cases() -> dict[str, CompileCase]:
    """Both kernels, with everything there is to sum."""
    types = {"dB_ptr": "*bf16", "dC_ptr": "*bf16"}
    return {
        "chunk_sum_kernel": CompileCase(chunk_sum_kernel, {"N": 16, "ROWS": ROWS, "BLOCK": BLOCK}),
        "share_sum_kernel": CompileCase(share_sum_kernel, {"N": 16, "NP": 16, "ROWS": NUMBERS // 16}, types=types),
    }
