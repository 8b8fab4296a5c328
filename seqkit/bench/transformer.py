"""The model that Mamba is measured against: a plain causal transformer on torch's flash attention.

One attention and one feed-forward layer have about the weights of two Mamba blocks of the same width, so a transformer
of n layers stands beside a stack of 2n blocks, as in Gu and Dao 2023, section 4.2.

Legend: B batch, L length, D channels, H heads, P head size, T cached positions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

ROPE_BASE = 10_000.0


class Layer(nn.Module):
    """Attention and feed-forward, each behind a norm and beside a residual path.

    Args:
        d_model: Width D.
        headdim: Head size P.
    """

    def __init__(self, d_model: int, headdim: int):
        super().__init__()
        self.heads = (d_model // headdim, headdim)
        self.attention_norm, self.mlp_norm = nn.RMSNorm(d_model), nn.RMSNorm(d_model)
        self.qkv, self.out = (nn.Linear(d_model, 3 * d_model, bias=False), nn.Linear(d_model, d_model, bias=False))
        self.up, self.down = (nn.Linear(d_model, 4 * d_model, bias=False), nn.Linear(4 * d_model, d_model, bias=False))

    def forward(self, x_BLD: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
        """Whole sequences."""
        q, k, v = self._heads(x_BLD, turns)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self._rest(x_BLD, y)

    def step(self, x_B1D: Tensor, turns: tuple[Tensor, Tensor], keys: Tensor, values: Tensor, *, fused: bool) -> Tensor:
        """One position behind a cache (B, H, T, P), whose last slot receives it; by one kernel or by two products."""
        q, k, v = self._heads(x_B1D, turns)
        keys[:, :, -1:], values[:, :, -1:] = k, v
        if fused:
            return self._rest(x_B1D, F.scaled_dot_product_attention(q, keys, values))
        scores = (q * self.heads[1] ** -0.5) @ keys.transpose(-1, -2)
        return self._rest(x_B1D, scores.softmax(-1, dtype=torch.float32).to(values.dtype) @ values)

    def _heads(self, x_BLD: Tensor, turns: tuple[Tensor, Tensor]) -> list[Tensor]:
        parts = self.qkv(self.attention_norm(x_BLD)).unflatten(-1, (3, *self.heads)).permute(2, 0, 3, 1, 4)
        q, k, v = parts.unbind(0)
        return [_rotate(q, turns), _rotate(k, turns), v]

    def _rest(self, x_BLD: Tensor, y_BHLP: Tensor) -> Tensor:
        x_BLD = x_BLD + self.out(y_BHLP.transpose(1, 2).flatten(2))
        return x_BLD + self.down(F.gelu(self.up(self.mlp_norm(x_BLD)), approximate="tanh"))


class Transformer(nn.Module):
    """Embedding, layers, final norm.

    Args:
        vocab_size: Rows of the embedding.
        d_model: Width D.
        layers: Number of layers.
        headdim: Head size P.
        recompute: Whether layers recompute their activations in the backward pass.
    """

    def __init__(self, vocab_size: int, d_model: int, layers: int, *, headdim: int = 64, recompute: bool = False):
        super().__init__()
        self.headdim, self.recompute = headdim, recompute
        self.embed = nn.Embedding(vocab_size, d_model)
        self.layers = nn.ModuleList(Layer(d_model, headdim) for _ in range(layers))
        self.norm = nn.RMSNorm(d_model)

    def forward(self, ids_BL: Tensor) -> Tensor:
        """Hidden states (B, L, D)."""
        x, turns = self.embed(ids_BL), self.turns(torch.arange(ids_BL.shape[1], device=ids_BL.device))
        for layer in self.layers:
            if self.recompute and torch.is_grad_enabled():
                x = checkpoint(layer, x, turns, use_reentrant=False)
            else:
                x = layer(x, turns)
        return self.norm(x)

    @torch.no_grad()
    def step(
        self, ids_B: Tensor, position: Tensor, cache: list[tuple[Tensor, Tensor]], *, fused: bool = True
    ) -> Tensor:
        """Hidden state (B, D) of one position (1,) behind its cache."""
        x, turns = self.embed(ids_B[:, None]), self.turns(position)
        for layer, (keys, values) in zip(self.layers, cache, strict=True):
            x = layer.step(x, turns, keys, values, fused=fused)
        return self.norm(x)[:, 0]

    def cache(self, batch: int, positions: int, dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
        """Random keys and values (B, H, T, P) of each layer, the slot of the next position included."""
        device, heads = self.embed.weight.device, self.layers[0].heads[0]
        shape = (batch, heads, positions + 1, self.headdim)
        return [tuple(torch.randn(2, *shape, device=device, dtype=dtype)) for _ in self.layers]

    def turns(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines (L, P / 2) of the rotary positions."""
        half = self.headdim // 2
        rates = ROPE_BASE ** (-torch.arange(half, device=positions.device, dtype=torch.float64) / half)
        angles = positions[:, None] * rates
        return angles.cos().float(), angles.sin().float()


def _rotate(x_BHLP: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
    cos, sin = (part.to(x_BHLP.dtype) for part in turns)
    first, second = x_BHLP.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)
