"""The inner path of the Mamba-2 block in slabs of tokens: forward, and backward by recomputation.

The gradient of the gated norm needs the scan's output before the scan's own gradient can begin, so backward runs the
scan of a slab again and no boundary state of it outlives the forward pass. Gradients of neighbouring operands are
written side by side into one buffer: those of gate, convolution and time step, of x, B and C; that of the scan's output
takes its place. Gradients of parameters are summed over slabs in the accumulation dtype, always in the same order.

Legend: B batch, L length, T tokens of a slab, S segments, D channels of the block, E = H * P inner channels, H heads,
P head channels, N states, G groups, W taps, K slabs.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from seqkit.kernels import dispatch
from seqkit.kernels.inner_slabs import SlabCall, States, Totals, run_backward, run_forward

OPERANDS = (
    "x", "in_weight", "in_bias", "conv_weight", "conv_bias", "dt_bias", "A", "D", "norm_weight", "out_weight",
    "out_bias", "conv_state", "ssm_state",
)  # fmt: skip
KEPT = 4  # tensors that spare the backward pass a second run


class Scanned(NamedTuple):
    """What the scan of one slab leaves for its gradients.

    Attributes:
        xbc: Convolved x, B and C (B, T, E + 2GN).
        arguments: What the scan was given.
        kept: What it keeps.
        bounds: Packed boundaries inside the slab.
    """

    xbc: torch.Tensor
    arguments: tuple
    kept: Any
    bounds: torch.Tensor | None


class Call(SlabCall):
    """Operands of one call, and what both passes compute of a slab.

    Args:
        *args: :data:`OPERANDS`, then cu_seqlens, slab, reverse, dtype, provider, groups, eps, chunk_size.
    """

    def __init__(self, *args):
        *args, self.groups, self.eps, self.chunk_size = args
        operands, settings = args[: len(OPERANDS)], args[len(OPERANDS) :]
        super().__init__(dict(zip(OPERANDS, operands, strict=True)), *settings)
        self.scan = dispatch.implementation("ssd_scan", settings[-1])
        self.norm = dispatch.implementation("gated_rms_norm", settings[-1])
        wide = (self.cast(name, self.wide) for name in ("dt_bias", "A", "D", "norm_weight"))
        self.dt_bias, self.A, self.D, self.norm_weight = wide
        self.E, self.H = self.norm_weight.shape[0], self.A.shape[0]
        self.GN = (self.taps.shape[0] - self.E) // 2
        self.norm_settings = self.eps, self.E // self.groups

    def split(self, projected: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Gate (B, T, E), input of the convolution (B, T, E + 2GN), time step (B, T, H)."""
        return projected.split([self.E, self.E + 2 * self.GN, self.H], dim=-1)

    def heads(self, xbc: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Views of the convolved x by heads (B, T, H, P), of B and C by groups (B, T, G, N)."""
        x, B, C = xbc.split([self.E, self.GN, self.GN], dim=-1)
        return x.unflatten(-1, (self.H, -1)), B.unflatten(-1, (self.groups, -1)), C.unflatten(-1, (self.groups, -1))

    def scan_arguments(self, xbc, dt, state, bounds) -> tuple:
        """What both passes of the scan take."""
        x, B, C = self.heads(xbc)
        steps = bounds, True, 0.0, math.inf, self.reverse, self.chunk_size
        return x, dt, self.A, B, C, self.D, None, self.dt_bias, state, *steps

    def scan_slab(self, inputs, dt, states: States, bounds, **options) -> tuple[torch.Tensor, States, Scanned]:
        """Convolve and scan one slab.

        Args:
            inputs: Of the convolution (B, T, E + 2GN).
            dt: Time step (B, T, H).
            states: That enter.
            bounds: Packed boundaries inside the slab.
            options: Of the scan's forward pass.

        Returns:
            y (B, T, H, P), the states that leave, and what :meth:`scan_slab_gradients` takes.
        """
        conv, ssm = states
        xbc, conv = self.conv.forward(*self.conv_arguments(inputs, conv, bounds))
        arguments = self.scan_arguments(xbc, dt, ssm, bounds)
        y, ssm, kept = self.scan.forward(*arguments, **options)
        return y, (conv, ssm), Scanned(xbc, arguments, kept, bounds)

    def scan_slab_gradients(
        self,
        totals: Totals,
        dy: torch.Tensor,
        adjoints: States,
        scanned: Scanned,
        inputs: torch.Tensor,
        start: torch.Tensor | None,
        dinputs: torch.Tensor,
        ddt: torch.Tensor,
        *,
        add: bool = False,
    ) -> States:
        """Go back through scan and convolution of one slab.

        Args:
            totals: Sums of the parameters' gradients, to add to.
            dy: Gradient of y (B, T, H, P).
            adjoints: Of the states that leave.
            scanned: What the forward pass left.
            inputs: Of the convolution.
            start: State of the convolution that entered.
            dinputs: To write their gradient to.
            ddt: To write that of the time step to.
            add: Add to ``dinputs`` and ``ddt``.

        Returns:
            Adjoints of the states that entered.
        """
        (dconv, dssm), (xbc, arguments, kept, bounds) = adjoints, scanned
        dxbc = torch.empty_like(xbc)
        into = dict(zip(("dx", "dB", "dC"), self.heads(dxbc), strict=True)) | ({} if add else {"ddt": ddt})
        grads = self.scan.backward(dy, dssm, kept, *arguments, into=into)
        if add:
            ddt += grads[1]
        for name, grad in (("A", grads[2]), ("D", grads[5]), ("dt_bias", grads[7])):
            totals.add(name, grad)
        dconv = self.add_convolution(totals, dxbc, dconv, dinputs, inputs, start, bounds, add=add)
        return dconv, grads[8]


def forward(*args) -> tuple[torch.Tensor, ...]:
    """Run all slabs.

    Args:
        *args: Those of :class:`Call`, then whether the backward pass is to compute nothing again: there is one slab
            then, with both projections.

    Returns:
        y (B, L, D) or, without an output projection, (B, L, E); final states (S, W - 1, E + 2GN) and (S, H, P, N);
        those before every slab but the first (K - 1, B, ...); the four tensors of :func:`_forward_keeping`, else empty.
    """
    *args, keep = args
    call = Call(*args)
    if keep:
        return _forward_keeping(call)

    def run(span: slice, conv: torch.Tensor | None, ssm: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        z, inputs, dt = call.split(call.project(span))
        y, states, _ = call.scan_slab(inputs, dt, (conv, ssm), call.bounds(span))
        return call.norm.gated_rms_norm_sum_forward(
            [y.flatten(-2)], z, [call.norm_weight], *call.norm_settings
        ), *states

    return *run_forward(call, call.E, run), *(call.x.new_empty(0) for _ in range(KEPT))


def _forward_keeping(call: Call) -> tuple[torch.Tensor, ...]:
    """The same for one slab, and its projected and convolved input, the scan's output and what the scan keeps."""
    (span,), given = call.spans(), (call.operands["conv_state"], call.operands["ssm_state"])
    projected = call.project(span)
    z, inputs, dt = call.split(projected)
    scanned_BLHP, states, scanned = call.scan_slab(inputs, dt, given, call.cu_seqlens)
    normed = call.norm.gated_rms_norm_sum_forward(
        [scanned_BLHP.flatten(-2)], z, [call.norm_weight], *call.norm_settings
    )
    y = F.linear(normed, call.out_weight, call.out_bias)
    between = (x.new_empty((0, call.x.shape[0], *x.shape[1:])) for x in states)
    return y, *states, *between, projected, scanned.xbc, scanned_BLHP, scanned.kept


def backward(
    dy: torch.Tensor,
    dconv: torch.Tensor | None,
    dssm: torch.Tensor | None,
    conv_starts: torch.Tensor,
    ssm_starts: torch.Tensor,
    kept: tuple[torch.Tensor, ...],
    *args,
) -> tuple[torch.Tensor | None, ...]:
    """Gradients of :data:`OPERANDS`, None where one is absent.

    Args:
        dy: Gradient of y.
        dconv: Gradient of the convolution's final states, or None.
        dssm: Gradient of the scan's final states, or None.
        conv_starts: States before every slab but the first, as kept by the forward pass.
        ssm_starts: The same of the scan.
        kept: The last four outputs of the forward pass.
        *args: Those of :func:`forward`.
    """
    *args, keep = args
    call = Call(*args)

    def run(k: int, *slab) -> States:
        return _backward_slab(call, kept if keep else None, *slab)

    return run_backward(call, dy, (dconv, dssm), (conv_starts, ssm_starts), run)


def _backward_slab(
    call: Call,
    kept: tuple[torch.Tensor, ...] | None,
    span: slice,
    dy: torch.Tensor,
    starts: States,
    adjoints: States,
    totals: Totals,
    dx: torch.Tensor,
) -> States:
    """Recompute one slab unless it is kept, write ``dx``, add to ``totals``; returns adjoints of the states before."""
    bounds = call.bounds(span)
    projected = call.project(span) if kept is None else kept[0]
    z, inputs, dt = call.split(projected)
    if kept is None:
        y, _, scanned = call.scan_slab(inputs, dt, starts, bounds, keep=True)
        dscanned = y
    else:
        _, xbc, y, boundary = kept
        scanned = Scanned(xbc, call.scan_arguments(xbc, dt, starts[1], bounds), boundary, bounds)
        dscanned = torch.empty_like(y)
    dprojected = dx if call.in_weight is None else torch.empty_like(projected)
    dz, dinputs, ddt = call.split(dprojected)
    dnormed, whole = call.before_output(dy), call.out_weight is not None
    (dweight,) = call.norm.gated_rms_norm_sum_backward(
        dnormed, [y.flatten(-2)], z, [call.norm_weight], *call.norm_settings, dz, keep_sum=whole,
        dxs=[dscanned.flatten(-2)],
    )  # fmt: skip
    totals.add("norm_weight", dweight)
    if whole:
        call.add_output(totals, dy, dnormed)
    del dnormed, dy
    adjoints = call.scan_slab_gradients(totals, dscanned, adjoints, scanned, inputs, starts[0], dinputs, ddt)
    if call.in_weight is not None:
        call.add_input(totals, span, dprojected, dx)
    return adjoints
