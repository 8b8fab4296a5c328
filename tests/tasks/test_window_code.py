import numpy as np
import pytest

from seqkit.tasks import window_code
from seqkit.tasks.window_code import WindowCode


def waves(steps=400, noise=0.0):
    t = np.arange(steps)
    return np.sin(t / 5) + 0.5 * np.cos(t / 9) + noise * np.random.default_rng(0).normal(size=steps)


def test_what_lies_in_the_directions_comes_back():
    code = WindowCode.fit(waves(), 24, 4)  # two frequencies, a sine and a cosine each
    error = code.errors(waves(200))
    assert np.isnan(error[:23]).all()
    assert error[23:].max() < 1e-6
    assert WindowCode.fit(waves(), 24, 3).errors(waves(200))[23:].max() > 1e-3


def test_the_error_is_that_of_every_window_by_hand(monkeypatch):
    z = waves(120, 0.3)
    code = WindowCode.fit(z, 10, 3)
    centre, direction = code.centre_W.numpy(), code.direction_KW.numpy()
    by_hand = []
    for end in range(10, 121):
        window = z[end - 10 : end] - centre
        by_hand.append(np.mean((window - window @ direction.T @ direction) ** 2))
    monkeypatch.setattr(window_code, "_AT_ONCE", 7)
    np.testing.assert_allclose(code.errors(z)[9:], by_hand)


@pytest.mark.parametrize("size", [1, 4, 7])
def test_directions_are_orthonormal(size):
    code = WindowCode.fit(np.random.default_rng(0).normal(size=500), 8, size)
    assert code.direction_KW.shape == (size, 8)
    np.testing.assert_allclose(code.direction_KW @ code.direction_KW.T, np.eye(size), atol=1e-9)


def test_missing_and_constant_values_keep_errors_finite():
    z = np.zeros(100)
    z[40:60] = np.nan
    error = WindowCode.fit(z, 10, 2).errors(z)
    assert np.isnan(error[49:60]).all()  # nothing is known in these windows
    assert (error[60:] == 0).all()
