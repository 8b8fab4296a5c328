"""Random convolutions of whole series, and a ridge on what they find: answers from few labels, where a network begins.

Every kernel is drawn once, from the seed, and never trained: nine taps at a dilation of its own, on some of the
channels. Of each convolution two numbers are kept, the share of steps above zero and the maximum.

Legend: S series, T steps, C channels, N kernels, W taps, F features, K outputs.

Reference: Dempster et al. 2020, ROCKET: exceptionally fast and accurate time series classification using random
convolutional kernels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import log_softmax
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import KFold
from torch import Tensor, nn
from torch.nn import functional

TAPS = 9
PENALTIES = np.logspace(-1, 5, 13)
SHARPNESS = np.logspace(-0.5, 1.25, 22)
_FOLDS = 5
_LEAST_SPREAD = 1e-8
_AT_ONCE = 8_000_000
"""Numbers of a convolution that are held at a time."""


class RandomKernels(nn.Module):
    """Drawn kernels, and the ridge on their features.

    Args:
        channels: C.
        outputs: K.
        count: N.
        length: Usual length T; dilations reach up to the one whose kernel spans it.
        seed: Of the draw.
    """

    def __init__(self, channels: int, outputs: int, count: int, length: int, seed: int):
        super().__init__()
        rng = np.random.default_rng(seed)
        weight_NCW = rng.normal(size=(count, channels, TAPS))
        weight_NCW -= weight_NCW.mean(axis=2, keepdims=True)
        size_N = 2 ** rng.uniform(0, math.log2(channels + 1), size=count)  # channels read, few more often than many
        weight_NCW[rng.random((count, channels)).argsort(axis=1) >= size_N.astype(int)[:, None]] = 0
        longest = max(0, int(math.log2(max(1, (length - 1) / (TAPS - 1)))))
        features = 2 * (count + channels)
        self.register_buffer("weight_NCW", torch.from_numpy(weight_NCW).float())
        self.register_buffer("bias_N", torch.from_numpy(rng.uniform(-1, 1, count)).float())
        self.register_buffer("dilation_N", torch.from_numpy(2 ** rng.integers(0, longest + 1, count)))
        self.register_buffer("centre_F", torch.zeros(features, dtype=torch.float64))
        self.register_buffer("spread_F", torch.ones(features, dtype=torch.float64))
        self.register_buffer("coefficient_KF", torch.zeros(outputs, features, dtype=torch.float64))
        self.register_buffer("intercept_K", torch.zeros(outputs, dtype=torch.float64))
        self.register_buffer("sharpness", torch.ones((), dtype=torch.float64))

    def features(self, series: Sequence[NDArray]) -> NDArray:
        """(S, F) features: of the kernels on series with mean 0 and deviation 1, then mean and log deviation.

        Args:
            series: (T, C) each, of any lengths, NaN where missing; a missing value counts as the mean.
        """
        return np.stack([self._features(one) for one in series])

    @torch.no_grad()
    def _features(self, values_TC: NDArray) -> NDArray:
        known_TC = ~np.isnan(values_TC)
        count_C = np.maximum(known_TC.sum(axis=0), 1)
        mean_C = np.where(known_TC, values_TC, 0).sum(axis=0) / count_C
        centred_TC = np.where(known_TC, values_TC - mean_C, 0)
        spread_C = np.sqrt((centred_TC**2).sum(axis=0) / count_C)
        z_TC = centred_TC / np.where(spread_C > _LEAST_SPREAD, spread_C, 1)
        z_1CT = torch.from_numpy(z_TC.T[None]).to(self.weight_NCW)
        share_N, most_N = torch.empty_like(self.bias_N), torch.empty_like(self.bias_N)
        for dilation in self.dilation_N.unique().tolist():
            same = (self.dilation_N == dilation).nonzero()[:, 0]
            for part in same.split(max(1, _AT_ONCE // len(values_TC))):
                found_NT = self._convolved(z_1CT, part, dilation)
                share_N[part], most_N[part] = (found_NT > 0).float().mean(dim=1), found_NT.amax(dim=1)
        level_C = np.log(np.maximum(spread_C, _LEAST_SPREAD))
        return np.concatenate([share_N.cpu().numpy(), most_N.cpu().numpy(), mean_C, level_C]).astype(np.float64)

    def _convolved(self, z_1CT: Tensor, part: Tensor, dilation: int) -> Tensor:
        """(N, T) convolutions with some of the kernels, zeros beyond the ends."""
        padding = dilation * (TAPS // 2)
        options = {"dilation": dilation, "padding": padding}
        return functional.conv1d(z_1CT, self.weight_NCW[part], self.bias_N[part], **options)[0]

    def fit(self, features_SF: NDArray, target_SK: NDArray, weight_S: NDArray) -> None:
        """Ridge on standardised features; the penalty comes from leaving one series out."""
        centre_F, spread_F = features_SF.mean(axis=0), features_SF.std(axis=0)
        self.centre_F.copy_(torch.from_numpy(centre_F))
        self.spread_F.copy_(torch.from_numpy(np.where(spread_F > _LEAST_SPREAD, spread_F, 1.0)))
        standard_SF = (features_SF - self.centre_F.cpu().numpy()) / self.spread_F.cpu().numpy()
        ridge = RidgeCV(alphas=PENALTIES).fit(standard_SF, target_SK, sample_weight=weight_S)
        self.coefficient_KF.copy_(torch.from_numpy(np.reshape(ridge.coef_, self.coefficient_KF.shape)))
        self.intercept_K.copy_(torch.from_numpy(np.reshape(ridge.intercept_, self.intercept_K.shape)))

    def scores(self, features_SF: NDArray) -> NDArray:
        """(S, K) values of the ridge; of classes, in the sharpness that makes logits of them."""
        centre_F, spread_F, coefficient_KF, intercept_K = (
            part.cpu().numpy() for part in (self.centre_F, self.spread_F, self.coefficient_KF, self.intercept_K)
        )
        return float(self.sharpness) * ((features_SF - centre_F) / spread_F @ coefficient_KF.T + intercept_K)

    def begin(
        self, features_SF: NDArray, target_SK: NDArray, weight_S: NDArray, train: NDArray, *, classes: bool, seed: int
    ) -> NDArray:
        """Fit on the training series, and (S, K) values to begin at: those of training come from folds without them.

        Were a training series answered by a ridge that knows its label, nothing would be left for a network to learn.

        Args:
            features_SF: Features of all series.
            target_SK: +1 and -1 for classes, else scaled numbers; not read outside ``train``.
            weight_S: Weights of the series.
            train: Training series.
            classes: Whether values become logits.
            seed: Of the folds.
        """
        known = features_SF[train], target_SK[train], weight_S[train]
        self.sharpness.fill_(1.0)
        held_out = self._out_of_fold(*known, seed)
        if classes:
            self.sharpness.fill_(best_sharpness(held_out, target_SK[train].argmax(axis=1), weight_S[train]))
        self.fit(*known)
        start_SK = self.scores(features_SF)
        start_SK[train] = float(self.sharpness) * held_out
        return start_SK

    def _out_of_fold(self, features_SF: NDArray, target_SK: NDArray, weight_S: NDArray, seed: int) -> NDArray:
        score_SK = np.empty_like(target_SK)
        for known, left in KFold(min(_FOLDS, len(features_SF)), shuffle=True, random_state=seed).split(features_SF):
            self.fit(features_SF[known], target_SK[known], weight_S[known])
            score_SK[left] = self.scores(features_SF[left])
        return score_SK


def best_sharpness(score_SK: NDArray, class_S: NDArray, weight_S: NDArray) -> float:
    """The factor under which scores, taken as logits, have the least weighted cross-entropy."""

    def loss(factor: float) -> float:
        likelihood_SK = log_softmax(factor * score_SK, axis=1)
        return -float(weight_S @ likelihood_SK[np.arange(len(class_S)), class_S])

    return float(min(SHARPNESS, key=loss))
