"""Softmax attention with rotary positions, for hybrid stacks.

Legend: B batch, L length, D channels, H heads, P head size, S sequences, M longest new segment, T cached positions.

Reference: Vaswani et al. 2017, Attention is all you need, section 3.2; Su et al. 2021, RoFormer, section 3.4.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seqkit.backbones.parameters import Linear
from seqkit.backbones.state import AttentionState
from seqkit.errors import ConfigError

QUERIES = 1024
"""Positions behind a cache that attend at a time."""


class Attention(nn.Module):
    """Multi-head attention as a mixer, causal or over both sides.

    A causal module carries keys and values as its state, so that chunks and single steps equal the full pass. Memory
    and time of the state grow with the sequence, unlike those of the Mamba mixers.

    Args:
        d_model: Width D.
        headdim: Head size P, even; divides ``d_model``.
        causal: Whether a position sees only itself and what came before.
        rope_base: Longest rotary wavelength is about 2 pi times this many positions.
        bias: Whether the projections have biases.

    Raises:
        ConfigError: ``headdim`` is odd or does not divide ``d_model``.
    """

    def __init__(
        self,
        d_model: int,
        *,
        headdim: int = 64,
        causal: bool = True,
        rope_base: float = 10_000.0,
        bias: bool = False,
    ):
        super().__init__()
        if headdim % 2 or d_model % headdim:
            raise ConfigError("headdim", expected=f"an even divisor of d_model={d_model}", got=str(headdim))
        self.d_model, self.headdim, self.n_heads = d_model, headdim, d_model // headdim
        self.causal, self.rope_base = causal, rope_base
        self.in_proj = Linear(d_model, 3 * d_model, bias=bias)
        self.out_proj = Linear(d_model, d_model, bias=bias)

    def forward(
        self,
        x_BLD: Tensor,
        state: AttentionState | None = None,
        *,
        cu_seqlens: Tensor | None = None,
        reverse: bool = False,
    ) -> tuple[Tensor, AttentionState | None]:
        """Mix positions.

        Args:
            x_BLD: Input (B, L, D).
            state: What came before; causal modules only.
            cu_seqlens: (S + 1,) int32 bounds of packed segments (B = 1); no position sees another segment.
            reverse: Read every segment from its end.

        Returns:
            y (B, L, D) and the state behind the last token, None when not causal.

        Raises:
            ConfigError: A state was given to a module that is not causal.
        """
        self._check_state(state)
        if cu_seqlens is not None:
            return self._forward_packed(x_BLD, state, cu_seqlens, reverse)
        x_BLD = x_BLD.flip(1) if reverse else x_BLD
        y_BLD, state = self._attend(x_BLD, state, None, None)
        return (y_BLD.flip(1) if reverse else y_BLD), state

    def step(self, x_BD: Tensor, state: AttentionState) -> tuple[Tensor, AttentionState]:
        """Append one token per sequence: (B, D) and a state to (B, D) and the next state."""
        if not self.causal:
            raise ConfigError("step", expected="a causal module", got="attention over both sides")
        y_BLD, state = self.forward(x_BD.unsqueeze(1), state)
        return y_BLD.squeeze(1), state

    def initial_state(self, batch: int) -> AttentionState | None:
        """The empty cache of ``batch`` sequences; None when not causal."""
        if not self.causal:
            return None
        weight = self.in_proj.weight
        empty = weight.new_zeros(batch, self.n_heads, 0, self.headdim)
        return AttentionState(empty, empty, torch.zeros(batch, dtype=torch.int64, device=weight.device))

    def _check_state(self, state: AttentionState | None) -> None:
        if state is not None and not self.causal:
            raise ConfigError(
                "state",
                expected="None",
                got="a state for attention over both sides",
                remedy="It needs the whole sequence at once; use a causal module to work in chunks.",
            )

    def _forward_packed(
        self, x_BLD: Tensor, state: AttentionState | None, cu_seqlens: Tensor, reverse: bool
    ) -> tuple[Tensor, AttentionState | None]:
        index_SM, valid_SM, lengths_S = _segment_index(cu_seqlens, reverse)
        y_SMD, state = self._attend(x_BLD[0][index_SM], state, valid_SM, lengths_S)
        y_LD = y_SMD.new_zeros(x_BLD.shape[1:]).index_put((index_SM[valid_SM],), y_SMD[valid_SM])
        return y_LD.unsqueeze(0), state

    def _attend(
        self, x_SMD: Tensor, state: AttentionState | None, valid_SM: Tensor | None, lengths_S: Tensor | None
    ) -> tuple[Tensor, AttentionState | None]:
        sequences, new = x_SMD.shape[:2]
        qkv = self.in_proj(x_SMD).unflatten(-1, (3, self.n_heads, self.headdim))
        q, k, v = (part.squeeze(2).transpose(1, 2) for part in qkv.split(1, dim=2))
        past = self.initial_state(sequences) if state is None and self.causal else state
        start_S = x_SMD.new_zeros(sequences, dtype=torch.int64) if past is None else past.length
        positions_SM = start_S[:, None] + torch.arange(new, device=x_SMD.device)
        q, k = (_rotate(part, positions_SM, self.rope_base) for part in (q, k))
        if past is not None:
            added = torch.full_like(start_S, new) if lengths_S is None else lengths_S
            past = AttentionState(
                torch.cat([past.keys.to(k.dtype), k], dim=2),
                torch.cat([past.values.to(v.dtype), v], dim=2),
                past.length + added,
                _join_valid(past, valid_SM, new),
            )
            k, v, valid_SM = past.keys, past.values, past.valid
        y = _softmax_attention(q, k, v, valid_SM, self.causal)
        return self.out_proj(y.transpose(1, 2).flatten(2)), past


def _softmax_attention(q: Tensor, k: Tensor, v: Tensor, valid: Tensor | None, causal: bool) -> Tensor:
    """Attend from the last M of the T keys' positions; ``valid`` (S, T) hides slots."""
    new, total = q.shape[2], k.shape[2]
    if valid is None and (not causal or new == total or new == 1):
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal and new == total and new > 1)
    if valid is None:
        return torch.cat([_behind_cache(q, k, v, begin) for begin in range(0, max(new, 1), QUERIES)], dim=2)
    query = torch.arange(total - new, total, device=q.device)[:, None]
    key = torch.arange(total, device=q.device)
    allowed = key <= query if causal else torch.ones_like(key <= query)
    # A slot that fills up a short segment still sees itself: a row without any key would be NaN.
    allowed = (allowed & valid[:, None, None, :]) | (key == query)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)


def _behind_cache(q: Tensor, k: Tensor, v: Tensor, begin: int) -> Tensor:
    """Causal attention of a few of the last M of T positions: a mask of all M x T would outgrow keys and values."""
    first = k.shape[2] - q.shape[2] + begin
    q = q[:, :, begin : begin + QUERIES]
    seen = first + q.shape[2]
    query, key = torch.arange(first, seen, device=q.device)[:, None], torch.arange(seen, device=q.device)
    return F.scaled_dot_product_attention(q, k[:, :, :seen], v[:, :, :seen], attn_mask=key <= query)


def _rotate(x_SHMP: Tensor, positions_SM: Tensor, base: float) -> Tensor:
    """Turn pairs (i, i + P/2) by angles proportional to the position.

    The angle is formed in float64: at position 10^6 a float32 product is off by 0.06 rad.
    """
    half = x_SHMP.shape[-1] // 2
    exponent = torch.arange(half, device=x_SHMP.device, dtype=torch.float64) / half
    angle = positions_SM[:, None, :, None].double() * base**-exponent
    dtype = torch.promote_types(x_SHMP.dtype, torch.float32)
    cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
    first, second = x_SHMP.to(dtype).split(half, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1).to(x_SHMP.dtype)


def _segment_index(cu_seqlens: Tensor, reverse: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Where the tokens of each segment stand, in reading order, filled up to the longest segment.

    Returns:
        Index (S, M) into L, validity (S, M), lengths (S,).
    """
    bounds = cu_seqlens.long()
    start, end = bounds[:-1, None], bounds[1:, None]
    lengths = end - start
    offset = torch.arange(int(lengths.max()), device=bounds.device)
    index = end - 1 - offset if reverse else start + offset
    return index.clamp(min=0, max=max(int(bounds[-1]) - 1, 0)), offset < lengths, lengths[:, 0]


def _join_valid(past: AttentionState, valid_SM: Tensor | None, new: int) -> Tensor | None:
    if past.valid is None and valid_SM is None:
        return None
    sequences, _, cached, _ = past.keys.shape
    ones = past.length.new_ones(sequences, cached + new, dtype=torch.bool)
    before = ones[:, :cached] if past.valid is None else past.valid
    return torch.cat([before, ones[:, cached:] if valid_SM is None else valid_SM], dim=1)
