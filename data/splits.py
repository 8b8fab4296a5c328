"""Train, validation and test rows of a variant table, and the check that they share nothing. Legend: N alleles."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from seqkit.data.genome import canonical_contig
from seqkit.data.variants import VariantTable
from seqkit.errors import ConfigError, LeakageError

CODON = 3
RISKY = ("position", "random")


@dataclass(frozen=True)
class Split:
    """Rows of the three parts.

    Attributes:
        train: int64 allele numbers, ascending.
        validation: The same; used for early stopping, thresholds and calibration.
        test: The same.
        name: ``chromosome``, ``block``, ``contiguous``, ``position`` or ``random``.
        description: One line that says how the rows were chosen.
        fold: Number of the test fold, 0-based.
        folds: Number of folds.
        dropped: Rows in no part, because they lie within the gap between parts or have no block.
    """

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    name: str
    description: str
    fold: int
    folds: int
    dropped: np.ndarray


@dataclass(frozen=True)
class Leakage:
    """What two parts share.

    Attributes:
        pairs: Numbers of alleles of each later part within the gap of an earlier one: ``train/test`` and so on.
        nearest: Smallest distance in bases between alleles of different parts; None where no contig is shared.
        gap: Distance in bases below which two alleles count as shared.
    """

    pairs: dict[str, int]
    nearest: int | None
    gap: int

    @property
    def leaks(self) -> bool:
        """True where any part shares something with another."""
        return any(self.pairs.values())


def assign_folds(
    table: VariantTable,
    kind: str | None = None,
    *,
    folds: int = 5,
    block: str | None = None,
    blocks: Sequence[str] | None = None,
    strata_N: np.ndarray | None = None,
    seed: int = 0,
) -> tuple[np.ndarray, str, str]:
    """Give every allele a fold.

    Args:
        table: The alleles.
        kind: ``chromosome`` (contigs in order of size take turns), ``block`` (fold = place of the column's value in
            ``blocks`` modulo ``folds``), ``contiguous`` (runs of neighbouring variants), ``position`` (1-based position
            modulo ``folds``), ``random``. Left out: ``block`` where a column is given, ``chromosome`` where at least
            ``folds`` contigs exist, else ``contiguous``.
        folds: Number of folds, at least 2.
        block: Column of the blocks.
        blocks: Their order; by default the order of first appearance.
        strata_N: Classes by which a random split is stratified.
        seed: Of the random split.

    Returns:
        Fold of each allele (int64, -1 for none), the kind, and a description.

    Raises:
        ConfigError: The kind is unknown, or there are too few groups for the folds.
        InputError: The block column is absent.
    """
    if folds < 2:
        raise ConfigError("folds", expected="at least 2", got=str(folds))
    contigs = [canonical_contig(name) for name in table.alleles["contig"].to_list()]
    if kind is None:
        kind = "block" if block else "chromosome" if len(set(contigs)) >= folds else "contiguous"
    if kind in RISKY:
        warnings.warn(
            f"a split by {kind} puts neighbours of test variants into training: its scores are too high",
            UserWarning,
            stacklevel=2,
        )
    if kind == "block":
        return _by_block(table, folds, block, blocks)
    if kind == "chromosome":
        return _by_chromosome(contigs, folds)
    if kind == "contiguous":
        return _by_position_runs(table, contigs, folds)
    if kind == "position":
        fold_N = table.alleles["pos"].to_numpy() % folds
        return fold_N.astype(np.int64), kind, f"position modulo {folds}"
    if kind == "random":
        return _at_random(len(table), folds, strata_N, seed), kind, f"at random, seed {seed}"
    raise ConfigError("split", expected="chromosome, block, contiguous, position or random", got=repr(kind))


def make_split(
    table: VariantTable,
    fold_N: np.ndarray,
    kind: str,
    description: str,
    *,
    fold: int = 0,
    folds: int = 5,
    gap: int | None = None,
    keep: np.ndarray | None = None,
) -> Split:
    """Parts of one fold: test is ``fold``, validation the next one (cyclically), training the rest.

    Args:
        table: The alleles.
        fold_N: Fold of each allele.
        kind: Kind of the split, as :func:`assign_folds` returned it.
        description: Its description.
        fold: Test fold.
        folds: Number of folds.
        gap: Training and validation alleles within so many bases of a later part are dropped (contiguous splits), and
            any that remain raise. By default 3 bases (one codon), or 100 for contiguous splits.
        keep: Boolean (N,) of usable alleles; all by default.

    Raises:
        ConfigError: The fold is out of range or a part is empty.
        LeakageError: Parts share positions or codons and the split was not asked for by position or at random.
    """
    if not 0 <= fold < folds:
        raise ConfigError("fold", expected=f"0 to {folds - 1}", got=str(fold))
    fold_N = np.where(np.ones(len(fold_N), bool) if keep is None else keep, fold_N, -1)
    test = np.flatnonzero(fold_N == fold)
    validation = np.flatnonzero(fold_N == (fold + 1) % folds) if folds > 2 else test[:0]
    train = np.flatnonzero((fold_N >= 0) & ~np.isin(fold_N, [fold, (fold + 1) % folds] if folds > 2 else [fold]))
    gap = gap if gap is not None else 100 if kind == "contiguous" else CODON
    if kind == "contiguous":
        validation = validation[_distance(table, validation, test) >= gap]
        train = train[_distance(table, train, np.concatenate([test, validation])) >= gap]
    used = np.concatenate([train, validation, test])
    dropped = np.setdiff1d(np.arange(len(fold_N)), used)
    split = Split(train, validation, test, kind, description, fold, folds, dropped)
    for part in ("train", "test"):
        if not len(getattr(split, part)):
            raise ConfigError("split", expected=f"variants in every part of fold {fold}", got=f"an empty {part} part")
    if kind not in RISKY:
        refuse_leakage(table, split, gap)
    return split


def check_leakage(table: VariantTable, split: Split, gap: int = CODON) -> Leakage:
    """Count alleles of one part that lie less than ``gap`` bases from another part (0 distance: the same position)."""
    parts = {"train": split.train, "validation": split.validation, "test": split.test}
    pairs, nearest = {}, None
    for early, late in (("train", "validation"), ("train", "test"), ("validation", "test")):
        distance = _distance(table, parts[late], parts[early])
        pairs[f"{early}/{late}"] = int((distance < gap).sum())
        finite = distance[distance < np.iinfo(np.int64).max]
        if len(finite):
            nearest = int(finite.min()) if nearest is None else min(nearest, int(finite.min()))
    return Leakage(pairs, nearest, gap)


def refuse_leakage(table: VariantTable, split: Split, gap: int = CODON) -> None:
    """Raise where :func:`check_leakage` finds something.

    Raises:
        LeakageError: Names the parts and the counts.
    """
    found = check_leakage(table, split, gap)
    if found.leaks:
        counts = ", ".join(f"{count} of {pair}" for pair, count in found.pairs.items() if count)
        raise LeakageError(
            "split",
            expected=f"parts at least {gap} bases apart",
            got=f"neighbours in both parts: {counts} (split: {split.description})",
            remedy="Split by chromosome, by a block column, or contiguously; or ask for position or random.",
        )


def _distance(table: VariantTable, rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Bases from each of ``rows`` to the nearest of ``others`` on its contig; the largest int64 where there is none."""
    far = np.iinfo(np.int64).max
    distance = np.full(len(rows), far, dtype=np.int64)
    contigs = np.array([canonical_contig(name) for name in table.alleles["contig"].to_list()], dtype=object)
    first = table.alleles["pos"].to_numpy().astype(np.int64)
    last = first + table.alleles["ref"].str.len_chars().to_numpy().astype(np.int64) - 1
    for contig in set(contigs[rows].tolist()):
        mine, theirs = np.flatnonzero(contigs[rows] == contig), others[contigs[others] == contig]
        if not len(theirs):
            continue
        theirs = theirs[np.argsort(first[theirs], kind="stable")]
        reach = np.maximum.accumulate(last[theirs])
        after = np.searchsorted(first[theirs], first[rows[mine]])
        left = np.where(after > 0, first[rows[mine]] - reach[(after - 1).clip(0)], far)
        right = np.where(after < len(theirs), first[theirs[after.clip(max=len(theirs) - 1)]] - last[rows[mine]], far)
        distance[mine] = np.minimum(left, right).clip(0)
    return distance


def _by_block(
    table: VariantTable, folds: int, block: str | None, blocks: Sequence[str] | None
) -> tuple[np.ndarray, str, str]:
    if block is None:
        raise ConfigError("block", expected="the column that holds the blocks", got="nothing")
    values = [None if value is None else str(value) for value in table.column(block, "block").to_list()]
    order = list(blocks) if blocks is not None else list(dict.fromkeys(v for v in values if v is not None))
    if len(order) < folds:
        raise ConfigError("folds", expected=f"at most {len(order)}, the blocks of column {block!r}", got=str(folds))
    place = {value: i % folds for i, value in enumerate(order)}
    fold_N = np.array([place.get(value, -1) for value in values], dtype=np.int64)
    return fold_N, "block", f"blocks of column {block!r} in fixed order, modulo {folds}"


def _by_chromosome(contigs: list[str], folds: int) -> tuple[np.ndarray, str, str]:
    names, counts = np.unique(contigs, return_counts=True)
    if len(names) < folds:
        raise ConfigError(
            "folds", expected=f"at most {len(names)}, the contigs with variants", got=str(folds),
            remedy="Split by a block column or contiguously.",
        )  # fmt: skip
    # The largest contig goes to the fold that is emptiest so far.
    load, place = np.zeros(folds, dtype=np.int64), {}
    for i in np.lexsort((names, -counts)):
        place[names[i]] = int(load.argmin())
        load[place[names[i]]] += counts[i]
    return np.array([place[name] for name in contigs], dtype=np.int64), "chromosome", f"whole contigs in {folds} folds"


def _by_position_runs(table: VariantTable, contigs: list[str], folds: int) -> tuple[np.ndarray, str, str]:
    """Cut the variants in genome order into runs of about equal size, at the widest free stretch near each border."""
    pos = table.alleles["pos"].to_numpy().astype(np.int64)
    names = np.array(contigs)
    order = np.lexsort((pos, names))
    n = len(order)
    jump = np.diff(pos[order]).astype(np.int64)
    jump[names[order][1:] != names[order][:-1]] = np.iinfo(np.int64).max
    borders, slack = [0], max(n // (4 * folds), 1)
    for k in range(1, folds):
        low = max(k * n // folds - slack, borders[-1] + 1)
        high = min(k * n // folds + slack, n - 1)
        if high <= low:
            raise ConfigError("folds", expected=f"fewer folds for {n} variants", got=str(folds))
        borders.append(low + int(jump[low - 1 : high - 1].argmax()))
    fold_N = np.empty(n, dtype=np.int64)
    fold_N[order] = np.searchsorted(np.array(borders), np.arange(n), side="right") - 1
    return fold_N, "contiguous", f"{folds} runs of neighbouring variants"


def _at_random(n: int, folds: int, strata_N: np.ndarray | None, seed: int) -> np.ndarray:
    from sklearn.model_selection import StratifiedKFold

    strata_N = np.zeros(n, dtype=np.int64) if strata_N is None else strata_N
    fold_N = np.empty(n, dtype=np.int64)
    splitter = StratifiedKFold(folds, shuffle=True, random_state=seed)
    for fold, (_, test) in enumerate(splitter.split(np.zeros(n), strata_N)):
        fold_N[test] = fold
    return fold_N
