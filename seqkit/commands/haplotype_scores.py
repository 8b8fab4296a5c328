"""Scores of a sample's alleles on its own phased haplotypes, as FORMAT fields."""

from __future__ import annotations

from functools import partial

import numpy as np
import polars as pl

from seqkit.commands.variant_report import score_rows
from seqkit.commands.variant_scores import VariantScorer, calibrated, output_names
from seqkit.data.haplotypes import (
    OVERLAP,
    REFERENCE,
    UNCALLED,
    UNPHASED,
    Genotype,
    Haplotype,
    Phased,
    haplotype_windows,
    own_edit,
)
from seqkit.data.variant_effect import VariantEffectData
from seqkit.errors import ConfigError


def formats(prefix: str) -> list[tuple[str, str, str, str]]:
    """FORMAT fields: key, number, type, description."""
    return [
        (f"{prefix}HAP", ".", "Float", "Score on each haplotype of GT, among its own variants"),
        (f"{prefix}HST", ".", "String", "OK or EDGE where a haplotype is scored, else the reason why not"),
    ]  # fmt: skip


def require_one_output(scorer: VariantScorer) -> None:
    """Refuse a model with several outputs: FORMAT has one score a haplotype."""
    names = output_names(scorer.trained)
    if len(names) > 1:
        raise ConfigError("--sample", expected="a model with one output", got=f"one with {', '.join(names)}")


def score_sample(scorer: VariantScorer, phased: Phased) -> tuple[pl.DataFrame, list[tuple[str, str] | None]]:
    """Scores of all alleles of a chunk, and the FORMAT values of the sample.

    Returns:
        The frame of :meth:`VariantScorer.score`, and for every record the texts of both FORMAT fields; None where the
        record has no GT.
    """
    frame, data = scorer.score_with_data(phased.chunk.table)
    first_of = dict(zip(*_first_alleles(phased.chunk.table.alleles), strict=True))
    status = data.sites.status_names()
    haplotypes = max((len(g.alleles) for g in phased.genotypes if g), default=0)
    cells = [None if g is None else [[".", _reason(g, a)] for a in g.alleles] for g in phased.genotypes]
    contigs = phased.chunk.table.alleles["contig"].to_list()
    for h in range(haplotypes):
        carried = {contig: found for (contig, number), found in phased.edits.items() if number == h}
        rows, records = [], []
        for record, genotype in enumerate(phased.genotypes):
            if genotype is None or h >= len(genotype.alleles) or cells[record][h][1]:
                continue
            row = first_of[record] + genotype.alleles[h] - 1
            free = carried.get(contigs[row], Haplotype()).without(own_edit(data.sites, row))
            cells[record][h][1] = status[row] if free or not data.sites.scored_N[row] else OVERLAP
            if free and data.sites.scored_N[row]:
                rows.append(row)
                records.append(record)
        for record, value in zip(records, _scores(scorer, data, np.array(rows, dtype=np.int64), carried), strict=True):
            cells[record][h][0] = f"{value:.6g}"
    return frame, [c and tuple(",".join(part) for part in zip(*c, strict=True)) for c in cells]


def _first_alleles(alleles: pl.DataFrame) -> tuple[list[int], list[int]]:
    """Records, and the number of the first allele of each."""
    first = alleles.with_row_index("at").group_by("row", maintain_order=True).agg(pl.col("at").first())
    return first["row"].to_list(), first["at"].to_list()


def _reason(genotype: Genotype, allele: int | None) -> str:
    """Why a haplotype has no score by its genotype alone; empty where it may have one."""
    if allele is None:
        return UNCALLED
    if not genotype.phased:
        return UNPHASED
    return REFERENCE if allele == 0 else ""


def _scores(
    scorer: VariantScorer, data: VariantEffectData, rows: np.ndarray, carried: dict[str, Haplotype]
) -> np.ndarray:
    if not len(rows):
        return np.zeros(0)
    contigs = data.table.alleles["contig"].to_list()
    build = partial(
        _windows, sites=data.sites, fasta=data.fasta, length=data.config.window, carried=carried, contigs=contigs
    )
    found = score_rows(scorer.trained.task, data, rows, title=None, build=build)
    return calibrated(scorer.trained, found["outputs"])[:, 0]


def _windows(indices: np.ndarray, **how):
    return haplotype_windows(indices=indices, **how)
