"""Whole series answered without a model: one nearest neighbour, ridge on the raw values, and the same for all.

Legend: S series, F = T x C values of a series, E series of the test.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import RidgeClassifierCV, RidgeCV
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor

PENALTIES = np.logspace(-3, 3, 7)
_LEAST_SPREAD = 1e-8


class Answer(NamedTuple):
    """Answers of one method.

    Attributes:
        name: As printed in tables.
        answer_E: Class numbers or predicted values of the test series.
        seconds: Wall time of fit and prediction.
    """

    name: str
    answer_E: NDArray
    seconds: float


def equal_lengths(series: Sequence[NDArray], length: int | None = None) -> NDArray:
    """(S, T, C) series of one length, the others stretched linearly; missing values are drawn through, 0 where all are.

    Args:
        series: (T, C) each, NaN where missing.
        length: T; the median by default.
    """
    length = length or int(np.median([len(one) for one in series]))
    out = np.zeros((len(series), length, series[0].shape[1]))
    for number, one in enumerate(series):
        places = np.linspace(0, len(one) - 1, length)
        for channel, values in enumerate(one.T):
            known = np.flatnonzero(~np.isnan(values))
            if len(known):
                out[number, :, channel] = np.interp(places, known, values[known])
    return out


def z_normalised(x_STC: NDArray) -> NDArray:
    """Every channel of every series with mean 0 and deviation 1; a constant one is 0."""
    centred = x_STC - x_STC.mean(axis=1, keepdims=True)
    spread = x_STC.std(axis=1, keepdims=True)
    return np.where(spread > _LEAST_SPREAD, centred / np.maximum(spread, _LEAST_SPREAD), 0.0)


def simple_answers(series: Sequence[NDArray], target_S: NDArray, train: NDArray, test: NDArray, kind: str) -> list:
    """Answers of one neighbour (z-normalised, Euclidean), ridge on the raw values, and the majority or the mean.

    Args:
        series: (T, C) each.
        target_S: Class numbers, or values.
        train: Labelled series to learn from; the penalty of ridge comes from leaving one out.
        test: Series to answer.
        kind: classes or number.
    """
    x_STC = equal_lengths(series, int(np.median([len(series[s]) for s in train])))
    raw_SF, z_SF = x_STC.reshape(len(series), -1), z_normalised(x_STC).reshape(len(series), -1)
    classes = kind == "classes"
    neighbour = KNeighborsClassifier(1) if classes else KNeighborsRegressor(1)
    ridge = RidgeClassifierCV(alphas=PENALTIES) if classes else RidgeCV(alphas=PENALTIES)
    target = target_S.astype(int) if classes else target_S
    stretched = ", stretched" if len({len(one) for one in series}) > 1 else ""
    found = []
    for name, model, x_SF in (("1-NN", neighbour, z_SF), ("ridge", ridge, raw_SF)):
        start = time.perf_counter()
        answer_E = model.fit(x_SF[train], target[train]).predict(x_SF[test])
        found.append(Answer(name + stretched, np.asarray(answer_E, float), time.perf_counter() - start))
    same = np.bincount(target[train]).argmax() if classes else target[train].mean()
    return [*found, Answer("majority" if classes else "mean", np.full(len(test), float(same)), 0.0)]
