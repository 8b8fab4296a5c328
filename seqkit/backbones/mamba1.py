"""The Mamba-1 block: convolution, selective scan, gate.

Legend: B batch, L length, D channels of the block, E = expand * D inner channels, N state size, R rank of the time
step, S sequences.

Reference: Gu and Dao 2023, Mamba: linear-time sequence modeling with selective state spaces, section 3, figure 3.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from seqkit.backbones.conv import DepthwiseConv
from seqkit.backbones.mixer import ProjectedMixer, ScanCore, timed
from seqkit.backbones.parameters import Linear, time_step_bias
from seqkit.backbones.state import Mamba1State
from seqkit.kernels import on_gpu, selective_inner, selective_scan, selective_step


class TimeStepProjection(Linear):
    """The projection from rank R to one time step per channel, with its own initialisation.

    Args:
        rank: Width R of the input.
        channels: Width E of the output.
        dt_min: Smallest initial time step.
        dt_max: Largest initial time step.
        dt_init_floor: No initial time step is smaller.
        dt_scale: Factor on the initial weights' range 1 / sqrt(R).
    """

    def __init__(
        self,
        rank: int,
        channels: int,
        *,
        dt_min: float,
        dt_max: float,
        dt_init_floor: float,
        dt_scale: float,
    ):
        self._range = (dt_min, dt_max, dt_init_floor)
        self._dt_scale = dt_scale
        super().__init__(rank, channels, bias=True)

    def reset_parameters(self) -> None:
        """Draw weights that keep the variance, and time steps log-uniform in their range."""
        bound = self._dt_scale * self.in_features**-0.5
        nn.init.uniform_(self.weight, -bound, bound)
        with torch.no_grad():
            self.bias.copy_(time_step_bias(self.bias.shape, *self._range))


class Mamba1Core(ScanCore):
    """Convolution and selective scan of one direction.

    Args:
        d_model: Width D of the block.
        d_state: State size N per channel.
        d_conv: Taps of the convolution.
        expand: Inner width over D.
        dt_rank: Rank R of the time step; "auto" means ceil(D / 16).
        dt_min: Smallest initial time step; a channel forgets over about 1 / dt steps.
        dt_max: Largest initial time step.
        dt_init_floor: No initial time step is smaller.
        dt_scale: Factor on the initial weights of the time step's projection.
        conv_bias: Whether the convolution has a bias.
        slab: Positions that a pass over a longer sequence takes at a time, for less memory; None takes all.
    """

    float32_parameters = ("A_log", "D")
    reads_time = True

    def __init__(
        self,
        d_model: int,
        *,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        dt_rank: int | Literal["auto"] = "auto",
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        dt_init_floor: float = 1e-4,
        dt_scale: float = 1.0,
        conv_bias: bool = True,
        slab: int | None = None,
    ):
        super().__init__()
        self.d_model, self.d_state, self.d_inner = d_model, d_state, expand * d_model
        self.dt_rank = math.ceil(d_model / 16) if dt_rank == "auto" else dt_rank
        self.projection_width = 2 * self.d_inner
        self.slab = slab
        self.conv1d = DepthwiseConv(self.d_inner, d_conv, bias=conv_bias)
        self.x_proj = Linear(self.d_inner, self.dt_rank + 2 * d_state)
        self.dt_proj = TimeStepProjection(
            self.dt_rank,
            self.d_inner,
            dt_min=dt_min,
            dt_max=dt_max,
            dt_init_floor=dt_init_floor,
            dt_scale=dt_scale,
        )
        self.A_log = nn.Parameter(torch.empty(self.d_inner, d_state, dtype=torch.float32))
        self.D = nn.Parameter(torch.empty(self.d_inner, dtype=torch.float32))
        self.mark_parameters()
        Mamba1Core.reset_parameters(self)

    def reset_parameters(self) -> None:
        """Set A to -1 ... -N in every channel (the real S4D spectrum) and the skip weights to one."""
        with torch.no_grad():
            rates = torch.arange(1, self.d_state + 1, dtype=torch.float32, device=self.A_log.device)
            self.A_log.copy_(rates.log().expand_as(self.A_log))
            self.D.fill_(1.0)

    def initial_state(self, batch: int) -> Mamba1State:
        """Zeros for ``batch`` sequences."""
        dtype = torch.promote_types(self.A_log.dtype, torch.float32)
        ssm = self.A_log.new_zeros(batch, self.d_inner, self.d_state, dtype=dtype)
        return Mamba1State(self.conv1d.initial_state(batch), ssm)

    def scan(
        self,
        uz_BLE: Tensor,
        state: Mamba1State | None,
        *,
        cu_seqlens: Tensor | None,
        reverse: bool,
        step_size: Tensor | None = None,
    ) -> tuple[Tensor, Mamba1State]:
        """Run the core on the input projection (B, L, 2E); returns (B, L, E) and the next state.

        ``step_size`` (B, L) multiplies the time steps.
        """
        if on_gpu(uz_BLE) and step_size is None:
            return self._inner(uz_BLE, state, cu_seqlens=cu_seqlens, reverse=reverse)
        # One op per part: on a CPU, what they keep for the backward pass is cheaper than computing it again.
        u_BLE, z_BLE = uz_BLE.chunk(2, dim=-1)
        conv, ssm = (None, None) if state is None else (state.conv, state.ssm)
        u_BLE, conv = self.conv1d(u_BLE, conv, cu_seqlens=cu_seqlens, reverse=reverse)
        delta_BLE, B_BLN, C_BLN = self._select(u_BLE)
        delta_bias = self.dt_proj.bias
        if step_size is not None:
            delta_BLE, delta_bias = timed(delta_BLE, delta_bias, step_size), None
        y_BLE, ssm = selective_scan(
            u_BLE,
            delta_BLE,
            -self.A_log.exp(),
            B_BLN,
            C_BLN,
            D=self.D,
            z=z_BLE,
            delta_bias=delta_bias,
            delta_softplus=delta_bias is not None,
            initial_state=ssm,
            return_final_state=True,
            reverse=reverse,
            cu_seqlens=cu_seqlens,
        )
        return y_BLE, Mamba1State(conv, ssm)

    def scan_slabs(
        self,
        x_BLD: Tensor,
        in_proj: Linear,
        out_proj: Linear,
        state: Mamba1State | None,
        *,
        cu_seqlens: Tensor | None,
        reverse: bool,
        add_bias: bool = True,
    ) -> tuple[Tensor, Mamba1State]:
        """Run projections and core slab by slab: nothing wider than D exists for the whole length.

        Args:
            x_BLD: Input (B, L, D).
            in_proj: Projection to 2E channels.
            out_proj: Projection back to D.
            state: State behind the token before the first; None for zeros.
            cu_seqlens: (S + 1,) int32 bounds of packed segments (B = 1).
            reverse: Scan every segment from its end.
            add_bias: Whether to add the bias of ``out_proj``.

        Returns:
            y (B, L, D) and the next state.
        """
        return self._inner(
            x_BLD,
            state,
            cu_seqlens=cu_seqlens,
            reverse=reverse,
            in_weight=in_proj.weight,
            in_bias=in_proj.bias,
            out_weight=out_proj.weight,
            out_bias=out_proj.bias if add_bias else None,
            slab=self.slab,
            dtype=in_proj.compute_dtype(),
        )

    def _inner(self, x: Tensor, state: Mamba1State | None, **options) -> tuple[Tensor, Mamba1State]:
        """The same as :meth:`scan` in one op, which keeps next to nothing for the backward pass."""
        conv, ssm = (None, None) if state is None else (state.conv, state.ssm)
        y, conv, ssm = selective_inner(
            x,
            conv_weight=self.conv1d.weight[:, 0],
            conv_bias=self.conv1d.bias,
            x_weight=self.x_proj.weight,
            dt_weight=self.dt_proj.weight,
            dt_bias=self.dt_proj.bias,
            A=-self.A_log.exp(),
            D=self.D,
            conv_state=conv,
            ssm_state=ssm,
            **options,
        )
        return y, Mamba1State(conv, ssm)

    def scan_step(self, uz_BE: Tensor, state: Mamba1State) -> tuple[Tensor, Mamba1State]:
        """Advance the core by one token per sequence."""
        u_BE, z_BE = uz_BE.chunk(2, dim=-1)
        u_BE, conv = self.conv1d.step(u_BE, state.conv)
        delta_BE, B_BN, C_BN = self._select(u_BE)
        y_BE, ssm = selective_step(
            u_BE,
            delta_BE,
            -self.A_log.exp(),
            B_BN,
            C_BN,
            state.ssm,
            D=self.D,
            z=z_BE,
            delta_bias=self.dt_proj.bias,
            delta_softplus=True,
        )
        return y_BE, Mamba1State(conv, ssm)

    def _select(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Time steps before bias and softplus, B and C, from the convolved input."""
        low_rank, B, C = self.x_proj(u).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        # The bias joins in float32 inside the scan: small time steps are lost if it is added in half precision.
        return self.dt_proj.without_bias(low_rank), B, C


class Mamba1(ProjectedMixer, Mamba1Core):
    """The Mamba-1 block with the original's parameter names, so that published weights load one to one.

    Args:
        d_model: Width D.
        bias: Whether the input and output projections have biases.
        options: Keyword arguments of :class:`Mamba1Core`: ``d_state``, ``d_conv``, ``expand``, ``dt_rank``,
            ``dt_min``, ``dt_max``, ``dt_init_floor``, ``dt_scale``, ``conv_bias``, ``slab``.
    """

    Core = Mamba1Core

    def __init__(self, d_model: int, *, bias: bool = False, **options):
        super().__init__(d_model, **options)
        self.in_proj = Linear(d_model, self.projection_width, bias=bias)
        self.out_proj = Linear(self.d_inner, d_model, bias=bias)
