"""Mamba-3 on Triton, host side: the SSD kernels with keys and queries that rotate in registers.

Legend: B batch, L length, S segments, H heads, P head channels, N states, G groups, M rotated pairs, K spans, Q tokens
per chunk.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from seqkit.kernels.mamba3 import turns
from seqkit.kernels.mamba3.ends import Entry
from seqkit.kernels.mamba3.slabs import Operands
from seqkit.kernels.mamba3.tokens import step_gradient_kernel, step_kernel
from seqkit.kernels.mamba3.weights import weight_kernel
from seqkit.kernels.ssd.backward import head_blocks, walks
from seqkit.kernels.ssd.forward import chain, outputs, summaries
from seqkit.kernels.ssd.rotation import ADJACENT, HALVES
from seqkit.kernels.ssd.tiles import Call, strides_of
from seqkit.kernels.triton_compiled import launch
from seqkit.kernels.triton_launch import INTERPRETED, ceil_div, next_power


class RotatedScan(Call):
    """A Mamba-3 scan as the SSD kernels take it: step sizes and phases computed, states in the order of tiles.

    Attributes:
        delta: Step sizes (chunk slots, H, Q) float64.
        weights: Weights of tokens in the state, and running sums of log2 decays (chunk slots, H, Q).
        direct: Weights of tokens in their own outputs (chunk slots, H, Q).
        turns: Phases from chunk starts to tokens (chunk slots, H, Q, M), and at chunk starts (chunk slots, H, M).
        leaving: Phases behind the segments (S, H, M) int32.
    """

    def __init__(self, ops: Operands, chunk_size: int | None):
        skip = ops.D if ops.D is None or ops.D.shape[1] > 1 else ops.D[:, 0]
        super().__init__(
            x=ops.x_BLHP,
            dt=ops.dt_BLH,
            A=None,
            B=ops.B_BLRGN[:, :, 0],
            C=ops.C_BLRGN[:, :, 0],
            D=skip,
            z=ops.z_BLHP,
            dt_bias=ops.dt_bias_H,
            initial_state=None,
            cu_seqlens=ops.cu_seqlens,
            dt_softplus=True,
            dt_min=0.0,
            dt_max=math.inf,
            reverse=ops.reverse,
            chunk_size=chunk_size,
        )
        self.ops, self.M = ops, ops.sizes[5]
        self.pairs = rotation_constants(self.N, self.M, ops.pairing)
        self.biases = tuple(None if b is None else b[:, 0].contiguous() for b in (ops.B_bias_HRN, ops.C_bias_HRN))
        self.delta, *self.weights, self.direct = self._steps()
        *self.turns, self.leaving = self._turns()

    def stages(self, warps: int, values: int, weights: int, states: int = 0) -> int:
        """Chunks in flight: with two, Triton 3.6 makes kernels for an H100 that read outside of their operands."""
        return 1

    @property
    def chunks(self) -> int:
        """Chunk slots."""
        return self.spans * self.chunks_per_span

    @property
    def heads(self) -> int:
        """H, of whole heads."""
        return self.H // self.parts

    def raw_strides(self) -> tuple[int, ...]:
        """Strides along B and L of dt, A and trap."""
        return tuple(s for t in (self.raw, self.ops.A_BLH, self.ops.trap_BLH) for s in t.stride()[:2])

    def rate(self) -> dict:
        """Compile-time arguments of the kernels that discretise."""
        return {"HEAVY_TAIL": self.ops.decay == "heavy-tail", **self.constants()}

    def _steps(self) -> tuple[Tensor, ...]:
        shape = (self.chunks, self.heads, self.chunk)
        wide = torch.float32 if self.single else torch.float64
        delta, scale, sums, gamma = (
            self.new(*shape, dtype=kind) for kind in (torch.float64, torch.float32, wide, torch.float32)
        )
        launch(
            step_kernel, self.step_programs,
            self.raw, self.ops.A_BLH, self.ops.trap_BLH, self.bias, delta, scale, gamma, sums, *self.geometry(),
            *self.raw_strides(), self.ops.A_floor, **self.rate(), num_warps=1,
        )  # fmt: skip
        return delta, scale, sums, gamma

    def _turns(self) -> tuple[Tensor, Tensor, Tensor]:
        at, M, angles = self.segments, self.M, self.ops.angles_BLM
        fine = torch.int16 if self.single else torch.int32
        phases = self.new(self.chunks, self.heads, self.chunk, M, dtype=fine)
        totals, starts = self.new(2, self.chunks, self.heads, M, dtype=torch.int32).unbind(0)
        leaving = self.new(at.count, self.heads, M, dtype=torch.int32)
        padded = max(1 if INTERPRETED else 16, next_power(M))
        launch(
            turns.phase_kernel, self.chunks,
            angles, self.delta, phases, totals, *self.geometry(), *angles.stride()[:2], M=M, MP=padded,
            **self.constants(), num_warps=4,
        )  # fmt: skip
        blocks = max(1, ceil_div(M, turns.CHAIN_PAIRS))
        launch(
            turns.turn_chain_kernel, at.count * self.heads * blocks,
            totals, self.ops.theta_SHM, starts, leaving, at.table, at.per_row, at.count, self.heads, blocks, M=M,
            BLOCK=min(turns.CHAIN_PAIRS, padded), CHUNKS=turns.CHAIN_CHUNKS, SPAN=self.span, Q=self.chunk,
            PACKED=at.packed, num_warps=4,
        )  # fmt: skip
        return phases, starts, leaving

    def states(self, entry: Entry | None, kept: Tensor) -> None:
        """Write the states at span starts and behind segments (K + S, H, P, NP)."""
        entering = None if entry is None else self.as_tiles(entry.state_SHPN)
        chain(self, *summaries(self, self.x, None, self.weights, False), entering, flip=False, into=kept)

    def outputs(self, kept: Tensor) -> Tensor:
        """Outputs (B, L, H, P)."""
        y = torch.empty(self.x.shape, dtype=self.x.dtype, device=self.x.device)
        outputs(self, self.weights, kept, y, spans=self.spans)
        return y

    def as_tiles(self, states_SHPN: Tensor) -> Tensor:
        """States (S, H, P, N) in the order of tiles, (S, H, P, NP)."""
        rows = tile_states(self.N, **self.pairs, device=self.x.device)
        return torch.nn.functional.pad(states_SHPN, (0, 1)).index_select(-1, rows).contiguous()

    def as_states(self, tiles: Tensor) -> Tensor:
        """Inverse of :meth:`as_tiles`; parts of heads join."""
        slots = torch.argsort(tile_states(self.N, **self.pairs, device=self.x.device))[: self.N]
        return tiles.index_select(-1, slots).view(tiles.shape[0], self.heads, -1, self.N)

    def last_tokens(self, entry: Entry | None, kept: Tensor) -> tuple[Tensor, ...]:
        """Angles (S, H, M) float64, states (S, H, P, N), rotated keys (S, 1, H, N) and inputs (S, H, P) at the end."""
        at, (H, P, _, G, N, M) = self.segments, self.ops.sizes
        theta, ssm = self.new(at.count, H, M, dtype=torch.float64), self.new(at.count, H, P, N)
        k, v = self.new(at.count, 1, H, N), self.new(at.count, H, P)
        entering = (None, None) if entry is None else (entry.k_SHN.contiguous(), entry.v_SHP.contiguous())
        launch(
            turns.leave_kernel, at.count * H,
            self.leaving, kept[self.segments.chunks :], self.B, self.biases[0], self.x, *entering, theta, ssm, k, v,
            at.table, at.length, at.count, H, H // G, *strides_of(self.B), *strides_of(self.x), **self.pairs, N=N,
            NP=max(16, next_power(N)), P=P, PP=next_power(P), PACKED=at.packed, REVERSE=self.reverse, num_warps=1,
        )  # fmt: skip
        return theta, ssm, k, v

    def gradients(
        self, dy: Tensor, kept: Tensor, dleaving: Tensor | None, behind: Tensor | None
    ) -> tuple[TokenGradients, Tensor]:
        """Gradients of all tokens, and of the states that enter the segments (S, H, P, NP).

        Args:
            dy: Gradient of y.
            kept: States of the forward pass.
            dleaving: Gradient of the states that leave the segments (S, H, P, N), or None.
            behind: Gradient of the angles that leave (S, H, M), but for what those states give, or None.
        """
        grads = TokenGradients(self)
        dleaving = None if dleaving is None else self.as_tiles(dleaving.float())
        ends, totals = summaries(self, dy, self.z, self.weights, True, grads.inner)
        adjoints, dentry = chain(self, ends, totals, dleaving, flip=True)
        blocks, width = head_blocks(self)
        parts = grads.partial_sums(blocks)
        scratch = self.new(2, self.scratch_spans, self.states_per_span, dtype=self.scratch_dtype)
        for base in range(0, self.spans, self.scratch_spans):
            spans = min(self.scratch_spans, self.spans - base)
            walks(self, dy, kept, adjoints, self.weights, grads, scratch, False, base, spans)
            for keys in (True, False):
                self._weight_gradients(grads, dy, behind, scratch, parts, (base, spans, blocks, width), keys)
        grads.add_up(*parts)
        launch(
            step_gradient_kernel, self.step_programs,
            self.raw, self.ops.A_BLH, self.ops.trap_BLH, self.bias, grads.decays, grads.through, grads.steps,
            grads.direct, grads.angle_steps, *grads.raw, grads.dt_bias, *self.geometry(), *self.raw_strides(),
            *(s for t in grads.raw for s in t.stride()[:2]), grads.steps.numel(), self.ops.A_floor,
            PARTIAL=self.pairs["PARTIAL"], **self.rate(), num_warps=1,
        )  # fmt: skip
        return grads, dentry

    def _weight_gradients(self, grads: TokenGradients, dy, behind, scratch, parts, slab, keys: bool) -> None:
        """Gradients of B or C, and of the angles through them, in a slab."""
        (base, spans, blocks, width), (dB, dC, dangles), angles = slab, parts, self.ops.angles_BLM
        dy = dy if grads.inner is None else grads.inner
        kind = slice(None) if keys else slice(None, None, -1)
        value, out, part = (self.x, dB, 0) if keys else (dy, dC, 1)
        weights, biases = (self.B, self.C)[kind], self.biases[kind]
        launch(
            weight_kernel, spans * self.chunks_per_span * self.G * blocks * 2,
            value, *weights, *biases, angles, *self.turns, self.delta, *self.weights, behind, *scratch, grads.scores,
            out, dangles[part], grads.biases[part], grads.through, grads.angle_steps[part], *self.geometry(base),
            self.H // self.G, blocks, width, *strides_of(value), *(s for t in weights for s in strides_of(t)),
            *angles.stride()[:2], *out.stride()[:4], *dangles.stride()[1:4], grads.steps.numel(),
            **self.pairs, **self.sizes(), **self.constants(), KEYS=keys, num_warps=4,
            num_stages=self.stages(4, 1, 1),
        )  # fmt: skip


class TokenGradients:
    """Gradients of tokens, as the kernels of the backward pass leave them.

    Attributes:
        raw: Of dt, A and trap (B, L, H).
        decays: Of log decays per part of a head (chunk slots, H, Q), to be summed over later tokens of a chunk.
        through: What of it passes the chunks' starts, by halves of the states.
        steps: Of the weights in the state; ``direct`` of those in a token's own output.
        scores: Of the scores of a slab's chunks (chunk slots, H, Q, Q).
        angle_steps: Of step sizes through the angles of keys and of queries, by halves of the states.
        inner: Gradient of y before the gate, if there is one.
        dt_bias: Per chunk (chunk slots, H).
        biases: Those of B's and C's biases per chunk (2, chunk slots, H, NP).
        D: Per span.
    """

    def __init__(self, scan: RotatedScan):
        ops = scan.ops

        def like(x: Tensor | None) -> Tensor | None:
            return None if x is None else torch.empty(x.shape, dtype=x.dtype, device=x.device)

        self.x, self.B, self.C, self.z = (like(t) for t in (ops.x_BLHP, ops.B_BLRGN, ops.C_BLRGN, ops.z_BLHP))
        self.angles, self.y = like(ops.angles_BLM), None
        self.raw = [like(t) for t in (ops.dt_BLH, ops.A_BLH, ops.trap_BLH)]
        self.decays = scan.per_token(torch.float32 if scan.single else torch.float64)
        self.steps, self.direct = (scan.per_token(torch.float32) for _ in range(2))
        self.through, self.angle_steps = scan.new(2, *self.steps.shape), scan.new(2, 2, *self.steps.shape)
        self.scores = scan.new(
            scan.scratch_spans * scan.chunks_per_span, scan.H, scan.chunk**2, dtype=scan.scratch_dtype
        )
        self.inner = None if scan.z is None else scan.new(*scan.x.shape, dtype=scan.scratch_dtype)
        self.dt_bias = scan.new(scan.chunks, scan.heads)
        # chunks without tokens write nothing
        self.biases = torch.zeros((2, scan.chunks, scan.H, scan.state_size), device=scan.x.device)
        self.D = None
        if scan.skip is not None:
            self.D = scan.new(scan.spans, scan.heads, scan.parts * (1 if scan.skip_per_head else scan.P))
        self._scan = scan

    def partial_sums(self, blocks: int) -> tuple[Tensor, Tensor, Tensor]:
        """Where the gradients of B, C (blocks, B, L, G, N) and angles (2, blocks and groups, B, L, M) are written."""
        B, C, angles, new = self.B[:, :, 0], self.C[:, :, 0], self.angles, self._scan.new
        dB, dC = (B[None], C[None]) if blocks == 1 else (new(blocks, *t.shape) for t in (B, C))
        return dB, dC, new(2, blocks * self._scan.G, *angles.shape)

    def add_up(self, dB: Tensor, dC: Tensor, dangles: Tensor) -> None:
        """Add up partial sums, in a fixed order."""
        torch.sum(dangles.flatten(0, 1), 0, dtype=self.angles.dtype, out=self.angles)
        for out, parts in ((self.B[:, :, 0], dB), (self.C[:, :, 0], dC)):
            if parts.shape[0] > 1:
                out.copy_(parts.sum(0))

    def bias_totals(self) -> Tensor:
        """Gradients of the biases of B and C (2, H, N)."""
        scan = self._scan
        columns = self.biases.sum(1).unflatten(1, (scan.heads, scan.parts)).sum(2)
        return columns.index_select(
            2, torch.argsort(column_states(scan.N, **scan.pairs, device=scan.x.device))[: scan.N]
        )

    def skip(self, D: Tensor) -> Tensor:
        """Gradient of D, shaped like it."""
        return self.D.sum(0 if D.dim() == 2 else (0, 2))


def rotation_constants(states: int, pairs: int, pairing: str) -> dict:
    """Compile-time arguments of the kernels in which keys rotate."""
    quarter = max(16, next_power(states)) // 4
    kind = ADJACENT if pairing == "adjacent" else HALVES
    return {"M": pairs, "PAIRING": kind.value, "PARTIAL": pairs <= quarter}


def _states(pair: Tensor, second: Tensor, N: int, PAIRING: int) -> Tensor:
    """States that are first or second members of pairs; N for those that do not exist."""
    if HALVES.value == PAIRING:
        return torch.where(pair < N // 2 + second * (N % 2), pair + second * (N // 2), N)
    return (2 * pair + second).clamp(max=N)


def tile_states(N: int, M: int, PAIRING: int, PARTIAL: bool, device: torch.device) -> Tensor:
    """Which states (NP,) the rows of a tile are (:mod:`seqkit.kernels.ssd.rotation`); N where there is none."""
    n = torch.arange(max(16, next_power(N)), device=device)
    if PARTIAL:
        return _states(n // 4 + (n % 2) * (n.numel() // 4), (n // 2) % 2, N, PAIRING)
    return _states(n // 2, n % 2, N, PAIRING)


def column_states(N: int, M: int, PAIRING: int, PARTIAL: bool, device: torch.device) -> Tensor:
    """Which states (NP,) columns are, one half of a tile's behind the other; N where there is none."""
    n = torch.arange(max(16, next_power(N)), device=device)
    return _states(n // 2, n % 2, N, PAIRING)
