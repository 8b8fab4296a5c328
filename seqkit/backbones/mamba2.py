"""The Mamba-2 block: one projection, convolution, state-space-dual scan, gated norm.

Legend: B batch, L length, D channels of the block, E = expand * D inner channels, H heads, P head size (E = H * P),
G groups, N state size, S sequences.

Reference: Dao and Gu 2024, Transformers are SSMs, sections 6 and 7, figure 6 (parallel projections).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from seqkit.backbones.conv import DepthwiseConv
from seqkit.backbones.mixer import ProjectedMixer, ScanCore, timed
from seqkit.backbones.norm import GatedRMSNorm
from seqkit.backbones.parameters import Linear, time_step_bias
from seqkit.backbones.state import Mamba2State
from seqkit.errors import ConfigError
from seqkit.kernels import DirectionOperands, ssd_bidirectional, ssd_inner, ssd_scan, ssd_step


class Mamba2Core(ScanCore):
    """Convolution, scan and gated norm of one direction.

    Args:
        d_model: Width D of the block.
        d_state: State size N.
        d_conv: Taps of the convolution.
        expand: Inner width over D.
        headdim: Head size P; divides the inner width.
        ngroups: Groups G that share B and C; divides the number of heads.
        A_init_range: Initial decay rates are uniform in this range.
        dt_min: Smallest initial time step; a head forgets over about 1 / dt steps.
        dt_max: Largest initial time step.
        dt_init_floor: No initial time step is smaller.
        conv_bias: Whether the convolution has a bias.
        norm_eps: Added to the mean square inside the gated norm.
        chunk_size: Tokens the scan takes at a time; None leaves it to the kernel. Results agree up to rounding.
        slab: Positions that a pass over a longer sequence takes at a time, for less memory; None takes all.

    Raises:
        ConfigError: ``headdim`` or ``ngroups`` does not divide what it should.
    """

    float32_parameters = ("A_log", "D", "dt_bias")
    reads_time = True

    def __init__(
        self,
        d_model: int,
        *,
        d_state: int = 128,
        d_conv: int = 4,
        expand: int = 2,
        headdim: int = 64,
        ngroups: int = 1,
        A_init_range: tuple[float, float] = (1.0, 16.0),
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        dt_init_floor: float = 1e-4,
        conv_bias: bool = True,
        norm_eps: float = 1e-5,
        chunk_size: int | None = None,
        slab: int | None = None,
    ):
        super().__init__()
        self.d_model, self.d_state, self.d_inner = d_model, d_state, expand * d_model
        self.headdim, self.ngroups, self.chunk_size, self.slab = headdim, ngroups, chunk_size, slab
        self.nheads = _divide("headdim", self.d_inner, headdim, "the inner width")
        _divide("ngroups", self.nheads, ngroups, "the number of heads")
        self._rate_range, self._dt_range = A_init_range, (dt_min, dt_max, dt_init_floor)
        conv_width = self.d_inner + 2 * ngroups * d_state
        self._split = [self.d_inner, conv_width, self.nheads]
        self.projection_width = sum(self._split)
        self.conv1d = DepthwiseConv(conv_width, d_conv, bias=conv_bias)
        self.dt_bias = nn.Parameter(torch.empty(self.nheads, dtype=torch.float32))
        self.A_log = nn.Parameter(torch.empty(self.nheads, dtype=torch.float32))
        self.D = nn.Parameter(torch.empty(self.nheads, dtype=torch.float32))
        self.norm = GatedRMSNorm(self.d_inner, group_size=self.d_inner // ngroups, eps=norm_eps)
        self.mark_parameters()
        Mamba2Core.reset_parameters(self)

    def reset_parameters(self) -> None:
        """Draw time steps log-uniformly, decay rates uniformly; set the skip weights to one."""
        with torch.no_grad():
            self.dt_bias.copy_(time_step_bias(self.dt_bias.shape, *self._dt_range))
            self.A_log.copy_(torch.empty_like(self.A_log).uniform_(*self._rate_range).log())
            self.D.fill_(1.0)

    def initial_state(self, batch: int) -> Mamba2State:
        """Zeros for ``batch`` sequences."""
        dtype = torch.promote_types(self.A_log.dtype, torch.float32)
        ssm = self.A_log.new_zeros(batch, self.nheads, self.headdim, self.d_state, dtype=dtype)
        return Mamba2State(self.conv1d.initial_state(batch), ssm)

    def scan(
        self,
        zxbcdt: Tensor,
        state: Mamba2State | None,
        *,
        cu_seqlens: Tensor | None,
        reverse: bool,
        step_size: Tensor | None = None,
    ) -> tuple[Tensor, Mamba2State]:
        """Run the core on the input projection (B, L, E + E + 2GN + H); returns (B, L, E) and the next state.

        ``step_size`` (B, L) multiplies the time steps.
        """
        z_BLE, xbc, dt_BLH = zxbcdt.split(self._split, dim=-1)
        conv, ssm = (None, None) if state is None else (state.conv, state.ssm)
        xbc, conv = self.conv1d(xbc, conv, cu_seqlens=cu_seqlens, reverse=reverse)
        x_BLHP, B_BLGN, C_BLGN = self._heads(xbc)
        dt_bias = self.dt_bias
        if step_size is not None:
            dt_BLH, dt_bias = timed(dt_BLH, dt_bias, step_size), None
        y_BLHP, ssm = ssd_scan(
            x_BLHP,
            dt_BLH,
            -self.A_log.exp(),
            B_BLGN,
            C_BLGN,
            D=self.D,
            dt_bias=dt_bias,
            dt_softplus=dt_bias is not None,
            initial_state=ssm,
            return_final_state=True,
            reverse=reverse,
            cu_seqlens=cu_seqlens,
            chunk_size=self.chunk_size,
        )
        return self.norm(y_BLHP.flatten(-2), z_BLE), Mamba2State(conv, ssm)

    def scan_slabs(
        self,
        x_BLD: Tensor,
        in_proj: Linear,
        out_proj: Linear,
        state: Mamba2State | None,
        *,
        cu_seqlens: Tensor | None,
        reverse: bool,
        add_bias: bool = True,
    ) -> tuple[Tensor, Mamba2State]:
        """Run projections and core slab by slab: nothing wider than D exists for the whole length.

        Args:
            x_BLD: Input (B, L, D).
            in_proj: Projection to 2E + 2GN + H channels.
            out_proj: Projection back to D.
            state: State behind the token before the first; None for zeros.
            cu_seqlens: (S + 1,) int32 bounds of packed segments (B = 1).
            reverse: Scan every segment from its end.
            add_bias: Whether to add the bias of ``out_proj``.

        Returns:
            y (B, L, D) and the next state.
        """
        bias = out_proj.bias if add_bias else None
        options = {"cu_seqlens": cu_seqlens, "reverse": reverse, "slab": self.slab}
        return self._fused(x_BLD, in_proj, out_proj, bias, state, **options)

    def scan_whole(
        self,
        x_BLD: Tensor,
        in_proj: Linear,
        out_proj: Linear,
        state: Mamba2State | None,
        *,
        cu_seqlens: Tensor | None,
        reverse: bool,
    ) -> tuple[Tensor, Mamba2State]:
        """As for any core, in one op: gradients of the projection's parts then need not be put together."""
        options = {"cu_seqlens": cu_seqlens, "reverse": reverse, "keep": True}
        return self._fused(x_BLD, in_proj, out_proj, out_proj.bias, state, **options)

    def _fused(
        self,
        x_BLD: Tensor,
        in_proj: Linear,
        out_proj: Linear,
        out_bias: Tensor | None,
        state: Mamba2State | None,
        **options,
    ) -> tuple[Tensor, Mamba2State]:
        y_BLD, conv, ssm = ssd_inner(
            x_BLD,
            in_weight=in_proj.weight,
            in_bias=in_proj.bias,
            **self._operands(state)._asdict(),
            out_weight=out_proj.weight,
            out_bias=out_bias,
            groups=self.ngroups,
            eps=self.norm.eps,
            chunk_size=self.chunk_size,
            dtype=in_proj.compute_dtype(),
            **options,
        )
        return y_BLD, Mamba2State(conv, ssm)

    def scan_both_slabs(
        self,
        mirrored: Mamba2Core,
        x_BLD: Tensor,
        in_proj: Linear,
        out_proj: Linear,
        states: tuple[Mamba2State | None, Mamba2State | None],
        *,
        cu_seqlens: Tensor | None,
        reverse: bool,
    ) -> tuple[Tensor, tuple[Mamba2State, Mamba2State]]:
        """As for any core, but every slab is projected once for both directions."""
        directions = (core._operands(state) for core, state in zip((self, mirrored), states, strict=True))
        y_BLD, own, other = ssd_bidirectional(
            x_BLD,
            *directions,
            in_weight=in_proj.weight,
            in_bias=in_proj.bias,
            out_weight=out_proj.weight,
            out_bias=out_proj.bias,
            groups=self.ngroups,
            eps=self.norm.eps,
            reverse=reverse,
            cu_seqlens=cu_seqlens,
            slab=self.slab,
            chunk_size=self.chunk_size,
            dtype=in_proj.compute_dtype(),
        )
        return y_BLD, (Mamba2State(*own), Mamba2State(*other))

    def _operands(self, state: Mamba2State | None) -> DirectionOperands:
        """What the fused ops read of this direction."""
        conv, ssm = (None, None) if state is None else (state.conv, state.ssm)
        return DirectionOperands(
            conv_weight=self.conv1d.weight[:, 0],
            conv_bias=self.conv1d.bias,
            dt_bias=self.dt_bias,
            A=-self.A_log.exp(),
            D=self.D,
            norm_weight=self.norm.weight,
            conv_state=conv,
            ssm_state=ssm,
        )

    def scan_step(self, zxbcdt: Tensor, state: Mamba2State) -> tuple[Tensor, Mamba2State]:
        """Advance the core by one token per sequence."""
        z_BE, xbc, dt_BH = zxbcdt.split(self._split, dim=-1)
        xbc, conv = self.conv1d.step(xbc, state.conv)
        x_BHP, B_BGN, C_BGN = self._heads(xbc)
        y_BHP, ssm = ssd_step(
            x_BHP,
            dt_BH,
            -self.A_log.exp(),
            B_BGN,
            C_BGN,
            state.ssm,
            D=self.D,
            dt_bias=self.dt_bias,
            dt_softplus=True,
        )
        return self.norm(y_BHP.flatten(-2), z_BE), Mamba2State(conv, ssm)

    def _heads(self, xbc: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Views of the convolved projection: x by heads, B and C by groups."""
        groups = (self.ngroups, self.d_state)
        width = self.ngroups * self.d_state
        x, B, C = xbc.split([self.d_inner, width, width], dim=-1)
        return x.unflatten(-1, (self.nheads, self.headdim)), B.unflatten(-1, groups), C.unflatten(-1, groups)


class Mamba2(ProjectedMixer, Mamba2Core):
    """The Mamba-2 block with the original's parameter names, so that published weights load one to one.

    Args:
        d_model: Width D.
        bias: Whether the input and output projections have biases.
        options: Keyword arguments of :class:`Mamba2Core`: ``d_state``, ``d_conv``, ``expand``, ``headdim``,
            ``ngroups``, ``A_init_range``, ``dt_min``, ``dt_max``, ``dt_init_floor``, ``conv_bias``, ``norm_eps``,
            ``chunk_size``, ``slab``.
    """

    Core = Mamba2Core

    def __init__(self, d_model: int, *, bias: bool = False, **options):
        super().__init__(d_model, **options)
        self.in_proj = Linear(d_model, self.projection_width, bias=bias)
        self.out_proj = Linear(self.d_inner, d_model, bias=bias)


def _divide(argument: str, whole: int, part: int, meaning: str) -> int:
    if part < 1 or whole % part:
        raise ConfigError(argument, expected=f"a divisor of {meaning}, {whole}", got=str(part))
    return whole // part
