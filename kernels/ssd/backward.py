"""SSD scan on Triton, backward: adjoints of all spans, a chain over them, then slab by slab all gradients.

A slab is as many spans as scratch memory holds the states at chunk borders of. One walk through its spans leaves the
states at chunk starts, one against the scan the adjoints at chunk ends and the gradients of tokens; then a program owns
one chunk and the heads of a group, so that the gradients of B and C are summed over heads on chip. Gradients of decays
stay inside a chunk: pairs of its tokens, and its two borders. What more than one program adds to is written as partial
sums, added up afterwards in a fixed order: no atomics.

Legend: B batch, L length, S segments, H heads, P head channels, N states, G groups, Q tokens per chunk, K spans.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from seqkit.kernels.ssd.forward import Kept, chain, gated, outputs, summaries, sweep
from seqkit.kernels.ssd.rotation import STILL, rotated_tile, turns_of
from seqkit.kernels.ssd.tiles import (
    GEOMETRY,
    Call,
    chunk_and_heads,
    decay_of,
    head_at,
    matmul,
    near_rows,
    put_token_tile,
    scratch_tile,
    state_tile,
    step_size,
    strides_of,
    token_tile,
)
from seqkit.kernels.triton_chunks import locate_chunk, only_if
from seqkit.kernels.triton_compiled import launch_settled
from seqkit.kernels.triton_launch import ceil_div, guard, rows_contiguous
from seqkit.kernels.triton_sums import sum_shares

WEIGHT_PROGRAMS = 512  # chunks x blocks of heads that fill a device; fewer chunks split the heads of a group


@triton.jit(do_not_specialize=GEOMETRY)
def token_kernel(
    dy_ptr, x_ptr, B_ptr, C_ptr, D_ptr, z_ptr, B_bias_ptr, C_bias_ptr, phase_ptr, turn_ptr, direct_ptr, dt_ptr,
    sums_ptr, ends_ptr, dx_ptr, dlog_ptr, ddt_ptr, ddirect_ptr, dscores_ptr, dD_ptr, adjoints_ptr,
    segment_ptr, table_ptr, base, length, per_row, segments, heads, group,
    sgb, sgl: tl.constexpr, sgh, sxb, sxl: tl.constexpr, sxh, sBb, sBl: tl.constexpr, sBg, sCb, sCl: tl.constexpr,
    sCg, szb, szl: tl.constexpr, szh, sdb, sdl: tl.constexpr, sdh,
    M: tl.constexpr, PAIRING: tl.constexpr, PARTIAL: tl.constexpr, P: tl.constexpr, PP: tl.constexpr, N: tl.constexpr,
    NP: tl.constexpr, SPAN: tl.constexpr, Q: tl.constexpr,
    PARTS: tl.constexpr, DOT: tl.constexpr, PACKED: tl.constexpr, REVERSE: tl.constexpr, PER_HEAD: tl.constexpr,
):  # fmt: skip
    """Walk every span against the scan, its adjoint on chip, and leave the adjoints at chunk ends and gradients of x.

    Per token also the gradient of dt but for the decays (``ddt``) and, to be summed over the later tokens of a chunk,
    that of the decays' logarithms (``dlog``), but for what passes through the chunk's start. Where a token's weight in
    its own output is not that in the state (``direct``), the gradients of all scores are left too.
    """
    k, h = base + tl.program_id(0).to(tl.int64) // heads, tl.program_id(0).to(tl.int64) % heads
    row, first, count = locate_chunk(k, segment_ptr, table_ptr, segments, length, per_row, SPAN, PACKED, REVERSE)
    q, p, n = tl.arange(0, Q), tl.arange(0, PP), tl.arange(0, NP)
    x_ptr += row * sxb + first * sxl + head_at(h, sxh, P, PARTS)
    dy_ptr += row * sgb + first * sgl + head_at(h, sgh, P, PARTS)
    dx_ptr += row * sdb + first * sdl + head_at(h, sdh, P, PARTS)
    B_ptr += row * sBb + first * sBl + (h // group) * sBg
    C_ptr += row * sCb + first * sCl + (h // group) * sCg
    slot = k * (SPAN // Q)
    if z_ptr is not None:
        z_ptr += row * szb + first * szl + head_at(h, szh, P, PARTS)
    if D_ptr is not None:
        skip = tl.load(D_ptr + h // PARTS) if PER_HEAD else tl.load(D_ptr + h * P + p, mask=p < P, other=0.0)
        dD = tl.zeros((Q if PER_HEAD else PP,), tl.float32)
    if B_bias_ptr is not None:
        B_bias_ptr += (h // PARTS) * N
    if C_bias_ptr is not None:
        C_bias_ptr += (h // PARTS) * N
    NS: tl.constexpr = N if PAIRING == STILL else NP
    at, on = state_tile(n, p, P, NS)
    adjoint = tl.load(ends_ptr + (k * heads + h) * (P * NS) + at, mask=only_if(on, count > 0), other=0.0)
    chunks = tl.cdiv(count, Q).to(tl.int32)
    for i in range(chunks):
        c = tl.zeros((), tl.int64) + (chunks - 1 - i)
        left = (count - c * Q).to(tl.int32)
        step = -c * Q if REVERSE else c * Q
        x = token_tile(x_ptr + step * sxl, sxl, q, left, p, P, REVERSE)
        dy = token_tile(dy_ptr + step * sgl, sgl, q, left, p, P, REVERSE)
        here = (slot + c) * (heads // PARTS) + h // PARTS
        if PAIRING == STILL:
            B = token_tile(B_ptr + step * sBl, sBl, q, left, n, N, REVERSE)
            C = token_tile(C_ptr + step * sCl, sCl, q, left, n, N, REVERSE)
        else:
            next_q = tl.maximum(q - Q, -c * Q)
            next_q = -next_q if REVERSE else next_q
            near_rows(x_ptr + step * sxl, sxl, next_q, PP)
            near_rows(dy_ptr + step * sgl, sgl, next_q, PP)
            if z_ptr is not None:
                near_rows(z_ptr + step * szl, szl, next_q, PP)
            cos, sin = turns_of(phase_ptr, turn_ptr, here, q, tl.arange(0, NP // 4 if PARTIAL else NP // 2), M)
            B = rotated_tile(
                B_ptr + step * sBl, B_bias_ptr, sBl, q, left, cos, sin, N, NP, PAIRING, PARTIAL, REVERSE, DOT
            )
            C = rotated_tile(
                C_ptr + step * sCl, C_bias_ptr, sCl, q, left, cos, sin, N, NP, PAIRING, PARTIAL, REVERSE, DOT
            )
        tokens = here * Q
        sums, dt = tl.load(sums_ptr + tokens + q), tl.load(dt_ptr + tokens + q)
        whole = tl.load(sums_ptr + tokens + Q - 1)
        if z_ptr is not None:
            dy = gated(dy, z_ptr + step * szl, szl, q, left, p, P, REVERSE).to(DOT)
        end = adjoint.to(DOT)
        to, kept = scratch_tile(n, p, P, NS)
        to += ((k - base) * (SPAN // Q) + c) * heads * (P * NS) + h * (P * NS)
        tl.store(adjoints_ptr + to, end.to(adjoints_ptr.dtype.element_ty), mask=kept)
        weighted = dy.to(tl.float32) * decay_of(sums)[:, None]
        adjoint = matmul(tl.trans(C), weighted, adjoint * decay_of(whole), DOT)
        exponent = tl.where(q[None, :] >= q[:, None], sums[None, :] - sums[:, None], float("-inf"))
        decay = decay_of(exponent)  # rows: earlier tokens
        mixing = matmul(B, tl.trans(C), None, DOT) * decay
        products = matmul(x, tl.trans(dy), None, DOT)
        if PER_HEAD:
            dD += tl.sum(tl.where(q[:, None] == q[None, :], products, 0.0), 1)
        pairs = products * mixing
        if direct_ptr is not None:
            ddirect = tl.sum(tl.where(q[:, None] == q[None, :], pairs, 0.0), 1)
            tl.store(ddirect_ptr + ((slot + c) * heads + h) * Q + q, ddirect)
            pairs = tl.where(q[:, None] == q[None, :], 0.0, pairs)
        ddt = tl.sum(pairs, 1)
        if sums.dtype == tl.float64:  # the diagonal cancels, but takes digits with it
            ahead = tl.where(q[None, :] == q[:, None], 0.0, pairs * dt[:, None]).to(tl.float64)
            dlog = tl.sum(ahead, 0) - tl.sum(ahead, 1)
        else:
            dlog = tl.sum(pairs * dt[:, None], 0) - dt * ddt
        dwrite = matmul(B, end, None, DOT) * decay_of(whole - sums)[:, None]
        from_end = tl.sum(x.to(tl.float32) * dwrite, 1)
        through_end = (dt * from_end).to(sums.dtype)
        dlog += tl.where(q == Q - 1, tl.sum(through_end, 0), 0.0) - through_end
        tokens = ((slot + c) * heads + h) * Q
        tl.store(dlog_ptr + tokens + q, dlog)
        tl.store(ddt_ptr + tokens + q, ddt + from_end)
        if direct_ptr is None:
            mixing *= dt[:, None]
        else:
            direct = tl.load(direct_ptr + here * Q + q)
            weights = tl.where(q[:, None] == q[None, :], direct[:, None], dt[:, None])
            mixing *= weights
            to = dscores_ptr + (((k - base) * (SPAN // Q) + c) * heads + h) * (Q * Q)
            tl.store(to + q[:, None] * Q + q[None, :], (products * decay * weights).to(dscores_ptr.dtype.element_ty))
        if PER_HEAD:
            mixing = tl.where(q[:, None] == q[None, :], mixing + skip, mixing)
        dx = matmul(mixing, dy, dwrite * dt[:, None], DOT)
        if D_ptr is not None and not PER_HEAD:
            dx += skip[None, :] * dy.to(tl.float32)
            dD += tl.sum(dy.to(tl.float32) * x.to(tl.float32), 0)
        put_token_tile(dx_ptr + step * sdl, sdl, q, left, p, dx, P, REVERSE)
    if D_ptr is not None:
        if PER_HEAD:
            tl.store(dD_ptr + k * heads + h, tl.sum(dD, 0))
        else:
            tl.store(dD_ptr + (k * heads + h) * P + p, dD, mask=p < P)


@triton.jit(do_not_specialize=GEOMETRY)
def weight_kernel(
    dy_ptr, x_ptr, C_ptr, B_ptr, z_ptr, dt_ptr, sums_ptr, states_ptr, adjoints_ptr, dB_ptr, dC_ptr, dlog_ptr,
    segment_ptr, table_ptr, base, length, per_row, segments, heads, group, blocks, width,
    sgb, sgl: tl.constexpr, sgh, sxb, sxl: tl.constexpr, sxh, sCb, sCl: tl.constexpr, sCg, sBb, sBl: tl.constexpr,
    sBg, szb, szl: tl.constexpr, szh,
    sdBk, sdBb, sdBl, sdBg, sdCk, sdCb, sdCl, sdCg,
    P: tl.constexpr, PP: tl.constexpr, N: tl.constexpr, NP: tl.constexpr, SPAN: tl.constexpr, Q: tl.constexpr,
    PARTS: tl.constexpr, DOT: tl.constexpr, PACKED: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """Gradients of B and C of every chunk, summed over a block of heads; adds to ``dlog`` what passes its start."""
    program = tl.program_id(0).to(tl.int64)
    block, g = program % blocks, (program // blocks) % (heads // group)
    slot = program // (blocks * (heads // group))
    k, c = base + slot // (SPAN // Q), slot % (SPAN // Q)
    row, first, count = locate_chunk(k, segment_ptr, table_ptr, segments, length, per_row, SPAN, PACKED, REVERSE)
    left = (count - c * Q).to(tl.int32)
    first += -c * Q if REVERSE else c * Q
    q, p, n = tl.arange(0, Q), tl.arange(0, PP), tl.arange(0, NP)
    C = token_tile(C_ptr + row * sCb + first * sCl + g * sCg, sCl, q, left, n, N, REVERSE)
    at, on = scratch_tile(n, p, P, N)
    dscores = tl.zeros((Q, Q), tl.float32)  # rows: earlier tokens
    dB = tl.zeros((Q, NP), tl.float32)
    dC = tl.zeros((Q, NP), tl.float32)
    for j in range(tl.where(left > 0, tl.minimum(width, group - block * width), 0).to(tl.int32)):
        h = g * group + block * width + j
        x = token_tile(x_ptr + row * sxb + first * sxl + head_at(h, sxh, P, PARTS), sxl, q, left, p, P, REVERSE)
        dy = token_tile(dy_ptr + row * sgb + first * sgl + head_at(h, sgh, P, PARTS), sgl, q, left, p, P, REVERSE)
        if z_ptr is not None:
            z_at = z_ptr + row * szb + first * szl + head_at(h, szh, P, PARTS)
            dy = gated(dy, z_at, szl, q, left, p, P, REVERSE).to(DOT)
        state = tl.load(states_ptr + (slot * heads + h) * (P * N) + at, mask=on, other=0.0)
        adjoint = tl.load(adjoints_ptr + (slot * heads + h) * (P * N) + at, mask=on, other=0.0)
        tokens = ((k * (SPAN // Q) + c) * (heads // PARTS) + h // PARTS) * Q
        sums, dt = tl.load(sums_ptr + tokens + q), tl.load(dt_ptr + tokens + q)
        whole = tl.load(sums_ptr + tokens + Q - 1)
        at_token = dlog_ptr + ((k * (SPAN // Q) + c) * heads + h) * Q + q
        dlog = tl.load(at_token)  # long before it is needed
        passing = tl.sum(tl.sum(state.to(tl.float32) * adjoint.to(tl.float32), 1), 0) * decay_of(whole)
        exponent = tl.where(q[None, :] >= q[:, None], sums[None, :] - sums[:, None], float("-inf"))
        dscores += matmul(x, tl.trans(dy), None, DOT) * (decay_of(exponent) * dt[:, None])
        read = matmul(dy, tl.trans(state), None, DOT) * decay_of(sums)[:, None]
        dC += read
        dB += matmul(x, tl.trans(adjoint), None, DOT) * (decay_of(whole - sums) * dt)[:, None]
        through_start = tl.sum(C.to(tl.float32) * read, 1)
        through_start += tl.where(q == Q - 1, passing, 0.0)
        tl.store(at_token, dlog + through_start)
    B = token_tile(B_ptr + row * sBb + first * sBl + g * sBg, sBl, q, left, n, N, REVERSE)
    dB = matmul(dscores, C, dB, DOT)
    dC = matmul(tl.trans(dscores), B, dC, DOT)
    dB_ptr += block * sdBk + row * sdBb + first * sdBl + g * sdBg
    dC_ptr += block * sdCk + row * sdCb + first * sdCl + g * sdCg
    put_token_tile(dB_ptr, sdBl, q, left, n, dB, N, REVERSE)
    put_token_tile(dC_ptr, sdCl, q, left, n, dC, N, REVERSE)


@triton.jit(do_not_specialize=GEOMETRY)
def step_gradient_kernel(
    raw_ptr, A_ptr, bias_ptr, dlog_ptr, ddt_ptr, draw_ptr, dA_ptr, dbias_ptr,
    segment_ptr, table_ptr, base, length, per_row, segments, heads, srb, srl, sdb, sdl, dt_min, dt_max,
    SPAN: tl.constexpr, Q: tl.constexpr, PARTS: tl.constexpr, SOFTPLUS: tl.constexpr, PACKED: tl.constexpr,
    REVERSE: tl.constexpr,
):  # fmt: skip
    """Gradient of the step sizes, from that of the decays; those of A and the bias as one partial sum per chunk."""
    chunk, begin, end = chunk_and_heads(heads // PARTS)
    k, c = chunk // (SPAN // Q), chunk % (SPAN // Q)
    row, first, count = locate_chunk(k, segment_ptr, table_ptr, segments, length, per_row, SPAN, PACKED, REVERSE)
    left = (count - c * Q).to(tl.int32)
    q = tl.arange(0, Q)
    t = first + (-(c * Q + q) if REVERSE else c * Q + q)
    later, written = q[None, :] >= q[:, None], q * 0 < left  # whole chunks: what passes through the end stands last
    for h in range(begin, end):
        bias = tl.load(bias_ptr + h) if bias_ptr is not None else 0.0
        rate = tl.load(A_ptr + h)
        raw = tl.load(raw_ptr + row * srb + t * srl + h, mask=q < left, other=0.0)
        dt, slope = step_size(raw, bias, q < left, dt_min, dt_max, SOFTPLUS)
        dlog, ddt = tl.zeros((Q,), dlog_ptr.dtype.element_ty), tl.zeros((Q,), tl.float32)
        for part in tl.static_range(PARTS):
            at = (chunk * heads + h * PARTS + part) * Q + q
            dlog += tl.load(dlog_ptr + at, mask=written, other=0.0)
            ddt += tl.load(ddt_ptr + at, mask=written, other=0.0)
        dlog = tl.sum(tl.where(later, dlog[None, :], 0.0), 1).to(tl.float32)
        draw = (ddt + tl.where(dt < 0, 0.0, tl.minimum(rate, 0.0) * dlog)) * slope
        tl.store(draw_ptr + row * sdb + t * sdl + h, draw.to(draw_ptr.dtype.element_ty), mask=q < left)
        at = chunk * (heads // PARTS) + h
        tl.store(dA_ptr + at, tl.where(rate > 0, 0.0, tl.sum(dlog * tl.maximum(dt, 0.0), 0)))
        tl.store(dbias_ptr + at, tl.sum(draw, 0))


class _Gradients:
    """Outputs of the backward pass; ``into`` names slices of the caller's to write instead of new tensors."""

    def __init__(self, call: Call, into: dict[str, torch.Tensor] | None):
        into = into or {}

        def like(name: str, x: torch.Tensor | None) -> torch.Tensor | None:
            if x is None or name in into:
                return into.get(name)
            return torch.empty(x.shape, dtype=x.dtype, device=x.device)

        self.x, self.dt, self.z = like("dx", call.x), like("ddt", call.raw), like("dz", call.z)
        self.B, self.C, self.y = like("dB", call.B), like("dC", call.C), into.get("y")
        self.inner = self.direct = self.scores = None
        self.decays = call.per_token(torch.float32 if call.single else torch.float64)
        self.steps = call.per_token(torch.float32)
        heads = call.H // call.parts
        self.rates = call.new(2, call.spans * call.chunks_per_span, heads)
        self.A, self.bias = self.rates.unbind(0)
        self.D = None
        if call.skip is not None:
            self.D = call.new(call.spans, heads, call.parts * (1 if call.skip_per_head else call.P))


def walks(
    call: Call, dy, starts, adjoints, steps, grads: _Gradients, scratch, filled: bool, base: int, spans: int
) -> None:
    """States (unless they are there) and adjoints at all chunk borders of a slab, gradients of its tokens' x and dt."""
    if filled:
        pass
    elif call.z is None and grads.y is None:
        sweep(call, call.x, None, steps, starts, scratch[0], None, adjoint=False, base=base, spans=spans)
    else:
        outputs(call, steps, starts, grads.y, dy, grads.z, scratch[0], base=base, spans=spans)
    z = call.z
    if grads.inner is not None:
        dy, z = grads.inner, None
    strides = tuple([s for t in (dy, call.x, call.B, call.C, z, grads.x) for s in strides_of(t)])

    def settle():
        launched = {"num_warps": call.warps, "num_stages": call.stages(call.warps, 2, 2)}
        constants = {**call.pairs, **call.sizes(), **call.constants(), "PER_HEAD": call.skip_per_head, **launched}
        return spans * call.H, (*call.geometry(base)[2:], call.H // call.G, *strides), constants

    operands = dy, call.x, call.B, call.C, call.skip, z, *call.biases, *call.turns, call.direct, *steps, adjoints
    results = grads.x, grads.decays, grads.steps, grads.direct, grads.scores, grads.D, scratch[1]
    launch_settled(token_kernel, (call.settings, base, spans, strides), settle, *operands, *results, *call.tables)


def head_blocks(call: Call) -> tuple[int, int]:
    """(blocks of heads per group, heads of a block)."""
    group = call.H // call.G
    blocks = min(group, ceil_div(WEIGHT_PROGRAMS, call.spans * call.chunks_per_span * call.G))
    width = ceil_div(group, blocks)
    return ceil_div(group, width), width


def _weights(call: Call, dy, steps, scratch, dB, dC, decays, blocks: int, width: int, base: int, spans: int) -> None:
    """Gradients of B and C of a slab, a share for each block of heads, and what decays get through them."""
    strides = [s for t in (dy, call.x, call.C, call.B, call.z) for s in strides_of(t)]
    strides = *strides, *dB.stride()[:4], *dC.stride()[:4]

    def settle():
        warps = 4 if call.N <= 64 else 8
        launched = {"num_warps": warps, "num_stages": call.stages(warps, 2, 0, 2)}
        scalars = *call.geometry(base)[2:], call.H // call.G, blocks, width, *strides
        programs = spans * call.chunks_per_span * call.G * blocks
        return programs, scalars, {**call.sizes(), **call.constants(), **launched}

    operands = dy, call.x, call.C, call.B, call.z, *steps, scratch[0], scratch[1], dB, dC, decays
    key = call.settings, blocks, width, base, spans, strides
    launch_settled(weight_kernel, key, settle, *operands, *call.tables)


def _token_gradients(call: Call, dy, starts, adjoints, steps, grads: _Gradients, states=None) -> None:
    """Fill ``grads``, slab by slab; ``states`` are those at all chunk starts, if they are there."""
    blocks, width = head_blocks(call)
    shares = None if blocks == 1 else call.new(2, blocks, *call.B.shape)
    dB, dC = (grads.B[None], grads.C[None]) if blocks == 1 else shares.unbind(0)
    slab, filled = call.scratch_spans, states is not None
    room = call.new(1 if filled else 2, slab, call.states_per_span, dtype=call.scratch_dtype)
    scratch = (states if filled else room[1], room[0])
    for base in range(0, call.spans, slab):
        spans = min(slab, call.spans - base)
        walks(call, dy, starts, adjoints, steps, grads, scratch, filled, base, spans)
        _weights(call, dy, steps, scratch, dB, dC, grads.decays, blocks, width, base, spans)
    if blocks > 1:
        sum_shares(shares, blocks, (shares.stride(1), shares.stride(0), call.N), grads.B, grads.C)
    strides = *call.raw.stride()[:2], *grads.dt.stride()[:2]

    def settle():
        constants = {"SOFTPLUS": call.softplus, **call.constants(), "num_warps": 1}
        return call.step_programs, (*call.geometry()[2:], *strides, *call.limits), constants

    operands = call.raw, call.A, call.bias, grads.decays, grads.steps, grads.dt, grads.A, grads.bias
    launch_settled(step_gradient_kernel, (call.settings, strides), settle, *operands, *call.tables)


def backward(
    dy: torch.Tensor,
    dfinal: torch.Tensor | None,
    kept: torch.Tensor | Kept,
    *args,
    into: dict[str, torch.Tensor] | None = None,
) -> tuple[torch.Tensor | None, ...]:
    """Gradients of x, dt, A, B, C, D, z, dt_bias, initial_state (None where the operand is absent).

    Args:
        dy: Gradient of y (B, L, H, P).
        dfinal: Gradient of the final states (S, H, P, N), or None.
        kept: Span-start states of the forward pass, or all that it left.
        *args: Those of :func:`seqkit.kernels.ssd.forward.forward`.
        into: Tensors to write "dx", "ddt", "dB", "dC" and "dz" into, and "y", which receives the forward pass's output;
            last dimensions contiguous.
    """
    call, dy = Call(*args), rows_contiguous(dy)
    A, D, dt_bias, initial_state = args[2], args[5], args[7], args[8]
    grads = _Gradients(call, into)
    starts_KHPN, steps, states = kept if isinstance(kept, Kept) else (kept, call.steps(), None)
    with guard(call.x):
        dfinal = None if dfinal is None else dfinal.float().contiguous()
        adjoints, dentry = chain(call, *summaries(call, dy, call.z, steps, True), dfinal, flip=True)
        if call.spans:
            _token_gradients(call, dy, starts_KHPN, adjoints, steps, grads, states)
    dA, dbias = grads.rates.sum(1, dtype=torch.float64).unbind(0)
    dD = None if D is None else grads.D.sum(0 if D.dim() == 2 else (0, 2)).to(D.dtype)
    return (
        grads.x,
        grads.dt,
        dA.to(A.dtype, copy=True),
        grads.B,
        grads.C,
        dD,
        grads.z,
        None if dt_bias is None else dbias.to(dt_bias.dtype, copy=True),
        None if initial_state is None else dentry.view(initial_state.shape).to(initial_state.dtype),
    )
