"""Selective scan on Triton, backward: adjoints of all chunks, a chain over them, gradients of all chunks.

States are recomputed from the chunk starts that the forward pass kept: one sweep leaves a checkpoint every STEPS tokens
in scratch memory, then the parts are walked last first with the states of one part in registers. Sums over channels and
chunks are written as partial sums and added up afterwards, always in the same order: no atomics.

Legend: B batch, L length, S segments, D channels, N states, G groups, K chunks, P programs.
"""

# ruff: noqa: RUF005  (the compiler of kernels knows no starred expressions)

from __future__ import annotations

import torch
import triton
import triton.language as tl

from seqkit.kernels.selective.forward import VARYING, chain
from seqkit.kernels.selective.tiles import (
    BLOCK,
    CHUNK,
    SUMMARY_STEPS,
    Call,
    channel_block,
    decay_rates,
    fetch_rows,
    row_of,
    state_tile,
    step_size,
    strides_of,
)
from seqkit.kernels.triton_chunks import locate_chunk, only_if
from seqkit.kernels.triton_launch import guard, next_power, resident_programs, rows_contiguous
from seqkit.kernels.triton_math import LOG2_E, exp2, sigmoid

PROGRAMS_PER_MULTIPROCESSOR = 8  # what the registers of a multiprocessor hold
GRADIENT_STEPS = 2  # tokens whose states a program holds; 4 spill registers, 8 compile for 20 s
BACKWARD_VARYING = [*VARYING, "work", "batch", "sgb", "sgl"]


@triton.jit(do_not_specialize=BACKWARD_VARYING)
def adjoint_kernel(
    dy_ptr, delta_ptr, A_ptr, C_ptr, z_ptr, bias_ptr, ends_ptr, sums_ptr, segment_ptr, table_ptr,
    length, per_row, segments, channels, group, groups, blocks, sgb, sgl, sdb, sdl, sCb, sCl, sCg, szb, szl,
    N: tl.constexpr, NP: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr, STEPS: tl.constexpr,
    SOFTPLUS: tl.constexpr, PACKED: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """Adjoint of every chunk's start if that of its end were zero (K, N, D), and its sum of delta (K, D)."""
    k, g, d, on_d = channel_block(tl.program_id(0).to(tl.int64), group, groups, blocks, BLOCK)
    row, first, count = locate_chunk(k, segment_ptr, table_ptr, segments, length, per_row, CHUNK, PACKED, REVERSE)
    n = tl.arange(0, NP)
    rates = decay_rates(A_ptr, n, d, on_d, N) * LOG2_E
    bias = tl.load(bias_ptr + d, mask=on_d, other=0.0) if bias_ptr is not None else 0.0
    dy_ptr += row * sgb + d
    delta_ptr += row * sdb + d
    C_ptr += row * sCb + g * sCg + n
    adjoint = tl.zeros((NP, BLOCK), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    parts = tl.cdiv(count, STEPS).to(tl.int32)
    for back in range(parts):
        part = parts - 1 - back
        begin = part * STEPS
        dys = fetch_rows(dy_ptr, sgl, first, begin, count, on_d, STEPS, REVERSE)
        deltas = fetch_rows(delta_ptr, sdl, first, begin, count, on_d, STEPS, REVERSE)
        Cs = fetch_rows(C_ptr, sCl, first, begin, count, n < N, STEPS, REVERSE)
        if z_ptr is not None:
            zs = fetch_rows(z_ptr + row * szb + d, szl, first, begin, count, on_d, STEPS, REVERSE)
        for j in tl.static_range(STEPS - 1, -1, -1):
            _delta, positive, _slope = step_size(deltas[j], bias, begin + j < count, SOFTPLUS)
            dy = dys[j].to(tl.float32)
            if z_ptr is not None:
                z = zs[j].to(tl.float32)
                dy *= z * sigmoid(z)
            adjoint = exp2(rates * positive[None, :]) * (adjoint + Cs[j].to(tl.float32)[:, None] * dy[None, :])
            total += positive
    at, on = state_tile(k, n, d, on_d, N, channels)
    tl.store(ends_ptr + at, adjoint, mask=on)
    tl.store(sums_ptr + k * channels + d, total, mask=on_d)


@triton.jit
def checkpoints(
    state, rates, bias, u_ptr, delta_ptr, B_ptr, sul, sdl, sBl, scratch, n, on_d, first, count,
    N: tl.constexpr, NP: tl.constexpr, BLOCK: tl.constexpr, STEPS: tl.constexpr,
    SOFTPLUS: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """Sweep through a chunk and leave the state before every part in scratch memory."""
    for part in range(tl.cdiv(count, STEPS).to(tl.int32)):
        tl.store(scratch + part * (NP * BLOCK), state)
        begin = part * STEPS
        us = fetch_rows(u_ptr, sul, first, begin, count, on_d, STEPS, REVERSE)
        deltas = fetch_rows(delta_ptr, sdl, first, begin, count, on_d, STEPS, REVERSE)
        Bs = fetch_rows(B_ptr, sBl, first, begin, count, n < N, STEPS, REVERSE)
        for j in tl.static_range(STEPS):
            delta, positive, _slope = step_size(deltas[j], bias, begin + j < count, SOFTPLUS)
            x = delta * us[j].to(tl.float32)
            state = exp2(rates * positive[None, :]) * state + Bs[j].to(tl.float32)[:, None] * x[None, :]


@triton.jit
def through_gate(z, y, dy):
    """Gradients of z and y for y silu(z)."""
    gate = sigmoid(z)
    return dy * y * (gate + z * gate * (1.0 - gate)), dy * z * gate


@triton.jit(do_not_specialize=BACKWARD_VARYING)
def gradient_kernel(
    dy_ptr, u_ptr, delta_ptr, A_ptr, B_ptr, C_ptr, D_ptr, z_ptr, bias_ptr, starts_ptr, adjoints_ptr, scratch_ptr,
    du_ptr, ddelta_ptr, dz_ptr, dB_ptr, dC_ptr, dA_ptr, dD_ptr, dbias_ptr, segment_ptr, table_ptr,
    length, per_row, segments, channels, group, groups, blocks, work, batch,
    sgb, sgl, sub, sul, sdb, sdl, sBb, sBl, sBg, sCb, sCl, sCg, szb, szl,
    N: tl.constexpr, NP: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr, STEPS: tl.constexpr,
    SOFTPLUS: tl.constexpr, PACKED: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """Gradients of all tokens; parameters' as one partial sum per chunk, those of B and C as one per channel block."""
    n = tl.arange(0, NP)
    tile = n[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    scratch = scratch_ptr + tl.program_id(0).to(tl.int64) * (CHUNK // STEPS * NP * BLOCK) + tile
    for item in range(tl.program_id(0), work, tl.num_programs(0)):
        k, g, d, on_d = channel_block(item + tl.zeros((), tl.int64), group, groups, blocks, BLOCK)
        row, first, count = locate_chunk(k, segment_ptr, table_ptr, segments, length, per_row, CHUNK, PACKED, REVERSE)
        decay = decay_rates(A_ptr, n, d, on_d, N)
        bias = tl.load(bias_ptr + d, mask=on_d, other=0.0) if bias_ptr is not None else 0.0
        skip = tl.load(D_ptr + d, mask=on_d, other=0.0) if D_ptr is not None else 0.0
        at, on = state_tile(k, n, d, on_d, N, channels)
        start = tl.load(starts_ptr + at, mask=only_if(on, count > 0), other=0.0)
        adjoint = tl.load(adjoints_ptr + at, mask=only_if(on, count > 0), other=0.0)
        us_ptr, ds_ptr, Bs_ptr = u_ptr + row * sub + d, delta_ptr + row * sdb + d, B_ptr + row * sBb + g * sBg + n
        checkpoints(
            start, decay * LOG2_E, bias, us_ptr, ds_ptr, Bs_ptr, sul, sdl, sBl, scratch, n, on_d, first, count,
            N, NP, BLOCK, STEPS, SOFTPLUS, REVERSE,
        )  # fmt: skip
        tl.debug_barrier()
        dA = tl.zeros((NP, BLOCK), tl.float32)
        dD = tl.zeros((BLOCK,), tl.float32)
        dbias = tl.zeros((BLOCK,), tl.float32)
        of_block = (((item % blocks) * batch + row) * length * groups + g) * N + n
        parts = tl.cdiv(count, STEPS).to(tl.int32)
        for back in range(parts):
            begin = (parts - 1 - back) * STEPS
            state = tl.load(scratch + begin * (NP * BLOCK // STEPS))
            us = fetch_rows(us_ptr, sul, first, begin, count, on_d, STEPS, REVERSE)
            raws = fetch_rows(ds_ptr, sdl, first, begin, count, on_d, STEPS, REVERSE)
            Bs = fetch_rows(Bs_ptr, sBl, first, begin, count, n < N, STEPS, REVERSE)
            Cs = fetch_rows(C_ptr + row * sCb + g * sCg + n, sCl, first, begin, count, n < N, STEPS, REVERSE)
            dys = fetch_rows(dy_ptr + row * sgb + d, sgl, first, begin, count, on_d, STEPS, REVERSE)
            if z_ptr is not None:
                zs = fetch_rows(z_ptr + row * szb + d, szl, first, begin, count, on_d, STEPS, REVERSE)
            states = ()
            for j in tl.static_range(STEPS):
                states = states + (state,)
                delta, positive, _slope = step_size(raws[j], bias, begin + j < count, SOFTPLUS)
                write = Bs[j].to(tl.float32)[:, None] * (delta * us[j].to(tl.float32))[None, :]
                state = exp2(decay * LOG2_E * positive[None, :]) * state + write
            for j in tl.static_range(STEPS - 1, -1, -1):
                t, valid = row_of(first, begin + j, count, REVERSE)
                mask = only_if(on_d, valid)
                u, dy = us[j].to(tl.float32), dys[j].to(tl.float32)
                b, c = Bs[j].to(tl.float32), Cs[j].to(tl.float32)
                delta, positive, slope = step_size(raws[j], bias, valid, SOFTPLUS)
                out = (row * length + t) * channels + d
                if z_ptr is not None:
                    dz, dy = through_gate(zs[j].to(tl.float32), tl.sum(c[:, None] * state, 0) + skip * u, dy)
                    tl.store(dz_ptr + out, dz.to(dz_ptr.dtype.element_ty), mask=mask)
                adjoint += c[:, None] * dy[None, :]
                tokens = of_block + t * (groups * N)
                tl.store(dC_ptr + tokens, tl.sum(dy[None, :] * state, 1), mask=only_if(n < N, valid))
                tl.store(dB_ptr + tokens, tl.sum((delta * u)[None, :] * adjoint, 1), mask=only_if(n < N, valid))
                dx = tl.sum(b[:, None] * adjoint, 0)
                adjoint = exp2(decay * LOG2_E * positive[None, :]) * adjoint
                state = states[j]
                q = adjoint * state
                dA += q * positive[None, :]
                dexponent = tl.sum(decay * q, 0)
                if not SOFTPLUS:
                    dexponent = tl.where(delta < 0, 0.0, dexponent)
                ddelta = tl.where(valid, (u * dx + dexponent) * slope, 0.0)
                tl.store(du_ptr + out, (delta * dx + skip * dy).to(du_ptr.dtype.element_ty), mask=mask)
                tl.store(ddelta_ptr + out, ddelta.to(ddelta_ptr.dtype.element_ty), mask=mask)
                dD, dbias = dD + dy * u, dbias + ddelta
        tl.store(dA_ptr + at, dA, mask=on)
        tl.store(dD_ptr + k * channels + d, dD, mask=on_d)
        tl.store(dbias_ptr + k * channels + d, dbias, mask=on_d)
        tl.debug_barrier()


def _adjoints(call: Call, dy: torch.Tensor, dfinal: torch.Tensor | None):
    """Adjoints of the chunk ends (K, N, D) and of the initial states (S, D, N)."""
    spans = call.segments
    ends = torch.empty((spans.chunks, call.N, call.D), dtype=torch.float32, device=dy.device)
    sums = ends.new_empty((spans.chunks, call.D))
    if call.programs:
        adjoint_kernel[(call.programs,)](
            dy, call.delta, call.A, call.C, call.z, call.bias, ends, sums, *call.geometry(), *strides_of(dy),
            *call.strides("delta", "C", "z"), STEPS=SUMMARY_STEPS, **call.constants(),
        )  # fmt: skip
    return chain(call, ends, sums, dfinal, flip=True)


def backward(
    dy: torch.Tensor, dfinal: torch.Tensor | None, starts_KND: torch.Tensor, *args
) -> tuple[torch.Tensor | None, ...]:
    """Gradients of u, delta, A, B, C, D, z, delta_bias, initial_state (None where the operand is absent).

    Args:
        dy: Gradient of y (B, L, D).
        dfinal: Gradient of the final states (S, D, N), or None.
        starts_KND: Chunk-start states of the forward pass.
        *args: Those of :func:`seqkit.kernels.selective.forward.forward`.
    """
    call, dy = Call(*args), rows_contiguous(dy)
    u, delta, A, B, C, D, z, delta_bias, initial_state = args[:9]
    K, batch, device = call.segments.chunks, u.shape[0], u.device

    def like(x):
        return torch.empty(x.shape, dtype=x.dtype, device=device)

    du, ddelta, dz = like(u), like(delta), None if z is None else like(z)
    partial = torch.empty((2, call.blocks, *B.shape), dtype=torch.float32, device=device)
    dA = torch.empty((K, call.N, call.D), dtype=torch.float32, device=device)
    dvectors = dA.new_empty((2, K, call.D))
    programs = min(call.programs, resident_programs(u, PROGRAMS_PER_MULTIPROCESSOR))
    scratch = dA.new_empty(programs * (CHUNK // GRADIENT_STEPS) * next_power(call.N) * BLOCK)
    with guard(u):
        adjoints, dentry = _adjoints(call, dy, None if dfinal is None else dfinal.float().contiguous())
        if programs:
            gradient_kernel[(programs,)](
                dy, u, delta, call.A, B, C, call.skip, z, call.bias, starts_KND, adjoints, scratch,
                du, ddelta, dz, partial[0], partial[1], dA, dvectors[0], dvectors[1], *call.geometry(),
                call.programs, batch, *strides_of(dy), *call.strides("u", "delta", "B", "C", "z"),
                STEPS=GRADIENT_STEPS, **call.constants(),
            )  # fmt: skip
    if not programs:
        dA, dvectors = dA.new_zeros(1, call.N, call.D), dvectors.new_zeros(2, 1, call.D)
    dB, dC = partial.sum(1).unbind(0)
    dA_DN = dA.sum(0).t().masked_fill(call.A > 0, 0).to(A.dtype).contiguous()
    dD, dbias = dvectors.sum(1).unbind(0)
    return (
        du,
        ddelta,
        dA_DN,
        dB.to(B.dtype, copy=True),
        dC.to(C.dtype, copy=True),
        None if D is None else dD.to(D.dtype, copy=True),
        dz,
        None if delta_bias is None else dbias.to(delta_bias.dtype, copy=True),
        None if initial_state is None else dentry.to(initial_state.dtype),
    )
