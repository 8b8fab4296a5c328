import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference
from torchmetrics.classification import BinaryAUROC

from seqkit.errors import ConfigError, ShapeError
from seqkit.tasks import metrics as m


def scipy_spearman(y, s):
    from scipy.stats import spearmanr

    return spearmanr(y, s).statistic


def sample(rows, seed=0, ties=False):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, rows).astype(float)
    labels[:2] = 0, 1
    scores = 1 / (1 + np.exp(-(rng.normal(size=rows) + 1.2 * labels - 0.6)))
    return labels, np.clip(np.round(scores, 1), 0.05, 0.95) if ties else scores


PAIRS = [
    (m.auroc, reference.roc_auc_score),
    (m.average_precision, reference.average_precision_score),
    (m.brier, reference.brier_score_loss),
    (m.log_loss, reference.log_loss),
]


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
@pytest.mark.parametrize("rows", [2, 3, 17, 501])
@pytest.mark.parametrize("ties", [False, True])
def test_equal_to_sklearn_with_and_without_weights(ours, theirs, rows, ties):
    labels, scores = sample(rows, ties=ties)
    weights = np.random.default_rng(1).integers(1, 5, (4, rows))
    np.testing.assert_allclose(ours(labels, scores), theirs(labels, scores), rtol=1e-9)
    expected = [theirs(labels, scores, sample_weight=w) for w in weights]
    np.testing.assert_allclose(ours(labels, scores, weights), expected, rtol=1e-9)
    assert ours(labels, scores, weights[0]) == pytest.approx(expected[0])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 6), st.integers(0, 3)), min_size=1, max_size=30),
    st.sampled_from([m.auroc, m.average_precision, m.mcc, m.spearman, m.pearson, m.r2]),
)
def test_an_integer_weight_is_a_repeated_row(rows, metric):
    labels, scores, times = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    scores = scores / 6
    again = np.repeat(np.arange(len(rows)), times.astype(int))
    np.testing.assert_allclose(
        metric(labels, scores, times), metric(labels[again], scores[again]), atol=1e-9, equal_nan=True
    )


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-50, 50), min_size=2, max_size=40), st.integers(0, 2**31))
def test_ranking_metrics_see_only_the_order(values, seed):
    scores = np.array(values, dtype=float)
    labels = np.random.default_rng(seed).integers(0, 2, len(scores))
    for metric in (m.auroc, m.average_precision):
        np.testing.assert_allclose(metric(labels, scores), metric(labels, 3 * scores**3 + 7), equal_nan=True)
    np.testing.assert_allclose(m.auroc(labels, scores), 1 - m.auroc(labels, -scores), equal_nan=True)


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.8])
def test_mcc_equals_sklearn_and_honours_its_threshold(threshold):
    labels, scores = sample(301, ties=True)
    expected = reference.matthews_corrcoef(labels, scores >= threshold)
    assert m.mcc(labels, scores, threshold=threshold) == pytest.approx(expected)
    weights = np.random.default_rng(2).integers(0, 4, (3, 301))
    expected = [reference.matthews_corrcoef(labels, scores >= threshold, sample_weight=w) for w in weights]
    np.testing.assert_allclose(m.mcc(labels, scores, weights, threshold=threshold), expected)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("ties", [False, True])
def test_no_threshold_beats_the_chosen_one(seed, ties):
    labels, scores = sample(41, seed, ties)
    chosen = m.mcc(labels, scores, threshold=m.best_mcc_threshold(labels, scores))
    every = [m.mcc(labels, scores, threshold=t) for t in np.linspace(-0.01, 1.01, 2000)]
    assert chosen >= max(every) - 1e-12


def test_threshold_lies_between_neighbouring_scores():
    assert m.best_mcc_threshold([0, 0, 1, 1], [0.1, 0.2, 0.6, 0.7]) == pytest.approx(0.4)
    low, high = 0.5, np.nextafter(0.5, 1)
    assert m.best_mcc_threshold([0, 1], [low, high]) == high


@pytest.mark.parametrize(("labels", "scores"), [([1, 1], [0.2, 0.3]), ([0, 1], [0.4, 0.4]), ([], [])])
def test_threshold_without_information_stays_at_one_half(labels, scores):
    with pytest.warns(UserWarning, match=r"threshold left at 0\.5"):
        assert m.best_mcc_threshold(labels, scores) == 0.5


def test_multi_class_equals_sklearn():
    rng = np.random.default_rng(3)
    labels, logits = rng.integers(0, 4, 200), rng.normal(size=(200, 4))
    logits[np.arange(200), labels] += 1
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = reference.roc_auc_score(labels, p, multi_class="ovr", average="macro")
    assert m.one_vs_rest(m.auroc)(labels, p) == pytest.approx(expected)
    assert m.mcc(labels, p) == pytest.approx(reference.matthews_corrcoef(labels, p.argmax(1)))
    assert m.accuracy(labels, p) == pytest.approx(reference.accuracy_score(labels, p.argmax(1)))
    assert m.log_loss(labels, p) == pytest.approx(reference.log_loss(labels, p))
    assert m.brier(labels, p) == pytest.approx(((p - np.eye(4)[labels]) ** 2).sum(1).mean())


def test_macro_average_skips_a_class_that_does_not_occur():
    labels, p = (
        np.array([0, 0, 1, 1]),
        np.array([[0.8, 0.1, 0.1], [0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.7, 0.2, 0.1]]),
    )
    assert m.one_vs_rest(m.auroc)(labels, p) == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (m.r2, reference.r2_score),
        (m.rmse, reference.root_mean_squared_error),
        (m.mae, reference.mean_absolute_error),
        (m.pearson, lambda y, s: np.corrcoef(y, s)[0, 1]),
        (m.spearman, scipy_spearman),
    ],
)
@pytest.mark.parametrize("offset", [0, 1e4])
def test_regression_equals_the_library(ours, theirs, offset):
    rng = np.random.default_rng(4)
    labels = np.round(rng.normal(size=99), 1) + offset
    scores = np.round(labels + rng.normal(size=99), 1)
    assert ours(labels, scores) == pytest.approx(theirs(labels, scores))


def test_calibration_error_by_hand():
    labels, scores = [0, 1, 1, 1], [0.31, 0.31, 0.99, 0.99]
    assert m.expected_calibration_error(labels, scores) == pytest.approx(0.5 * 0.19 + 0.5 * 0.01)
    edge = m.expected_calibration_error([1, 0], [1.0, 0.0])
    assert edge == 0


def test_calibration_error_of_the_largest_class():
    p = np.array([[0.9, 0.1], [0.9, 0.1]])
    assert m.expected_calibration_error([0, 1], p) == pytest.approx(0.4)


def test_reliability_by_hand():
    result = m.reliability([0, 1, 1, np.nan], [0.1, 0.3, 0.9, 0.6], bins=2)
    np.testing.assert_allclose(result.predicted, [0.2, 0.9])
    np.testing.assert_allclose(result.observed, [0.5, 1.0])
    np.testing.assert_array_equal(result.count, [2, 1])
    empty = m.reliability([1], [0.9], bins=2)
    assert np.isnan(empty.observed[0])
    assert empty.count[0] == 0


@pytest.mark.parametrize("metric", [m.auroc, m.average_precision, m.mcc, m.brier, m.spearman, m.r2])
def test_rows_without_label_do_not_count(metric):
    labels, scores = sample(60)
    holes = labels.copy()
    holes[::7] = np.nan
    holed_scores = np.where(np.isnan(holes), np.nan, scores)
    keep = ~np.isnan(holes)
    assert metric(holes, holed_scores) == pytest.approx(metric(labels[keep], scores[keep]))
    weights = np.random.default_rng(0).integers(0, 3, (5, 60))
    np.testing.assert_allclose(metric(holes, scores, weights), metric(labels[keep], scores[keep], weights[:, keep]))


def test_columns_with_their_own_holes():
    labels = np.array([[0, 1], [1, np.nan], [1, 1], [0, np.nan]])
    scores = np.array([[0.1, 0.3], [0.9, 0.2], [0.2, 0.4], [0.3, 0.5]])
    assert m.column_mean(m.auroc)(labels, scores) == pytest.approx(0.75)


def test_fold_mean_is_the_mean_of_the_folds():
    labels, scores = sample(90)
    folds = np.arange(90) % 3
    expected = np.mean([m.auroc(labels[folds == k], scores[folds == k]) for k in range(3)])
    assert m.fold_mean(m.auroc, folds)(labels, scores) == pytest.approx(expected)
    result = m.bootstrap_interval(m.fold_mean(m.auroc, folds), labels, scores, groups=np.arange(90) // 9, n=50)
    assert result.low < expected < result.high


@pytest.mark.parametrize("metric", [m.auroc, m.average_precision, m.mcc])
@pytest.mark.parametrize("labels", [[1, 1, 1], [0, 0, 0], [np.nan, 1, 1], [np.nan] * 3])
def test_one_class_is_nan_with_a_reason(metric, labels):
    result = m.bootstrap_interval(metric, labels, [0.1, 0.2, 0.3], n=20)
    assert np.isnan(result.value)
    assert np.isnan(result.low)
    assert result.resamples == 0
    assert "label" in result.reason
    assert m.paired_bootstrap(metric, labels, [0.1, 0.2, 0.3], [0.3, 0.2, 0.1], n=20).verdict == "undefined"


def test_no_rows_at_all():
    for metric in m.metric_set("binary").values():
        assert np.isnan(metric([], []))
        assert m.bootstrap_interval(metric, [], [], n=5).reason == "no row has a label"


def test_interval_covers_the_truth_about_as_often_as_it_says():
    truth, inside = 0.7602, 0  # P(positive > negative) for unit normals one apart: Phi(1 / sqrt 2)
    for seed in range(120):
        rng = np.random.default_rng(seed)
        labels = np.arange(120) % 2
        result = m.bootstrap_interval(m.auroc, labels, rng.normal(size=120) + labels, n=200, seed=seed)
        inside += result.low <= truth <= result.high
    assert 102 <= inside <= 120


def test_clusters_widen_the_interval_of_copied_rows():
    labels, scores = sample(60)
    copied, copied_scores, group = np.repeat(labels, 9), np.repeat(scores, 9), np.repeat(np.arange(60), 9)
    by_row = m.bootstrap_interval(m.auroc, copied, copied_scores, n=400)
    by_group = m.bootstrap_interval(m.auroc, copied, copied_scores, groups=group, n=400)
    single = m.bootstrap_interval(m.auroc, labels, scores, n=400)
    assert by_group.groups == 60
    assert by_group.high - by_group.low > 2 * (by_row.high - by_row.low)
    assert (by_group.low, by_group.high) == pytest.approx((single.low, single.high))


def test_intervals_repeat_and_do_not_depend_on_the_block_size(monkeypatch):
    labels, scores = sample(50)
    whole = m.bootstrap_interval(m.auroc, labels, scores, n=100, seed=3)
    assert whole == m.bootstrap_interval(m.auroc, labels, scores, n=100, seed=3)
    assert whole != m.bootstrap_interval(m.auroc, labels, scores, n=100, seed=4)
    monkeypatch.setattr("seqkit.tasks.intervals._CELLS_AT_ONCE", 50 * 7)
    assert whole == m.bootstrap_interval(m.auroc, labels, scores, n=100, seed=3)


def test_paired_verdicts():
    labels, scores = sample(400)
    noise = np.random.default_rng(9).normal(size=400)
    assert m.paired_bootstrap(m.auroc, labels, scores, noise, n=200).verdict == "higher"
    assert m.paired_bootstrap(m.auroc, labels, noise, scores, n=200).verdict == "lower"
    same = m.paired_bootstrap(m.auroc, labels, scores, scores * 0.5, n=200)
    assert same == (0, 0, 0, "level")


def test_pairing_is_sharper_than_two_intervals():
    labels, scores = sample(300)
    other = scores + np.random.default_rng(5).normal(scale=0.02, size=300)
    paired = m.paired_bootstrap(m.auroc, labels, scores, other, n=300)
    single = m.bootstrap_interval(m.auroc, labels, scores, n=300)
    assert paired.high - paired.low < 0.5 * (single.high - single.low)


@pytest.mark.parametrize("kind", m.KINDS)
def test_every_metric_of_a_kind_has_an_interval(kind):
    labels, scores = sample(80)
    scores = np.stack([1 - scores, scores], axis=1) if kind == "multiclass" else scores
    result = m.estimate_all(m.metric_set(kind), labels, scores, n=50)
    assert all(e.low <= e.high and np.isfinite(e.value) and e.reason == "" for e in result.values())


def test_metric_set_uses_the_threshold():
    labels, scores = sample(80)
    assert m.metric_set("binary", threshold=0.9)["mcc"](labels, scores) == m.mcc(labels, scores, threshold=0.9)
    with pytest.raises(ConfigError, match="binary, multiclass, continuous"):
        m.metric_set("ordinal")


def test_validation_metrics_of_one_and_of_several_columns():
    labels, scores = sample(80)
    one = m.validation_metrics("binary", labels, scores)
    assert one["auroc"] == m.auroc(labels, scores)
    holes = np.where(np.arange(80) < 40, labels, np.nan)
    two = m.validation_metrics("binary", np.stack([labels, holes], 1), np.stack([scores, scores], 1))
    assert two["auroc"] == pytest.approx((one["auroc"] + m.auroc(labels[:40], scores[:40])) / 2)
    assert set(m.validation_metrics("continuous", labels, scores)) == {"pearson", "spearman", "r2", "rmse", "mae"}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: m.auroc([0, 2], [0.1, 0.2]), "0, 1 or NaN"),
        (lambda: m.auroc([0, 1], [0.1, np.nan]), "1 NaN"),
        (lambda: m.auroc([0, 1, 1], [0.1, 0.2]), "like the scores"),
        (lambda: m.auroc([0, 1], [[0.1, 0.9], [0.2, 0.8]]), "one score per row"),
        (lambda: m.auroc([0, 1], [0.1, 0.2], [1, 1, 1]), "weights"),
        (lambda: m.mcc([0, 3], [[0.1, 0.9], [0.2, 0.8]]), "class numbers 0 to 1"),
        (lambda: m.expected_calibration_error([0, 1], [-2.0, 3.0]), "probabilities"),
        (lambda: m.bootstrap_interval(m.auroc, [0, 1], [0, 1], groups=[1]), "groups"),
    ],
)
def test_wrong_input_says_what_was_expected(call, message):
    with pytest.raises(ShapeError, match=message):
        call()


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_rows_of_all_batches_come_back_in_order(batch):
    outputs, labels = torch.randn(64, 3, 2), torch.rand(64, 1)
    rows = m.AllRows()
    for first in range(0, 64, batch):
        rows.update(outputs[first : first + batch], labels[first : first + batch])
    found, known = rows.compute()
    assert torch.equal(found, outputs)
    assert torch.equal(known, labels)
    rows.reset()
    rows.update(outputs[:2], labels[:2])
    assert rows.compute()[0].shape == (2, 3, 2)


def test_auroc_is_that_of_torchmetrics():
    labels, scores = (torch.tensor(x, dtype=torch.float32) for x in sample(64))
    theirs = BinaryAUROC()
    theirs.update(scores, labels.long())
    assert m.auroc(labels.numpy(), scores.numpy()) == pytest.approx(theirs.compute().item(), abs=1e-6)
