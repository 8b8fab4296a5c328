"""What the inner paths of blocks share: slabs of tokens, the states between them, projections, sums of gradients.

Slabs follow each other in scan order through the states of convolution and scan; backward takes the last one first and
carries the adjoints of both. Whatever lies between the input and the output exists for one slab at a time.

Legend: B batch, L length, T tokens of a slab, S segments, D channels of the block, E inner channels, F channels of the
input projection, W taps, K slabs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from seqkit.kernels import dispatch

States = tuple[torch.Tensor | None, torch.Tensor | None]
"""Of the convolution and of the scan, or their adjoints."""


def count_slabs(length: int, slab: int) -> int:
    """K: at least one, also for no tokens; ``slab`` 0 means one slab."""
    return max(1, -(-length // slab)) if slab else 1


class SlabCall:
    """Operands of one call: projections in the compute dtype, everything else in the accumulation dtype.

    Args:
        operands: By name; at least x, in_weight, in_bias, conv_weight, conv_bias, out_weight, out_bias, conv_state and
            ssm_state.
        cu_seqlens: Packed boundaries, or None.
        slab: Tokens of a slab; 0 means one slab.
        reverse: Whether the scan runs from the last token to the first.
        dtype: Of the projections.
        provider: Who computes.
    """

    def __init__(
        self,
        operands: dict[str, torch.Tensor | None],
        cu_seqlens: torch.Tensor | None,
        slab: int,
        reverse: bool,
        dtype: torch.dtype,
        provider: str,
    ):
        self.operands, self.cu_seqlens, self.slab, self.reverse, self.dtype = operands, cu_seqlens, slab, reverse, dtype
        self.wide = torch.promote_types(dtype, torch.float32)
        self.conv = dispatch.implementation("causal_conv", provider)
        self.x = operands["x"]
        self.in_weight, self.in_bias = self.cast("in_weight", dtype), self.cast("in_bias", dtype)
        self.out_weight, self.out_bias = self.cast("out_weight", dtype), self.cast("out_bias", dtype)
        self.taps, self.conv_bias = self.cast("conv_weight", self.wide), self.cast("conv_bias", self.wide)
        self.segments = self.x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1

    def cast(self, name: str, dtype: torch.dtype) -> torch.Tensor | None:
        """An operand in another dtype; None where it is absent."""
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
        """The projected input (B, T, F)."""
        x = self.x[:, span]
        return x if self.in_weight is None else F.linear(x.to(self.dtype), self.in_weight, self.in_bias)

    def conv_arguments(self, x: torch.Tensor, state: torch.Tensor | None, bounds: torch.Tensor | None) -> tuple:
        """What both passes of the convolution of x (B, T, channels) take."""
        return x, self.taps, self.conv_bias, state, bounds, "silu", self.reverse

    def before_output(self, dy: torch.Tensor) -> torch.Tensor:
        """Gradient of what goes into the output projection (B, T, E)."""
        return dy if self.out_weight is None else torch.matmul(dy.to(self.dtype), self.out_weight)

    def add_output(self, totals: Totals, dy: torch.Tensor, y: torch.Tensor) -> None:
        """Add one slab's gradients of the output projection of ``y`` (B, T, E)."""
        dy = dy.to(self.dtype)
        totals.add_product("out_weight", dy, y, self.wide)
        if self.out_bias is not None:
            totals.add("out_bias", dy.sum((0, 1), dtype=self.wide))

    def add_convolution(
        self,
        totals: Totals,
        dy: torch.Tensor,
        dstate: torch.Tensor | None,
        dx: torch.Tensor,
        *args,
        add: bool = False,
    ) -> torch.Tensor:
        """Write or add to ``dx``, add up gradients of taps and bias; returns the adjoint of the state before."""
        _, dtaps, dbias, dstate = self.conv.backward(dy, dstate, *self.conv_arguments(*args), into={"dx": dx}, add=add)
        totals.add("conv_weight", dtaps)
        if dbias is not None:
            totals.add("conv_bias", dbias)
        return dstate

    def add_input(self, totals: Totals, span: slice, dprojected: torch.Tensor, dx: torch.Tensor) -> None:
        """Add one slab's gradients of the input projection and write ``dx``."""
        totals.add_product("in_weight", dprojected, self.x[:, span].to(self.dtype), self.wide)
        if self.in_bias is not None:
            totals.add("in_bias", dprojected.sum((0, 1), dtype=self.wide))
        write_projected(dx, dprojected, self.in_weight.t())


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


def run_forward(call: SlabCall, width: int, run: Callable[..., tuple[torch.Tensor, ...]]) -> tuple[torch.Tensor, ...]:
    """Run all slabs in scan order.

    Args:
        call: Operands.
        width: E, the channels that ``run`` returns.
        run: From tokens of a slab and both states to y (B, T, E) before the output projection and the next states.

    Returns:
        y (B, L, D) or, without an output projection, (B, L, E); final states; those before every slab but the first,
        (K - 1, B, ...) each.
    """
    spans, batch, length = call.spans(), *call.x.shape[:2]
    width = width if call.out_weight is None else call.out_weight.shape[0]
    y = call.x.new_empty((batch, length, width), dtype=call.dtype) if len(spans) > 1 else None
    conv, ssm = call.operands["conv_state"], call.operands["ssm_state"]
    convs, ssms = [], []
    for k, span in enumerate(spans):
        if k:
            convs.append(call.keep(span, conv))
            ssms.append(call.keep(span, ssm))
        part, conv, ssm = run(span, conv, ssm)
        if y is not None:
            write_projected(y[:, span], part, call.out_weight, call.out_bias)
        else:
            y = part if call.out_weight is None else F.linear(part, call.out_weight, call.out_bias)
    if len(spans) == 1:
        return y, conv, ssm, *(x.new_empty((0, batch, *x.shape[1:])) for x in (conv, ssm))
    return y, conv, ssm, torch.stack(convs), torch.stack(ssms)


def write_projected(
    out: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None = None,
    *,
    add: bool = False,
) -> None:
    """Project x into the slab of a longer tensor: in place for one sequence, whose slab is contiguous.

    With ``add`` (and no bias) to what stands there.
    """
    if weight is None:
        out.copy_(x)
    elif x.shape[0] > 1 or out.dtype != x.dtype:
        projected = F.linear(x, weight, bias)
        out.copy_(out + projected if add else projected)
    elif add:
        out[0].addmm_(x[0], weight.t())
    elif bias is None:
        torch.mm(x[0], weight.t(), out=out[0])
    else:
        torch.addmm(bias, x[0], weight.t(), out=out[0])


def run_backward(
    call: SlabCall, dy: torch.Tensor, adjoints: States, kept: States, run: Callable[..., States]
) -> tuple[torch.Tensor | None, ...]:
    """Run all slabs against the scan.

    Args:
        call: Operands.
        dy: Gradient of y.
        adjoints: Gradients of the final states, or None.
        kept: States before every slab but the first, as the forward pass returned them.
        run: From the slab's number and tokens, dy, the states before it, the adjoints of those behind it, totals to add
            to and the slice of dx to write, to the adjoints of the states before it.

    Returns:
        Gradients of the operands in their order and dtypes, None where one is absent.
    """
    totals, spans, names = Totals(), call.spans(), ("conv_state", "ssm_state")
    dx = torch.empty(call.x.shape, dtype=call.x.dtype, device=call.x.device)
    for k in reversed(range(len(spans))):
        span = spans[k]
        if k == 0:
            starts = tuple(call.operands[name] for name in names)
        else:
            starts = tuple(call.restore(span, x[k - 1], name) for x, name in zip(kept, names, strict=True))
        adjoints = run(k, span, dy[:, span], starts, adjoints, totals, dx[:, span])
    grads = {"x": dx, **dict(zip(names, adjoints, strict=True)), **totals}
    return tuple(None if x is None else grads[name].to(x.dtype) for name, x in call.operands.items())
