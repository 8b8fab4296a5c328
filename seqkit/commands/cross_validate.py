"""``fit --cross-validate``: every fold and seed as a run of its own, then all folds together.

Metrics are averaged over folds; intervals and differences come from resampling blocks (exons, chromosomes), the units
a new variant would come from, with every method on the same resamples.

Legend: N alleles with a test score.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from seqkit.commands.run_folder import METRICS, write_manifest
from seqkit.commands.run_page import show_tables
from seqkit.commands.variant_report import OURS, PREDICTIONS, RAW
from seqkit.data.variant_effect import VariantEffectData, load_variant_effect
from seqkit.errors import ConfigError
from seqkit.files import write_json
from seqkit.report.table import Table
from seqkit.tasks.metrics import Metric, auroc, average_precision, fold_mean, paired_bootstrap, spearman

if TYPE_CHECKING:
    from seqkit.commands.variant_effect import FitConfig

CROSS_VALIDATION = "cross_validation.json"


class Pooled(NamedTuple):
    """Test scores of all folds of one seed.

    Attributes:
        labels_N: Labels.
        fold_N: Fold in which the row was tested.
        block_N: Block the row belongs to.
        group_N: Consequence or other group of the row.
        scores: Method to (N,) scores.
    """

    labels_N: NDArray
    fold_N: NDArray
    block_N: NDArray
    group_N: NDArray
    scores: dict[str, NDArray]


def cross_validate(config: FitConfig, folder: Path, seeds: str | None) -> int:
    """Train every fold with every seed and report means, spreads and differences.

    Args:
        config: The run's config; its own seed is used where ``seeds`` is None.
        folder: Run folder; each run lies in ``seed-S/fold-K`` and is skipped when finished.
        seeds: Comma-separated seeds.
    """
    from seqkit.commands.variant_effect import train_and_evaluate

    chosen = parse_seeds(seeds, config.seed)
    data = load_variant_effect(config.data)
    if data.kind == "multiclass" or len(data.label_names) > 1:
        raise ConfigError("--cross-validate", expected="one binary or continuous label", got=f"{data.label_names}")
    write_manifest(folder, seed=config.seed, inputs=data.inputs, device=config.trainer.device)
    splits = data.folds()
    for seed in chosen:
        for fold, split in enumerate(splits):
            run = folder / f"seed-{seed}" / f"fold-{fold}"
            run.mkdir(parents=True, exist_ok=True)
            train_and_evaluate(replace(config, seed=seed), data, split, run)
    pooled = {seed: pool(folder / f"seed-{seed}", data, len(splits)) for seed in chosen}
    summary = summarise(pooled, data.kind)
    summary["split"] = {"name": splits[0].name, "description": splits[0].description, "folds": len(splits)}
    write_json(folder / CROSS_VALIDATION, summary)
    write_json(folder / METRICS, {"task": "variant-effect", "kind": data.kind, "cross_validation": summary})
    show_tables(folder, cross_validation_tables(summary))
    return 0


def parse_seeds(text: str | None, default: int) -> list[int]:
    """Seeds of ``--seeds 0,1,2``; the config's own without it."""
    if text is None:
        return [default]
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() for part in parts) or len(set(parts)) < len(parts):
        raise ConfigError("--seeds", expected="different whole numbers with commas, such as 0,1,2", got=text)
    return [int(part) for part in parts]


def pool(folder: Path, data: VariantEffectData, folds: int) -> Pooled:
    """Test rows of all folds of one seed, in table order."""
    frames = []
    for fold in range(folds):
        frame = pl.read_parquet(folder / f"fold-{fold}" / PREDICTIONS).filter(pl.col("part") == "test")
        frames.append(frame.with_columns(pl.lit(fold).alias("fold")))
    frame = pl.concat(frames, how="diagonal").sort("index")
    known = frame.columns[frame.columns.index("label") + 1 : -1]
    return Pooled(
        frame["label"].to_numpy(),
        frame["fold"].to_numpy(),
        data.blocks[frame["index"].to_numpy()],
        frame["consequence"].to_numpy() if "consequence" in frame.columns else np.full(frame.height, ""),
        # Each fold has its own calibration; rows of different folds are compared before it.
        {name: frame[RAW if name == OURS else name].to_numpy() for name in known if name != RAW},
    )


def summarise(pooled: dict[int, Pooled], kind: str) -> dict[str, Any]:
    """Mean over folds and seeds of each method, its spread, and our difference to it resampled by block."""
    metrics = {"auroc": auroc, "auprc": average_precision} if kind == "binary" else {"spearman": spearman}
    first = next(iter(pooled.values()))
    groups = {"all": np.ones(len(first.labels_N), dtype=bool)}
    for name in ("missense",):
        if (first.group_N == name).sum() > 50:
            groups[name] = first.group_N == name
    summary: dict[str, Any] = {
        "seeds": list(pooled),
        "rows": {group: int(member_N.sum()) for group, member_N in groups.items()},
        "blocks": len(np.unique(first.block_N)),
        "groups": {},
    }
    for group, member_N in groups.items():
        summary["groups"][group] = {
            method: {
                name: figures(metric, pooled, method, member_N, group == "all") for name, metric in metrics.items()
            }
            for method in first.scores
        }
    return summary


def figures(metric, pooled: dict[int, Pooled], method: str, member_N: NDArray, by_fold: bool) -> dict[str, Any]:
    """Figures of one method: fold means per seed, pooled values, and our difference with its interval.

    Where ``by_fold`` is False (small groups), the metric is taken over the pooled rows of all folds.
    """
    rows = {seed: (p, np.flatnonzero(member_N)) for seed, p in pooled.items()}
    means, spreads, whole = [], [], []
    for p, at in rows.values():
        per_fold = [
            float(metric(p.labels_N[at][p.fold_N[at] == f], p.scores[method][at][p.fold_N[at] == f]))
            for f in np.unique(p.fold_N)
        ]
        means.append(float(np.mean(per_fold)))
        spreads.append(float(np.std(per_fold, ddof=1)))
        whole.append(float(metric(p.labels_N[at], p.scores[method][at])))
    result = {"fold_mean": means, "fold_sd": spreads, "pooled": whole}
    if method != OURS:
        ours, theirs = (np.stack([p.scores[m][at] for p, at in rows.values()], axis=1) for m in (OURS, method))
        p, at = next(iter(rows.values()))
        compared = seed_mean(fold_mean(metric, p.fold_N[at]) if by_fold else metric)
        difference = paired_bootstrap(compared, p.labels_N[at], ours, theirs, p.block_N[at])
        result["seqkit_minus_this"] = difference._asdict()
    return result


def seed_mean(metric: Metric) -> Metric:
    """The mean of a metric over the seeds of a method; seeds are not averaged into an ensemble."""

    def over_seeds(labels, scores_NS, weights=None):
        return np.mean([metric(labels, scores_N, weights) for scores_N in scores_NS.T], axis=0)

    return over_seeds


def cross_validation_tables(summary: dict[str, Any]) -> list[Table]:
    """One table per group of rows: mean of each metric and our difference to it."""
    tables = []
    split, seeds = summary["split"], summary["seeds"]
    for group, methods in summary["groups"].items():
        names = list(methods[OURS])
        rows = []
        for method, results in methods.items():
            cells = [method]
            for name in names:
                r = results[name]
                cells.append(f"{np.mean(r['fold_mean'] if group == 'all' else r['pooled']):.3f}")
                gap = r.get("seqkit_minus_this")
                cells.append(f"{gap['difference']:+.3f} [{gap['low']:+.3f}, {gap['high']:+.3f}]" if gap else "")
            rows.append(tuple(cells))
        how = f"mean over {split['folds']} folds" if group == "all" else "pooled over folds"
        title = f"{group}, {summary['rows'][group]} rows: {how} ({split['name']} split), mean over seeds {seeds}"
        header = ("method", *(part for name in names for part in (name.upper(), "seqkit minus this")))
        tables.append(Table(title, header, tuple(rows), f"intervals: 95 %, {summary['blocks']} blocks resampled"))
    return tables
