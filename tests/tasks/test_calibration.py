import dataclasses
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seqkit.errors import ShapeError
from seqkit.tasks import metrics
from seqkit.tasks.calibration import PlattScaling, TemperatureScaling, fit_platt, fit_temperature


def truth(rows, seed=0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(-1, 2, rows)
    return logits, (rng.random(rows) < 1 / (1 + np.exp(-logits))).astype(float)


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (0.3, 1.5), (4.0, -2.0), (0.02, 0.0)])
def test_platt_recovers_a_known_distortion(scale, shift):
    logits, labels = truth(40_000)
    fitted = fit_platt((logits - shift) / scale, labels, prior_rows=0)
    assert fitted.scale == pytest.approx(scale, rel=0.04)
    assert fitted.shift == pytest.approx(shift, abs=0.05)


def test_platt_lowers_brier_and_calibration_error():
    logits, labels = truth(4_000)
    distorted = 3 * logits + 2
    before, after = (
        PlattScaling().probabilities(distorted),
        fit_platt(distorted, labels, prior_rows=0).probabilities(distorted),
    )
    assert metrics.brier(labels, after) < metrics.brier(labels, before)
    assert metrics.expected_calibration_error(labels, after) < 0.02
    assert metrics.expected_calibration_error(labels, before) > 0.1


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-30_000, 30_000), st.integers(0, 1)), min_size=2, max_size=40),
    st.sampled_from([0.0, 1.0, 400.0]),
)
@pytest.mark.filterwarnings("ignore:validation scores rank", "ignore:probabilities are left")
def test_platt_never_changes_the_ranking(rows, prior_rows):
    logits, labels = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    logits = logits / 1000  # coarser than rounding, which may tie what differs in the last bit
    fitted = fit_platt(logits, labels, prior_rows=prior_rows)
    assert 0.0099 < fitted.scale < 101
    assert np.isfinite(fitted.shift)
    order = np.argsort(logits, kind="stable")
    assert (np.diff(fitted.probabilities(logits)[order]) >= 0).all()
    np.testing.assert_allclose(
        metrics.auroc(labels, fitted.logits(logits)), metrics.auroc(labels, logits), atol=1e-9, equal_nan=True
    )


def test_platt_of_separable_rows_is_finite():
    fitted = fit_platt([-2.0, -1.0, 1.0, 2.0], [0, 0, 1, 1], prior_rows=0)
    assert 1 < fitted.scale <= 100
    assert np.isfinite(fitted.shift)


def test_a_small_part_with_another_prevalence_moves_the_logits_little():
    logits, labels = truth(200)
    rich = np.concatenate([np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)[:40]])
    free = fit_platt(logits[rich], labels[rich], prior_rows=0)
    held = fit_platt(logits[rich], labels[rich])
    assert free.shift > 0.5
    assert 0 < held.shift < 0.2


def test_many_rows_outweigh_the_prior():
    logits, labels = truth(200_000)
    assert fit_platt(logits / 2, labels).scale == pytest.approx(2, rel=0.05)


def test_reversed_scores_are_flattened_and_not_turned_round():
    logits, labels = truth(2_000)
    with pytest.warns(UserWarning, match="no better than chance"):
        fitted = fit_platt(-logits, labels, prior_rows=0)
    assert fitted.scale == pytest.approx(0.01)
    p = fitted.probabilities(-logits)
    assert p.mean() == pytest.approx(labels.mean(), abs=1e-3)
    assert p.max() - p.min() < 0.05


def test_equal_scores_become_the_prevalence():
    fitted = fit_platt(np.full(1000, 7.0), np.arange(1000) % 4 == 0, prior_rows=0)
    assert fitted.probabilities(7.0) == pytest.approx(0.25, abs=1e-3)


def test_mean_probability_is_the_prevalence():
    logits, labels = truth(5_000)
    assert fit_platt(9 * logits - 4, labels, prior_rows=0).probabilities(9 * logits - 4).mean() == pytest.approx(
        labels.mean(), abs=1e-3
    )


@pytest.mark.parametrize("labels", [[1, 1, 1], [0, 0, 0], [np.nan, 1, 1], [np.nan] * 3])
def test_one_class_keeps_the_identity_with_a_warning(labels):
    with pytest.warns(UserWarning, match="left uncalibrated"):
        assert fit_platt([0.1, 0.2, 0.3], labels) == PlattScaling()
    with pytest.warns(UserWarning, match="left uncalibrated"):
        assert fit_temperature(np.eye(3), labels) == TemperatureScaling()


def test_rows_without_label_do_not_count():
    logits, labels = truth(300)
    labels[::5] = np.nan
    keep = ~np.isnan(labels)
    holed = np.where(keep, logits, np.inf)
    assert fit_platt(holed, labels) == fit_platt(logits[keep], labels[keep])


@pytest.mark.parametrize("temperature", [0.25, 1.0, 5.0])
@pytest.mark.parametrize("classes", [2, 3, 7])
def test_temperature_recovers_a_known_distortion(temperature, classes):
    rng = np.random.default_rng(classes)
    logits = rng.normal(scale=2, size=(30_000, classes))
    labels = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    fitted = fit_temperature(logits * temperature, labels)
    assert fitted.temperature == pytest.approx(temperature, rel=0.05)
    p = fitted.probabilities(logits)
    np.testing.assert_allclose(p.sum(axis=1), 1)
    np.testing.assert_array_equal(p.argmax(axis=1), logits.argmax(axis=1))


def test_temperature_of_separable_rows_is_finite():
    assert 0.01 <= fit_temperature(np.eye(3), [0, 1, 2]).temperature < 0.1


def test_parameters_survive_json_and_act_on_tensors():
    fitted = fit_platt(*truth(200))
    again = PlattScaling(**json.loads(json.dumps(dataclasses.asdict(fitted))))
    assert again == fitted
    logits = torch.linspace(-800, 800, 5, dtype=torch.float64)
    np.testing.assert_allclose(torch.sigmoid(again.logits(logits)).numpy(), again.probabilities(logits.numpy()))
    warm = TemperatureScaling(temperature=2.0)
    x = torch.randn(4, 3, dtype=torch.float64)
    np.testing.assert_allclose(torch.softmax(warm.logits(x), -1).numpy(), warm.probabilities(x.numpy()))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fit_platt([0.0, np.inf], [0, 1]), "finite"),
        (lambda: fit_platt([0.0, 1.0], [0, 2]), "class numbers"),
        (lambda: fit_platt([0.0, 1.0], [0, 1, 1]), r"labels \(N,\)"),
        (lambda: fit_temperature([0.0, 1.0], [0, 1]), r"\(N, C\)"),
    ],
)
def test_wrong_input_says_what_was_expected(call, message):
    with pytest.raises(ShapeError, match=message):
        call()
