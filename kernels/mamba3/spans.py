"""The SSD kernels on rotated keys and queries: decays and weights of tokens given instead of step sizes and rates.

Legend: B batch, L length, S segments, H heads, P head channels, N states, Q tokens per chunk, K spans.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from seqkit.kernels.chunks import count_chunks
from seqkit.kernels.ssd.backward import _Gradients, _token_gradients
from seqkit.kernels.ssd.forward import chain, outputs, summaries
from seqkit.kernels.ssd.tiles import GEOMETRY, NO_DECAY_LEFT, Call, chunk_and_heads, span_length
from seqkit.kernels.triton_chunks import locate_chunk
from seqkit.kernels.triton_compiled import launch
from seqkit.kernels.triton_launch import Segments, guard
from seqkit.kernels.triton_math import LOG2_E

LONGEST_SPAN = 512  # gradients of angles are summed over a span, and gather what rounding leaves there


@triton.jit(do_not_specialize=GEOMETRY)
def decay_kernel(
    decay_ptr, scale_ptr, weights_ptr, sums_ptr, segment_ptr, table_ptr, base, length, per_row, segments, heads,
    sdb, sdl, SPAN: tl.constexpr, Q: tl.constexpr, PARTS: tl.constexpr, PACKED: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """Weights of tokens and, inside every chunk, running sums of log2 decays: (chunk slots, H, Q) each."""
    chunk, from_head, to_head = chunk_and_heads(heads // PARTS)
    k, c = chunk // (SPAN // Q), chunk % (SPAN // Q)
    row, first, count = locate_chunk(k, segment_ptr, table_ptr, segments, length, per_row, SPAN, PACKED, REVERSE)
    q = tl.arange(0, Q)
    on = q < count - c * Q
    from_token = row * sdb + (first + (-(c * Q + q) if REVERSE else c * Q + q)) * sdl
    until = q[:, None] >= q[None, :]
    for h in range(from_head, to_head):
        decay = tl.load(decay_ptr + from_token + h, mask=on, other=0.0).to(sums_ptr.dtype.element_ty)
        decay = tl.maximum(-decay * LOG2_E, NO_DECAY_LEFT)
        at = (chunk * (heads // PARTS) + h) * Q + q
        tl.store(weights_ptr + at, tl.load(scale_ptr + from_token + h, mask=on, other=0.0))
        tl.store(sums_ptr + at, tl.sum(tl.where(until, decay[None, :], 0.0), 1))


@triton.jit(do_not_specialize=GEOMETRY)
def decay_gradient_kernel(
    dlog_ptr, ddecay_ptr, segment_ptr, table_ptr, base, length, per_row, segments, heads, sdb, sdl,
    SPAN: tl.constexpr, Q: tl.constexpr, PARTS: tl.constexpr, SUM: tl.constexpr, PACKED: tl.constexpr,
    REVERSE: tl.constexpr,
):  # fmt: skip
    """Gradients of decays (B, L, H) from what the scan leaves per token and part of a head (chunk slots, H, Q)."""
    chunk, from_head, to_head = chunk_and_heads(heads // PARTS)
    k, c = chunk // (SPAN // Q), chunk % (SPAN // Q)
    row, first, count = locate_chunk(k, segment_ptr, table_ptr, segments, length, per_row, SPAN, PACKED, REVERSE)
    left = count - c * Q
    if left <= 0:
        return
    q = tl.arange(0, Q)
    to_token = row * sdb + (first + (-(c * Q + q) if REVERSE else c * Q + q)) * sdl
    later = q[None, :] >= q[:, None]
    for h in range(from_head, to_head):
        dlog = tl.zeros((Q,), SUM)
        for part in tl.static_range(PARTS):
            dlog += tl.load(dlog_ptr + (chunk * heads + h * PARTS + part) * Q + q).to(SUM)
        dlog = tl.sum(tl.where(later, dlog[None, :], 0.0), 1)
        tl.store(ddecay_ptr + to_token + h, -dlog.to(tl.float32), mask=q < left)


def _span(batch: int, length: int, heads: int, segments: int | None) -> int:
    return min(LONGEST_SPAN, span_length(batch, length, heads, segments))


def span_slots(batch: int, length: int, heads: int, segments: int | None) -> int:
    """Spans of a slab, K."""
    return count_chunks(batch, length, _span(batch, length, heads, segments), segments)


class ScaledScan(Call):
    """h_t = exp(-decay_t) h_{t-1} + scale_t x_t k_t^T, y_t = h_t q_t.

    Args:
        x: (B, L, H, P).
        k: (B, L, H, N).
        q: (B, L, H, N).
        decay: (B, L, H) float32, >= 0.
        scale: (B, L, H) float32, with the strides of ``decay``.
        cu_seqlens: Packed segments, or None.
        reverse: Scan from the last token of each segment to its first.
        chunk_size: Tokens per chunk, or None.
    """

    def __init__(self, x, k, q, decay, scale, cu_seqlens, reverse, chunk_size):
        absent = dict.fromkeys(("D", "z", "dt_bias", "initial_state"))
        super().__init__(
            x=x,
            dt=decay,
            A=decay.new_zeros(x.shape[2]),
            B=k,
            C=q,
            **absent,
            cu_seqlens=cu_seqlens,
            dt_softplus=False,
            dt_min=0.0,
            dt_max=math.inf,
            reverse=reverse,
            chunk_size=chunk_size,
        )
        segments = None if cu_seqlens is None else cu_seqlens.shape[0] - 1
        self.span = _span(*x.shape[:3], segments)
        self.segments = Segments(x, self.span, cu_seqlens)
        self.k, self.q, self.slots = k, q, self.segments.chunks
        self._given = self._numbers(decay, scale)

    def _numbers(self, decay: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        weights = self.new(self.slots * self.chunks_per_span, self.H // self.parts, self.chunk)
        sums = torch.empty_like(weights, dtype=torch.float32 if self.single else torch.float64)
        if self.spans:
            with guard(self.x):
                launch(
                    decay_kernel, self.step_programs,
                    decay, scale, weights, sums, *self.geometry(), *decay.stride()[:2], **self.constants(), num_warps=1,
                )  # fmt: skip
        return weights, sums

    def steps(self) -> tuple[Tensor, Tensor]:
        """Weights and running sums of log2 decays, (chunk slots, H, Q)."""
        return self._given

    def states(self, entry_SHPN: Tensor) -> tuple[Tensor, Tensor]:
        """States at span starts (K, H, P, N) and those that leave the segments (S, H, P, N)."""
        ends, totals = summaries(self, self.x, None, self.B, self.steps(), False)
        starts, leaving = chain(self, ends, totals, entry_SHPN.contiguous(), flip=False)
        shape = entry_SHPN.shape[1:]
        return starts.view(-1, *shape), leaving.view(-1, *shape)

    def outputs(self, starts_KHPN: Tensor) -> Tensor:
        """Outputs (B, L, H, P) in float32."""
        y = self.new(*self.x.shape)
        outputs(self, self.steps(), starts_KHPN, y, spans=self.spans)
        return y

    def gradients(self, dy: Tensor, starts_KHPN: Tensor, dleaving_SHPN: Tensor) -> tuple[Tensor, ...]:
        """Gradients of x, k, q, scale, decay (B, L, H), of states that enter (S, H, P, N), at span ends (K, H, P, N).

        Args:
            dy: Gradient of y.
            starts_KHPN: States at span starts.
            dleaving_SHPN: Gradient of the states that leave.
        """
        dx, dk, dq = (self.new(*t.shape) for t in (self.x, self.k, self.q))
        grads = _Gradients(self, {"dx": dx, "dB": dk, "dC": dq})
        ends, totals = summaries(self, dy, None, self.C, self.steps(), True)
        adjoints, dentry = chain(self, ends, totals, dleaving_SHPN.contiguous(), flip=True)
        _token_gradients(self, dy, starts_KHPN, adjoints, self.steps(), grads)
        ddecay = self.new(*self.x.shape[:3])
        launch(
            decay_gradient_kernel, self.step_programs,
            grads.decays, ddecay, *self.geometry(), *ddecay.stride()[:2],
            SUM=tl.float32 if self.single else tl.float64, **self.constants(), num_warps=1,
        )  # fmt: skip
        # the rate is 0 here: the gradient of the scan's own step size is that of the weight
        shape = dleaving_SHPN.shape[1:]
        return dx, dk, dq, grads.dt, ddecay, dentry.view(-1, *shape), adjoints.view(-1, *shape)
