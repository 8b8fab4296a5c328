"""Selective scan on Triton, backward: adjoints of all chunks, a chain over them, gradients of all chunks.

States are recomputed from the chunk starts that the forward pass kept: one sweep leaves a checkpoint before every pair
of tokens in scratch memory, then the pairs are walked last first, their states in registers. Sums over channels are
added up in memory by the program that takes the blocks in turn, those of parameters written once for every chunk; what
is left is added up afterwards, always in the same order: no atomics.

Legend: B batch, L length, S segments, D channels, N states, G groups, K chunks.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import triton
import triton.language as tl

from seqkit.kernels.devices import capability, launch_row
from seqkit.kernels.selective.forward import VARYING, chain
from seqkit.kernels.selective.tiles import (
    TOKENS_AHEAD,
    Call,
    advance,
    channel_block,
    chunk_of,
    decay_rates,
    far_rows,
    parts_of,
    present,
    row_start,
    state_tile,
    step_size,
    strides_of,
    take,
    take_if,
    warps_for,
)
from seqkit.kernels.triton_chunks import only_if
from seqkit.kernels.triton_compiled import launch_settled
from seqkit.kernels.triton_lanes import add_lane_sums, lane_sum_places
from seqkit.kernels.triton_launch import INTERPRETED, ceil_div, guard, next_power, resident_programs, rows_contiguous
from seqkit.kernels.triton_math import LN_2, exp2, prefetch, sigmoid, widen
from seqkit.kernels.triton_sums import sum_over_chunks, sum_shares

ADJOINT_BLOCK = 64  # channels of a program
GRADIENT_BLOCK = 32
GRADIENT_REGISTERS = 255  # of a thread
# pairs of tokens between a prefetch and its load, on the way there and on the way back
PAIRS_AHEAD, PAIRS_BACK = tl.constexpr(4), tl.constexpr(3)
BACKWARD_VARYING = [
    *VARYING, "pieces", "batch", "sets", "sgb", "sgl", "sdub", "sdul", "sddb", "sddl", "sdzb", "sdzl", "syb", "syl",
    "scratch_ptr",  # were its alignment known, states would be laid out for wide loads, four channels to a thread
]  # fmt: skip


@triton.jit
def through_gate(z, y, dy):
    """Gradients of z and y for y silu(z), and silu(z)."""
    gate = sigmoid(z)
    return dy * y * (gate + z * gate * (1.0 - gate)), dy * z * gate, z * gate


@triton.jit(do_not_specialize=BACKWARD_VARYING)
def adjoint_kernel(
    dy_ptr, delta_ptr, A_ptr, C_ptr, z_ptr, bias_ptr, ends_ptr, sums_ptr, segment_ptr, table_ptr,
    length, per_row, segments, channels, group, groups, blocks, sgb, sgl, sdb, sdl, sCb, sCl, sCg, szb, szl,
    N: tl.constexpr, NP: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
    SOFTPLUS: tl.constexpr, PACKED: tl.constexpr, REVERSE: tl.constexpr, MASKED: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Adjoint of every chunk's start if that of its end were zero (K, N, D), and its sum of delta (K, D)."""
    program = tl.program_id(0).to(tl.int64)
    k, g = program // (blocks * groups), (program // blocks) % groups
    d, on_d = channel_block(g, program % blocks, group, BLOCK)
    row, first, count, some = chunk_of(k, segment_ptr, table_ptr, segments, length, per_row, CHUNK, PACKED, REVERSE)
    n = tl.arange(0, NP)
    on = (n < N)[:, None] & on_d[None, :]
    all_d, all_n = present(tl.arange(0, BLOCK), on_d, MASKED), present(n, n < N, MASKED)
    tile = state_tile(n, d, channels)
    rates = decay_rates(A_ptr, tile, on)
    bias = tl.load(bias_ptr + d, mask=on_d, other=0.0) if bias_ptr is not None else 0.0
    final = first + (1 - count if REVERSE else count - 1)  # its last token in scan order comes first here
    d_0, sign = g * group + program % blocks * BLOCK, 1 if REVERSE else -1
    far, far_step = far_rows(
        dy_ptr + row * sgb + final * sgl + d_0, delta_ptr + row * sdb + final * sdl + d_0, None,
        z_ptr + row * szb + final * szl + d_0 if z_ptr is not None else None, None,
        C_ptr + row_start(row, final, g, sCb, sCl, sCg, WIDE), sign * sgl, sign * sdl, 0, sign * szl, 0, sign * sCl,
        group - program % blocks * BLOCK, BLOCK, 1,
    )  # fmt: skip
    far += tl.maximum(tl.minimum(TOKENS_AHEAD, count - 1), 0) * far_step
    dy_ptr += row * sgb + final * sgl + d
    delta_ptr += row * sdb + final * sdl + d
    C_ptr += row_start(row, final, g, sCb, sCl, sCg, WIDE) + n
    dy, raw, c = take_if(dy_ptr, all_d, some), take_if(delta_ptr, all_d, some), widen(take_if(C_ptr, all_n, some))
    if z_ptr is not None:
        z_ptr += row * szb + final * szl + d
        z = take_if(z_ptr, all_d, some)
    adjoint = tl.zeros((NP, BLOCK), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for i in range(count):
        more = i + 1 < count
        dy_ptr += advance(more, sgl, False, not REVERSE)
        delta_ptr += advance(more, sdl, False, not REVERSE)
        C_ptr += advance(more, sCl, WIDE, not REVERSE)
        next_dy, next_raw = take(dy_ptr, all_d, MASKED), take(delta_ptr, all_d, MASKED)
        next_c = take(C_ptr, all_n, MASKED)
        far += tl.where(count > i + TOKENS_AHEAD + 1, far_step, 0)
        prefetch(far)
        weight = dy.to(tl.float32)
        if z_ptr is not None:
            z_ptr += advance(more, szl, False, not REVERSE)
            next_z = take(z_ptr, all_d, MASKED)
            gate = z.to(tl.float32)
            weight *= gate * sigmoid(gate)
            z = next_z
        _delta, positive = step_size(raw, bias, SOFTPLUS)
        adjoint = exp2(rates * positive[None, :]) * (adjoint + c[:, None] * weight[None, :])
        total += positive
        dy, raw, c = next_dy, next_raw, widen(next_c)
    tl.store(ends_ptr + k * N * channels + tile, adjoint, mask=on)
    tl.store(sums_ptr + k * channels + d, total, mask=on_d)


@triton.jit
def pair_of(ptr, stride, begin, last, mask, MASKED: tl.constexpr, WIDE: tl.constexpr):
    """Rows of two tokens from number begin on; past the end of the chunk its last one."""
    first, second = tl.minimum(begin, last).to(tl.int64) * stride, tl.minimum(begin + 1, last).to(tl.int64) * stride
    if WIDE:
        first, second = tl.multiple_of(first, 8), tl.multiple_of(second, 8)
    return take(ptr + first, mask, MASKED), take(ptr + second, mask, MASKED)


@triton.jit
def checkpoints(
    state, rates, bias, u_ptr, delta_ptr, B_ptr, sul, sdl, sBl, scratch, all_d, all_n, pairs, last, far, far_step,
    NP: tl.constexpr, BLOCK: tl.constexpr, SOFTPLUS: tl.constexpr, MASKED: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """Sweep through a chunk and leave the state before every pair of tokens in scratch memory.

    Rows of channels come from far: they are brought near PAIRS_AHEAD pairs before they are asked for, two pairs ahead.
    """
    _row, _element, token = parts_of(BLOCK, 2)
    u0, u1 = pair_of(u_ptr, sul, last * 0, last, all_d, MASKED, False)
    raw0, raw1 = pair_of(delta_ptr, sdl, last * 0, last, all_d, MASKED, False)
    b0, b1 = pair_of(B_ptr, sBl, last * 0, last, all_n, MASKED, WIDE)
    b0, b1 = widen(b0), widen(b1)
    second_u0, second_u1 = pair_of(u_ptr, sul, last * 0 + 2, last, all_d, MASKED, False)
    second_raw0, second_raw1 = pair_of(delta_ptr, sdl, last * 0 + 2, last, all_d, MASKED, False)
    begin = last * 0
    for pair in range(pairs):
        tl.store(scratch + pair * (NP * BLOCK), state)
        begin += 2
        prefetch(far + tl.minimum(begin + 2 * PAIRS_AHEAD + token, last).to(tl.int64) * far_step)
        third_u0, third_u1 = pair_of(u_ptr, sul, begin + 2, last, all_d, MASKED, False)
        third_raw0, third_raw1 = pair_of(delta_ptr, sdl, begin + 2, last, all_d, MASKED, False)
        next_b0, next_b1 = pair_of(B_ptr, sBl, begin, last, all_n, MASKED, WIDE)
        delta, positive = step_size(raw0, bias, SOFTPLUS)
        state = exp2(rates * positive[None, :]) * state + b0[:, None] * (delta * u0.to(tl.float32))[None, :]
        delta, positive = step_size(raw1, bias, SOFTPLUS)
        state = exp2(rates * positive[None, :]) * state + b1[:, None] * (delta * u1.to(tl.float32))[None, :]
        u0, u1, raw0, raw1 = second_u0, second_u1, second_raw0, second_raw1
        second_u0, second_u1, second_raw0, second_raw1 = third_u0, third_u1, third_raw0, third_raw1
        b0, b1 = widen(next_b0), widen(next_b1)


@triton.jit
def add_sums(total, tile, column: tl.constexpr, SUMS: tl.constexpr, ROWS: tl.constexpr):
    """``total`` with the sums of ``tile`` [N, BLOCK] over its channels added to one of its 4 columns.

    On the tensor cores with terms in bfloat16 (SUMS "bf16") or of 22 bits ("tf32x2"); where they cannot, by shuffles
    ("shuffle").
    """
    if SUMS == "shuffle":
        return total + tl.sum(tile, 1)[:, None] * (tl.arange(0, 4) == column)[None, :].to(tl.float32)
    else:
        return add_lane_sums(total, tile, column, SUMS == "tf32x2", ROWS)


@triton.jit
def sum_places(NP: tl.constexpr, WARPS: tl.constexpr, SUMS: tl.constexpr, ROWS: tl.constexpr):
    """State, column and presence of every number of a total; columns: dB, dC of a pair's first token, then second."""
    if SUMS == "shuffle":
        n, column = tl.arange(0, NP)[:, None], tl.arange(0, 4)[None, :]
        return n + column * 0, column + n * 0, (n >= 0) & (column >= 0)
    else:
        n, column, there = lane_sum_places(NP, WARPS, ROWS)
        return n, column, there & (column < 4)


@triton.jit(do_not_specialize=BACKWARD_VARYING)
def gradient_kernel(
    dy_ptr, u_ptr, delta_ptr, A_ptr, B_ptr, C_ptr, D_ptr, z_ptr, bias_ptr, starts_ptr, adjoints_ptr, scratch_ptr,
    du_ptr, ddelta_ptr, dz_ptr, y_ptr, dBC_ptr, dD_ptr, dbias_ptr, segment_ptr, table_ptr,
    length, per_row, segments, channels, group, groups, blocks, pieces, batch, sets,
    sgb, sgl, sub, sul, sdb, sdl, sBb, sBl, sBg, sCb, sCl, sCg, szb, szl,
    sdub, sdul, sddb, sddl, sdzb, sdzl, syb, syl,
    N: tl.constexpr, NP: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
    SUMS: tl.constexpr, ROWS: tl.constexpr, WARPS: tl.constexpr, SOFTPLUS: tl.constexpr, PACKED: tl.constexpr,
    REVERSE: tl.constexpr, MASKED: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Gradients of all tokens; dA of every chunk in place of its adjoints, dB and dC of every set of channel blocks.

    A piece of work is a chunk with the blocks of one set: one program takes them in turn and adds up dB and dC.
    """
    n = tl.arange(0, NP)
    own = n[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    lines = scratch_ptr + tl.program_id(0).to(tl.int64) * (CHUNK // 2 * NP * BLOCK) + n * BLOCK
    scratch = scratch_ptr + tl.program_id(0).to(tl.int64) * (CHUNK // 2 * NP * BLOCK) + own
    all_n = present(n, n < N, MASKED)
    _row, _element, either = parts_of(BLOCK, 2)
    sum_n, slot, there = sum_places(NP, WARPS, SUMS, ROWS)
    there &= sum_n < N
    per_set = tl.cdiv(blocks, sets)
    token = groups * 2 * N
    if REVERSE:  # from here on strides lead to the next token in scan order
        sul, sdl, sgl, szl, sBl, sCl, token = -sul, -sdl, -sgl, -szl, -sBl, -sCl, -token
        sdul, sddl, sdzl, syl = -sdul, -sddl, -sdzl, -syl
    for piece in range(tl.program_id(0), pieces, tl.num_programs(0)):
        chosen = piece % sets
        g, k = (piece // sets % groups).to(tl.int64), (piece // (sets * groups)).to(tl.int64)
        row, first, count, some = chunk_of(k, segment_ptr, table_ptr, segments, length, per_row, CHUNK, PACKED, REVERSE)
        last = tl.maximum(count - 1, 0)  # a slot without tokens reads a row that exists
        head = -first if REVERSE else first
        B_at = B_ptr + row_start(row, head, g, sBb, sBl, sBg, WIDE) + n
        C_at = C_ptr + row_start(row, head, g, sCb, sCl, sCg, WIDE) + n
        sums = dBC_ptr + (((chosen * batch + row) * length + first) * groups + g) * 2 * N
        sums += sum_n + slot % 2 * N
        pairs = tl.cdiv(count, 2)
        for block in range(chosen * per_set, tl.minimum(chosen * per_set + per_set, blocks)):
            more = block > chosen * per_set
            d, on_d = channel_block(g, block, group, BLOCK)
            on = (n < N)[:, None] & on_d[None, :]
            all_d = present(tl.arange(0, BLOCK), on_d, MASKED)
            tile = state_tile(n, d, channels)
            rates = decay_rates(A_ptr, tile, on)
            bias = tl.load(bias_ptr + d, mask=on_d, other=0.0) if bias_ptr is not None else 0.0
            skip = tl.load(D_ptr + d, mask=on_d, other=0.0) if D_ptr is not None else 0.0
            u_at, delta_at = u_ptr + row * sub + head * sul + d, delta_ptr + row * sdb + head * sdl + d
            dy_at = dy_ptr + row * sgb + head * sgl + d
            du_at, ddelta_at = du_ptr + row * sdub + head * sdul + d, ddelta_ptr + row * sddb + head * sddl + d
            if z_ptr is not None:
                z_at, dz_at = z_ptr + row * szb + head * szl + d, dz_ptr + row * sdzb + head * sdzl + d
            if y_ptr is not None:
                y_at = y_ptr + row * syb + head * syl + d
            d_0 = (g * group + block * BLOCK).to(tl.int64)
            far, far_step = far_rows(
                u_ptr + row * sub + head * sul + d_0, delta_ptr + row * sdb + head * sdl + d_0,
                dy_ptr + row * sgb + head * sgl + d_0,
                z_ptr + row * szb + head * szl + d_0 if z_ptr is not None else None,
                B_ptr + row_start(row, head, g, sBb, sBl, sBg, WIDE),
                C_ptr + row_start(row, head, g, sCb, sCl, sCg, WIDE),
                sul, sdl, sgl, szl, sBl, sCl, group - block * BLOCK, BLOCK, 2,
            )  # fmt: skip
            checkpoints(
                take_if(starts_ptr + k * N * channels + tile, on, some), rates, bias, u_at, delta_at, B_at,
                sul, sdl, sBl, scratch, all_d, all_n, pairs, last, far, far_step, NP, BLOCK, SOFTPLUS, MASKED, WIDE,
            )  # fmt: skip
            tl.debug_barrier()
            adjoint = take_if(adjoints_ptr + k * N * channels + tile, on, some)
            dA = tl.zeros((NP, BLOCK), tl.float32)
            dD = tl.zeros((BLOCK,), tl.float32)
            dbias = tl.zeros((BLOCK,), tl.float32)
            begin = tl.maximum(pairs - 1, 0) * 2
            u0, u1 = pair_of(u_at, sul, begin, last, all_d, MASKED, False)
            raw0, raw1 = pair_of(delta_at, sdl, begin, last, all_d, MASKED, False)
            dy0, dy1 = pair_of(dy_at, sgl, begin, last, all_d, MASKED, False)
            if z_ptr is not None:
                z0, z1 = pair_of(z_at, szl, begin, last, all_d, MASKED, False)
            for _back in range(pairs):
                both = begin < last
                sum_at = sums + (begin + slot // 2).to(tl.int64) * token
                if SUMS != "shuffle":  # not so, but gives what is loaded from here the layout of the tiles
                    sum_at = tl.max_contiguous(sum_at, [1, 32])
                on_sum = there & (slot < (4 if both else 2))
                total = tl.load(sum_at, mask=only_if(on_sum, more), other=0.0)
                b0, b1 = pair_of(B_at, sBl, begin, last, all_n, MASKED, WIDE)
                c0, c1 = pair_of(C_at, sCl, begin, last, all_n, MASKED, WIDE)
                before = tl.maximum(begin - 2, 0)
                next_u0, next_u1 = pair_of(u_at, sul, before, last, all_d, MASKED, False)
                next_raw0, next_raw1 = pair_of(delta_at, sdl, before, last, all_d, MASKED, False)
                next_dy0, next_dy1 = pair_of(dy_at, sgl, before, last, all_d, MASKED, False)
                if z_ptr is not None:
                    next_z0, next_z1 = pair_of(z_at, szl, before, last, all_d, MASKED, False)
                prefetch(far + tl.minimum(tl.maximum(begin - 2 * PAIRS_BACK, 0) + either, last).to(tl.int64) * far_step)
                state = tl.load(scratch + begin * (NP * BLOCK // 2))
                prefetch((lines + tl.maximum(begin - 4, 0) * (NP * BLOCK // 2)).to(tl.int64))
                us, raws, dys = (
                    (u0.to(tl.float32), u1.to(tl.float32)),
                    (raw0, raw1),
                    (dy0.to(tl.float32), dy1.to(tl.float32) * both),
                )
                delta0, positive0 = step_size(raw0, bias, SOFTPLUS)
                delta1, positive1 = step_size(raw1, bias, SOFTPLUS)
                deltas, positives = (delta0, delta1 * both), (positive0, positive1 * both)
                decays = (exp2(rates * positives[0][None, :]), exp2(rates * positives[1][None, :]))
                middle = decays[0] * state + widen(b0)[:, None] * (deltas[0] * us[0])[None, :]
                befores = (state, middle)
                afters = (middle, decays[1] * middle + widen(b1)[:, None] * (deltas[1] * us[1])[None, :])
                for j in tl.static_range(1, -1, -1):
                    mask_d = all_d if j == 0 else only_if(all_d, both)
                    t = (begin + j).to(tl.int64)
                    u, dy, b, c = us[j], dys[j], widen(b0 if j == 0 else b1), widen(c0 if j == 0 else c1)
                    x = deltas[j] * u
                    if z_ptr is not None or y_ptr is not None:
                        y = tl.sum(c[:, None] * afters[j], 0) + skip * u
                    if z_ptr is not None:
                        z = (z0 if j == 0 else z1).to(tl.float32)
                        dz, dy, gate = through_gate(z, y, dy)
                        y *= gate
                        tl.store(dz_at + t * sdzl, dz.to(dz_ptr.dtype.element_ty), mask=mask_d)
                    if y_ptr is not None:
                        tl.store(y_at + t * syl, y.to(y_ptr.dtype.element_ty), mask=mask_d)
                    adjoint += c[:, None] * dy[None, :]
                    total = add_sums(total, dy[None, :] * afters[j], 2 * j + 1, SUMS, ROWS)
                    total = add_sums(total, x[None, :] * adjoint, 2 * j, SUMS, ROWS)
                    dx = tl.sum(b[:, None] * adjoint, 0)
                    adjoint *= decays[j]
                    q = adjoint * befores[j]
                    dA += q * positives[j][None, :]
                    dexponent = tl.sum(rates * q, 0) * LN_2
                    if SOFTPLUS:
                        ddelta = (u * dx + dexponent) * sigmoid(raws[j].to(tl.float32) + bias)
                    else:
                        ddelta = u * dx + tl.where(deltas[j] < 0, 0.0, dexponent)
                    if j == 1:
                        ddelta *= both
                    du = deltas[j] * dx + skip * dy
                    tl.store(du_at + t * sdul, du.to(du_ptr.dtype.element_ty), mask=mask_d)
                    tl.store(ddelta_at + t * sddl, ddelta.to(ddelta_ptr.dtype.element_ty), mask=mask_d)
                    dD += dy * u
                    dbias += ddelta
                tl.store(sum_at, total, mask=on_sum)
                begin = before
                u0, u1, raw0, raw1, dy0, dy1 = next_u0, next_u1, next_raw0, next_raw1, next_dy0, next_dy1
                if z_ptr is not None:
                    z0, z1 = next_z0, next_z1
            tl.store(adjoints_ptr + k * N * channels + tile, dA, mask=on)
            tl.store(dD_ptr + k * channels + d, dD, mask=on_d)
            tl.store(dbias_ptr + k * channels + d, dbias, mask=on_d)
            tl.debug_barrier()


def _adjoints(call: Call, dy: torch.Tensor, dfinal: torch.Tensor | None):
    """Adjoints of the chunk ends (K, N, D) and of the initial states (S, D, N)."""
    adjoints = torch.empty((call.segments.chunks, call.N, call.D), dtype=torch.float32, device=dy.device)
    sums = adjoints.new_empty((call.segments.chunks, call.D))
    if dy.numel():
        strides = strides_of(dy, call.delta, call.C, call.z)
        operands = dy, call.delta, call.A, call.C, call.z, call.bias, adjoints, sums
        key, settle = (call.settings, strides), lambda: call.settled(ADJOINT_BLOCK, strides)
        launch_settled(adjoint_kernel, key, settle, *operands, *call.tables)
    return adjoints, chain(call, adjoints, sums, dfinal, flip=True)


def _sums(call: Call) -> str:
    """How sums over channels are taken: see :func:`add_sums`."""
    if INTERPRETED or call.N <= 4 or capability(call.u.device.index) < (8, 0):
        return "shuffle"
    return "tf32x2" if torch.float32 in (call.B.dtype, call.C.dtype) else "bf16"


@lru_cache
def _sets(blocks: int, chunks: int, resident: int) -> int:
    """Into how many sets the blocks of a group fall: the fewest that keep nearly all programs busy.

    Each set has a dB and a dC of its own.
    """

    def rounds(sets: int) -> int:
        return ceil_div(chunks * sets, resident) * ceil_div(blocks, sets)

    best = min(rounds(sets) for sets in range(1, blocks + 1))
    return next(sets for sets in range(1, blocks + 1) if rounds(sets) <= 1.1 * best)


def _gradients(call: Call, dy, starts, adjoints, outputs) -> tuple[torch.Tensor, torch.Tensor]:
    """Write the gradients of the tokens; returns the chunks' shares (K, D) in those of D and of the bias."""
    u, (du, ddelta, dB, dC, dz, y) = call.u, outputs
    (batch, length), K = u.shape[:2], call.segments.chunks
    if not u.numel():
        return call.A.new_zeros((2, 1, call.D)).unbind(0)
    block, held = GRADIENT_BLOCK, launch_row(u).programs_per_multiprocessor(warps_for(call.N), GRADIENT_REGISTERS)
    resident = resident_programs(u, held)
    sets = _sets(call.blocks(block), K * call.G, resident)
    pieces = K * call.G * sets
    programs = min(pieces, resident)
    sums = torch.empty((sets, batch, length, call.G, 2, call.N), dtype=torch.float32, device=u.device)
    vectors = sums.new_empty((2, K, call.D))
    scratch = sums.new_empty(programs * (call.chunk // 2) * next_power(call.N) * block)
    strides = strides_of(dy, u, call.delta, call.B, call.C, call.z, du, ddelta, dz, y)

    def settle():
        own = {"SUMS": _sums(call), "ROWS": min(16, next_power(call.N)), "WARPS": warps_for(call.N), "num_stages": 1}
        return programs, (*call.geometry(block), pieces, batch, sets, *strides), {**own, **call.constants(block)}

    operands = dy, u, call.delta, call.A, call.B, call.C, call.skip, call.z, call.bias, starts, adjoints, scratch
    results = du, ddelta, dz, y, sums, vectors[0], vectors[1]
    key = call.settings, batch, sets, call.B.dtype, call.C.dtype, strides
    launch_settled(gradient_kernel, key, settle, *operands, *results, *call.tables)
    sum_shares(sums, sets, (sums.stride(0), call.N, 2 * call.N), dB, dC)
    return vectors.unbind(0)


def backward(
    dy: torch.Tensor,
    dfinal: torch.Tensor | None,
    starts_KND: torch.Tensor,
    *args,
    into: dict[str, torch.Tensor] | None = None,
) -> tuple[torch.Tensor | None, ...]:
    """Gradients of u, delta, A, B, C, D, z, delta_bias, initial_state (None where the operand is absent).

    Args:
        dy: Gradient of y (B, L, D).
        dfinal: Gradient of the final states (S, D, N), or None.
        starts_KND: Chunk-start states of the forward pass.
        *args: Those of :func:`seqkit.kernels.selective.forward.forward`.
        into: Tensors to write to, of the operands' shapes and contiguous in the last dimension: any of "du", "ddelta",
            "dB", "dC", "dz", and "y" for the forward pass's output, which the backward pass computes on its way.
    """
    call, dy, into = Call(*args), rows_contiguous(dy), into or {}
    u, delta, A, B, C, D, z, delta_bias, initial_state = args[:9]

    def target(name, x):
        return (
            into[name] if name in into else None if x is None else torch.empty(x.shape, dtype=x.dtype, device=x.device)
        )

    du, ddelta, dB, dC, dz = (
        target(name, x) for name, x in (("du", u), ("ddelta", delta), ("dB", B), ("dC", C), ("dz", z))
    )
    with guard(u):
        adjoints, dentry = _adjoints(call, dy, None if dfinal is None else dfinal.float().contiguous())
        vectors = _gradients(call, dy, starts_KND, adjoints, (du, ddelta, dB, dC, dz, into.get("y")))
        shares = (None if x is None else share for x, share in zip((D, delta_bias), vectors, strict=True))
        dA, dD, dbias = sum_over_chunks(adjoints if u.numel() else adjoints[:0], *shares, A_ND=call.A)
    return (
        du,
        ddelta,
        dA.to(A.dtype),
        dB,
        dC,
        None if D is None else dD.to(D.dtype),
        dz,
        None if delta_bias is None else dbias.to(delta_bias.dtype),
        None if initial_state is None else dentry.to(initial_state.dtype),
    )
