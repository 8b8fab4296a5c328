import numpy as np
import pytest
import torch

from seqkit.backbones import BackboneConfig
from seqkit.errors import ConfigError
from seqkit.tasks.base import OptimConfig
from seqkit.tasks.next_step import Expectation, NextStepConfig, NextStepNet, log_likelihood, loss
from seqkit.tasks.next_step_fit import ChunkConfig, fit_next_step, read_through
from seqkit.tasks.series_linear import fit_autoregression

MODEL = BackboneConfig(d_model=8, layout="s4d", d_state=4, expand=1, vocab_size=0, n_channels=2)


def net(noise="normal", lags=4, layout="s4d", **output):
    torch.manual_seed(0)
    made = NextStepNet(BackboneConfig.from_dict(MODEL.to_dict() | {"layout": layout, "headdim": 4}),
                       NextStepConfig(lags=lags, noise=noise))  # fmt: skip
    if output.get("random"):
        for layer in (made.lags, made.output):
            torch.nn.init.normal_(layer.weight, std=0.3)
    return made.eval()


def wave(steps, seed=0):
    rng = np.random.default_rng(seed)
    return np.sin(np.arange(steps) / 3) + 0.1 * rng.normal(size=steps)


@pytest.mark.parametrize("noise", ["normal", "student-t"])
@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_chunks_equal_one_pass(noise, chunk):
    model, series = net(noise, random=True), wave(100)
    whole, parts = read_through(model, series), read_through(model, series, chunk)
    np.testing.assert_allclose(parts.loc_T, whole.loc_T, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(parts.log_likelihood_T, whole.log_likelihood_T, rtol=1e-3, atol=1e-4)
    assert np.isnan(whole.loc_T[0])
    assert not np.isnan(whole.log_likelihood_T[1:]).any()


@pytest.mark.parametrize("layout", ["s4d", "mamba2"])
def test_an_expectation_knows_nothing_of_its_value(layout):
    model, series = net(layout=layout, random=True), wave(60)
    changed = series.copy()
    changed[30:] += 1
    before, after = read_through(model, series), read_through(model, changed)
    np.testing.assert_allclose(after.loc_T[1:31], before.loc_T[1:31], atol=1e-6)
    assert abs(after.loc_T[31] - before.loc_T[31]) > 1e-3


def test_the_start_is_the_autoregression():
    series, model = wave(500), net(lags=6)
    solution = fit_autoregression(series, 6)
    model.start(solution)
    read = read_through(model, series)
    np.testing.assert_allclose(read.loc_T[6:], solution.one_step(series)[6:], atol=1e-4)
    assert read.log_likelihood_T[6:].mean() == pytest.approx(solution.log_likelihood(series), abs=1e-3)


def test_missing_values_have_no_likelihood_and_spoil_nothing():
    series = wave(80)
    series[[0, 20, 21, 50]] = np.nan
    read = read_through(net(random=True), series, 16)
    assert set(np.flatnonzero(np.isnan(read.log_likelihood_T))) == {0, 20, 21, 50}
    assert np.isfinite(read.loc_T[1:]).all()


def test_training_beats_the_autoregression_where_the_spread_changes():
    """Noise is three times larger in every other stretch of 50: a constant spread cannot follow it."""
    rng = np.random.default_rng(0)
    loud = (np.arange(6000) // 50) % 2
    series = rng.normal(size=6000) * (0.3 + 0.9 * loud)
    model = net(lags=2)
    chunks, optim = ChunkConfig(streams=4, chunk=128, epochs=8), OptimConfig(lr=2e-2)
    history = fit_next_step(model, series[:5000], series[5000:], chunks=chunks, optim=optim, seed=0)
    assert max(history) > history[0] + 0.1
    again = net(lags=2)
    assert fit_next_step(again, series[:5000], series[5000:], chunks=chunks, optim=optim, seed=0) == history


@pytest.mark.parametrize("centre", ["likelihood", "square"])
def test_the_centre_learns_from_what_it_is_told_to(centre):
    """Two values of different spread: the likelihood weighs the quiet one more, the squared error both alike."""
    loc = torch.zeros(1, 2, requires_grad=True)
    found = Expectation(loc, torch.tensor([[1.0, 3.0]]), None)
    loss(found, torch.ones(1, 2), centre, noise=2.0).backward()
    expected = [[-0.5, -0.5 / 9]] if centre == "likelihood" else [[-0.125, -0.125]]
    torch.testing.assert_close(loc.grad, torch.tensor(expected))
    assert loss(found, torch.full((1, 2), torch.nan), centre, noise=2.0) is None


def test_likelihood_by_hand():
    found, _ = net()(torch.zeros(1, 3))
    values = log_likelihood(found, torch.tensor([[0.0, 2.0, torch.nan]]))
    torch.testing.assert_close(values[0, :2], torch.tensor([-0.918939, -2.918939]))
    assert values[0, 2].isnan()


@pytest.mark.parametrize(
    ("setting", "match"),
    [({"lags": 0}, "net.lags"), ({"noise": "cauchy"}, "net.noise"), ({"centre": "x"}, "net.centre")],
)
def test_settings_are_checked(setting, match):
    with pytest.raises(ConfigError, match=match):
        NextStepConfig(**setting)
    with pytest.raises(ConfigError, match=r"chunks\.chunk"):
        ChunkConfig(chunk=0)
