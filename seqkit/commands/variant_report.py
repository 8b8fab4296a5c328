"""Test figures of a variant-effect run, beside simple methods on the same rows, with plots and predictions.

Legend: N alleles of the table, T label columns, K outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from seqkit.commands.run_folder import METRICS
from seqkit.commands.variant_page import write_run_page
from seqkit.commands.variant_plots import draw
from seqkit.data.modules import VariantDataModule
from seqkit.data.splits import Split
from seqkit.data.variant_effect import VariantEffectData
from seqkit.data.windows import VariantWindows
from seqkit.files import atomic, write_json
from seqkit.inference.score import score_batches
from seqkit.tasks import baselines
from seqkit.tasks.calibration import PlattScaling, TemperatureScaling, fit_platt, fit_temperature
from seqkit.tasks.metrics import best_mcc_threshold, estimate_all, metric_set
from seqkit.tasks.variant_effect import VariantEffectTask

OURS = "seqkit"
RAW = "seqkit, before calibration"
PREDICTIONS = "predictions.parquet"
PROBABILITY_METRICS = ("brier", "log_loss", "ece")


class Method(NamedTuple):
    """Scores of one method on the validation and test rows of one label column.

    Attributes:
        name: As printed.
        validation: (V,) or (V, C).
        test: (E,) or (E, C).
        probability: Whether scores are probabilities.
        threshold: Score from which a row is called positive, chosen on validation rows; None where there is none.
    """

    name: str
    validation: NDArray
    test: NDArray
    probability: bool
    threshold: float | None = None


def score_rows(
    task: VariantEffectTask,
    data: VariantEffectData,
    rows: NDArray,
    title: str | None = "scoring",
    build: Callable[[NDArray], VariantWindows] | None = None,
) -> dict[str, NDArray]:
    """Outputs of the task for table rows, in their order; see :meth:`VariantEffectTask.score`.

    Args:
        task: The task.
        data: The table.
        rows: Allele numbers.
        title: Of the progress bar; None shows none.
        build: From allele numbers to their windows; those on the reference by default.
    """
    module = VariantDataModule(
        predict=data.windows(rows, build), batch_size=4 * data.config.batch_size, workers=data.config.workers
    )
    return score_batches(task, module.predict_dataloader(), task.score, device=task.device, rows=len(rows), title=title)


def calibrate(kind: str, outputs_VK: NDArray, labels_VT: NDArray) -> list[dict[str, float]]:
    """Calibration per label column, fitted on validation rows; empty for continuous labels."""
    if kind == "binary":
        return [asdict(fit_platt(outputs_VK[:, t], labels_VT[:, t])) for t in range(labels_VT.shape[1])]
    if kind == "multiclass":
        return [asdict(fit_temperature(outputs_VK, labels_VT[:, 0]))]
    return []


def evaluate(
    task: VariantEffectTask,
    data: VariantEffectData,
    split: Split,
    folder: Path,
    *,
    seed: int,
    best_epoch: int,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Calibrate on validation rows, measure on test rows, write metrics, predictions and plots.

    Returns:
        The contents of ``metrics.json``, and calibration with thresholds for the exported model.
    """
    validation = score_rows(task, data, split.validation)["outputs"]
    test = score_rows(task, data, split.test)["outputs"]
    calibration = calibrate(data.kind, validation, data.labels[split.validation])
    rows = baselines.Rows(split.train, split.validation, split.test)
    results, thresholds, methods_of = {}, [], {}
    for column, name in enumerate(data.label_names):
        methods = [decide(data.kind, validation, test, calibration, column), *simple_methods(data, rows, column)]
        if data.kind == "binary":
            truth = data.labels[split.validation, column]
            methods = [m._replace(threshold=chosen_threshold(truth, m.validation)) for m in methods]
        thresholds.append(methods[0].threshold)
        results[name], methods_of[name] = measure(data, split, column, methods, seed), methods
    metrics = write_report(folder, data, split, results, methods_of, np.concatenate([validation, test]), best_epoch)
    return metrics, {"columns": calibration, "thresholds": thresholds}


def write_report(
    folder: Path,
    data: VariantEffectData,
    split: Split,
    results: Mapping[str, Any],
    methods_of: Mapping[str, list[Method]],
    outputs: NDArray,
    best_epoch: int | None = None,
) -> dict[str, Any]:
    """Write predictions, plots and, last, ``metrics.json``; return its contents."""
    metrics = {
        "task": "variant-effect",
        "kind": data.kind,
        "positive": {name: data.positive_name(name) for name in data.label_names} if data.kind == "binary" else {},
        "split": {"name": split.name, "description": split.description},
        "rows": {"train": len(split.train), "validation": len(split.validation), "test": len(split.test)},
        "alleles_by_status": data.sites.counts(),
        "results": results,
    }
    write_predictions(folder / PREDICTIONS, data, split, methods_of, outputs)
    draw(folder, data, split, methods_of, outputs, best_epoch)
    write_run_page(folder, data, split, methods_of, metrics)
    write_json(folder / METRICS, metrics)
    return metrics


def decide(
    kind: str, validation_VK: NDArray, test_EK: NDArray, calibration: list[dict[str, float]], column: int
) -> Method:
    """Our scores of one label column: calibrated probabilities, or values."""
    if kind == "continuous":
        return Method(OURS, validation_VK[:, column], test_EK[:, column], False)
    if kind == "multiclass":
        scale = TemperatureScaling(**calibration[0])
        return Method(OURS, scale.probabilities(validation_VK), scale.probabilities(test_EK), True)
    scale = PlattScaling(**calibration[column])
    return Method(OURS, scale.probabilities(validation_VK[:, column]), scale.probabilities(test_EK[:, column]), True)


def chosen_threshold(labels_V: NDArray, scores_V: NDArray) -> float:
    """Threshold with the best MCC on validation rows; 0.5 for a method that gives every row the same score."""
    return 0.5 if np.ptp(scores_V) == 0 else best_mcc_threshold(labels_V, scores_V)


def simple_methods(data: VariantEffectData, rows: baselines.Rows, column: int) -> list[Method]:
    """The baselines that the data allow, each fitted on the training rows alone."""
    labels = data.labels[:, column]
    how = {"kind": data.kind, "classes": max(2, len(data.class_names))}
    found = [baselines.trinucleotide(*data.exchanges, labels, rows, **how)]
    if data.plain_features.shape[1]:
        found.append(baselines.linear("consequence regression", data.plain_features, labels, rows, **how))
    if data.features.shape[1]:
        found.append(baselines.linear("regression, our features", data.features, labels, rows, **how))
        found.append(baselines.gradient_boosting("boosted trees, our features", data.features, labels, rows, **how))
    if data.kind != "multiclass":
        found.append(baselines.neighbour_labels(data.positions, labels, rows, contigs=data.contigs))
    methods = [Method(b.name, b.validation, b.scores, data.kind != "continuous") for b in found]
    for name, values in data.compared.items():
        b = baselines.single_column(name, values, labels, rows, **how)
        methods.append(Method(b.name, b.validation, b.scores, data.kind == "multiclass"))
    return methods


def measure(
    data: VariantEffectData, split: Split, column: int, methods: list[Method], seed: int
) -> dict[str, dict[str, Any]]:
    """Every metric of every method with its interval, resampled by position so that rows of one site stay together."""
    labels = data.labels[split.test, column]
    sites = [f"{c}:{p}" for c, p in zip(data.contigs[split.test], data.positions[split.test], strict=True)]
    figures: dict[str, dict[str, Any]] = {}
    for method in methods:
        wanted = metric_set(data.kind, threshold=0.5 if method.threshold is None else method.threshold)
        left_out = () if method.probability else PROBABILITY_METRICS
        if data.kind == "binary" and method.threshold is None:
            left_out = (*left_out, "mcc")
        wanted = {name: metric for name, metric in wanted.items() if name not in left_out}
        estimates = estimate_all(wanted, labels, method.test, groups=sites, seed=seed)
        figures[method.name] = {name: estimate._asdict() for name, estimate in estimates.items()}
        if method.threshold is not None:
            figures[method.name]["threshold"] = method.threshold
    return figures


def write_predictions(
    path: Path, data: VariantEffectData, split: Split, methods_of: Mapping[str, list[Method]], outputs: NDArray
) -> None:
    """Validation and test rows with labels, our outputs before calibration and the scores of every method."""
    rows = np.concatenate([split.validation, split.test])
    part = ["validation"] * len(split.validation) + ["test"] * len(split.test)
    frame = data.describe_rows(rows).with_columns(pl.Series("part", part))
    for column, (label, methods) in enumerate(methods_of.items()):
        prefix = f"{label}:" if len(methods_of) > 1 else ""
        frame = frame.with_columns(pl.Series(f"{prefix}label", data.labels[rows, column]))
        if data.kind != "multiclass":
            frame = frame.with_columns(pl.Series(f"{prefix}{RAW}", outputs[:, column]))
        for method in methods:
            scores = np.concatenate([method.validation, method.test])
            frame = frame.with_columns(pl.Series(f"{prefix}{method.name}", scores))
    with atomic(path) as temporary:
        frame.write_parquet(temporary)
