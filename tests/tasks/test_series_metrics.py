import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqkit.errors import ShapeError
from seqkit.tasks import series_metrics as sm

Y = np.array([[1.0, 2.0, 4.0], [0.0, -2.0, np.nan]])
F = np.array([[2.0, 2.0, 2.0], [0.0, 2.0, 9.0]])


def test_point_metrics_by_hand():
    assert sm.mae(Y, F) == pytest.approx((1 + 0 + 2 + 0 + 4) / 5)
    assert sm.mse(Y, F) == pytest.approx((1 + 4 + 16) / 5)
    np.testing.assert_allclose(sm.mae(Y, F, axis=-1), [1, 2])
    np.testing.assert_allclose(sm.smape(Y, F, axis=-1), [(200 / 3 + 0 + 400 / 6) / 3, 100])


def test_mase_by_hand():
    history = np.array([[1.0, 5.0, 2.0, 7.0], [3.0, 3.0, 3.0, 3.0]])
    np.testing.assert_allclose(sm.seasonal_scale(history, 2), [1.5, 0])
    np.testing.assert_allclose(sm.seasonal_scale(history, 1)[0], 4)
    per_window = sm.mase(Y, F, sm.seasonal_scale(history, 2), axis=-1)
    np.testing.assert_allclose(per_window, [1 / 1.5, np.nan])  # a constant history has no unit
    assert sm.owa(10, 1, 20, 4) == pytest.approx((0.5 + 0.25) / 2)


def test_nothing_valid_is_nan_and_silent(recwarn):
    nothing = np.full((1, 2), np.nan)
    assert np.isnan([sm.mae(nothing, nothing), sm.coverage(nothing, nothing, nothing)]).all()
    assert not recwarn.list


def test_pinball_by_hand():
    y, levels = np.array([[1.0, 3.0]]), np.array([0.1, 0.5])
    quantiles = np.array([[[0.0, 2.0], [4.0, 3.0]]])
    assert sm.pinball(y, quantiles, levels) == pytest.approx((0.1 * 1 + 0.5 * 1 + 0.9 * 1 + 0) / 4)
    np.testing.assert_allclose(sm.pinball(y, quantiles, levels, axis=0), [0.3, 0.45])


def test_crps_of_a_point_is_the_absolute_error():
    levels = (np.arange(99) + 1) / 100
    assert sm.crps(np.array([2.0]), np.full((1, 99), 5.0), levels) == pytest.approx(3.0)


def test_crps_of_a_normal():
    """CRPS of N(0, 1) at its mean is sqrt(2/pi) - 1/sqrt(pi) = 0.2337."""
    from scipy.stats import norm

    levels = (np.arange(2000) + 0.5) / 2000
    assert sm.crps(np.zeros(1), norm.ppf(levels)[None], levels) == pytest.approx(0.23370, abs=1e-4)


def test_intervals_by_hand():
    y, low, high = np.array([0.0, 5.0, np.nan, -1.0]), np.zeros(4), np.full(4, 2.0)
    assert sm.coverage(y, low, high) == pytest.approx(1 / 3)
    assert sm.interval_score(y, low, high, 0.8) == pytest.approx((2 + (2 + 10 * 3) + (2 + 10 * 1)) / 3)


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 30), st.integers(0, 2**31))
def test_agree_with_utilsforecast(steps, seed):
    losses = pytest.importorskip("utilsforecast.losses")
    rng = np.random.default_rng(seed)
    y, f, history = rng.normal(size=(2, steps)), rng.normal(size=(2, steps)), rng.normal(size=(2, 40))
    low, high = f - 1, f + 1.5
    ids = np.repeat(["a", "b"], steps)
    frame = pl.DataFrame({
        "unique_id": ids, "ds": np.tile(np.arange(steps), 2), "y": y.ravel(), "m": f.ravel(),
        "m-lo-80": low.ravel(), "m-hi-80": high.ravel(),
    })  # fmt: skip
    train = pl.DataFrame(
        {"unique_id": np.repeat(["a", "b"], 40), "ds": np.tile(np.arange(40), 2), "y": history.ravel()}
    )

    def theirs(loss, column="m", **options):
        return loss(frame, **options).sort("unique_id")[column].to_numpy()

    np.testing.assert_allclose(sm.mae(y, f, axis=-1), theirs(losses.mae, models=["m"]))
    np.testing.assert_allclose(sm.mse(y, f, axis=-1), theirs(losses.mse, models=["m"]))
    np.testing.assert_allclose(sm.smape(y, f, axis=-1), 200 * theirs(losses.smape, models=["m"]))
    scale = sm.seasonal_scale(history, 7)
    theirs_mase = theirs(losses.mase, models=["m"], seasonality=7, train_df=train)
    np.testing.assert_allclose(sm.mase(y, f, scale, axis=-1), theirs_mase)
    quantiles = np.stack([low, high], -1)
    ours = sm.pinball(y, quantiles, [0.1, 0.9], axis=-1)
    models = {"m": ["m-lo-80", "m-hi-80"]}
    np.testing.assert_allclose(ours, theirs(losses.mqloss, models=models, quantiles=np.array([0.1, 0.9])))
    np.testing.assert_allclose(sm.coverage(y, low, high, axis=-1), theirs(losses.coverage, models=["m"], level=80))
    np.testing.assert_allclose(
        sm.interval_score(y, low, high, 0.8, axis=-1), theirs(losses.winkler_score, models=["m"], level=80)
    )


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(ShapeError, match="forecast"):
        sm.mae(np.zeros(3), np.zeros(2))
    with pytest.raises(ShapeError, match="quantiles"):
        sm.pinball(np.zeros((2, 3)), np.zeros((2, 3, 2)), [0.1, 0.5, 0.9])
    with pytest.raises(ShapeError, match="season"):
        sm.seasonal_scale(np.zeros(5), 5)
