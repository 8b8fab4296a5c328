"""The S4D block: a gated, time-invariant filter with complex modes in every channel.

Nothing of the recurrence depends on the input: what selective blocks spend on choosing, this one spends on modes that
oscillate. On sensor data such blocks are often ahead.

Legend: B batch, L length, D channels of the block, E = expand * D inner channels, N real states per channel,
M = N / 2 complex modes, S sequences.

Reference: Gu et al. 2022, On the Parameterization and Initialization of Diagonal State Space Models (S4D), section 4.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seqkit.backbones.diagonal import Modes, diagonal_scan, diagonal_step, timed_scan
from seqkit.backbones.mixer import ProjectedMixer, ScanCore
from seqkit.backbones.parameters import Linear, time_step_bias
from seqkit.backbones.slabs import run_in_slabs
from seqkit.backbones.state import S4DState
from seqkit.errors import ConfigError


class S4DCore(ScanCore):
    """Filter and gate of one direction.

    Args:
        d_model: Width D of the block.
        d_state: Real numbers N that a channel remembers; even, two for each complex mode.
        expand: Inner width over D.
        dt_min: Smallest initial time step; a channel forgets over about 2 / dt steps.
        dt_max: Largest initial time step.
        dt_init_floor: No initial time step is smaller.
        slab: Positions that a pass over a longer sequence takes at a time, projections included; None takes all.

    Raises:
        ConfigError: ``d_state`` is not even.
    """

    reads_time = True
    float32_parameters = ("dt_bias", "A_log", "A_imag", "C", "D")

    def __init__(
        self,
        d_model: int,
        *,
        d_state: int = 64,
        expand: int = 2,
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        dt_init_floor: float = 1e-4,
        slab: int | None = None,
    ):
        super().__init__()
        if d_state < 2 or d_state % 2:
            raise ConfigError("d_state", expected="an even number of states, two for each mode", got=str(d_state))
        self.d_model, self.d_state, self.d_inner, self.slab = d_model, d_state, expand * d_model, slab
        self.projection_width = 2 * self.d_inner
        self._dt_range = (dt_min, dt_max, dt_init_floor)
        shape = (self.d_inner, d_state // 2)
        self.dt_bias = nn.Parameter(torch.empty(self.d_inner, dtype=torch.float32))
        self.A_log = nn.Parameter(torch.empty(shape, dtype=torch.float32))
        self.A_imag = nn.Parameter(torch.empty(shape, dtype=torch.float32))
        self.C = nn.Parameter(torch.empty((*shape, 2), dtype=torch.float32))
        self.D = nn.Parameter(torch.empty(self.d_inner, dtype=torch.float32))
        self.mark_parameters()
        S4DCore.reset_parameters(self)

    def reset_parameters(self) -> None:
        """S4D-Lin: modes -1/2 + i pi n, random outputs, time steps log-uniform."""
        with torch.no_grad():
            self.dt_bias.copy_(time_step_bias(self.dt_bias.shape, *self._dt_range))
            self.A_log.fill_(math.log(0.5))
            self.A_imag.copy_(math.pi * torch.arange(self.d_state // 2))
            nn.init.normal_(self.C, std=0.5**0.5)
            self.D.fill_(1.0)

    def modes(self) -> Modes:
        """The system for one step of the clock, held over the step (zero-order hold), in double precision."""
        dt_E1 = F.softplus(self.dt_bias.double()).unsqueeze(-1)
        A_EM = torch.complex(-self.A_log.double().exp(), self.A_imag.double())
        rate_EM = dt_E1 * A_EM
        return Modes(
            rate_EM=rate_EM,
            input_EM=(torch.exp(rate_EM) - 1) / A_EM,
            output_EM=torch.view_as_complex(self.C.double()),
            skip_E=self.D.double(),
        )

    def initial_state(self, batch: int) -> S4DState:
        """Zeros for ``batch`` sequences."""
        dtype = torch.promote_types(self.D.dtype, torch.float32)
        return S4DState(self.D.new_zeros(batch, self.d_inner, self.d_state // 2, 2, dtype=dtype))

    def scan(
        self,
        projected: Tensor,
        state: S4DState | None,
        *,
        cu_seqlens: Tensor | None,
        reverse: bool,
        step_size: Tensor | None = None,
    ) -> tuple[Tensor, S4DState]:
        """Run the core on the input projection (B, L, 2E); returns (B, L, E) and the next state.

        ``step_size`` (B, L) multiplies the time steps.
        """
        u_BLE, z_BLE = projected.chunk(2, dim=-1)
        modes, options = None if state is None else state.modes, {"cu_seqlens": cu_seqlens, "reverse": reverse}
        if step_size is None:
            y_BLE, modes = diagonal_scan(u_BLE, self.modes(), modes, **options)
        else:
            y_BLE, modes = timed_scan(u_BLE, self.modes(), modes, step_size, **options)
        return y_BLE * F.silu(z_BLE), S4DState(modes)

    def scan_slabs(
        self,
        x_BLD: Tensor,
        in_proj: Linear,
        out_proj: Linear,
        state: S4DState | None,
        *,
        cu_seqlens: Tensor | None,
        reverse: bool,
        add_bias: bool = True,
    ) -> tuple[Tensor, S4DState]:
        """Run projections and core slab by slab: nothing wider than D exists for the whole length.

        Args:
            x_BLD: Input (B, L, D).
            in_proj: Projection to the operands.
            out_proj: Projection back to D.
            state: State behind the token before the first; None for zeros.
            cu_seqlens: (S + 1,) int32 bounds of packed segments (B = 1).
            reverse: Scan every segment from its end.
            add_bias: Whether to add the bias of ``out_proj``.

        Returns:
            y (B, L, D) and the next state.
        """

        def run(piece: Tensor, before: S4DState, bounds: Tensor | None) -> tuple[Tensor, S4DState]:
            y, after = self.scan(in_proj(piece), before, cu_seqlens=bounds, reverse=reverse)
            return out_proj(y) if add_bias else out_proj.without_bias(y), after

        if state is None:
            state = self.initial_state(x_BLD.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1)
        parameters = dict.fromkeys((*self.parameters(), *in_proj.parameters(), *out_proj.parameters()))
        return run_in_slabs(
            run, x_BLD, state, slab=self.slab, cu_seqlens=cu_seqlens, reverse=reverse, parameters=list(parameters)
        )

    def scan_step(self, projected: Tensor, state: S4DState) -> tuple[Tensor, S4DState]:
        """Advance the core by one token per sequence."""
        u_BE, z_BE = projected.chunk(2, dim=-1)
        y_BE, modes = diagonal_step(u_BE, self.modes(), state.modes)
        return y_BE * F.silu(z_BE), S4DState(modes)


class S4D(ProjectedMixer, S4DCore):
    """The S4D block.

    Args:
        d_model: Width D.
        bias: Whether the input and output projections have biases.
        options: Keyword arguments of :class:`S4DCore`: ``d_state``, ``expand``, ``dt_min``, ``dt_max``,
            ``dt_init_floor``, ``slab``.
    """

    Core = S4DCore

    def __init__(self, d_model: int, *, bias: bool = False, **options):
        super().__init__(d_model, **options)
        self.in_proj = Linear(d_model, self.projection_width, bias=bias)
        self.out_proj = Linear(self.d_inner, d_model, bias=bias)
