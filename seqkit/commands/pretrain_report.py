"""Held-out figures of a pretraining run beside simple models of the same bases, with plot, page and tables.

Legend: L held-out bases, laid end to end; K blocks of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seqkit.commands.pretrain_measure import as_trained, carried_bits, each_span, hidden_bits, window_bits
from seqkit.commands.run_folder import METRICS
from seqkit.commands.run_page import PAGE, TABLES
from seqkit.commands.trainer import HISTORY
from seqkit.data.pretrain import GenomeData
from seqkit.files import write_json, write_text
from seqkit.report.curve import plot_learning
from seqkit.report.page import write_page
from seqkit.report.table import Table, cell, markdown, show
from seqkit.tasks.intervals import bootstrap_interval, paired_bootstrap
from seqkit.tasks.markov import ORDER, MarkovModel
from seqkit.tasks.neighbours import REACH, NeighbourModel
from seqkit.tasks.pretrain import PretrainTask

CURVE = "plots/curve"
UNIFORM, SHORT, SINGLE, MIXED = "uniform", "Markov, order 2", "Markov, order 12", "Markov, orders 0 to 12 mixed"
NEIGHBOURS = f"neighbours, 0 to {REACH} a side mixed"
_BLOCKS = 200
_LEAST_BLOCK = 1024


def evaluate(
    task: PretrainTask,
    data: GenomeData,
    folder: Path,
    *,
    lengths: Sequence[int],
    precision: str,
    seed: int,
    training: Mapping[str, Any],
    counted: GenomeData | None,
) -> dict[str, Any]:
    """Measure the held-out part, draw and write.

    Args:
        task: The model.
        data: Genome and its parts.
        folder: Run folder.
        lengths: Bases of a window; a causal model is read in windows of each, and the first is what is compared.
        precision: Of training, as Lightning names it.
        seed: Of the resamples behind the intervals.
        training: What the run took, for the record.
        counted: Genome whose training part the Markov models count; None leaves them out.

    Returns:
        The contents of ``metrics.json``.
    """
    bits = model_bits(task, data, lengths, precision)
    if counted is not None:
        pieces = (counted.genome.ids(*span) for span in counted.split.train)
        bits |= (
            markov_bits(data, MarkovModel().fit(pieces)) if task.objective.is_causal else neighbour_bits(data, pieces)
        )
    scored_L = np.logical_and.reduce([~np.isnan(bits_L) for bits_L in bits.values()])
    bits = {name: np.where(scored_L, bits_L, np.nan) for name, bits_L in bits.items()}
    bits[UNIFORM] = np.where(scored_L, 2.0, np.nan)
    metrics = {
        "task": "pretrain",
        "objective": task.objective.name,
        "genome": {"file": data.genome.source, "sha256": data.genome.sha256},
        "split": data.split.description,
        "bases": {**data.split.bases, "scored": int(scored_L.sum())},
        "parameters": sum(p.numel() for p in task.net.parameters()),
        "length": lengths[0],
        "training": dict(training),
        "results": compare(bits, seed=seed),
    }
    write_report(folder, metrics)
    return metrics


def model_bits(task: PretrainTask, data: GenomeData, lengths: Sequence[int], precision: str) -> dict[str, NDArray]:
    """Bits (L,) of each way to read the held-out part, NaN where nothing is scored.

    A causal model reads windows that overlap by half, each base seeing between half a window and a whole one, and, if
    its state does not grow, the whole of each stretch. A masked model reads windows of the first length that do not
    overlap.
    """
    ways = {}
    if not task.objective.is_causal:
        ways[f"seqkit, windows of {lengths[0]:,}"] = hidden_bits(task, lengths[0])
    else:
        ways |= {f"seqkit, windows of {length:,}": window_bits(task, length, length // 2) for length in lengths}
        if "attention" not in task.net.backbone.config.blocks:
            ways["seqkit, state carried throughout"] = carried_bits(task)
    with as_trained(task, precision):
        return {name: each_span(data.genome, data.split.held_out, measure, name) for name, measure in ways.items()}


def markov_bits(data: GenomeData, model: MarkovModel) -> dict[str, NDArray]:
    """Bits (L,) of the simple models on the same bases."""
    simple = {
        MIXED: model.mixed_bits,
        SINGLE: lambda ids_L: model.single_bits(ids_L, ORDER),
        SHORT: lambda ids_L: model.single_bits(ids_L, 2),
    }
    return {name: each_span(data.genome, data.split.held_out, measure, None) for name, measure in simple.items()}


def neighbour_bits(data: GenomeData, pieces: Iterable[NDArray]) -> dict[str, NDArray]:
    """Bits (L,) of counts of the neighbours on both sides, fitted on ``pieces``."""
    model = NeighbourModel().fit(pieces)
    return {NEIGHBOURS: each_span(data.genome, data.split.held_out, model.bits, None)}


def compare(bits: Mapping[str, NDArray], seed: int) -> dict[str, dict[str, Any]]:
    """Mean bits with a 95 % interval, and the first method minus this one, resampled in blocks of neighbours."""
    first = next(iter(bits.values()))
    blocks = max(1, min(_BLOCKS, int((~np.isnan(first)).sum()) // _LEAST_BLOCK))
    sums = {name: _block_sums(bits_L, blocks) for name, bits_L in bits.items()}
    results: dict[str, dict[str, Any]] = {}
    for name, (total_K, count_K) in sums.items():
        results[name] = bootstrap_interval(_ratio, count_K, total_K, seed=seed)._asdict()
        if name != next(iter(sums)):
            results[name]["difference"] = paired_bootstrap(
                _ratio, count_K, next(iter(sums.values()))[0], total_K, seed=seed
            )._asdict()
    return results


def _block_sums(bits_L: NDArray, blocks: int) -> tuple[NDArray, NDArray]:
    """Sum of the bits and number of scored bases of each of K blocks of neighbours."""
    edges = np.linspace(0, len(bits_L), blocks, endpoint=False).astype(np.int64)
    known_L = ~np.isnan(bits_L)
    total_K = np.add.reduceat(np.where(known_L, bits_L, 0.0).astype(np.float64), edges)
    return total_K, np.add.reduceat(known_L.astype(np.float64), edges)


def _ratio(count_K: NDArray, total_K: NDArray, weights_RK: NDArray | None = None) -> float | NDArray:
    """Mean bits: sum over count, for each weighting of the blocks."""
    if weights_RK is None:
        return total_K.sum() / count_K.sum()
    return (weights_RK @ total_K) / np.maximum(weights_RK @ count_K, 1.0)


def write_report(folder: Path, metrics: Mapping[str, Any]) -> None:
    """Write curve, page, table and, last, ``metrics.json``."""
    bars = {name: found["value"] for name, found in metrics["results"].items() if not name.startswith("seqkit")}
    if (folder / HISTORY).exists():
        (folder / CURVE).parent.mkdir(exist_ok=True)
        plot_learning(folder / CURVE, folder / HISTORY, bars, unit=unit(metrics))
    table = summary_table(metrics)
    write_text(folder / TABLES, markdown(table))
    write_page(
        folder / PAGE,
        title=f"Pretraining on {metrics['genome']['file']}",
        lead=f"{metrics['split']}.",
        tables=[table],
        figures=[((folder / CURVE).with_suffix(".png"), "Held-out and training bits while learning.")],
        details={
            "objective": metrics["objective"],
            "parameters": f"{metrics['parameters']:,}",
            "training": ", ".join(f"{name} {value}" for name, value in metrics["training"].items()),
            "bases": ", ".join(f"{name} {count:,}" for name, count in metrics["bases"].items()),
            "sha256 of the bases": metrics["genome"]["sha256"],
        },
    )
    write_json(folder / METRICS, metrics)


def summary_table(metrics: Mapping[str, Any]) -> Table:
    """Held-out bits of every method, with 95 % intervals."""
    causal = metrics["objective"] == "causal"
    rows = []
    for name, found in metrics["results"].items():
        difference = found.get("difference")
        cells = [name, cell(_number(found["value"]), _number(found["low"]), _number(found["high"]), 4)]
        cells.append(
            "" if difference is None else "{difference:+.4f} [{low:+.4f}, {high:+.4f}]".format(
                **{key: _number(difference[key]) for key in ("difference", "low", "high")}
            )
        )  # fmt: skip
        rows.append(tuple(cells))
    bases, training = metrics["bases"], metrics["training"]
    note = (
        f"{metrics['split']}. {bases['scored']:,} bases scored. {metrics['parameters']:,} parameters"
        + (f", {training['tokens']:,} tokens in {training['seconds']:,} s" if "tokens" in training else "")
        + f", windows of {metrics['length']:,} bases. 95 % intervals: bootstrap over blocks of neighbours. "
    )
    note += (
        f"Markov models count the training bases on both strands; a base is scored where {ORDER} known ones precede it."
        if causal
        else "Bits of each hidden base, both sides seen (counts see all neighbours, the model those not hidden): not "
        "to be compared with bits per base of a causal model."
    )
    title = f"Held-out part of {metrics['genome']['file']}"
    return Table(title, ("method", unit(metrics), "first minus this"), tuple(rows), note)


def unit(metrics: Mapping[str, Any]) -> str:
    """What the figures are."""
    return "bits per base" if metrics["objective"] == "causal" else "bits per hidden base"


def print_summary(folder: Path, metrics: Mapping[str, Any]) -> None:
    """The table at the end of a run."""
    show(summary_table(metrics))
    print(f"run folder: {folder}")


def _number(stored: float | None) -> float:
    return float("nan") if stored is None else stored
