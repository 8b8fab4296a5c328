from dataclasses import replace

import numpy as np
import pytest

from seqkit.backbones import BackboneConfig
from seqkit.errors import ConfigError, ShapeError
from seqkit.tasks.base import OptimConfig
from seqkit.tasks.detector import DetectorConfig, changes, fit_detector, running_mean
from seqkit.tasks.next_step import NextStepConfig
from seqkit.tasks.next_step_fit import ChunkConfig

SMALL = DetectorConfig(
    model=BackboneConfig(d_model=8, layout="s4d", d_state=4, expand=1, vocab_size=0, n_channels=2),
    net=NextStepConfig(lags=4),
    chunks=ChunkConfig(streams=2, chunk=64, epochs=3),
    optim=OptimConfig(lr=5e-3),
)


def rhythm(steps, season=40, seed=0):
    pattern = np.random.default_rng(7).normal(size=season) * 3
    return np.tile(pattern, steps // season + 1)[:steps] + 0.2 * np.random.default_rng(seed).normal(size=steps)


def test_changes_and_means_by_hand():
    np.testing.assert_array_equal(changes(np.array([1.0, 2, 4, 8]), 2), [np.nan, np.nan, 3, 6])
    np.testing.assert_array_equal(changes(np.array([1.0, 2]), 0), [1, 2])
    np.testing.assert_allclose(running_mean(np.array([2.0, 4, 6, 8]), 3), [2, 3, 4, 6])


def test_the_season_of_a_rhythm_is_found_and_a_break_in_it_scores_above_all_that_was_normal():
    series = rhythm(1600)
    series[1200:1220] = series[1200:1220][::-1]  # the same values in another order
    detector = fit_detector(series[:800], seasons=(0, 40), smooth=10, settings=SMALL)
    assert detector.season == 40
    score = detector.score(series)
    assert score[1200:1220].max() > 3 * max(detector.threshold, score[800:1200].max())


def test_a_season_that_is_not_there_is_not_taken():
    walk = np.random.default_rng(1).normal(size=800).cumsum()
    assert fit_detector(walk, seasons=(0, 40), settings=SMALL).season == 0


def test_scores_are_causal():
    series = rhythm(900)
    detector = fit_detector(series[:600], seasons=(40,), smooth=5, settings=SMALL)
    changed = series.copy()
    changed[800:] += 5
    np.testing.assert_allclose(detector.score(changed)[:800], detector.score(series)[:800], atol=1e-5)
    assert detector.score(changed)[800] > detector.score(series)[800] + 1


@pytest.mark.parametrize("broken", [[], slice(300, 340)])
def test_missing_values_and_a_constant_stretch_keep_scores_finite(broken):
    series = np.zeros(700)
    series[650] = 1.0
    series[broken] = np.nan
    detector = fit_detector(series[:500], settings=SMALL)
    score = detector.score(series)
    assert np.isfinite(score).all()
    assert score.argmax() in (650, 651)


def test_by_reconstruction_an_order_never_seen_scores_and_values_alone_do_not():
    series = rhythm(1600)
    series[1200:1220] = series[1200:1220][::-1]
    settings = replace(SMALL, score="reconstruction", code=14)
    detector = fit_detector(series[:800], seasons=(0,), smooth=10, settings=settings)
    score = detector.score(series)
    assert score[1200:1230].max() > 2 * max(detector.threshold, score[800:1200].max())
    changed = series.copy()
    changed[1300:] += 5
    np.testing.assert_allclose(detector.score(changed)[:1300], score[:1300], atol=1e-9)


@pytest.mark.parametrize("settings", [{"score": "surprise"}, {"window": 1}, {"code": 0}])
def test_settings_out_of_range(settings):
    with pytest.raises(ConfigError, match=f"detector.{next(iter(settings))}"):
        DetectorConfig(**settings)


def test_a_stretch_too_short_is_refused():
    with pytest.raises(ShapeError, match="normal"):
        fit_detector(np.zeros(99))
