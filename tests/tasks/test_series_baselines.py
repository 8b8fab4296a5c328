import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqkit.errors import ShapeError
from seqkit.tasks import series_baselines as sb

HISTORY = np.array([[1.0, 2, 3, 4, 5, 6, 7], [0, 1, 0, np.nan, 0, 3, np.nan]])


def test_naive_family_by_hand():
    np.testing.assert_array_equal(sb.naive(HISTORY, 2), [[7, 7], [3, 3]])
    np.testing.assert_array_equal(sb.seasonal_naive(HISTORY, 4, 3), [[5, 6, 7, 5], [0, 3, 3, 0]])
    np.testing.assert_allclose(sb.drift(HISTORY, 2), [[8, 9], [3.5, 4]])


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(1, 30), st.integers(1, 4))
def test_a_periodic_series_is_forecast_exactly(season, horizon, repeats):
    pattern = np.random.default_rng(season).normal(size=season)
    series = np.tile(pattern, repeats + 1 + horizon // season + 1)
    cut = season * (repeats + 1) - season // 2
    forecast = sb.seasonal_naive(series[None, :cut], horizon, season)[0]
    np.testing.assert_array_equal(forecast, series[cut : cut + horizon])
    quantiles = sb.seasonal_naive_quantiles(series[None, :cut], horizon, season, [0.1, 0.9])
    np.testing.assert_allclose(quantiles, np.repeat(forecast[None, :, None], 2, -1), atol=1e-12)


def test_residual_quantiles_widen_with_the_seasons_ahead():
    walk = np.random.default_rng(0).normal(size=4000).cumsum()
    low, high = np.moveaxis(sb.seasonal_naive_quantiles(walk[None], 60, 20, [0.1, 0.9])[0], -1, 0)
    widths = (high - low)[[0, 20, 40]]
    np.testing.assert_allclose(widths / widths[0], np.sqrt([1, 2, 3]), rtol=0.15)


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_conformal_intervals_cover_new_draws(level):
    rng, tail, covered = np.random.default_rng(1), (1 - level) / 2, []
    for _ in range(400):
        low, high = sb.conformal_quantiles(rng.standard_t(3, size=(39, 1)), [tail, 1 - tail])[0]
        covered.append(np.mean((draws := rng.standard_t(3, size=50)) >= low) - np.mean(draws > high))
    assert np.mean(covered) == pytest.approx(level, abs=0.015)


def test_conformal_ranks_by_hand():
    residuals = np.array([[4.0], [1.0], [3.0], [2.0], [np.nan]])
    np.testing.assert_array_equal(sb.conformal_quantiles(residuals, [0.2, 0.5, 0.8, 0.99]), [[1, 2, 4, 4]])


def test_seasonality_is_found_and_adjusted():
    steps = np.arange(96)
    factors = 1 + 0.5 * np.sin(2 * np.pi * np.arange(12) / 12)
    series = (100 + steps) * factors[steps % 12]
    assert sb.is_seasonal(series, 12)
    assert not sb.is_seasonal(np.random.default_rng(3).normal(size=96), 12)
    assert not sb.is_seasonal(series[:30], 12)
    np.testing.assert_allclose(sb.seasonal_factors(series, 12), factors, rtol=0.02)
    np.testing.assert_allclose(sb.naive2(series, 24, 12), 195 * np.tile(factors, 2), rtol=0.02)


def test_naive2_without_a_season_is_naive():
    np.testing.assert_array_equal(sb.naive2([3.0, 1.0, 2.0], 2, 1), [2, 2])


def test_an_odd_step_in_a_weekly_series_scores_high():
    rng = np.random.default_rng(0)
    y = np.tile(rng.normal(size=50), 20) + 0.1 * rng.normal(size=1000)
    y[700] += 3
    y[400] = np.nan
    score = sb.seasonal_residual_score(y, 50, 200)
    assert np.isnan(score[:150]).all()
    assert np.isnan(score[[400, 450]]).all()
    assert np.nanargmax(score[:750]) == 700
    before = (change := y[50:] - y[:-50])[700 - 50 - 200 : 650][~np.isnan(change[450:650])]
    assert score[700] == pytest.approx(abs(change[650] - before.mean()) / before.std())


def test_a_score_never_looks_ahead():
    y = np.random.default_rng(2).normal(size=500)
    changed = y.copy()
    changed[300:] += 5
    before, after = (sb.seasonal_residual_score(v, 20, 60) for v in (y, changed))
    np.testing.assert_allclose(before[:300], after[:300])


def test_short_histories_are_refused():
    with pytest.raises(ShapeError, match="season"):
        sb.seasonal_naive(np.zeros((1, 5)), 3, 6)
