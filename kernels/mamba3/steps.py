"""Exponential-trapezoidal discretisation: from raw step sizes, rates and trap to decays and weights of tokens.

A token enters the state twice: with gamma = lambda * delta at its own step, and with (1 - lambda) * delta of the next
one. Their sum is the token's scale; with it the recurrence is that of an SSD scan whose diagonal has gamma instead.
Everything here is per token and head, a small fraction of the inputs, and held for the whole length.

Legend: B batch, L length, H heads, S segments, T = B * L token rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from seqkit.kernels.chunks import segment_bounds
from seqkit.kernels.numbers import softplus

DECAYS = ("heavy-tail", "softplus")


def decay_rate(A: Tensor, decay: str, floor: float) -> Tensor:
    """Rate max(f(A), floor) > 0; f is softplus, or 1 + A above 0 and 1 / (1 - A) below (heavy-tail)."""
    if decay == "softplus":
        return softplus(A).clamp(min=floor)
    return torch.where(A >= 0, 1 + A, 1 / (1 - A.clamp(max=0))).clamp(min=floor)


def rate_slope(A: Tensor, rate: Tensor, decay: str, floor: float) -> Tensor:
    """Derivative of :func:`decay_rate`; 0 where the floor holds."""
    if decay == "softplus":
        slope = torch.sigmoid(A)
    else:
        slope = torch.where(A >= 0, torch.ones_like(A), rate.square())
    return slope.masked_fill(rate <= floor, 0)


@dataclass(frozen=True)
class Steps:
    """Discretised steps of all tokens, in the accumulation dtype.

    Attributes:
        raw_TH: dt + bias.
        delta_TH: softplus of it.
        A_TH: Raw rates.
        rate_TH: Decay rates > 0.
        share_TH: lambda, what a token gives to its own step.
        rest_TH: 1 - lambda.
        gamma_TH: lambda * delta.
        scale_TH: gamma plus (1 - lambda) * delta of the next token of the segment.
        decay_TH: delta * rate, minus the log decay.
        followed_T1: Whether a next token exists.
        first_S: Row of each segment's first token in scan order; T where the segment is empty.
        entry_SH: Weight of the initial state's last token.
    """

    raw_TH: Tensor
    delta_TH: Tensor
    A_TH: Tensor
    rate_TH: Tensor
    share_TH: Tensor
    rest_TH: Tensor
    gamma_TH: Tensor
    scale_TH: Tensor
    decay_TH: Tensor
    followed_T1: Tensor
    first_S: Tensor
    entry_SH: Tensor


def _edges(like: Tensor, cu_seqlens: Tensor | None, reverse: bool) -> tuple[Tensor, Tensor]:
    """``followed_T1`` and ``first_S`` of operands shaped like (B, L, ...)."""
    batch, length = like.shape[:2]
    rows = batch * length
    bounds = segment_bounds(batch, length, cu_seqlens, like.device)
    begin_S, last_S = bounds[:-1], bounds[1:] - 1
    empty_S = last_S < begin_S
    first_S, end_S = (last_S, begin_S) if reverse else (begin_S, last_S)
    followed = torch.ones(rows + 1, dtype=torch.bool, device=like.device)  # the extra row swallows empty segments
    followed.index_fill_(0, end_S.masked_fill(empty_S, rows), False)
    return followed[:-1, None], first_S.masked_fill(empty_S, rows)


def _shift(x_TH: Tensor, back: bool) -> Tensor:
    """Row t of the result is row t + 1, or t - 1 if ``back``; zeros come in."""
    zero = x_TH.new_zeros((1, x_TH.shape[1]))
    return torch.cat([zero, x_TH[:-1]]) if back else torch.cat([x_TH[1:], zero])


def discretise(
    dt: Tensor,
    A: Tensor,
    trap: Tensor,
    dt_bias: Tensor | None,
    cu_seqlens: Tensor | None,
    reverse: bool,
    decay: str,
    floor: float,
    dtype: torch.dtype,
) -> Steps:
    """Steps of operands (B, L, H) with at least one row."""
    raw, A_TH, trap_TH = (x.to(dtype).flatten(0, 1) for x in (dt, A, trap))
    raw = raw if dt_bias is None else raw + dt_bias.to(dtype)
    delta, rate = softplus(raw), decay_rate(A_TH, decay, floor)
    share, rest = torch.sigmoid(trap_TH), torch.sigmoid(-trap_TH)
    followed_T1, first_S = _edges(dt, cu_seqlens, reverse)
    gamma, carried = share * delta, rest * delta
    entry_SH = torch.cat([carried, carried.new_zeros((1, carried.shape[1]))]).index_select(0, first_S)
    return Steps(
        raw_TH=raw,
        delta_TH=delta,
        A_TH=A_TH,
        rate_TH=rate,
        share_TH=share,
        rest_TH=rest,
        gamma_TH=gamma,
        scale_TH=gamma + _shift(carried, back=reverse).masked_fill_(~followed_T1, 0),
        decay_TH=delta * rate,
        followed_T1=followed_T1,
        first_S=first_S,
        entry_SH=entry_SH,
    )


def discretise_backward(
    steps: Steps,
    dgamma_TH: Tensor,
    dscale_TH: Tensor,
    ddecay_TH: Tensor,
    dangle_TH: Tensor,
    dentry_SH: Tensor,
    reverse: bool,
    decay: str,
    floor: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients (T, H) of dt + bias, A and trap.

    Args:
        steps: What :func:`discretise` returned.
        dgamma_TH: Gradient of gamma on the diagonal.
        dscale_TH: Gradient of scale.
        ddecay_TH: Gradient of delta * rate.
        dangle_TH: Gradient of delta through the angles.
        dentry_SH: Gradient of ``entry_SH``.
        reverse: Whether the scan ran from each segment's end.
        decay: Form of the rate.
        floor: Its floor.
    """
    carried = _shift(dscale_TH.masked_fill(~steps.followed_T1, 0), back=not reverse)
    carried = torch.cat([carried, carried[:1]])  # the extra row takes what empty segments have
    dcarried_TH = carried.index_copy_(0, steps.first_S, dentry_SH.to(carried.dtype))[:-1]
    down_TH = dgamma_TH + dscale_TH
    ddelta_TH = dangle_TH + down_TH * steps.share_TH + dcarried_TH * steps.rest_TH + ddecay_TH * steps.rate_TH
    dtrap_TH = (down_TH - dcarried_TH) * steps.delta_TH * steps.share_TH * steps.rest_TH
    dA_TH = ddecay_TH * steps.delta_TH * rate_slope(steps.A_TH, steps.rate_TH, decay, floor)
    return ddelta_TH * torch.sigmoid(steps.raw_TH), dA_TH, dtrap_TH
