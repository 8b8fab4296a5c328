import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqkit.tasks.adaptive import Watch, adapted, followed, watch_rows, widened

LEVELS = np.array([0.1, 0.5, 0.9])


def shifted(windows=300, horizon=4, spread=3.0, seed=0):
    """Intervals for a unit normal, values of another spread."""
    y = spread * np.random.default_rng(seed).normal(size=(windows, horizon))
    quantiles = np.broadcast_to([-1.2816, 0, 1.2816], (*y.shape, 3)).copy()
    return quantiles, y, np.zeros(windows, int), np.arange(windows) * horizon


def coverage(quantiles, y):
    return ((y >= quantiles[..., 0]) & (y <= quantiles[..., -1])).mean()


def test_widening_by_hand():
    quantiles = np.array([[1.0, 2.0, 5.0]])
    wide = widened(quantiles, LEVELS, np.log([3.0, 9.0, 2.0]))
    np.testing.assert_allclose(wide, [[-1, 2, 8]])


def test_one_step_by_hand():
    moved = followed(np.zeros(3), LEVELS, np.array([[0.0, 1, 2], [0, 1, 2]]), np.array([3.0, np.nan]), 0.5)
    np.testing.assert_allclose(moved, [-0.05 / 0.3, 0, 0.45 / 0.3])


@pytest.mark.parametrize("spread", [0.3, 1.0, 3.0])
def test_coverage_returns_to_what_was_promised(spread):
    quantiles, y, series, cutoff = shifted(spread=spread)
    assert coverage(adapted(quantiles, y, LEVELS, series, cutoff, 0.5), y) == pytest.approx(0.8, abs=0.02)


@given(st.lists(st.floats(-5, 5), min_size=20, max_size=60), st.floats(0.1, 1))
def test_misses_balance_for_any_series(values, rate):
    y = np.array(values)[:, None]
    quantiles, _, series, cutoff = shifted(len(y), 1)
    given_out = adapted(quantiles, y, LEVELS, series, cutoff, rate)
    above = (y[:, 0] > given_out[:, 0, 2]).mean()
    assert abs(above - 0.1) <= (2 + 3 * rate) * 0.3 / (rate * len(y)) + 1e-9 or above < 0.1


def test_nothing_later_than_a_cutoff_enters():
    quantiles, y, series, cutoff = shifted(40)
    before = adapted(quantiles, y, LEVELS, series, cutoff, 1.0)
    changed = y.copy()
    changed[20:] *= 100
    after = adapted(quantiles, changed, LEVELS, series, cutoff, 1.0)
    np.testing.assert_array_equal(before[:21], after[:21])
    assert (before[21:] != after[21:]).any()


def test_overlapping_windows_count_once_they_are_over():
    quantiles, y, series, _ = shifted(3, 4)
    y[:] = 9.0
    wide = adapted(quantiles, y, LEVELS, series, np.array([0, 3, 4]), 0.3)
    np.testing.assert_array_equal(wide[1], quantiles[1])
    np.testing.assert_allclose(wide[2, :, 2], 1.2816 * np.exp(0.9))


@pytest.mark.parametrize("pieces", [[4], [1, 3], [2, 2, 5]])
def test_rows_one_by_one_or_together_come_to_the_same(pieces):
    quantiles, y, *_ = shifted(2)
    watch = Watch(np.zeros((1, 3)), quantiles[:1], np.zeros(1, int))
    rows = np.concatenate([y[0], np.full(5, 99.0)])
    for start, count in zip(np.cumsum([0, *pieces]), pieces, strict=False):
        watch = watch_rows(watch, [rows[start : start + count]], LEVELS, 0.7)
    expected = followed(np.zeros(3), LEVELS, quantiles[0], y[0], 0.7 / 4)
    np.testing.assert_allclose(watch.width_SQ[0], expected)
    assert watch.seen_S[0] == sum(pieces)
