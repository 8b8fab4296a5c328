"""The inner path of the Mamba-1 block in slabs of tokens: forward, and backward by recomputation.

Slabs follow each other in scan order through the states of convolution and scan; backward takes the last one first and
carries the adjoints of both. Whatever lies between the input and the output exists for one slab at a time. Gradients of
neighbouring operands are written side by side into one buffer: those of u and z, of time step, B and C. Gradients of
parameters are summed over slabs in the accumulation dtype, always in the same order.

Legend: B batch, L length, S segments, D channels of the block, E inner channels, N states, R rank of the time step,
W taps, K slabs.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from seqkit.kernels import dispatch

OPERANDS = (
    "x", "in_weight", "in_bias", "conv_weight", "conv_bias", "x_weight", "dt_weight", "dt_bias", "A", "D",
    "out_weight", "out_bias", "conv_state", "ssm_state",
)  # fmt: skip


def count_slabs(length: int, slab: int) -> int:
    """K: at least one, also for no tokens; ``slab`` 0 means one slab."""
    return max(1, -(-length // slab)) if slab else 1


def boundary_elements(provider: str, shape: tuple[int, int, int, int], segments: int | None, slab: int) -> int:
    """Elements of the scan's boundary states of all slabs, for B, L, E, N."""
    batch, length, channels, states = shape
    size = dispatch.implementation("selective_scan", provider).boundary_shape
    if count_slabs(length, slab) == 1:
        return math.prod(size(batch, length, channels, states, segments))
    last = length - (count_slabs(length, slab) - 1) * slab
    whole = math.prod(size(batch, slab, channels, states, segments))
    return (count_slabs(length, slab) - 1) * whole + math.prod(size(batch, last, channels, states, segments))


class Call:
    """Operands of one call: projections in the compute dtype, everything else in the accumulation dtype."""

    def __init__(self, *args):
        *operands, self.cu_seqlens, self.slab, self.reverse, self.dtype, provider = args
        self.operands = dict(zip(OPERANDS, operands, strict=True))
        self.wide = torch.promote_types(self.dtype, torch.float32)
        self.conv = dispatch.implementation("causal_conv", provider)
        self.scan = dispatch.implementation("selective_scan", provider)
        self.x = self.operands["x"]
        self.in_weight, self.in_bias = self._as("in_weight", self.dtype), self._as("in_bias", self.dtype)
        self.x_weight, self.dt_weight = self._as("x_weight", self.dtype), self._as("dt_weight", self.dtype)
        self.out_weight, self.out_bias = self._as("out_weight", self.dtype), self._as("out_bias", self.dtype)
        self.taps, self.conv_bias = self._as("conv_weight", self.wide), self._as("conv_bias", self.wide)
        self.dt_bias, self.A, self.D = (self._as(name, self.wide) for name in ("dt_bias", "A", "D"))
        (self.E, self.W), self.N = self.taps.shape, self.A.shape[1]
        self.segments = self.x.shape[0] if self.cu_seqlens is None else self.cu_seqlens.shape[0] - 1

    def _as(self, name: str, dtype: torch.dtype) -> torch.Tensor | None:
        return None if self.operands[name] is None else self.operands[name].to(dtype)

    def spans(self) -> list[slice]:
        """Tokens of each slab, in scan order."""
        length = self.x.shape[1]
        size, count = self.slab or length, count_slabs(length, self.slab)
        spans = [slice(k * size, min((k + 1) * size, length)) for k in range(count)]
        return spans[::-1] if self.reverse else spans

    def bounds(self, span: slice) -> torch.Tensor | None:
        """Packed boundaries inside a slab: a segment that lies elsewhere is empty and hands its state through."""
        if self.cu_seqlens is None or not self.slab:
            return self.cu_seqlens
        return (self.cu_seqlens - span.start).clamp_(0, span.stop - span.start)

    def keep(self, span: slice, state: torch.Tensor) -> torch.Tensor:
        """What backward needs of the states before a slab: packed, those of the one segment that may reach into it."""
        return state if self.cu_seqlens is None else state.index_select(0, self._first_segment(span))

    def restore(self, span: slice, kept: torch.Tensor, name: str) -> torch.Tensor:
        """States before a slab; segments that ended earlier are empty here, those to come start as they were given."""
        if self.cu_seqlens is None:
            return kept
        given = self.operands[name]
        state = kept.new_zeros((self.segments, *kept.shape[1:])) if given is None else given.to(self.wide, copy=True)
        return state.index_copy_(0, self._first_segment(span), kept)

    def _first_segment(self, span: slice) -> torch.Tensor:
        token = span.stop - 1 if self.reverse else span.start
        return (self.cu_seqlens <= token).sum().view(1) - 1

    def project(self, span: slice) -> torch.Tensor:
        """Inputs of convolution and gate (B, T, 2E)."""
        x = self.x[:, span]
        return x if self.in_weight is None else F.linear(x.to(self.dtype), self.in_weight, self.in_bias)

    def convolve(self, uz: torch.Tensor, state: torch.Tensor | None, bounds: torch.Tensor | None):
        """Convolved u (B, T, E) and the next state."""
        return self.conv.forward(*self.conv_arguments(uz, state, bounds))

    def conv_arguments(self, uz: torch.Tensor, state: torch.Tensor | None, bounds: torch.Tensor | None) -> tuple:
        """What both passes of the convolution take."""
        return uz[..., : self.E], self.taps, self.conv_bias, state, bounds, "silu", self.reverse

    def select(self, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Low-rank time step, B and C in one tensor (B, T, R + 2N), and the time step without its bias (B, T, E)."""
        selected = F.linear(u, self.x_weight)
        return selected, F.linear(self.split(selected)[0], self.dt_weight)

    def split(self, selected: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Low-rank time step (B, T, R), B and C (B, T, 1, N)."""
        low_rank, B, C = selected.split([self.dt_weight.shape[1], self.N, self.N], dim=-1)
        return low_rank, B.unsqueeze(2), C.unsqueeze(2)

    def scan_arguments(self, u, delta, selected, uz, state, bounds) -> tuple:
        """What both passes of the scan take."""
        _, B, C = self.split(selected)
        z = uz[..., self.E :]
        return u, delta, self.A, B, C, self.D, z, self.dt_bias, state, bounds, True, self.reverse


def forward(*args) -> tuple[torch.Tensor, ...]:
    """Run all slabs.

    Args:
        *args: :data:`OPERANDS`, then cu_seqlens, slab, reverse, dtype, provider.

    Returns:
        y (B, L, D) or, without an output projection, (B, L, E); final states (S, W - 1, E) and (S, E, N); those before
        every slab but the first (K - 1, B, ...); the scan's boundary states of all slabs, flat.
    """
    call = Call(*args)
    spans, batch, length = call.spans(), *call.x.shape[:2]
    width = call.E if call.out_weight is None else call.out_weight.shape[0]
    y = call.x.new_empty((batch, length, width), dtype=call.dtype) if len(spans) > 1 else None
    conv, ssm = call.operands["conv_state"], call.operands["ssm_state"]
    convs, ssms, boundaries = [], [], []
    for k, span in enumerate(spans):
        if k:
            convs.append(call.keep(span, conv))
            ssms.append(call.keep(span, ssm))
        bounds, uz = call.bounds(span), call.project(span)
        u, conv = call.convolve(uz, conv, bounds)
        selected, delta = call.select(u)
        part, ssm, boundary = call.scan.forward(*call.scan_arguments(u, delta, selected, uz, ssm, bounds))
        if y is not None:
            _write(y[:, span], part, call.out_weight, call.out_bias)
        else:
            y = part if call.out_weight is None else F.linear(part, call.out_weight, call.out_bias)
        boundaries.append(boundary.flatten())
    if len(spans) == 1:
        return y, conv, ssm, *(x.new_empty((0, batch, *x.shape[1:])) for x in (conv, ssm)), boundaries[0]
    return y, conv, ssm, torch.stack(convs), torch.stack(ssms), torch.cat(boundaries)


def _write(out: torch.Tensor, x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None = None) -> None:
    """Project x into the slab of a longer tensor: in place for one sequence, whose slab is contiguous."""
    if weight is None:
        out.copy_(x)
    elif x.shape[0] > 1 or out.dtype != x.dtype:
        out.copy_(F.linear(x, weight, bias))
    elif bias is None:
        torch.mm(x[0], weight.t(), out=out[0])
    else:
        torch.addmm(bias, x[0], weight.t(), out=out[0])


class Totals(dict):
    """Gradients of parameters by name, summed over slabs in the accumulation dtype."""

    def add(self, name: str, grad: torch.Tensor) -> None:
        """Add the share of one slab."""
        if name in self:
            self[name] += grad
        else:
            self[name] = grad

    def add_product(self, name: str, dy: torch.Tensor, x: torch.Tensor, dtype: torch.dtype) -> None:
        """Add the gradient of the weight of y = x weight^T: (out, in) from (B, T, out) and (B, T, in)."""
        dy, x = dy.flatten(0, 1), x.flatten(0, 1)
        if dy.is_cuda and dy.dtype != dtype:  # half precision operands, sums in float32 that are never rounded
            self.add(name, torch.mm(dy.t(), x, out_dtype=dtype))
        else:
            self.add(name, torch.mm(dy.t(), x).to(dtype))


def backward(
    dy: torch.Tensor,
    dconv: torch.Tensor | None,
    dssm: torch.Tensor | None,
    conv_starts: torch.Tensor,
    ssm_starts: torch.Tensor,
    boundary: torch.Tensor,
    *args,
) -> tuple[torch.Tensor | None, ...]:
    """Gradients of :data:`OPERANDS`, None where one is absent.

    Args:
        dy: Gradient of y.
        dconv: Gradient of the convolution's final states, or None.
        dssm: Gradient of the scan's final states, or None.
        conv_starts: States before every slab but the first, as kept by the forward pass.
        ssm_starts: The same of the scan.
        boundary: The scan's boundary states, flat.
        *args: Those of :func:`forward`.
    """
    call, totals = Call(*args), Totals()
    spans, shape = call.spans(), (call.x.shape[0], call.E, call.N)
    dx = torch.empty(call.x.shape, dtype=call.x.dtype, device=call.x.device)
    packed = None if call.cu_seqlens is None else call.segments
    end = boundary.shape[0]
    for k in reversed(range(len(spans))):
        span = spans[k]
        size = call.scan.boundary_shape(shape[0], span.stop - span.start, *shape[1:], packed)
        begin = end - math.prod(size)
        if k == 0:
            starts = call.operands["conv_state"], call.operands["ssm_state"]
        else:
            conv_start = call.restore(span, conv_starts[k - 1], "conv_state")
            starts = conv_start, call.restore(span, ssm_starts[k - 1], "ssm_state")
        adjoints = dconv, dssm, boundary[begin:end].view(size)
        dconv, dssm = _backward_slab(call, totals, span, dy[:, span], starts, adjoints, dx[:, span])
        end = begin
    grads = {"x": dx, "conv_state": dconv, "ssm_state": dssm, **totals}
    return tuple(None if x is None else grads[name].to(x.dtype) for name, x in call.operands.items())


def _backward_slab(
    call: Call,
    totals: Totals,
    span: slice,
    dy: torch.Tensor,
    starts: tuple[torch.Tensor | None, torch.Tensor | None],
    adjoints: tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor],
    dx: torch.Tensor,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Recompute one slab but for its scan, write ``dx``, add to ``totals``; returns the adjoints of its two starts."""
    (conv_start, ssm_start), (dconv, dssm, boundary) = starts, adjoints
    bounds, uz = call.bounds(span), call.project(span)
    u, _ = call.convolve(uz, conv_start, bounds)
    selected, delta = call.select(u)
    duz = dx if call.in_weight is None else torch.empty_like(uz)
    dselected = torch.empty_like(selected)
    dlow_rank, dB, dC = call.split(dselected)
    into = {"dz": duz[..., call.E :], "dB": dB, "dC": dC}
    if call.out_weight is not None:
        dout, dy = dy.to(call.dtype), torch.matmul(dy.to(call.dtype), call.out_weight)
        into["y"] = torch.empty_like(u)
    du, ddelta, dA, _, _, dD, _, dbias, dssm = call.scan.backward(
        dy, dssm, boundary, *call.scan_arguments(u, delta, selected, uz, ssm_start, bounds), into=into
    )
    for name, grad in (("A", dA), ("D", dD), ("dt_bias", dbias)):
        totals.add(name, grad)
    if call.out_weight is not None:
        totals.add_product("out_weight", dout, into.pop("y"), call.wide)
        if call.out_bias is not None:
            totals.add("out_bias", dout.sum((0, 1), dtype=call.wide))
    totals.add_product("dt_weight", ddelta, call.split(selected)[0], call.wide)
    dlow_rank.copy_(torch.matmul(ddelta, call.dt_weight))
    del dy, delta, ddelta
    totals.add_product("x_weight", dselected, u, call.wide)
    du.flatten(0, 1).addmm_(dselected.flatten(0, 1), call.x_weight)
    _, dtaps, dconv_bias, dconv = call.conv.backward(
        du, dconv, *call.conv_arguments(uz, conv_start, bounds), into={"dx": duz[..., : call.E]}
    )
    totals.add("conv_weight", dtaps)
    if dconv_bias is not None:
        totals.add("conv_bias", dconv_bias)
    if call.in_weight is not None:
        totals.add_product("in_weight", duz, call.x[:, span].to(call.dtype), call.wide)
        if call.in_bias is not None:
            totals.add("in_bias", duz.sum((0, 1), dtype=call.wide))
        _write(dx, duz, call.in_weight.t())
    return dconv, dssm
