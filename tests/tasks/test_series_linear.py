import numpy as np
import pytest
from sklearn.linear_model import LinearRegression, Ridge

from seqkit.errors import ShapeError
from seqkit.tasks.ridge import PENALTIES
from seqkit.tasks.series_linear import fit_autoregression, fit_linear, windows


def waves(channels=2, steps=400, seed=0):
    rng = np.random.default_rng(seed)
    phase = rng.uniform(0, 6, size=(channels, 1))
    return (
        np.sin(np.arange(steps) / 3 + phase) + np.cos(np.arange(steps) / 7) + 0.1 * rng.normal(size=(channels, steps))
    )


def stacked(series, lookback, horizon):
    x, y = zip(*windows(series, lookback, horizon), strict=True)
    return np.concatenate(x), np.concatenate(y)


def test_windows_by_hand():
    x, y = stacked(np.array([[1.0, 2, 3, 4], [5, 6, np.nan, 8]]), 2, 1)
    np.testing.assert_array_equal(x, [[1, 2], [2, 3]])
    np.testing.assert_array_equal(y, [[3], [4]])


@pytest.mark.parametrize("kind", ["linear", "nlinear"])
def test_agrees_with_scikit_learn(kind):
    series = waves()
    ours = fit_linear(series, 12, 5, kind=kind, penalties=[0.01])
    x, y = stacked(series, 12, 5)
    last = x[:, -1:] if kind == "nlinear" else 0
    features = x - last
    unit = (features**2).sum(0).mean()
    theirs = Ridge(alpha=0.01 * unit).fit(features, y - last)
    np.testing.assert_allclose(ours.predict(x), theirs.predict(features) + last, rtol=1e-6, atol=1e-8)


def test_rlinear_weighs_windows_by_their_variance():
    series = waves() * np.linspace(1, 5, 400)
    ours = fit_linear(series, 12, 5, kind="rlinear", penalties=[1e-10])
    x, y = stacked(series, 12, 5)
    mean, sd = x.mean(1, keepdims=True), x.std(1, keepdims=True)
    theirs = LinearRegression().fit((x - mean) / sd, (y - mean) / sd, sample_weight=sd[:, 0] ** 2)
    expected = theirs.predict((x - mean) / sd) * sd + mean
    np.testing.assert_allclose(ours.predict(x), expected, rtol=1e-4, atol=1e-4)


def test_the_penalty_is_chosen_on_validation():
    series, held = waves(1, 60), waves(1, 200, seed=1)
    x, y = stacked(held, 20, 5)
    chosen = fit_linear(series, 20, 5, validation_CT=held)
    errors = {p: np.mean((fit_linear(series, 20, 5, penalties=[p]).predict(x) - y) ** 2) for p in PENALTIES}
    assert chosen.penalty == min(errors, key=errors.get)
    with pytest.raises(ShapeError, match="validation"):
        fit_linear(series, 20, 5)


def test_without_a_bias_a_window_at_rest_stays_where_it_is():
    rising = np.arange(60.0) + waves(1, 60)
    free, bound = (fit_linear(rising, 12, 5, penalties=[0.1], bias=bias) for bias in (True, False))
    np.testing.assert_allclose(bound.predict(np.full((1, 12), 7.0)), 7)
    assert (free.predict(np.full((1, 12), 7.0)) > 7.1).all()


@pytest.mark.parametrize(("kind", "moves"), [("linear", False), ("nlinear", True), ("rlinear", True)])
def test_a_shift_of_the_window_shifts_the_forecast(kind, moves):
    model = fit_linear(waves(), 12, 5, kind=kind, penalties=[0.1])
    x = waves(seed=4)[:, :12]
    difference = model.predict(x + 10) - model.predict(x)
    assert np.allclose(difference, 10) == moves


def test_an_autoregression_is_recovered():
    rng, y = np.random.default_rng(0), np.zeros(20_000)
    for t in range(2, len(y)):
        y[t] = 0.3 + 1.2 * y[t - 1] - 0.5 * y[t - 2] + 0.2 * rng.normal()
    model = fit_autoregression(y, 2)
    np.testing.assert_allclose(model.weight_P, [-0.5, 1.2], atol=0.03)
    assert model.noise == pytest.approx(0.2, rel=0.02)
    np.testing.assert_allclose(model.one_step(y)[2:4], 0.3 + 1.2 * y[1:3] - 0.5 * y[:2], atol=0.05)
    entropy = -np.log(0.2) - 0.5 * np.log(2 * np.pi) - 0.5
    assert model.log_likelihood(y, start=2) == pytest.approx(entropy, abs=0.02)


def test_recursive_forecasts_feed_on_themselves():
    model = fit_autoregression(np.sin(np.arange(500) / 5), 2)
    history = np.sin(np.arange(-10, 0) / 5)
    np.testing.assert_allclose(model.forecast(history, 50)[0], np.sin(np.arange(50) / 5), atol=1e-4)


def test_short_series_are_refused():
    with pytest.raises(ShapeError, match="lookback"):
        fit_linear(np.zeros((1, 10)), 8, 3, penalties=[1.0])
    with pytest.raises(ShapeError, match="history"):
        fit_linear(waves(), 12, 5, penalties=[1.0]).predict(np.zeros((1, 11)))
