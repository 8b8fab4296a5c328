import numpy as np
import pytest

from seqkit.data.splits import assign_folds, check_leakage, make_split, refuse_leakage
from seqkit.errors import ConfigError, LeakageError


def counts(fold_N, labels):
    return [int((fold_N == k).sum()) for k in range(5)], [int(labels[fold_N == k].sum()) for k in range(5)]


def test_exon_folds_are_the_published_ones(brca1):
    fold_N, kind, _ = assign_folds(brca1.table, block=brca1.paths.block, blocks=brca1.paths.blocks)
    assert kind == "block"
    assert counts(fold_N, brca1.labels) == ([928, 867, 899, 606, 593], [193, 224, 159, 162, 85])
    for fold in range(5):
        split = make_split(brca1.table, fold_N, kind, "exons", fold=fold)
        parts = np.concatenate([split.train, split.validation, split.test])
        assert sorted(parts.tolist()) == list(range(3893))
        assert set(fold_N[split.test]) == {fold}
        assert set(fold_N[split.validation]) == {(fold + 1) % 5}
        assert check_leakage(brca1.table, split).nearest > 400


def test_position_and_random_folds_are_the_published_ones_and_warn(brca1):
    with pytest.warns(UserWarning, match="too high"):
        fold_N, _, _ = assign_folds(brca1.table, "position")
    assert counts(fold_N, brca1.labels) == ([787, 784, 786, 769, 767], [159, 165, 172, 163, 164])
    with pytest.warns(UserWarning, match="too high"):
        fold_N, kind, text = assign_folds(brca1.table, "random", strata_N=brca1.labels)
    from sklearn.model_selection import StratifiedKFold

    expected = StratifiedKFold(5, shuffle=True, random_state=0).split(brca1.labels, brca1.labels)
    for fold, (_, test) in enumerate(expected):
        split = make_split(brca1.table, fold_N, kind, text, fold=fold)
        np.testing.assert_array_equal(split.test, test)
    assert check_leakage(brca1.table, split).leaks
    with pytest.raises(LeakageError, match="neighbours in both parts"):
        refuse_leakage(brca1.table, split)


def test_one_gene_without_blocks_is_split_contiguously(brca1):
    fold_N, kind, text = assign_folds(brca1.table)
    assert kind == "contiguous"
    for fold in range(5):
        split = make_split(brca1.table, fold_N, kind, text, fold=fold, gap=500)
        assert check_leakage(brca1.table, split, gap=500).nearest >= 500
        assert 400 < len(split.test) < 1200


def test_contiguous_gap_drops_neighbours(table_of):
    table = table_of(*(("1", 10 * i + 1, "A", "C") for i in range(100)))
    fold_N, kind, text = assign_folds(table, folds=5)
    split = make_split(table, fold_N, kind, text, fold=2, gap=35)
    found = check_leakage(table, split, gap=35)
    assert not found.leaks
    assert found.nearest == 40
    # Three on each inner border: train|test and validation|test and validation|train.
    assert len(split.dropped) == 9
    assert len(split.train) + len(split.validation) + len(split.test) + len(split.dropped) == 100


def test_many_contigs_are_split_whole(table_of):
    contigs = [f"chr{c}" for c in range(1, 8) for _ in range(10 * c)]
    table = table_of(*((c, 50 * i + 1, "A", "C") for i, c in enumerate(contigs)))
    fold_N, kind, _ = assign_folds(table, folds=3)
    assert kind == "chromosome"
    for contig in set(contigs):
        assert len(set(fold_N[np.array(contigs) == contig])) == 1
    sizes = np.bincount(fold_N)
    assert sizes.max() - sizes.min() <= 20
    make_split(table, fold_N, kind, "", fold=0, folds=3)


def test_blocks_that_share_a_codon_are_refused(table_of):
    table = table_of(("1", 10, "A", "C"), ("1", 11, "A", "C"), ("1", 500, "A", "C"), block=["a", "b", "c"])
    fold_N, kind, text = assign_folds(table, block="block", folds=3)
    with pytest.raises(LeakageError) as caught:
        make_split(table, fold_N, kind, text, folds=3)
    assert caught.value.exit_code == 6


def test_long_alleles_leak_by_their_whole_length(table_of):
    table = table_of(("1", 10, "A" * 50, "A"), ("1", 55, "A", "C"), ("1", 500, "A", "C"), block=["a", "b", "c"])
    fold_N, kind, text = assign_folds(table, block="block", folds=3)
    with pytest.raises(LeakageError):
        make_split(table, fold_N, kind, text, folds=3)


def test_rows_without_block_or_label_are_in_no_part(table_of):
    table = table_of(*(("1", 100 * i + 1, "A", "C") for i in range(6)), block=["a", "b", "c", None, "a", "b"])
    fold_N, kind, text = assign_folds(table, block="block", folds=3)
    keep = np.array([True] * 5 + [False])
    split = make_split(table, fold_N, kind, text, folds=3, keep=keep)
    assert split.dropped.tolist() == [3, 5]
    assert (split.test.tolist(), split.validation.tolist(), split.train.tolist()) == ([0, 4], [1], [2])


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("blocks", {}, "chromosome, block"),
        ("block", {}, "column that holds the blocks"),
        ("chromosome", {}, "at most 1"),
        ("block", {"block": "b", "folds": 4}, "at most 3"),
        (None, {"folds": 1}, "at least 2"),
    ],
)
def test_impossible_splits(table_of, kind, options, words):
    table = table_of(*(("1", 100 * i + 1, "A", "C") for i in range(3)), b=["x", "y", "z"])
    with pytest.raises(ConfigError, match=words):
        assign_folds(table, kind, **options)


def test_fold_out_of_range(table_of):
    table = table_of(*(("1", 100 * i + 1, "A", "C") for i in range(3)), b=["x", "y", "z"])
    with pytest.raises(ConfigError, match="0 to 2"):
        make_split(table, np.arange(3), "block", "", fold=3, folds=3)
    with pytest.raises(ConfigError, match="empty test"):
        make_split(table, np.array([0, 1, -1]), "block", "", fold=2, folds=3)
