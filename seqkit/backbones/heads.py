"""From hidden states to answers.

Every head takes hidden states of width D, or of width 2D from an equivariant backbone (halves: the strand as given, the
other one). On the latter its answer does not change, or changes only by a stated permutation, when the input is
reverse-complemented.

Legend: B batch, L length, D channels, K outputs, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from seqkit.backbones.parameters import Linear
from seqkit.errors import ConfigError, ShapeError

Pooling = Literal["mean", "centre", "last"]


def split_strands(hidden: Tensor, d_model: int) -> tuple[Tensor, ...]:
    """One or both strands of hidden states (..., D) or (..., 2D).

    Raises:
        ShapeError: The width is neither D nor 2D.
    """
    if hidden.shape[-1] not in (d_model, 2 * d_model):
        raise ShapeError("hidden", expected=f"{d_model} or {2 * d_model} channels", got=f"{hidden.shape[-1]} channels")
    return hidden.split(d_model, dim=-1)


def pool(hidden_BLD: Tensor, how: Pooling, valid_BL: Tensor | None = None, *, mirrored: bool = False) -> Tensor:
    """Reduce positions.

    Args:
        hidden_BLD: Hidden states (B, L, D), L >= 1.
        how: ``mean`` over valid positions, ``centre`` (position L // 2) or ``last`` valid position.
        valid_BL: True where a position holds data; None for everywhere. ``centre`` does not read it.
        mirrored: Count positions from the other end, as the other strand does.

    Returns:
        (B, D). A row without valid positions gives zeros for ``mean``.
    """
    length = hidden_BLD.shape[1]
    if how == "mean":
        if valid_BL is None:
            return hidden_BLD.mean(dim=1)
        weight = valid_BL.unsqueeze(-1).to(hidden_BLD.dtype)
        return (hidden_BLD * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)
    if how == "centre":
        centre = length // 2
        return hidden_BLD[:, length - 1 - centre if mirrored else centre]
    if valid_BL is None:
        return hidden_BLD[:, 0 if mirrored else -1]
    steps = torch.arange(length, 0, -1, device=hidden_BLD.device)
    rank = steps if mirrored else steps.flip(0)
    index = (valid_BL * rank).argmax(dim=1)
    return hidden_BLD[torch.arange(len(index), device=index.device), index]


class PooledHead(nn.Module):
    """One answer per sequence.

    Equivariant hidden states are pooled per strand and averaged: the answer is the same for both strands.

    Args:
        d_model: Width D per strand.
        n_outputs: Outputs K.
        pooling: How positions are reduced, see :func:`pool`.
    """

    def __init__(self, d_model: int, n_outputs: int, pooling: Pooling = "mean"):
        super().__init__()
        if pooling not in ("mean", "centre", "last"):
            raise ConfigError("pooling", expected="mean, centre or last", got=repr(pooling))
        self.d_model, self.pooling = d_model, pooling
        self.output = Linear(d_model, n_outputs, bias=True)

    def features(self, hidden_BLD: Tensor, valid_BL: Tensor | None = None) -> Tensor:
        """Pooled hidden states (B, D) in front of the output layer."""
        strands = split_strands(hidden_BLD, self.d_model)
        pooled = [pool(h, self.pooling, valid_BL, mirrored=i == 1) for i, h in enumerate(strands)]
        return torch.stack(pooled).mean(dim=0)

    def forward(self, hidden_BLD: Tensor, valid_BL: Tensor | None = None) -> Tensor:
        """Map hidden states (B, L, D) or (B, L, 2D) to (B, K)."""
        return self.output(self.features(hidden_BLD, valid_BL))


class PositionHead(nn.Module):
    """One answer per position.

    On equivariant hidden states the strands' answers are averaged, those of the other strand in permuted order: with
    the input reverse-complemented, positions reverse and outputs permute.

    Args:
        d_model: Width D per strand.
        n_outputs: Outputs K.
        output_complement: Where each output goes when the strand changes (a plus-strand track becomes the minus-strand
            one); a permutation that undoes itself. None leaves outputs in place.

    Raises:
        ConfigError: ``output_complement`` is no such permutation.
    """

    def __init__(self, d_model: int, n_outputs: int, output_complement: Sequence[int] | None = None):
        super().__init__()
        order = list(range(n_outputs) if output_complement is None else output_complement)
        if sorted(order) != list(range(n_outputs)) or any(order[t] != i for i, t in enumerate(order)):
            raise ConfigError(
                "output_complement",
                expected=f"a permutation of 0..{n_outputs - 1} that undoes itself",
                got=str(order),
            )
        self.d_model = d_model
        self.output = Linear(d_model, n_outputs, bias=True)
        self.register_buffer("order", torch.tensor(order, dtype=torch.int64), persistent=False)

    def forward(self, hidden_BLD: Tensor) -> Tensor:
        """Map hidden states (B, L, D) or (B, L, 2D) to (B, L, K)."""
        strands = split_strands(hidden_BLD, self.d_model)
        answers = [self.output(strands[0]), *(self.output(h)[..., self.order] for h in strands[1:])]
        return torch.stack(answers).mean(dim=0)


class LanguageHead(nn.Module):
    """Token scores per position.

    On equivariant hidden states the other strand's scores are added in complement order: with the input
    reverse-complemented, positions reverse and scores move to the complement token.

    Args:
        d_model: Width D per strand.
        vocab_size: Vocabulary V.
        complement: Complement of each id (``config.token_complement``); needed for equivariant hidden states only.
        tied: Embedding (V, D) whose weight is used; None for a weight of its own.
    """

    def __init__(
        self,
        d_model: int,
        vocab_size: int,
        *,
        complement: Sequence[int] | None = None,
        tied: nn.Embedding | None = None,
    ):
        super().__init__()
        self.d_model = d_model
        self.output = Linear(d_model, vocab_size)
        if tied is not None:
            self.output.weight = tied.weight
        order = range(vocab_size) if complement is None else complement
        self.register_buffer("order", torch.tensor(list(order), dtype=torch.int64), persistent=False)

    def forward(self, hidden_BLD: Tensor) -> Tensor:
        """Map hidden states (B, L, D) or (B, L, 2D) to logits (B, L, V)."""
        own, *other = split_strands(hidden_BLD, self.d_model)
        logits = self.output(own)
        for strand in other:
            logits = logits + self.output(strand)[..., self.order]
        return logits
