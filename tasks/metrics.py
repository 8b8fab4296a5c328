"""Metrics of binary, multi-class and continuous labels.

Every metric is a function ``metric(labels, scores, weights=None)``. Weights may be one weight per row or a
matrix of R such vectors; the result is then R values. A bootstrap resample is nothing but a vector of integer
weights, so the scores are sorted once for all resamples. Rows whose label is NaN are left out. A metric that
the labels leave undefined (ranking metrics with one class present) is NaN, never an error:
``undefined_reason`` says why.

Shape letters: N rows, C classes, T label columns, R weight vectors, K bins or tied runs.
"""

from __future__ import annotations

import functools
import warnings
from typing import NamedTuple

import numpy as np
import torch
import torchmetrics
from numpy.typing import ArrayLike, NDArray

from seqkit.errors import ConfigError, ShapeError
from seqkit.tasks.intervals import (
    Comparison,
    Estimate,
    Metric,
    bootstrap_interval,
    estimate_all,
    paired_bootstrap,
    undefined_reason,
)
from seqkit.tasks.weighted import (
    correlation,
    divide,
    mean,
    nan_mean,
    prepare,
    prepare_binary,
    prepare_classes,
    ranks,
    tied_runs,
    unpack,
)

__all__ = [
    "KINDS",
    "AllRows",
    "Comparison",
    "Estimate",
    "Metric",
    "Reliability",
    "accuracy",
    "auroc",
    "average_precision",
    "best_mcc_threshold",
    "bootstrap_interval",
    "brier",
    "column_mean",
    "estimate_all",
    "expected_calibration_error",
    "fold_mean",
    "log_loss",
    "mae",
    "mcc",
    "metric_set",
    "one_vs_rest",
    "paired_bootstrap",
    "pearson",
    "r2",
    "reliability",
    "rmse",
    "spearman",
    "undefined_reason",
    "validation_metrics",
]

KINDS = ("binary", "multiclass", "continuous")
RELIABILITY_BINS = 15
LOWEST_PROBABILITY = 1e-12  # log loss clips here: one certain mistake costs 27.6 nats and not infinity


class Reliability(NamedTuple):
    """Per bin of predicted probability: mean prediction, observed frequency and number of rows.

    Empty bins hold NaN and count 0. ``edges`` has one entry more than the other fields.
    """

    edges: NDArray
    predicted: NDArray
    observed: NDArray
    count: NDArray


def auroc(labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> float | NDArray:
    """Area under the ROC curve: the chance that a positive outscores a negative, ties counting half.

    Args:
        labels: (N,) of 0, 1 or NaN.
        scores: (N,), any monotone scale.
        weights: (N,) or (R, N), at least 0.

    Returns:
        Value in [0, 1], or (R,) values; NaN where a class has no weight.

    Reference: Hanley and McNeil 1982, equivalence with the Wilcoxon statistic.
    """
    y_N, s_N, w_RN = prepare_binary(labels, scores, weights)
    positive_RK, negative_RK = tied_runs(y_N, s_N, w_RN)
    below_RK = np.cumsum(negative_RK, axis=1) - 0.5 * negative_RK
    pairs_R = positive_RK.sum(axis=1) * negative_RK.sum(axis=1)
    return unpack(divide((positive_RK * below_RK).sum(axis=1), pairs_R), weights)


def average_precision(labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> float | NDArray:
    """AUPRC as average precision: precision at each threshold, weighted by the recall gained there.

    Args:
        labels: (N,) of 0, 1 or NaN.
        scores: (N,), any monotone scale.
        weights: (N,) or (R, N), at least 0.

    Returns:
        Value in (0, 1], or (R,) values; a random score gives the prevalence. NaN where a class has no weight.
    """
    y_N, s_N, w_RN = prepare_binary(labels, scores, weights)
    positive_RK, negative_RK = (runs[:, ::-1] for runs in tied_runs(y_N, s_N, w_RN))
    hits_RK = np.cumsum(positive_RK, axis=1)
    precision_RK = hits_RK / np.maximum(hits_RK + np.cumsum(negative_RK, axis=1), np.finfo(float).tiny)
    value_R = divide((positive_RK * precision_RK).sum(axis=1), positive_RK.sum(axis=1))
    return unpack(np.where(negative_RK.sum(axis=1) > 0, value_R, np.nan), weights)


def mcc(
    labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None, *, threshold: float = 0.5
) -> float | NDArray:
    """Matthews correlation of the labels and the calls.

    Args:
        labels: (N,) of 0, 1 or NaN; class numbers when scores has columns.
        scores: (N,), called positive at ``threshold`` or above; or (N, C), called by the largest.
        weights: (N,) or (R, N), at least 0.
        threshold: Choose it on validation rows: :func:`best_mcc_threshold`. Not used with (N, C).

    Returns:
        Value in [-1, 1], 0 when all calls are the same; NaN where fewer than two classes have weight.

    Reference: Gorodkin 2004, equation 8, for more than two classes.
    """
    if np.ndim(scores) == 2:
        y_N, s_NC, w_RN = prepare_classes(labels, scores, weights)
        called_N, classes = s_NC.argmax(axis=1), s_NC.shape[1]
    else:
        y_N, s_N, w_RN = prepare_binary(labels, scores, weights)
        called_N, classes = s_N >= threshold, 2
    truth_NC, call_NC = np.eye(classes)[y_N.astype(int)], np.eye(classes)[called_N.astype(int)]
    truth_RC, call_RC, total_R = w_RN @ truth_NC, w_RN @ call_NC, w_RN.sum(axis=1)
    correct_R = w_RN @ (truth_NC * call_NC).sum(axis=1)
    spread_truth_R = total_R**2 - (truth_RC**2).sum(axis=1)
    spread_call_R = total_R**2 - (call_RC**2).sum(axis=1)
    covariance_R = correct_R * total_R - (truth_RC * call_RC).sum(axis=1)
    product_R = spread_truth_R * spread_call_R
    value_R = np.where(product_R > 0, divide(covariance_R, np.sqrt(product_R)), 0.0)
    return unpack(np.where(spread_truth_R > 0, value_R, np.nan), weights)


def accuracy(labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> float | NDArray:
    """Share of rows whose class, (N,) with NaN left out, has the largest of the (N, C) scores; in [0, 1]."""
    y_N, s_NC, w_RN = prepare_classes(labels, scores, weights)
    return unpack(mean((s_NC.argmax(axis=1) == y_N).astype(float), w_RN), weights)


def brier(labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> float | NDArray:
    """Brier score: mean squared error of the probabilities.

    Args:
        labels: (N,) of 0, 1 or NaN; class numbers when scores has columns.
        scores: Probabilities (N,), or (N, C) with rows that sum to 1.
        weights: (N,) or (R, N), at least 0.

    Returns:
        Value in [0, 1]; in [0, 2] for (N, C), where the squares of all classes are summed. Lower is better.

    Reference: Brier 1950.
    """
    if np.ndim(scores) == 2:
        y_N, p_NC, w_RN = prepare_classes(labels, scores, weights)
        loss_N = ((p_NC - np.eye(p_NC.shape[1])[y_N.astype(int)]) ** 2).sum(axis=1)
    else:
        y_N, p_N, w_RN = prepare_binary(labels, scores, weights)
        loss_N = (p_N - y_N) ** 2
    return unpack(mean(loss_N, w_RN), weights)


def log_loss(labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> float | NDArray:
    """Mean negative log likelihood in nats of the labels under probabilities (N,) or (N, C); lower is better.

    Probabilities are clipped to at least 1e-12 (and, for (N,), to at most 1 - 1e-12).
    """
    if np.ndim(scores) == 2:
        y_N, p_NC, w_RN = prepare_classes(labels, scores, weights)
        p_N = p_NC[np.arange(len(y_N)), y_N.astype(int)]
    else:
        y_N, p_N, w_RN = prepare_binary(labels, scores, weights)
        p_N = np.where(y_N == 1, p_N, 1 - p_N)
    return unpack(mean(-np.log(np.maximum(p_N, LOWEST_PROBABILITY)), w_RN), weights)


def expected_calibration_error(
    labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None
) -> float | NDArray:
    """Expected calibration error over 15 bins of equal width on [0, 1].

    Args:
        labels: (N,) of 0, 1 or NaN; class numbers when scores has columns.
        scores: Probabilities of the positive class (N,); or (N, C), whose largest is tested.
        weights: (N,) or (R, N), at least 0.

    Returns:
        Mean over rows of |observed frequency - mean probability| of the row's bin, in [0, 1]. Lower is
        better; on few rows even a perfect forecast does not reach 0.

    Reference: Naeini, Cooper and Hauskrecht 2015, section 3.
    """
    if np.ndim(scores) == 2:
        y_N, p_NC, w_RN = prepare_classes(labels, scores, weights)
        y_N, p_N = (p_NC.argmax(axis=1) == y_N).astype(float), p_NC.max(axis=1)
    else:
        y_N, p_N, w_RN = prepare_binary(labels, scores, weights)
    member_NK = np.eye(RELIABILITY_BINS)[_bin_of(p_N, RELIABILITY_BINS)]
    gap_RK = np.abs(w_RN @ (member_NK * (y_N - p_N)[:, None]))
    return unpack(divide(gap_RK.sum(axis=1), w_RN.sum(axis=1)), weights)


def reliability(labels: ArrayLike, scores: ArrayLike, *, bins: int = 10) -> Reliability:
    """Observed frequency over mean probability in bins of equal width on [0, 1].

    Args:
        labels: (N,) of 0, 1 or NaN.
        scores: Probabilities (N,).
        bins: At least 1.
    """
    y_N, p_N, _ = prepare_binary(labels, scores, None)
    bin_N = _bin_of(p_N, bins)
    count_K = np.bincount(bin_N, minlength=bins)
    predicted_K = divide(np.bincount(bin_N, weights=p_N, minlength=bins), count_K)
    observed_K = divide(np.bincount(bin_N, weights=y_N, minlength=bins), count_K)
    return Reliability(np.linspace(0, 1, bins + 1), predicted_K, observed_K, count_K)


def pearson(labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> float | NDArray:
    """Pearson correlation in [-1, 1] with continuous labels (N,); NaN where either side is constant."""
    y_N, s_N, w_RN = prepare(labels, scores, weights)
    tile = (len(w_RN), len(y_N))
    return unpack(correlation(np.broadcast_to(y_N, tile), np.broadcast_to(s_N, tile), w_RN), weights)


def spearman(labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> float | NDArray:
    """Spearman correlation in [-1, 1]: Pearson's of mid-ranks, taken anew under each row of weights."""
    y_N, s_N, w_RN = prepare(labels, scores, weights)
    return unpack(correlation(ranks(y_N, w_RN), ranks(s_N, w_RN), w_RN), weights)


def r2(labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> float | NDArray:
    """Coefficient of determination: 1 is perfect, 0 the mean of these labels; NaN if labels are constant."""
    y_N, s_N, w_RN = prepare(labels, scores, weights)
    residual_R = w_RN @ (y_N - s_N) ** 2
    centred_N = y_N - (y_N.mean() if len(y_N) else 0.0)
    spread_R = w_RN @ centred_N**2 - divide((w_RN @ centred_N) ** 2, w_RN.sum(axis=1))
    return unpack(1 - divide(residual_R, np.where(spread_R > 1e-12 * (w_RN @ y_N**2), spread_R, 0.0)), weights)


def rmse(labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> float | NDArray:
    """Root mean squared error, in the label's unit; lower is better."""
    y_N, s_N, w_RN = prepare(labels, scores, weights)
    return unpack(np.sqrt(mean((y_N - s_N) ** 2, w_RN)), weights)


def mae(labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> float | NDArray:
    """Mean absolute error, in the label's unit; lower is better."""
    y_N, s_N, w_RN = prepare(labels, scores, weights)
    return unpack(mean(np.abs(y_N - s_N), w_RN), weights)


def one_vs_rest(metric: Metric) -> Metric:
    """A binary metric for classes (N,) and scores (N, C): its mean over the classes it is defined for."""

    @functools.wraps(metric)
    def macro(labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> float | NDArray:
        labels, scores = np.asarray(labels, dtype=float), np.asarray(scores, dtype=float)
        is_class = [np.where(np.isnan(labels), np.nan, labels == c) for c in range(scores.shape[1])]
        return nan_mean([metric(y, scores[:, c], weights) for c, y in enumerate(is_class)])

    return macro


def column_mean(metric: Metric) -> Metric:
    """A metric for labels and scores (N, T): its mean over the columns it is defined for."""

    @functools.wraps(metric)
    def over_columns(labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> float | NDArray:
        labels, scores = np.asarray(labels, dtype=float), np.asarray(scores, dtype=float)
        return nan_mean([metric(labels[:, t], scores[:, t], weights) for t in range(labels.shape[1])])

    return over_columns


def fold_mean(metric: Metric, folds: ArrayLike) -> Metric:
    """A metric taken within each fold (N,) and averaged over folds: the headline of a cross-validation.

    Scores of different folds come from different models; pooling them would also compare their scales.
    """
    folds = np.asarray(folds)

    @functools.wraps(metric)
    def over_folds(labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> float | NDArray:
        labels, scores = np.asarray(labels, dtype=float), np.asarray(scores, dtype=float)
        w = None if weights is None else np.asarray(weights, dtype=float)
        parts = [(folds == fold) for fold in np.unique(folds)]
        return nan_mean([metric(labels[at], scores[at], None if w is None else w[..., at]) for at in parts])

    return over_folds


def metric_set(kind: str, *, threshold: float = 0.5) -> dict[str, Metric]:
    """The metrics reported for a kind of label, by the name they have in metrics.json.

    Args:
        kind: ``"binary"`` (scores (N,) are probabilities), ``"multiclass"`` (N, C) or ``"continuous"`` (N,).
        threshold: Probability above which a binary row is called positive, chosen on validation.

    Raises:
        ConfigError: The kind is unknown.
    """
    probability = {"brier": brier, "log_loss": log_loss, "ece": expected_calibration_error}
    if kind == "binary":
        at_threshold = functools.partial(mcc, threshold=threshold)
        return {"auroc": auroc, "auprc": average_precision, "mcc": at_threshold, **probability}
    if kind == "multiclass":
        ranking = {"macro_auroc": one_vs_rest(auroc), "macro_auprc": one_vs_rest(average_precision)}
        return {**ranking, "mcc": mcc, "accuracy": accuracy, **probability}
    if kind == "continuous":
        return {"pearson": pearson, "spearman": spearman, "r2": r2, "rmse": rmse, "mae": mae}
    raise ConfigError("kind", expected=f"one of {', '.join(KINDS)}", got=repr(kind))


def validation_metrics(kind: str, labels: ArrayLike, scores: ArrayLike) -> dict[str, float]:
    """The metrics of a kind without intervals, for each epoch of a training run.

    Args:
        kind: As for :func:`metric_set`; binary calls are made at 0.5.
        labels: (N,); or (N, T) label columns, with scores (N, T), of which each metric is averaged.
        scores: Probabilities (N,) or (N, C), or predicted values (N,).
    """
    several = np.ndim(labels) == 2
    chosen = metric_set(kind).items()
    return {name: float((column_mean(f) if several else f)(labels, scores)) for name, f in chosen}


def best_mcc_threshold(labels: ArrayLike, scores: ArrayLike) -> float:
    """The threshold with the largest Matthews correlation; use validation rows, never test rows.

    Args:
        labels: (N,) of 0, 1 or NaN.
        scores: (N,).

    Returns:
        A value half way between two neighbouring scores; the middle one of equally good ones. 0.5, with a
        warning, when the rows do not hold both classes or all scores are the same.
    """
    y_N, s_N, w_RN = prepare_binary(labels, scores, None)
    positive_K, negative_K = (runs[0] for runs in tied_runs(y_N, s_N, w_RN))
    p, n = positive_K.sum(), negative_K.sum()
    if p == 0 or n == 0 or len(positive_K) < 2:
        reason = undefined_reason(labels) or "all scores are the same"
        warnings.warn(f"threshold left at 0.5: {reason}", stacklevel=2)
        return 0.5
    hits_K, alarms_K = p - np.cumsum(positive_K)[:-1], n - np.cumsum(negative_K)[:-1]
    called_K = hits_K + alarms_K
    value_K = (hits_K * n - alarms_K * p) / np.sqrt(p * n * called_K * (p + n - called_K))
    winners = np.flatnonzero(value_K >= value_K.max() - 1e-12)
    at = winners[(len(winners) - 1) // 2]
    level_K = np.unique(s_N)
    middle = 0.5 * (level_K[at] + level_K[at + 1])
    return float(middle if middle > level_K[at] else level_K[at + 1])


class AllRows(torchmetrics.Metric):
    """Outputs and labels of every row of an epoch, from all batches and ranks: ranking metrics need them at once."""

    full_state_update = False

    def __init__(self):
        super().__init__()
        self.add_state("outputs", default=[], dist_reduce_fx="cat")
        self.add_state("labels", default=[], dist_reduce_fx="cat")

    def update(self, outputs: torch.Tensor, labels: torch.Tensor) -> None:
        """Add outputs and labels of a batch, both with the rows on the first axis."""
        self.outputs.append(outputs.detach().float())
        self.labels.append(labels.detach().float())

    def compute(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Outputs and labels of all rows seen."""
        return torchmetrics.utilities.dim_zero_cat(self.outputs), torchmetrics.utilities.dim_zero_cat(self.labels)


def _bin_of(p_N: NDArray, bins: int) -> NDArray:
    if ((p_N < 0) | (p_N > 1)).any():
        raise ShapeError("scores", expected="probabilities in [0, 1]", got=f"{p_N.min():g} to {p_N.max():g}")
    return np.minimum((p_N * bins).astype(int), bins - 1)
