"""The inner path of the Mamba-1 block in slabs of tokens: forward, and backward by recomputation.

Gradients of neighbouring operands are written side by side into one buffer: those of u and z, of time step, B and C.
Gradients of parameters are summed over slabs in the accumulation dtype, always in the same order.

Legend: B batch, L length, T tokens of a slab, S segments, D channels of the block, E inner channels, N states, R rank
of the time step, W taps, K slabs.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from seqkit.kernels import dispatch
from seqkit.kernels.inner_slabs import SlabCall, States, Totals, count_slabs, run_backward, run_forward

OPERANDS = (
    "x", "in_weight", "in_bias", "conv_weight", "conv_bias", "x_weight", "dt_weight", "dt_bias", "A", "D",
    "out_weight", "out_bias", "conv_state", "ssm_state",
)  # fmt: skip


def boundary_elements(provider: str, shape: tuple[int, int, int, int], segments: int | None, slab: int) -> int:
    """Elements of the scan's boundary states that are kept, for B, L, E, N: none of several slabs."""
    batch, length, channels, states = shape
    if count_slabs(length, slab) > 1:
        return 0
    size = dispatch.implementation("selective_scan", provider).boundary_shape
    return math.prod(size(batch, length, channels, states, segments))


class Call(SlabCall):
    """Operands of one call, and what both passes compute of a slab.

    Args:
        *args: :data:`OPERANDS`, then cu_seqlens, slab, reverse, dtype, provider.
    """

    def __init__(self, *args):
        operands, settings = args[: len(OPERANDS)], args[len(OPERANDS) :]
        super().__init__(dict(zip(OPERANDS, operands, strict=True)), *settings)
        self.scan = dispatch.implementation("selective_scan", settings[-1])
        self.x_weight, self.dt_weight = self.cast("x_weight", self.dtype), self.cast("dt_weight", self.dtype)
        self.dt_bias, self.A, self.D = (self.cast(name, self.wide) for name in ("dt_bias", "A", "D"))
        self.E, self.N = self.A.shape

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
        *args: Those of :class:`Call`.

    Returns:
        y (B, L, D) or, without an output projection, (B, L, E); final states (S, W - 1, E) and (S, E, N); those before
        every slab but the first (K - 1, B, ...); the scan's boundary states of a single slab, flat.
    """
    call, boundaries = Call(*args), []
    single = len(call.spans()) == 1

    def run(span: slice, conv: torch.Tensor | None, ssm: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        bounds, uz = call.bounds(span), call.project(span)
        u, conv = call.conv.forward(*call.conv_arguments(uz[..., : call.E], conv, bounds))
        selected, delta = call.select(u)
        y, ssm, boundary = call.scan.forward(*call.scan_arguments(u, delta, selected, uz, ssm, bounds))
        boundaries.append(boundary.flatten() if single else boundary.new_empty(0))
        return y, conv, ssm

    outputs = run_forward(call, call.E, run)
    return *outputs, boundaries[0]


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
        boundary: The scan's boundary states of a single slab, flat.
        *args: Those of :func:`forward`.
    """
    call = Call(*args)

    def run(k: int, *slab) -> States:
        return _backward_slab(call, boundary, *slab)

    return run_backward(call, dy, (dconv, dssm), (conv_starts, ssm_starts), run)


def _backward_slab(
    call: Call,
    boundary: torch.Tensor,
    span: slice,
    dy: torch.Tensor,
    starts: States,
    adjoints: States,
    totals: Totals,
    dx: torch.Tensor,
) -> States:
    """Recompute one slab up to its scan, write ``dx``, add to ``totals``; returns the adjoints of its two starts."""
    (conv_start, ssm_start), (dconv, dssm) = starts, adjoints
    bounds, uz = call.bounds(span), call.project(span)
    conv_arguments = uz[..., : call.E], conv_start, bounds
    u, _ = call.conv.forward(*call.conv_arguments(*conv_arguments))
    selected, delta = call.select(u)
    scan_arguments = call.scan_arguments(u, delta, selected, uz, ssm_start, bounds)
    if len(call.spans()) == 1:
        packed = None if call.cu_seqlens is None else call.segments
        boundary = boundary.view(call.scan.boundary_shape(*u.shape, call.N, packed))
    else:  # those of all slabs would be as large as the block's input and more
        boundary = call.scan.starts(*scan_arguments)
    duz = dx if call.in_weight is None else torch.empty_like(uz)
    dselected = torch.empty_like(selected)
    dlow_rank, dB, dC = call.split(dselected)
    into = {"dz": duz[..., call.E :], "dB": dB, "dC": dC}
    if call.out_weight is not None:
        into["y"] = torch.empty_like(u)
    du, ddelta, dA, _, _, dD, _, dbias, dssm = call.scan.backward(
        call.before_output(dy), dssm, boundary, *scan_arguments, into=into
    )
    for name, grad in (("A", dA), ("D", dD), ("dt_bias", dbias)):
        totals.add(name, grad)
    if call.out_weight is not None:
        call.add_output(totals, dy, into.pop("y"))
    totals.add_product("dt_weight", ddelta, call.split(selected)[0], call.wide)
    dlow_rank.copy_(torch.matmul(ddelta, call.dt_weight))
    del delta, ddelta
    totals.add_product("x_weight", dselected, u, call.wide)
    du.flatten(0, 1).addmm_(dselected.flatten(0, 1), call.x_weight)
    dconv = call.add_convolution(totals, du, dconv, duz[..., : call.E], *conv_arguments)
    if call.in_weight is not None:
        call.add_input(totals, span, duz, dx)
    return dconv, dssm
