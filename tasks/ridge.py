"""The linear forecast: one map from a lookback to a horizon, in closed form.

Instance normalisation in front of it makes it the one-layer models of Zeng et al. 2023, "Are transformers effective for
time series forecasting?" (NLinear: the last value subtracted) and of Li et al. 2023 (RLinear: mean and spread).

Legend: B batch, L lookback, H horizon, C channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

PENALTIES = (1e-9, 1e-7, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Penalties tried, in units of the mean diagonal of the Gram matrix."""


class Ridge(NamedTuple):
    """A fitted map.

    Attributes:
        weight_HL: (H, L) float64.
        bias_H: (H,) float64.
        penalty: The chosen one; NaN where there was nothing to fit or choose.
    """

    weight_HL: Tensor
    bias_H: Tensor
    penalty: float


Windows = Iterable[tuple[Tensor, Tensor, Tensor]]
"""Batches of normalised lookbacks (B, L) without NaN, horizons (B, H) with NaN, and weights (B,)."""


def fit_ridge(
    train: Windows,
    validation: Windows,
    lookback: int,
    horizon: int,
    *,
    penalties: Sequence[float] = PENALTIES,
    bias: bool = True,
) -> Ridge:
    """Fit on all training windows whose horizon is fully observed; the penalty is that of the least validation error.

    Args:
        train: Windows to fit on; read once.
        validation: Windows to choose the penalty by; the training error decides where there are none.
        lookback: L.
        horizon: H.
        penalties: Candidates.
        bias: Whether to fit one; on a short series of its own it is a drift, and rarely a good one.
    """
    gram, cross, count = _sums(train, lookback, horizon, bias)
    none = Ridge(gram.new_zeros(horizon, lookback), gram.new_zeros(horizon), float("nan"))
    if not count:
        return none
    held_gram, held_cross, held_count = _sums(validation, lookback, horizon, bias)
    if not held_count:
        held_gram, held_cross = gram, cross
    best, least = none, float("inf")
    for penalty in penalties:
        solution = _solve(gram, cross, penalty)
        # The squared error of all held windows, short of a constant, from their sums alone.
        error = float((solution * (held_gram @ solution)).sum() - 2 * (solution * held_cross).sum())
        if error < least:
            best, least = Ridge(solution[:-1].T, solution[-1], penalty), error
    return best


def _sums(windows: Windows, lookback: int, horizon: int, bias: bool) -> tuple[Tensor, Tensor, int]:
    """Gram matrix (L + 1, L + 1) with a constant, cross products (L + 1, H), and the number of windows."""
    gram = torch.zeros(lookback + 1, lookback + 1, dtype=torch.float64)
    cross = torch.zeros(lookback + 1, horizon, dtype=torch.float64)
    count = 0
    for x_BL, y_BH, weight_B in windows:
        whole = ~y_BH.isnan().any(dim=1)
        root = weight_B[whole].double().sqrt()[:, None]
        x = torch.cat([x_BL[whole].double(), torch.full_like(root, bias)], dim=1) * root
        gram += x.T @ x
        cross += x.T @ (y_BH[whole].double() * root)
        count += int(whole.sum())
    return gram, cross, count


def _solve(gram: Tensor, cross: Tensor, penalty: float) -> Tensor:
    """(L + 1, H) coefficients; the constant is not penalised."""
    scale = gram.diagonal()[:-1].mean().clamp(min=1e-12)
    diagonal = torch.full((len(gram),), penalty, dtype=torch.float64) * scale
    diagonal[-1] = 1e-12 * scale
    return torch.linalg.solve(gram + torch.diag(diagonal), cross)
