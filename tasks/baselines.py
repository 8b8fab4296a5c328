"""Simple methods that a trained model has to beat on the same rows.

Each function fits on the training rows and returns a :class:`Baseline` with scores of the validation rows (for
thresholds) and of the test rows. No setting is tuned on any of them, and every result is deterministic.

Shape letters: N rows of the whole table, V validation rows, E test rows, F features, C classes.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from seqkit.errors import ShapeError
from seqkit.tasks.metrics import auroc, spearman

BASES = "ACGT"
KERNEL_REACH = 40  # in scales: exp(-40) is below anything that could change a ranking
PRIOR_WEIGHT = 1e-3  # of the training prevalence against neighbours' labels: decides only where there is none near


class Rows(NamedTuple):
    """Row numbers of the three parts of a table, disjoint."""

    train: NDArray
    validation: NDArray
    test: NDArray


class Baseline(NamedTuple):
    """Scores of one method.

    Attributes:
        name: As printed in tables.
        scores: Of the test rows: (E,) probabilities, predicted values or a column's values; (E, C) for classes.
        validation: The same of the validation rows.
        seconds: Wall time of fit and prediction.
    """

    name: str
    scores: NDArray
    validation: NDArray
    seconds: float


def linear(
    name: str, features: ArrayLike, labels: ArrayLike, rows: Rows, *, kind: str = "binary", classes: int = 2
) -> Baseline:
    """Penalised linear model on standardised features: logistic regression (C = 0.1), or ridge for continuous labels.

    Args:
        name: As printed in tables.
        features: (N, F); NaN becomes the mean of the training rows.
        labels: (N,) of 0 and 1, class numbers or values; rows with NaN are not trained on.
        rows: Parts of the table.
        kind: ``"binary"``, ``"multiclass"`` or ``"continuous"``.
        classes: C, for multiclass labels.
    """
    model = Ridge(alpha=10.0) if kind == "continuous" else LogisticRegression(C=0.1, max_iter=2000)
    steps = SimpleImputer(), StandardScaler(), model
    return _fit(name, make_pipeline(*steps), features, labels, rows, kind, classes)


def gradient_boosting(
    name: str, features: ArrayLike, labels: ArrayLike, rows: Rows, *, kind: str = "binary", classes: int = 2
) -> Baseline:
    """Boosted trees: 200 of 15 leaves, rate 0.05, at least 20 rows per leaf, L2 of 1; NaN has its own branch.

    Args:
        name: As printed in tables.
        features: (N, F).
        labels: (N,) of 0 and 1, class numbers or values; rows with NaN are not trained on.
        rows: Parts of the table.
        kind: ``"binary"``, ``"multiclass"`` or ``"continuous"``.
        classes: C, for multiclass labels.
    """
    family = HistGradientBoostingRegressor if kind == "continuous" else HistGradientBoostingClassifier
    model = family(
        max_iter=200, learning_rate=0.05, max_leaf_nodes=15, min_samples_leaf=20, l2_regularization=1.0,
        early_stopping=False, random_state=0,
    )  # fmt: skip
    return _fit(name, model, features, labels, rows, kind, classes)


def trinucleotide(
    contexts: ArrayLike,
    alternates: ArrayLike,
    labels: ArrayLike,
    rows: Rows,
    *,
    kind: str = "binary",
    classes: int = 2,
) -> Baseline:
    """:func:`linear` on :func:`trinucleotide_features`: what the three bases and the exchange alone tell."""
    features, _ = trinucleotide_features(contexts, alternates)
    return linear("trinucleotide context", features, labels, rows, kind=kind, classes=classes)


def trinucleotide_features(contexts: ArrayLike, alternates: ArrayLike) -> tuple[NDArray, list[str]]:
    """One-hot of the 192 exchanges in their trinucleotide, and of the four letters one by one.

    Args:
        contexts: (N,) strings of three bases, the reference in the middle, on the strand the model sees.
        alternates: (N,) alternate bases on the same strand.

    Returns:
        Matrix (N, 208) of 0 and 1, with all zeros where a row is not a single-base exchange among A C G T; and the
        names of its columns.
    """
    contexts, alternates = (np.char.upper(np.asarray(x, dtype=str)) for x in (contexts, alternates))
    if contexts.shape != alternates.shape or contexts.ndim != 1:
        raise ShapeError("alternates", expected=f"shape {contexts.shape}", got=f"shape {alternates.shape}")
    exchanges = [a + b + c + ">" + d for a in BASES for b in BASES for c in BASES for d in BASES if b != d]
    letters = [f"{place} {base}" for place in ("before", "reference", "after", "alternate") for base in BASES]
    column = {exchange: i for i, exchange in enumerate(exchanges)}
    matrix = np.zeros((len(contexts), len(exchanges) + len(letters)))
    for row, (context, alternate) in enumerate(zip(contexts, alternates, strict=True)):
        at = column.get(f"{context}>{alternate}")
        if at is not None:
            matrix[row, at] = 1
            for place, base in enumerate(context + alternate):
                matrix[row, len(exchanges) + 4 * place + BASES.index(base)] = 1
    return matrix, exchanges + letters


def single_column(
    name: str, values: ArrayLike, labels: ArrayLike, rows: Rows, *, kind: str = "binary", classes: int = 2
) -> Baseline:
    """A published score as it is, such as CADD or phyloP, turned round if it falls with the label in training rows.

    Its scale is not a probability: only ranking metrics and chosen thresholds apply. For class labels it is made one
    by :func:`linear`.

    Args:
        name: As printed in tables.
        values: (N,); NaN becomes the mean of the training rows.
        labels: (N,); NaN is missing.
        rows: Parts of the table.
        kind: ``"binary"``, ``"multiclass"`` or ``"continuous"``.
        classes: C, for multiclass labels.
    """
    start = time.perf_counter()
    value_N, y_N = np.asarray(values, dtype=float), np.asarray(labels, dtype=float)
    if kind == "multiclass":
        return linear(name, value_N[:, None], y_N, rows, kind=kind, classes=classes)
    train = value_N[rows.train]
    known = train[~np.isnan(train)]
    filled_N = np.where(np.isnan(value_N), known.mean() if len(known) else 0.0, value_N)
    if kind == "binary":
        falls = auroc(y_N[rows.train], filled_N[rows.train]) < 0.5
    else:
        falls = spearman(y_N[rows.train], filled_N[rows.train]) < 0
    filled_N = -filled_N if falls else filled_N
    return _baseline(name, lambda at: filled_N[at], rows, start)


def neighbour_labels(
    positions: ArrayLike,
    labels: ArrayLike,
    rows: Rows,
    *,
    contigs: ArrayLike | None = None,
    scale: float = 3.0,
) -> Baseline:
    """Mean label of nearby training rows, weighted by exp(-distance / scale): no sequence at all.

    Any skill of this method is information that leaks from training rows to their neighbours across the split.

    Args:
        positions: (N,) in bases.
        labels: (N,) of 0 and 1 or values; NaN is missing.
        rows: Parts of the table.
        contigs: (N,) names; rows of different contigs are no neighbours.
        scale: In bases.
    """
    start = time.perf_counter()
    position_N, y_N = np.asarray(positions, dtype=float), np.asarray(labels, dtype=float)
    if contigs is not None:
        # Contigs laid end to end, further apart than the kernel reaches.
        contig_N = np.unique(np.asarray(contigs), return_inverse=True)[1].reshape(-1)
        position_N = position_N + contig_N * (np.ptp(position_N) + 2 * KERNEL_REACH * scale)
    train = rows.train[~np.isnan(y_N[rows.train])]
    train = train[np.argsort(position_N[train], kind="stable")]
    at_T, y_T = position_N[train], y_N[train]
    prior = float(y_T.mean()) if len(y_T) else 0.0

    def score(part: NDArray) -> NDArray:
        here = position_N[part]
        first = np.searchsorted(at_T, here - KERNEL_REACH * scale)
        last = np.searchsorted(at_T, here + KERNEL_REACH * scale, side="right")
        result = np.empty(len(part))
        for i, (a, b) in enumerate(zip(first, last, strict=True)):
            weight = np.exp(-np.abs(at_T[a:b] - here[i]) / scale)
            result[i] = (weight @ y_T[a:b] + PRIOR_WEIGHT * prior) / (weight.sum() + PRIOR_WEIGHT)
        return result

    return _baseline("neighbours' labels", score, rows, start)


def majority(labels: ArrayLike, rows: Rows, *, kind: str = "binary", classes: int = 2) -> Baseline:
    """The same answer for every row: prevalence, class frequencies or mean of the training rows."""
    start = time.perf_counter()
    y_T = np.asarray(labels, dtype=float)[rows.train]
    answer = _constant(y_T[~np.isnan(y_T)], kind, classes)
    return _baseline("majority", lambda part: np.broadcast_to(answer, (len(part), *answer.shape)).copy(), rows, start)


def _fit(name: str, model, features: ArrayLike, labels: ArrayLike, rows: Rows, kind: str, classes: int) -> Baseline:
    start = time.perf_counter()
    x_NF, y_N = np.asarray(features, dtype=float), np.asarray(labels, dtype=float)
    if x_NF.ndim != 2 or len(x_NF) != len(y_N):
        raise ShapeError("features", expected=f"({len(y_N)}, F)", got=f"shape {x_NF.shape}")
    train = rows.train[~np.isnan(y_N[rows.train])]
    x_NF = x_NF[:, ~np.isnan(x_NF[train]).all(axis=0)]
    nothing = "features" if x_NF.shape[1] == 0 else ""
    if kind != "continuous" and len(np.unique(y_N[train])) < 2:
        nothing = "two classes"
    if nothing:
        warnings.warn(f"{name}: no {nothing} in the training rows, its scores are constant", stacklevel=3)
        return majority(y_N, rows, kind=kind, classes=classes)._replace(name=name)
    target = y_N[train] if kind == "continuous" else y_N[train].astype(int)
    model.fit(x_NF[train], target)

    def score(part: NDArray) -> NDArray:
        if len(part) == 0:
            return np.zeros((0, classes) if kind == "multiclass" else 0)
        if kind == "continuous":
            return model.predict(x_NF[part])
        p = model.predict_proba(x_NF[part])
        if kind == "binary":
            return p[:, 1]
        every = np.zeros((len(part), classes))
        every[:, model.classes_] = p  # a class without training rows keeps probability 0
        return every

    return _baseline(name, score, rows, start)


def _constant(y_T: NDArray, kind: str, classes: int) -> NDArray:
    if kind == "multiclass":
        return np.bincount(y_T.astype(int), minlength=classes) / max(1, len(y_T))
    return np.asarray(y_T.mean() if len(y_T) else 0.0)


def _baseline(name: str, score: Callable[[NDArray], NDArray], rows: Rows, start: float) -> Baseline:
    validation, test = score(rows.validation), score(rows.test)
    return Baseline(name, test, validation, time.perf_counter() - start)
