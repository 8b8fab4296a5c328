"""How well a language model tells the bases of a stretch: nats of each base.

Legend: B batch, L tokens of a stretch, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from seqkit.backbones import Backbone
from seqkit.inference.stream import PIECE, evaluating, stream


def carried_nats(backbone: Backbone, head: nn.Module, ids_L: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Nats of each base given all bases before it, in memory that does not grow with L.

    Args:
        backbone: A causal backbone.
        head: From its hidden states to logits.
        ids_L: Token ids of a stretch.

    Returns:
        float32 (L,), NaN for the first base.
    """
    nats_L = np.full(len(ids_L), np.nan, dtype=np.float32)
    if len(ids_L) < 2:
        return nats_L
    with torch.inference_mode():
        for part in stream(backbone, [ids_L[:-1]], piece=PIECE):
            first = part.start + 1
            target_1L = torch.from_numpy(ids_L[first : first + part.hidden.shape[1]])[None].to(part.hidden.device)
            nats_L[first : first + target_1L.shape[1]] = _nats(head(part.hidden), target_1L)[0]
    return nats_L


def windowed_nats(
    backbone: Backbone,
    head: nn.Module,
    ids_L: NDArray[np.uint8],
    *,
    length: int,
    overlap: int,
    tokens_at_once: int = 2 * PIECE,
) -> NDArray[np.float32]:
    """Nats of each base given what precedes it in a window.

    Args:
        backbone: A causal backbone.
        head: From its hidden states to logits.
        ids_L: Token ids of a stretch.
        length: Tokens that a window shows.
        overlap: Tokens at a window's start that the window before has answered for already, 0 to below ``length``.
        tokens_at_once: Tokens in a batch of windows, at least one window.

    Returns:
        float32 (L,), NaN for the first base.
    """
    device, nats_L = next(backbone.parameters()).device, np.full(len(ids_L), np.nan, dtype=np.float32)
    with torch.inference_mode(), evaluating(backbone):
        for starts, shown in _windows(len(ids_L) - 1, length, overlap, max(1, tokens_at_once // length)):
            ids = torch.from_numpy(np.stack([ids_L[start : start + shown + 1] for start in starts])).to(device)
            found_BL = _nats(head(backbone(ids[:, :-1])[0]), ids[:, 1:])
            for start, found in zip(starts, found_BL, strict=True):
                skipped = overlap if start else 0
                nats_L[start + 1 + skipped : start + 1 + shown] = found[skipped:]
    return nats_L


def _windows(total: int, length: int, overlap: int, batch: int) -> Iterator[tuple[list[int], int]]:
    """Starts of windows of one length in batches; a shorter last one comes by itself."""
    starts = list(range(0, max(1, total - overlap), length - overlap)) if total > 0 else []
    whole = [start for start in starts if start + length <= total]
    for low in range(0, len(whole), batch):
        yield whole[low : low + batch], length
    yield from (([start], total - start) for start in starts[len(whole) :])


def _nats(logits: Tensor, target: Tensor) -> NDArray[np.float32]:
    """Cross-entropy (B, L) in float32."""
    each = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), target.flatten().long(), reduction="none")
    return each.view(target.shape).cpu().numpy()
