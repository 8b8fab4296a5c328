import numpy as np
import pytest

from seqkit.bench.series.mixture import Mixture, candidates, mixture, panel_quantiles, relative_errors

SIZES = (6, 4, 12)  # horizon, season, lookback


def seasons(steps=120, noise=0.0):
    t = np.arange(steps)
    return 10 + np.array([1.0, 5, 2, 8])[t % 4] + noise * np.random.default_rng(0).normal(size=steps)


def test_relative_errors_by_hand():
    errors = relative_errors(np.array([[1.0, 1], [3, 3]]), np.ones(2), 2.0)
    np.testing.assert_allclose(errors, [0, 4])


def test_a_periodic_series_is_continued():
    series = seasons(126)
    np.testing.assert_allclose(mixture(series[:120], *SIZES).forecast_H, series[120:], rtol=1e-6)


def test_candidates_that_held_weigh_most():
    rising = np.exp(np.arange(120) / 40) * seasons(noise=0.02)
    weights = mixture(rising, *SIZES).weight_M
    assert weights.sum() == pytest.approx(1)
    assert weights[[0, 1, 4, 5]].sum() > 0.95  # ridges of the small penalty; a season ago is far too low
    assert weights[-2:].max() < 1e-9


def test_a_fall_towards_zero_gives_no_negative_forecast():
    falling = np.maximum(200.0 - 2 * np.arange(100), 1)
    assert (candidates(falling, *SIZES) >= 0.5).all()


@pytest.mark.parametrize("steps", [19, 23, 40])
def test_short_series_are_forecast(steps):
    assert np.isfinite(mixture(seasons(steps, 0.1), *SIZES).forecast_H).all()


def test_residuals_are_those_of_the_other_horizons_weights():
    found = mixture(seasons(126), *SIZES)
    assert found.residual_KH.shape == (2, 6)
    np.testing.assert_allclose(found.residual_KH, 0, atol=1e-5)  # every ridge continues a periodic series


def test_intervals_of_a_panel_hold_what_they_say():
    rng = np.random.default_rng(0)
    spread = rng.uniform(0.1, 10, 400)
    errors = spread[:, None, None] * rng.normal(size=(400, 3, 6))  # two horizons held out, one to come
    known = [Mixture(np.zeros(6), np.ones(1), e[:2], 1.0) for e in errors]
    low, high = np.moveaxis(panel_quantiles(known, [0.1, 0.9]), 2, 0)
    assert ((low <= errors[:, 2]) & (errors[:, 2] <= high)).mean() == pytest.approx(0.8, abs=0.03)
    assert np.corrcoef(high[:, 0], spread)[0, 1] > 0.9  # restless series get wider ones
