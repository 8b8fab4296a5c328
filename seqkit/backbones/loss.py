"""Cross-entropy of long sequences: logits exist for one chunk of positions at a time, forward and backward.

Legend: B batch, L length, D channels, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from seqkit.backbones.backbone import Backbone
from seqkit.errors import ConfigError, ShapeError

IGNORED = -100


def chunked_cross_entropy(
    hidden_BLD: Tensor,
    head: nn.Module,
    target_BL: Tensor,
    *,
    weight_BL: Tensor | None = None,
    ignore_index: int = IGNORED,
    chunk: int = 65_536,
) -> tuple[Tensor, Tensor]:
    """Sum the cross-entropy over positions without ever holding (B, L, V) logits.

    Nothing is kept for the backward pass but the hidden states: every chunk's logits are computed again. The mean over
    a batch that several ranks or accumulation steps share is the sum of the first result over the sum of the second.

    Args:
        hidden_BLD: Hidden states (B, L, D), or (B, L, 2D) of an equivariant backbone.
        head: From hidden states (B, l, D) to logits (B, l, V), each position on its own; draws no random numbers.
        target_BL: Class of each position (B, L), any integer type, or ``ignore_index``. A causal objective shifts it
            beforehand.
        weight_BL: Weight of each position's loss (B, L), >= 0; None for one. No gradient goes there.
        ignore_index: Target of positions that do not count.
        chunk: Positions, over all rows, whose logits exist at once, at least 1.

    Returns:
        Weighted sum of the losses in nats, and sum of the weights of the positions that count: both float32 (float64
        for float64 hidden states), zero if nothing counts. Only the first has a gradient.

    Raises:
        ShapeError: Targets or weights are not (B, L).
        ConfigError: ``chunk`` is below 1.

    Example:
        >>> head = nn.Linear(8, 5)
        >>> hidden, target = torch.randn(2, 100, 8), torch.randint(5, (2, 100))
        >>> loss, count = chunked_cross_entropy(hidden, head, target, chunk=32)
        >>> bool(torch.isclose(loss / count, F.cross_entropy(head(hidden).flatten(0, 1), target.flatten())))
        True
    """
    rows = tuple(hidden_BLD.shape[:2])
    for name, given in (("target_BL", target_BL), ("weight_BL", weight_BL)):
        if given is not None and tuple(given.shape) != rows:
            raise ShapeError(name, expected=f"(B, L) = {rows}", got=str(tuple(given.shape)))
    if chunk < 1:
        raise ConfigError("chunk", expected="at least 1 position", got=str(chunk))
    parameters = [p for p in head.parameters() if p.requires_grad]
    chunks = _Chunks(head, target_BL, weight_BL, ignore_index, max(1, chunk // max(1, rows[0])))
    return _ChunkedLoss.apply(chunks, hidden_BLD, *parameters)


def sequence_cross_entropy(
    backbone: Backbone,
    head: nn.Module,
    ids_BL: Tensor,
    target_BL: Tensor,
    *,
    weight_BL: Tensor | None = None,
    ignore_index: int = IGNORED,
) -> tuple[Tensor, Tensor]:
    """The loss of a language model: as :func:`chunked_cross_entropy` of the backbone's hidden states.

    With ``sequence_chunk`` in the backbone's config even these never exist for the whole length: what is kept for the
    backward pass are the tokens and the states before every chunk.

    Args:
        backbone: From tokens to hidden states.
        head: From hidden states to logits, each position on its own.
        ids_BL: Tokens (B, L).
        target_BL: Class of each position (B, L), any integer type, or ``ignore_index``.
        weight_BL: Weight of each position's loss (B, L), >= 0; None for one.
        ignore_index: Target of positions that do not count.

    Returns:
        Weighted sum of the losses in nats, and sum of the weights of the positions that count.
    """
    if not backbone.takes_chunks(ids_BL):
        hidden_BLD, _ = backbone(ids_BL)
        return chunked_cross_entropy(hidden_BLD, head, target_BL, weight_BL=weight_BL, ignore_index=ignore_index)

    def answer(hidden_BLD: Tensor, target_BL: Tensor) -> Tensor:
        return _losses(head(hidden_BLD), target_BL, ignore_index).unsqueeze(-1)

    losses_BL1, _ = backbone.run_in_chunks(
        answer, ids_BL, None, target_BL, state=None, cu_seqlens=None, parameters=list(head.parameters())
    )
    losses_BL = losses_BL1.squeeze(-1) if weight_BL is None else losses_BL1.squeeze(-1) * weight_BL
    return losses_BL.sum(), _total_weight(target_BL, weight_BL, ignore_index, losses_BL.dtype)


def _losses(logits_BLV: Tensor, target_BL: Tensor, ignore_index: int) -> Tensor:
    """Cross-entropy (B, L); the softmax is float32 whatever the head computes in."""
    logits = logits_BLV.to(torch.promote_types(logits_BLV.dtype, torch.float32)).flatten(0, 1)
    losses = F.cross_entropy(logits, target_BL.flatten().long(), ignore_index=ignore_index, reduction="none")
    return losses.view(target_BL.shape)


def _total_weight(target_BL: Tensor, weight_BL: Tensor | None, ignore_index: int, dtype: torch.dtype) -> Tensor:
    """Weights of all positions that count."""
    valid = target_BL != ignore_index
    return valid.sum().to(dtype) if weight_BL is None else torch.where(valid, weight_BL, 0).sum(dtype=dtype)


class _Chunks:
    """Where the positions are cut, and the loss of one cut."""

    def __init__(self, head: nn.Module, target: Tensor, weight: Tensor | None, ignore_index: int, step: int):
        self.head, self.target, self.weight = head, target, weight
        self.ignore_index, self.step = ignore_index, step

    def spans(self) -> Iterator[slice]:
        """The cuts of L, first to last."""
        length = self.target.shape[1]
        return (slice(begin, min(begin + self.step, length)) for begin in range(0, length, self.step))

    def loss(self, span: slice, hidden: Tensor) -> Tensor:
        """Weighted sum over one cut."""
        losses = _losses(self.head(hidden), self.target[:, span], self.ignore_index)
        return (losses if self.weight is None else losses * self.weight[:, span]).sum(dtype=losses.dtype)


class _ChunkedLoss(torch.autograd.Function):
    """The cuts as one function of hidden states and the head's parameters."""

    @staticmethod
    def forward(ctx, chunks: _Chunks, hidden: Tensor, *parameters: Tensor):
        kind = hidden.device.type
        ctx.chunks, ctx.autocast = chunks, (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
        ctx.save_for_backward(hidden, *parameters)
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        total = hidden.new_zeros((), dtype=dtype)
        for span in chunks.spans():
            total += chunks.loss(span, hidden[:, span])
        weight = _total_weight(chunks.target, chunks.weight, chunks.ignore_index, dtype)
        ctx.mark_non_differentiable(weight)
        return total, weight

    @staticmethod
    @once_differentiable
    def backward(ctx, dloss: Tensor, _):
        hidden, *parameters = ctx.saved_tensors
        totals = [torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32)) for p in parameters]
        dhidden = torch.empty_like(hidden) if ctx.needs_input_grad[1] else None
        kind, dtype, enabled = ctx.autocast
        for span in ctx.chunks.spans():
            piece = hidden[:, span].detach().requires_grad_()
            with torch.enable_grad(), torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=False):
                loss = ctx.chunks.loss(span, piece)
            dpiece, *found = torch.autograd.grad(loss, [piece, *parameters], dloss.to(loss.dtype), allow_unused=True)
            if dhidden is not None:
                dhidden[:, span] = dpiece
            for total, grad in zip(totals, found, strict=True):
                if grad is not None:
                    total += grad
        return None, dhidden, *(total.to(p.dtype) for total, p in zip(totals, parameters, strict=True))
