"""ECG200 and Rock, the published parts: smoke tests, since one neighbour already does well."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from sklearn.base import ClassifierMixin
from sklearn.linear_model import RidgeClassifierCV
from sklearn.neighbors import KNeighborsClassifier

from seqkit.bench.series import files
from seqkit.bench.series.rows import Row, timed

SETS = ("ECG200", "Rock")
FILES = tuple(f"{name}_{part}.tsv" for name in SETS for part in ("TRAIN", "TEST"))


def accuracy(model: ClassifierMixin, train: tuple, test: tuple) -> dict[str, float]:
    """Share of test rows classified right."""
    return {"accuracy": float(model.fit(*train).score(*test))}


def baselines(folder: Path) -> Iterator[Row]:
    """One nearest neighbour and ridge on the raw series."""
    for name in SETS:
        (x, labels), (x_test, truth) = (files.ucr(folder, name, part) for part in ("TRAIN", "TEST"))
        methods = {"1-NN": KNeighborsClassifier(1), "ridge": RidgeClassifierCV(alphas=np.logspace(-3, 3, 7))}
        for method, model in methods.items():
            yield timed(name, method, accuracy, model, (x, labels), (x_test, truth))
