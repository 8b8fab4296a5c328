"""Both directions of a Mamba-2 block in slabs of tokens: projections once, forward and again in the backward pass.

The directions reach a slab in opposite orders, so each pass makes two sweeps. Forward, the direction that runs down the
sequence goes first and leaves its outputs, then the other one goes up and takes the outputs of both through norm and
projection. Backward begins at the end, where the adjoint of the upward direction enters: both are scanned again, the
upward one is finished, and of the downward one the gradient of its outputs is left for a second sweep from the start.
Slab 0 belongs to both sweeps, which with one slab is all there is. What exists for the whole length beside the block's
input is one tensor of E channels, first outputs, then their gradients.

Legend: B batch, L length, T tokens of a slab, S segments, D channels of the block, E = H * P inner channels, H heads,
P head channels, N states, G groups, W taps, K slabs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from seqkit.kernels.inner_slabs import States, Totals, write_projected
from seqkit.kernels.ssd.inner_slabs import Call, Scanned

SHARED = ("x", "in_weight", "in_bias", "out_weight", "out_bias")
OWN = ("conv_weight", "conv_bias", "dt_bias", "A", "D", "norm_weight", "conv_state", "ssm_state")
STATES = ("conv_state", "ssm_state")


class Way(Call):
    """One direction.

    Args:
        shared: Operands of both, by name.
        own: Those of this one, by name.
        settings: cu_seqlens, slab, reverse, dtype, provider, groups, eps, chunk_size.
    """

    def __init__(self, shared: dict, own: dict, *settings):
        given = shared | own
        order = (*SHARED[:3], *OWN[:6], *SHARED[3:], *STATES)
        super().__init__(*(given[name] for name in order), *settings)
        self.totals = Totals()

    def enters(self, number: int, count: int, span: slice, kept: tuple[torch.Tensor, ...]) -> States:
        """States before a slab: those given, or those kept, which lie in scan order."""
        turn = count - 1 - number if self.reverse else number
        if turn == 0:
            return tuple(self.operands[name] for name in STATES)
        return tuple(self.restore(span, x[turn - 1], name) for x, name in zip(kept, STATES, strict=True))

    def project_own(self, span: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """What the direction reads of the projected input, without the gate: convolution's input and time step."""
        weight, bias = self.in_weight[self.E :], None if self.in_bias is None else self.in_bias[self.E :]
        return F.linear(self.x[:, span].to(self.dtype), weight, bias).split([self.taps.shape[0], self.H], dim=-1)


class Both:
    """One call: the direction that runs up the sequence, and the one that runs down.

    Args:
        *args: :data:`SHARED` operands, :data:`OWN` ones of the left direction and of the right one, then cu_seqlens,
            slab, reverse, dtype, provider, groups, eps, chunk_size.
    """

    def __init__(self, *args):
        shared, rest = dict(zip(SHARED, args, strict=False)), args[len(SHARED) :]
        left, right = (dict(zip(OWN, rest[i * len(OWN) :], strict=False)) for i in range(2))
        cu_seqlens, slab, self.reverse, *settings = rest[2 * len(OWN) :]
        self.left = Way(shared, left, cu_seqlens, slab, self.reverse, *settings)
        self.right = Way(shared, right, cu_seqlens, slab, not self.reverse, *settings)
        self.up, self.down = self.ordered(self.left, self.right)
        self.spans = self.up.spans()
        self.norm_weights = [self.up.norm_weight, self.down.norm_weight]

    def ordered(self, left, right) -> tuple:
        """What belongs to (left, right) in the order (up, down), or the other way round."""
        return (right, left) if self.reverse else (left, right)

    def behind_first(self) -> torch.Tensor:
        """Room for the downward direction's outputs on all slabs but the first (B, L - T, H, P)."""
        batch, length, _ = self.up.x.shape
        shape = (batch, length - self.spans[0].stop, self.up.H, self.up.E // self.up.H)
        return self.up.x.new_empty(shape, dtype=self.up.dtype)

    def within(self, room: torch.Tensor, span: slice) -> torch.Tensor:
        """The part of it that belongs to a slab."""
        first = self.spans[0].stop
        return room[:, span.start - first : span.stop - first]


class _Border:
    """States between slabs of one direction, collected in scan order."""

    def __init__(self, way: Way):
        self.way, self.now, self.kept = way, tuple(way.operands[name] for name in STATES), None

    def enter(self, span: slice) -> States:
        """What enters a slab; kept but for the first, which takes what was given."""
        if self.kept is None:
            self.kept = [], []
        else:
            for found, state in zip(self.kept, self.now, strict=True):
                found.append(self.way.keep(span, state))
        return self.now

    def stacked(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(K - 1, B, ...) of convolution and scan."""
        if self.kept[0]:
            return tuple(torch.stack(found) for found in self.kept)
        return tuple(x.new_empty((0, self.way.x.shape[0], *x.shape[1:])) for x in self.now)


def forward(*args) -> tuple[torch.Tensor, ...]:
    """Run all slabs.

    Args:
        *args: Those of :class:`Both`.

    Returns:
        y (B, L, D); final states of convolution and scan, left then right, (S, W - 1, E + 2GN) and (S, H, P, N); those
        before every slab but each direction's first (K - 1, B, ...), in the same order.
    """
    both = Both(*args)
    up, down, spans = both.up, both.down, both.spans
    rising, falling = _Border(up), _Border(down)
    room = both.behind_first()
    for span in reversed(spans[1:]):
        into = {"y": both.within(room, span)}
        states = falling.enter(span)
        _, falling.now, _ = down.scan_slab(*down.project_own(span), states, down.bounds(span), into=into)
    y = up.x.new_empty((*up.x.shape[:2], up.out_weight.shape[0]), dtype=up.dtype)
    for span in spans:
        bounds, (z, inputs, dt) = up.bounds(span), up.split(up.project(span))
        own, rising.now, _ = up.scan_slab(inputs, dt, rising.enter(span), bounds)
        if span is spans[0]:
            other, falling.now, _ = down.scan_slab(inputs, dt, falling.enter(span), bounds)
        else:
            other = both.within(room, span)
        added = up.norm.gated_rms_norm_sum_forward(
            [own.flatten(-2), other.flatten(-2)], z, both.norm_weights, *up.norm_settings
        )
        write_projected(y[:, span], added, up.out_weight, up.out_bias)
    left, right = both.ordered(rising, falling)
    return y, *left.now, *right.now, *left.stacked(), *right.stacked()


def backward(dy: torch.Tensor, adjoints: tuple, kept: tuple, *args) -> tuple[torch.Tensor | None, ...]:
    """Gradients of the operands in the order of :class:`Both`, None where one is absent.

    Args:
        dy: Gradient of y.
        adjoints: Gradients of the four final states, or None.
        kept: The states that the forward pass kept.
        *args: Those of :func:`forward`.
    """
    both = Both(*args)
    up, down, spans = both.up, both.down, both.spans
    from_end, from_start = both.ordered(adjoints[:2], adjoints[2:])
    kept_up, kept_down = both.ordered(kept[:2], kept[2:])
    shared = Totals()
    dx = torch.empty(up.x.shape, dtype=up.x.dtype, device=up.x.device)
    room, marks = both.behind_first(), [None] * len(spans)
    for number in reversed(range(len(spans))):
        span = spans[number]
        states = up.enters(number, len(spans), span, kept_up), down.enters(number, len(spans), span, kept_down)
        place = None if number == 0 else both.within(room, span)
        slab = _Slab(both, shared, span, dy[:, span], states, place)
        from_end = slab.finish_up(from_end)
        if number == 0:
            from_start = slab.finish_down(from_start)
        marks[number] = slab.marks
        up.add_input(shared, span, slab.dprojected, dx[:, span])
        del slab
    for number in range(1, len(spans)):
        span, start = spans[number], down.enters(number, len(spans), spans[number], kept_down)
        place = both.within(room, spans[number])
        from_start = _second_sweep(both, shared, span, place, start, marks[number], from_start, dx[:, span])
    ends = dict(zip(("left", "right"), both.ordered(from_end, from_start), strict=True))
    return _in_order(both, shared, dx, ends)


class _Slab:
    """One slab of the first backward sweep: both directions scanned again, norm and output projection gone through.

    Args:
        both: The call.
        shared: Sums of the projections' gradients, to add to.
        span: Tokens.
        dy: Gradient of the block's output (B, T, D).
        states: That enter, of the upward and of the downward direction.
        place: Where the gradient of the downward direction's outputs waits for the second sweep; None if there is none.

    Attributes:
        dprojected: Gradient of the projected input, that of the gate in its place.
        marks: What the second sweep takes of the downward scan, beside ``place``.
    """

    def __init__(
        self,
        both: Both,
        shared: Totals,
        span: slice,
        dy: torch.Tensor,
        states: tuple[States, States],
        place: torch.Tensor | None,
    ):
        up, down = both.up, both.down
        self.both, self.states = both, states
        projected, bounds = up.project(span), up.bounds(span)
        z, self.inputs, dt = up.split(projected)
        self.own, _, self.up_scanned = up.scan_slab(self.inputs, dt, states[0], bounds, keep=True)
        later = {"keep": True} if place is None else {"into": {"y": place}}
        self.other, _, down_scanned = down.scan_slab(self.inputs, dt, states[1], bounds, **later)
        self.down_scanned, self.marks = (down_scanned, None) if place is None else (None, down_scanned.kept)
        self.dprojected = torch.empty_like(projected)
        dz, self.dinputs, self.ddt = up.split(self.dprojected)
        added = up.before_output(dy)
        dweights = up.norm.gated_rms_norm_sum_backward(
            added, [self.own.flatten(-2), self.other.flatten(-2)], z, both.norm_weights, *up.norm_settings, dz,
            keep_sum=True,
        )  # fmt: skip
        for way, dweight in zip((up, down), dweights, strict=True):
            way.totals.add("norm_weight", dweight)
        up.add_output(shared, dy, added)

    def finish_up(self, adjoints: States) -> States:
        """Gradients of the upward direction."""
        scanned, start = self.up_scanned, self.states[0][0]
        up, self.up_scanned = self.both.up, None
        return up.scan_slab_gradients(
            up.totals, self.own, adjoints, scanned, self.inputs, start, self.dinputs, self.ddt
        )

    def finish_down(self, adjoints: States) -> States:
        """Those of the downward direction, added to them."""
        down, start = self.both.down, self.states[1][0]
        return down.scan_slab_gradients(
            down.totals, self.other, adjoints, self.down_scanned, self.inputs, start, self.dinputs, self.ddt, add=True
        )


def _second_sweep(
    both: Both,
    shared: Totals,
    span: slice,
    dy: torch.Tensor,
    start: States,
    kept: torch.Tensor,
    adjoints: States,
    dx: torch.Tensor,
) -> States:
    """Finish the downward direction on one slab, from the gradient of its outputs (B, T, H, P); adds to ``dx``."""
    down, bounds = both.down, both.down.bounds(span)
    inputs, dt = down.project_own(span)
    xbc, _ = down.conv.forward(*down.conv_arguments(inputs, start[0], bounds))
    scanned = Scanned(xbc, down.scan_arguments(xbc, dt, start[1], bounds), kept, bounds)
    dprojected = inputs.new_empty((*inputs.shape[:2], inputs.shape[2] + dt.shape[2]))
    dinputs, ddt = dprojected.split([inputs.shape[2], dt.shape[2]], dim=-1)
    adjoints = down.scan_slab_gradients(down.totals, dy, adjoints, scanned, inputs, start[0], dinputs, ddt)
    down.totals.add_product("in_weight", dprojected, down.x[:, span].to(down.dtype), down.wide)
    if down.in_bias is not None:
        down.totals.add("in_bias", dprojected.sum((0, 1), dtype=down.wide))
    write_projected(dx, dprojected, down.in_weight[down.E :].t(), add=True)
    return adjoints


def _in_order(both: Both, shared: Totals, dx: torch.Tensor, ends: dict[str, States]) -> tuple[torch.Tensor | None, ...]:
    """All gradients, in the operands' order and dtypes; what the second sweep found of the projection is added."""
    for name in ("in_weight", "in_bias"):
        if name in both.down.totals:
            shared[name][both.up.E :] += both.down.totals[name]
    found = [(both.left, SHARED, {"x": dx, **shared})]
    for side, way in (("left", both.left), ("right", both.right)):
        found.append((way, OWN, {**way.totals, **dict(zip(STATES, ends[side], strict=True))}))
    return tuple(
        None if way.operands[name] is None else grads[name].to(way.operands[name].dtype)
        for way, names, grads in found
        for name in names
    )
