"""SSD scan on Triton, forward: summaries of all spans, a chain over them, outputs of all spans.

A program owns one head of one span; its state [P, N] stays on chip in float32 while it walks the span chunk by chunk
with matrix products.

Legend: B batch, L length, S segments, H heads, P head channels, N states, G groups, Q tokens per chunk, K spans.
"""

# ruff: noqa: RUF005  (the compiler of kernels knows no starred expressions)

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from seqkit.kernels.ssd.rotation import STILL, rotated_tile, turns_of
from seqkit.kernels.ssd.tiles import (
    GEOMETRY,
    Call,
    decay_of,
    head_at,
    matmul,
    near_rows,
    put_token_tile,
    scratch_tile,
    state_tile,
    strides_of,
    token_tile,
)
from seqkit.kernels.triton_chunks import locate_chunk, locate_segment, only_if
from seqkit.kernels.triton_compiled import launch_settled
from seqkit.kernels.triton_launch import ceil_div, guard
from seqkit.kernels.triton_math import exp2, sigmoid

CHAIN_BLOCK = 64
CHAIN_STEPS = 16  # spans whose states are fetched together


class Kept(NamedTuple):
    """What a backward pass right behind the forward pass need not compute again.

    Attributes:
        starts: Span-start states (K, H, P, N).
        steps: Step sizes and running sums of log2 decays.
        states: States at all chunk starts; None where scratch memory does not hold them at once.
    """

    starts: torch.Tensor
    steps: tuple[torch.Tensor, torch.Tensor]
    states: torch.Tensor | None


@triton.jit
def gated(x, z_ptr, stride, q, left, p, P: tl.constexpr, REVERSE: tl.constexpr):
    """Gate x by silu(z), if there is a gate."""
    if z_ptr is not None:
        z = token_tile(z_ptr, stride, q, left, p, P, REVERSE).to(tl.float32)
        x = x.to(tl.float32) * (z * sigmoid(z))
    return x


@triton.jit(do_not_specialize=GEOMETRY)
def sweep_kernel(
    x_ptr, z_ptr, B_ptr, bias_ptr, phase_ptr, turn_ptr, dt_ptr, sums_ptr, starts_ptr, out_ptr, totals_ptr,
    inner_ptr, segment_ptr, table_ptr, base, length, per_row, segments, heads, group,
    sxb, sxl: tl.constexpr, sxh, szb, szl: tl.constexpr, szh, sBb, sBl: tl.constexpr, sBg, sil: tl.constexpr,
    M: tl.constexpr, PAIRING: tl.constexpr, PARTIAL: tl.constexpr, P: tl.constexpr, PP: tl.constexpr, N: tl.constexpr,
    NP: tl.constexpr, SPAN: tl.constexpr, Q: tl.constexpr,
    PARTS: tl.constexpr, DOT: tl.constexpr, PACKED: tl.constexpr, REVERSE: tl.constexpr,
    ADJOINT: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """States along every span: its end from a zero start, or (KEEP) those at all chunk starts from a given start.

    Adjoints run against the scan: x is then the gradient of y and B stands for C; what the gate leaves of x can be kept
    (``inner``).
    """
    k, h = base + tl.program_id(0).to(tl.int64) // heads, tl.program_id(0).to(tl.int64) % heads
    row, first, count = locate_chunk(k, segment_ptr, table_ptr, segments, length, per_row, SPAN, PACKED, REVERSE)
    q, p, n = tl.arange(0, Q), tl.arange(0, PP), tl.arange(0, NP)
    x_ptr += row * sxb + first * sxl + head_at(h, sxh, P, PARTS)
    B_ptr += row * sBb + first * sBl + (h // group) * sBg
    if bias_ptr is not None:
        bias_ptr += (h // PARTS) * N
    if z_ptr is not None:
        z_ptr += row * szb + first * szl + head_at(h, szh, P, PARTS)
    slot = k * (SPAN // Q) * (heads // PARTS) + h // PARTS
    NS: tl.constexpr = N if PAIRING == STILL else NP
    at, on = state_tile(n, p, P, NS)
    if KEEP:
        state = tl.load(starts_ptr + (k * heads + h) * (P * NS) + at, mask=only_if(on, count > 0), other=0.0)
        out_ptr += ((k - base) * (SPAN // Q) * heads + h) * (P * NS)
    else:
        state = tl.zeros((NP, PP), tl.float32)
    total = 0.0
    chunks = tl.cdiv(count, Q).to(tl.int32)
    for i in range(chunks):
        c = tl.zeros((), tl.int64) + (chunks - 1 - i if ADJOINT else i)
        left = (count - c * Q).to(tl.int32)
        step = -c * Q if REVERSE else c * Q
        x = token_tile(x_ptr + step * sxl, sxl, q, left, p, P, REVERSE)
        here = slot + c * (heads // PARTS)
        if PAIRING == STILL:
            B = token_tile(B_ptr + step * sBl, sBl, q, left, n, N, REVERSE)
        else:
            next_q = tl.maximum(q - Q, -c * Q) if ADJOINT else tl.minimum(q + Q, left - 1)
            next_q = -next_q if REVERSE else next_q
            near_rows(x_ptr + step * sxl, sxl, next_q, PP)
            if ADJOINT and z_ptr is not None:
                near_rows(z_ptr + step * szl, szl, next_q, PP)
            cos, sin = turns_of(phase_ptr, turn_ptr, here, q, tl.arange(0, NP // 4 if PARTIAL else NP // 2), M)
            B = rotated_tile(
                B_ptr + step * sBl, bias_ptr, sBl, q, left, cos, sin, N, NP, PAIRING, PARTIAL, REVERSE, DOT
            )
        tokens = here * Q
        sums, whole = tl.load(sums_ptr + tokens + q), tl.load(sums_ptr + tokens + Q - 1)
        if ADJOINT:
            if z_ptr is not None:
                x = gated(x, z_ptr + step * szl, szl, q, left, p, P, REVERSE)
                if inner_ptr is not None:
                    inner_at = inner_ptr + (row * length + first + step) * sil + h * P
                    put_token_tile(inner_at, sil, q, left, p, x, P, REVERSE)
            weight = decay_of(sums)
        else:
            weight = decay_of(whole - sums) * tl.load(dt_ptr + tokens + q)
        if KEEP:
            to, kept = scratch_tile(n, p, P, NS)
            tl.store(out_ptr + c * heads * (P * NS) + to, state.to(out_ptr.dtype.element_ty), mask=kept)
        total += whole.to(tl.float32)
        weighted = x.to(tl.float32) * weight[:, None]
        state = matmul(tl.trans(B), weighted, state * decay_of(whole), DOT)
    if not KEEP:
        tl.store(out_ptr + (k * heads + h) * (P * NS) + at, state, mask=on)
        tl.store(totals_ptr + k * heads + h, total)


@triton.jit(do_not_specialize=GEOMETRY)
def chain_kernel(
    ends_ptr, totals_ptr, entry_ptr, starts_ptr, last_ptr, table_ptr, per_row, segments, heads, blocks,
    E: tl.constexpr, BLOCK: tl.constexpr, SPAN: tl.constexpr, STEPS: tl.constexpr,
    PACKED: tl.constexpr, FLIP: tl.constexpr,
):  # fmt: skip
    """Hand states from span to span of a segment, in scan order or (adjoints) against it; E = P N.

    Reads entries (S, H, P, N); writes the state each span starts from (K, H, P, N) and the one that leaves the segment
    (S, H, P, N). The decay over a span is that of its summed steps: no product of decays is longer than a span.
    """
    program = tl.program_id(0).to(tl.int64)
    segment, h = program // (blocks * heads), (program // blocks) % heads
    first, spans = locate_segment(segment, table_ptr, segments, per_row, SPAN, PACKED)
    e = (program % blocks) * BLOCK + tl.arange(0, BLOCK)
    on = e < E
    state = tl.zeros((BLOCK,), tl.float32)
    if entry_ptr is not None:
        state += tl.load(entry_ptr + (segment * heads + h) * E + e, mask=on, other=0.0)
    for part in range(tl.cdiv(spans, STEPS).to(tl.int32)):
        ends, totals = (), ()
        for j in tl.static_range(STEPS):
            i = part * STEPS + j
            at = (first + (spans - 1 - i if FLIP else i)) * heads + h
            ends = ends + (tl.load(ends_ptr + at * E + e, mask=only_if(on, i < spans), other=0.0),)
            totals = totals + (tl.load(totals_ptr + at + e * 0, mask=only_if(on, i < spans), other=0.0),)
        for j in tl.static_range(STEPS):
            i = part * STEPS + j
            at = (first + (spans - 1 - i if FLIP else i)) * heads + h
            tl.store(starts_ptr + at * E + e, state, mask=only_if(on, i < spans))
            state = exp2(totals[j]) * state + ends[j]
    tl.store(last_ptr + (segment * heads + h) * E + e, state, mask=on)


@triton.jit(do_not_specialize=GEOMETRY)
def output_kernel(
    x_ptr, B_ptr, C_ptr, D_ptr, z_ptr, B_bias_ptr, C_bias_ptr, phase_ptr, turn_ptr, direct_ptr, dt_ptr, sums_ptr,
    starts_ptr, y_ptr, dy_ptr, dz_ptr, states_ptr, segment_ptr, table_ptr,
    base, length, per_row, segments, heads, group,
    sxb, sxl: tl.constexpr, sxh, sBb, sBl: tl.constexpr, sBg, sCb, sCl: tl.constexpr, sCg, szb, szl: tl.constexpr,
    szh, syb, syl: tl.constexpr, syh, sgb, sgl: tl.constexpr, sgh, sdb, sdl: tl.constexpr, sdh,
    M: tl.constexpr, PAIRING: tl.constexpr, PARTIAL: tl.constexpr, P: tl.constexpr, PP: tl.constexpr, N: tl.constexpr,
    NP: tl.constexpr, SPAN: tl.constexpr, Q: tl.constexpr,
    PARTS: tl.constexpr, DOT: tl.constexpr, PACKED: tl.constexpr, REVERSE: tl.constexpr, PER_HEAD: tl.constexpr,
):  # fmt: skip
    """Outputs of every span from the state it starts with.

    ``direct`` is the weight of a token in its own output, where that is not its weight in the state. In the backward
    pass also, where asked for, the states at chunk starts and the gradient of the gate.
    """
    k, h = base + tl.program_id(0).to(tl.int64) // heads, tl.program_id(0).to(tl.int64) % heads
    row, first, count = locate_chunk(k, segment_ptr, table_ptr, segments, length, per_row, SPAN, PACKED, REVERSE)
    q, p, n = tl.arange(0, Q), tl.arange(0, PP), tl.arange(0, NP)
    x_ptr += row * sxb + first * sxl + head_at(h, sxh, P, PARTS)
    B_ptr += row * sBb + first * sBl + (h // group) * sBg
    C_ptr += row * sCb + first * sCl + (h // group) * sCg
    slot = k * (SPAN // Q) * (heads // PARTS) + h // PARTS
    if D_ptr is not None:
        skip = tl.load(D_ptr + h // PARTS) if PER_HEAD else tl.load(D_ptr + h * P + p, mask=p < P, other=0.0)
    if B_bias_ptr is not None:
        B_bias_ptr += (h // PARTS) * N
    if C_bias_ptr is not None:
        C_bias_ptr += (h // PARTS) * N
    NS: tl.constexpr = N if PAIRING == STILL else NP
    at, on = state_tile(n, p, P, NS)
    state = tl.load(starts_ptr + (k * heads + h) * (P * NS) + at, mask=only_if(on, count > 0), other=0.0)
    for i in range(tl.cdiv(count, Q).to(tl.int32)):
        c = tl.zeros((), tl.int64) + i
        left = (count - c * Q).to(tl.int32)
        step = -c * Q if REVERSE else c * Q
        x = token_tile(x_ptr + step * sxl, sxl, q, left, p, P, REVERSE)
        here = slot + c * (heads // PARTS)
        if PAIRING == STILL:
            B = token_tile(B_ptr + step * sBl, sBl, q, left, n, N, REVERSE)
            C = token_tile(C_ptr + step * sCl, sCl, q, left, n, N, REVERSE)
        else:
            next_q = tl.minimum(q + Q, left - 1)
            next_q = -next_q if REVERSE else next_q
            near_rows(x_ptr + step * sxl, sxl, next_q, PP)
            if z_ptr is not None:
                near_rows(z_ptr + row * szb + (first + step) * szl + head_at(h, szh, P, PARTS), szl, next_q, PP)
            if dz_ptr is not None:
                near_rows(dy_ptr + row * sgb + (first + step) * sgl + head_at(h, sgh, P, PARTS), sgl, next_q, PP)
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
        if states_ptr is not None:
            to, kept = scratch_tile(n, p, P, NS)
            to += ((k - base) * (SPAN // Q) + c) * heads * (P * NS) + h * (P * NS)
            tl.store(states_ptr + to, state.to(states_ptr.dtype.element_ty), mask=kept)
        start = state.to(DOT)
        weighted = x.to(tl.float32) * (decay_of(whole - sums) * dt)[:, None]
        state = matmul(tl.trans(B), weighted, state * decay_of(whole), DOT)
        exponent = tl.where(q[:, None] >= q[None, :], sums[:, None] - sums[None, :], float("-inf"))
        weights = dt[None, :]
        if direct_ptr is not None:
            weights = tl.where(q[:, None] == q[None, :], tl.load(direct_ptr + tokens + q)[None, :], weights)
        scores = matmul(C, tl.trans(B), None, DOT) * decay_of(exponent) * weights
        if PER_HEAD:
            scores = tl.where(q[:, None] == q[None, :], scores + skip, scores)
        y = matmul(scores, x, matmul(C, start, None, DOT) * decay_of(sums)[:, None], DOT)
        if D_ptr is not None and not PER_HEAD:
            y += skip[None, :] * x.to(tl.float32)
        if z_ptr is not None:
            z = token_tile(
                z_ptr + row * szb + (first + step) * szl + head_at(h, szh, P, PARTS), szl, q, left, p, P, REVERSE
            )
            z = z.to(tl.float32)
            gate = sigmoid(z)
            if dz_ptr is not None:
                dy = token_tile(
                    dy_ptr + row * sgb + (first + step) * sgl + head_at(h, sgh, P, PARTS), sgl, q, left, p, P, REVERSE
                )
                dz = dy.to(tl.float32) * y * (gate + z * gate * (1.0 - gate))
                put_token_tile(
                    dz_ptr + row * sdb + (first + step) * sdl + head_at(h, sdh, P, PARTS),
                    sdl,
                    q,
                    left,
                    p,
                    dz,
                    P,
                    REVERSE,
                )
            y *= z * gate
        if y_ptr is not None:
            put_token_tile(
                y_ptr + row * syb + (first + step) * syl + head_at(h, syh, P, PARTS), syl, q, left, p, y, P, REVERSE
            )


def chain(
    call: Call, ends: torch.Tensor, totals: torch.Tensor, entry: torch.Tensor | None, flip: bool,
    into: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Span starts (K, H, P, N) and what leaves each segment (S, H, P, N); flipped for adjoints.

    Args:
        call: Operands.
        ends: Every span's state from a zero start.
        totals: Sums of its log2 decays.
        entry: What enters each segment; None for zeros.
        flip: Whether to go from the last span to the first.
        into: Receives both, one behind the other; zeros where packed slots stay unused.
    """
    at = call.segments
    if into is None:
        starts = torch.zeros_like(ends) if at.packed else torch.empty_like(ends)  # packed slots may stay unused
        last = call.new(at.count, *ends.shape[1:])
    else:
        starts, last = into[: at.chunks], into[at.chunks :]
    size = call.P * call.state_size
    blocks = ceil_div(size, CHAIN_BLOCK)

    def settle():
        sizes = {"E": size, "BLOCK": CHAIN_BLOCK, "SPAN": call.span, "STEPS": CHAIN_STEPS}
        constants = {**sizes, "PACKED": at.packed, "FLIP": flip, "num_warps": 2}
        return at.count * call.H * blocks, (at.per_row, at.count, call.H, blocks), constants

    if at.count:
        operands = ends, totals, entry, starts, last, at.table
        launch_settled(chain_kernel, (call.settings, flip), settle, *operands)
    return starts, last


def sweep(
    call: Call, x, z, steps, starts, out, totals, inner=None, *, adjoint: bool, base: int = 0, spans: int
) -> None:  # fmt: skip
    """States along the spans from ``base`` on: summaries without ``starts``, chunk starts with them."""
    B, bias = (call.C, call.biases[1]) if adjoint else (call.B, call.biases[0])
    keep, strides = starts is not None, (*strides_of(x), *strides_of(z), *strides_of(B), call.H * call.P)

    def settle():
        launched = {"num_warps": call.warps, "num_stages": call.stages(call.warps, 1, 1)}
        constants = {**call.pairs, **call.sizes(), **call.constants(), "ADJOINT": adjoint, "KEEP": keep, **launched}
        return spans * call.H, (*call.geometry(base)[2:], call.H // call.G, *strides), constants

    operands = x, z, B, bias, *call.turns, *steps, starts, out, totals, inner, *call.tables
    launch_settled(sweep_kernel, (call.settings, adjoint, keep, base, spans, strides), settle, *operands)


def outputs(call: Call, steps, starts, y, dy=None, dz=None, states=None, *, base: int = 0, spans: int) -> None:
    """Outputs of the spans from ``base`` on, into ``y`` if there is one; see :func:`output_kernel`."""
    strides = tuple([s for t in (call.x, call.B, call.C, call.z, y, dy, dz) for s in strides_of(t)])

    def settle():
        launched = {"num_warps": call.warps, "num_stages": call.stages(call.warps, 1, 2)}
        constants = {**call.pairs, **call.sizes(), **call.constants(), "PER_HEAD": call.skip_per_head, **launched}
        return spans * call.H, (*call.geometry(base)[2:], call.H // call.G, *strides), constants

    operands = call.x, call.B, call.C, call.skip, call.z, *call.biases, *call.turns, call.direct, *steps
    results = starts, y, dy, dz, states, *call.tables
    launch_settled(output_kernel, (call.settings, base, spans, strides), settle, *operands, *results)


def summaries(call: Call, x, z, steps, adjoint: bool, inner=None) -> tuple[torch.Tensor, torch.Tensor]:
    """Every span's state (K, H, P, N) from a zero start and the sum of its log2 decays (K, H).

    Adjoints leave the gated ``x`` in ``inner`` (B, L, H, P), if there is one.
    """
    ends, totals = (
        call.new(call.segments.chunks, call.H, call.P, call.state_size),
        call.new(call.segments.chunks, call.H),
    )
    if call.spans:
        sweep(call, x, z, steps, None, ends, totals, inner, adjoint=adjoint, spans=call.spans)
    return ends, totals


def forward(
    *args, into: dict[str, torch.Tensor] | None = None, keep: bool = False
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | Kept]:
    """Scan.

    Args:
        *args: Those of the custom op, without the provider.
        into: ``{"y": tensor}`` to write the outputs there; last dimensions contiguous.
        keep: Whether the backward pass follows at once: it then takes all of :class:`Kept`.

    Returns:
        y (B, L, H, P) in x's dtype, final states (S, H, P, N), span-start states (K, H, P, N) or, with ``keep``, these
        and more.
    """
    call = Call(*args)
    x = call.x
    y = into["y"] if into else torch.empty(x.shape, dtype=x.dtype, device=x.device)
    steps = call.steps()
    states = (
        call.new(call.spans, call.states_per_span, dtype=call.scratch_dtype) if keep and call.fits_scratch else None
    )
    with guard(x):
        starts, final = chain(call, *summaries(call, x, None, steps, False), call.entry, flip=False)
        if call.spans:
            outputs(call, steps, starts, y, states=states, spans=call.spans)
    shape = (*x.shape[2:], call.N)
    starts = starts.view(-1, *shape)
    return y, final.view(-1, *shape), Kept(starts, steps, states) if keep else starts
