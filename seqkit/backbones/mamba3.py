"""The Mamba-3 block: one projection, norms of B and C, trapezoidal scan with rotated states, gate.

Legend: B batch, L length, D channels of the block, E = expand * D inner channels, H heads, P head size (E = H * P),
G groups, N state size, M rotated pairs of states, R rank, S sequences.

Reference: Mamba-3, 2026, https://github.com/state-spaces/mamba (mamba_ssm/modules/mamba3.py).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from seqkit.backbones.mixer import ProjectedMixer, ScanCore
from seqkit.backbones.norm import GatedRMSNorm, RMSNorm
from seqkit.backbones.parameters import Linear, time_step_bias
from seqkit.backbones.slabs import run_in_slabs
from seqkit.backbones.state import Mamba3State
from seqkit.errors import ConfigError
from seqkit.kernels import mamba3_scan, mamba3_step


class Mamba3Core(ScanCore):
    """Norms and scan of one direction.

    Args:
        d_model: Width D of the block.
        d_state: State size N.
        expand: Inner width over D.
        headdim: Head size P; divides the inner width.
        ngroups: Groups G that share B and C; divides the number of heads.
        mimo_rank: Rank R of a multi-input, multi-output scan; None for the plain one.
        rope_fraction: Share of the states that rotate, in (0, 1].
        pairing: Which states rotate together, ``"adjacent"`` or ``"halves"``; None means the original's: adjacent
            without ranks, halves with them.
        decay: Form of the decay rate: ``"heavy-tail"``, or ``"softplus"`` as in models before June 2026.
        A_floor: Smallest decay rate.
        outproj_norm: Whether every head is normalised before the gate.
        dt_min: Smallest initial time step; a head forgets over about 1 / dt steps.
        dt_max: Largest initial time step.
        dt_init_floor: No initial time step is smaller.
        norm_eps: Added to the mean square inside the norms.
        chunk_size: Tokens the scan takes at a time; None leaves it to the kernel. Results agree up to rounding.
        slab: Positions that a pass over a longer sequence takes at a time, projections included; None takes all.

    Raises:
        ConfigError: ``headdim`` or ``ngroups`` does not divide what it should, or ``rope_fraction`` is out of range.
    """

    float32_parameters = ("dt_bias", "B_bias", "C_bias", "D", "mimo_x", "mimo_z", "mimo_o")

    def __init__(
        self,
        d_model: int,
        *,
        d_state: int = 128,
        expand: int = 2,
        headdim: int = 64,
        ngroups: int = 1,
        mimo_rank: int | None = None,
        rope_fraction: float = 0.5,
        pairing: str | None = None,
        decay: str = "heavy-tail",
        A_floor: float = 1e-4,
        outproj_norm: bool = False,
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        dt_init_floor: float = 1e-4,
        norm_eps: float = 1e-5,
        chunk_size: int | None = None,
        slab: int | None = None,
    ):
        super().__init__()
        self.d_model, self.d_state, self.d_inner = d_model, d_state, expand * d_model
        self.headdim, self.ngroups, self.mimo_rank = headdim, ngroups, mimo_rank
        if headdim < 1 or self.d_inner % headdim:
            raise ConfigError("headdim", expected=f"a divisor of the inner width, {self.d_inner}", got=str(headdim))
        self.nheads = self.d_inner // headdim
        if ngroups < 1 or self.nheads % ngroups:
            raise ConfigError("ngroups", expected=f"a divisor of the number of heads, {self.nheads}", got=str(ngroups))
        if not 0 < rope_fraction <= 1:
            raise ConfigError("rope_fraction", expected="in (0, 1]", got=str(rope_fraction))
        self.pairs = int(d_state * rope_fraction) // 2
        self._dt_range = (dt_min, dt_max, dt_init_floor)
        self._settings = {
            "decay": decay,
            "pairing": pairing or ("adjacent" if mimo_rank is None else "halves"),
            "A_floor": A_floor,
        }
        self.chunk_size, self.slab = chunk_size, slab
        rank = mimo_rank or 1
        weights = rank * ngroups * d_state
        self._split = [self.d_inner, self.d_inner, weights, weights, *[self.nheads] * 3, self.pairs]
        self.projection_width = sum(self._split)
        self.B_norm, self.C_norm = RMSNorm(d_state, norm_eps), RMSNorm(d_state, norm_eps)
        self.dt_bias = nn.Parameter(torch.empty(self.nheads, dtype=torch.float32))
        self.B_bias = nn.Parameter(torch.empty(self.nheads, rank, d_state, dtype=torch.float32))
        self.C_bias = nn.Parameter(torch.empty(self.nheads, rank, d_state, dtype=torch.float32))
        self.D = nn.Parameter(torch.empty(self.nheads, dtype=torch.float32))
        for name in ("mimo_x", "mimo_z", "mimo_o"):
            ranks = None if mimo_rank is None else torch.empty(self.nheads, rank, headdim, dtype=torch.float32)
            self.register_parameter(name, None if ranks is None else nn.Parameter(ranks))
        self.norm = None
        if outproj_norm:
            self.norm = GatedRMSNorm(self.d_inner, group_size=headdim, eps=norm_eps, norm_before_gate=True)
        self.mark_parameters()
        Mamba3Core.reset_parameters(self)

    def reset_parameters(self) -> None:
        """Draw time steps log-uniformly; set biases and skip weights to one, and the ranks to their mean."""
        with torch.no_grad():
            self.dt_bias.copy_(time_step_bias(self.dt_bias.shape, *self._dt_range))
            for parameter in (self.B_bias, self.C_bias, self.D):
                parameter.fill_(1.0)
            if self.mimo_rank is not None:
                self.mimo_z.fill_(1.0)
                for parameter in (self.mimo_x, self.mimo_o):
                    parameter.fill_(1.0 / self.mimo_rank)

    def initial_state(self, batch: int) -> Mamba3State:
        """Zeros for ``batch`` sequences."""

        def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return self.D.new_zeros(batch, *shape, dtype=torch.promote_types(self.D.dtype, dtype))

        return Mamba3State(
            theta=zeros(self.nheads, self.pairs, dtype=torch.float64),
            ssm=zeros(self.nheads, self.headdim, self.d_state),
            k=zeros(self.mimo_rank or 1, self.nheads, self.d_state),
            v=zeros(self.nheads, self.headdim),
        )

    def scan(
        self, projected: Tensor, state: Mamba3State | None, *, cu_seqlens: Tensor | None, reverse: bool
    ) -> tuple[Tensor, Mamba3State]:
        """Run the core on the input projection (B, L, 2E + 2RGN + 3H + M); returns (B, L, E) and the next state."""
        z, operands, options = self._operands(projected)
        y, state = mamba3_scan(
            *operands,
            **options,
            initial_state=state,
            return_final_state=True,
            reverse=reverse,
            cu_seqlens=cu_seqlens,
            chunk_size=self.chunk_size,
        )
        return self._normed(y, z), state

    def scan_slabs(
        self,
        x_BLD: Tensor,
        in_proj: Linear,
        out_proj: Linear,
        state: Mamba3State | None,
        *,
        cu_seqlens: Tensor | None,
        reverse: bool,
        add_bias: bool = True,
    ) -> tuple[Tensor, Mamba3State]:
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

        def run(piece: Tensor, before: Mamba3State, bounds: Tensor | None) -> tuple[Tensor, Mamba3State]:
            y, after = self.scan(in_proj(piece), before, cu_seqlens=bounds, reverse=reverse)
            return out_proj(y) if add_bias else out_proj.without_bias(y), after

        if state is None:
            state = self.initial_state(x_BLD.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1)
        parameters = dict.fromkeys((*self.parameters(), *in_proj.parameters(), *out_proj.parameters()))
        return run_in_slabs(
            run,
            x_BLD,
            state,
            slab=self.slab,
            cu_seqlens=cu_seqlens,
            reverse=reverse,
            parameters=list(parameters),
        )

    def scan_step(self, projected: Tensor, state: Mamba3State) -> tuple[Tensor, Mamba3State]:
        """Advance the core by one token per sequence."""
        z, operands, options = self._operands(projected)
        y, state = mamba3_step(*operands, state, **options)
        return self._normed(y, z), state

    def _operands(self, projected: Tensor) -> tuple[Tensor, tuple[Tensor, ...], dict]:
        """Gate by heads, positional and keyword operands of scan and step."""
        z, x, B, C, dt, A, trap, angles = projected.split(self._split, dim=-1)
        z, x = (t.unflatten(-1, (self.nheads, self.headdim)) for t in (z, x))
        ranks = () if self.mimo_rank is None else (self.mimo_rank,)
        B = self.B_norm(B.unflatten(-1, (*ranks, self.ngroups, self.d_state)))
        C = self.C_norm(C.unflatten(-1, (*ranks, self.ngroups, self.d_state)))
        options = {"dt_bias": self.dt_bias, "D": self.D, **self._settings}
        options |= {"B_bias": self.B_bias, "C_bias": self.C_bias}
        if self.mimo_rank is None:
            options |= {"B_bias": self.B_bias[:, 0], "C_bias": self.C_bias[:, 0]}
        else:
            options["mimo_x"] = self.mimo_x
        if self.norm is None:
            options["z"] = z
            if self.mimo_rank is not None:
                options |= {"mimo_z": self.mimo_z, "mimo_o": self.mimo_o}
        return z, (x, dt, A, trap, B, C, angles), options

    def _normed(self, y: Tensor, z: Tensor) -> Tensor:
        """The scan's output (..., H, P) as (..., E), normalised and gated here if it was not gated there."""
        if self.norm is None:
            return y.flatten(-2)
        if self.mimo_rank is None:
            return self.norm(y.flatten(-2), z.flatten(-2))
        gates = z.unsqueeze(-3) * self.mimo_z.transpose(0, 1).to(z.dtype)
        ranked = self.norm(y.flatten(-2), gates.flatten(-2)).unflatten(-1, (self.nheads, self.headdim))
        return (ranked * self.mimo_o.transpose(0, 1)).sum(-3).flatten(-2).to(y.dtype)


class Mamba3(ProjectedMixer, Mamba3Core):
    """The Mamba-3 block with the original's parameter names, so that published weights load one to one.

    Args:
        d_model: Width D.
        bias: Whether the input and output projections have biases.
        options: Keyword arguments of :class:`Mamba3Core`: ``d_state``, ``expand``, ``headdim``, ``ngroups``,
            ``mimo_rank``, ``rope_fraction``, ``pairing``, ``decay``, ``A_floor``, ``outproj_norm``, ``dt_min``,
            ``dt_max``, ``dt_init_floor``, ``norm_eps``, ``chunk_size``, ``slab``.
    """

    Core = Mamba3Core

    def __init__(self, d_model: int, *, bias: bool = False, **options):
        super().__init__(d_model, **options)
        self.in_proj = Linear(d_model, self.projection_width, bias=bias)
        self.out_proj = Linear(self.d_inner, d_model, bias=bias)
