import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqkit.tokenizers.gaps import gap_channels, interpolated, seasonal_neighbours, shifted, simple_fills

NAN = np.nan


def test_straight_lines_by_hand():
    np.testing.assert_array_equal(interpolated(np.array([NAN, 1, NAN, NAN, 4, NAN])), [1, 1, 2, 3, 4, 4])
    np.testing.assert_array_equal(interpolated(np.array([NAN, NAN])), [0, 0])


@pytest.mark.parametrize(
    ("steps", "expected"), [(1, [NAN, 1, 2]), (-1, [2, 3, NAN]), (3, [NAN] * 3), (-7, [NAN] * 3), (0, [1, 2, 3])]
)
def test_shifts_by_hand(steps, expected):
    np.testing.assert_array_equal(shifted(np.array([1.0, 2, 3]), steps), expected)


def test_seasonal_neighbours_by_hand():
    z = np.array([1.0, NAN, 3, NAN, 9, NAN])
    np.testing.assert_array_equal(seasonal_neighbours(z, 2), [3, NAN, 5, NAN, 3, NAN])


def test_channels_by_hand():
    found = gap_channels(np.array([2.0, NAN, 4]), (1,))
    assert found.shape == (3, 5 + 3)
    np.testing.assert_array_equal(found[:, :2], [[2, 0], [0, 1], [4, 0]])
    np.testing.assert_allclose(found[1, 2:4], np.log(2) / 6, rtol=1e-6)
    np.testing.assert_array_equal(found[:, 4], [1, 0, 1])
    np.testing.assert_array_equal(found[:, -simple_fills(1) :], [[2, 2, 2], [3, 3, 3], [4, 4, 4]])


def test_a_fill_keeps_the_departure_from_the_season():
    """Ten above its neighbours on both sides of the gap, so ten above them inside."""
    z = np.array([0.0, 1, 2, 10, NAN, 12, 0, 1, 2])
    assert gap_channels(z, (3,))[4, -3:].tolist() == [11, 1, 11]


@given(st.lists(st.one_of(st.just(NAN), st.floats(-5, 5)), min_size=1, max_size=40), st.integers(1, 50))
def test_channels_are_finite_and_mirror_with_the_series(values, season):
    z = np.array(values)
    found, mirrored = gap_channels(z, (season,)), gap_channels(z[::-1], (season,))[::-1]
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[:, [0, 1, 4, 5, 6, 7]], mirrored[:, [0, 1, 4, 5, 6, 7]], atol=1e-4)
    np.testing.assert_array_equal(found[:, 2], mirrored[:, 3])
