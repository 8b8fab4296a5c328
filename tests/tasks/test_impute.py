import numpy as np
import pytest
import torch

from seqkit.backbones import BackboneConfig
from seqkit.tasks.base import OptimConfig
from seqkit.tasks.impute import LEVELS, ImputeNet, ImputeTask, read_in_windows
from seqkit.tasks.impute_baselines import both_seasons, last_value, seasonal_naive

NAN = np.nan
FILLS = 3


def net(layout="mamba2", *, random=True):
    model = BackboneConfig(
        d_model=8, layout=layout, d_state=4, headdim=8, vocab_size=0, n_channels=1, bidirectional=True
    )
    built = ImputeNet(model, 5, FILLS).eval()
    if random:
        torch.nn.init.normal_(built.output.weight)
    return built


def test_it_starts_at_the_mean_of_the_fills_with_even_quantiles():
    channels = torch.randn(2, 9, 5)
    found, mean = net(random=False)(channels), channels[..., 2:].mean(dim=-1)
    torch.testing.assert_close(found[..., len(LEVELS) // 2], mean)
    torch.testing.assert_close(found - mean[..., None], -(found - mean[..., None]).flip(-1))


@pytest.mark.parametrize("layout", ["mamba1", "mamba2*2", "s4d"])
def test_quantiles_rise_and_both_sides_are_read(layout):
    model, channels = net(layout), torch.randn(1, 30, 5)
    found = model(channels)
    assert (found.diff(dim=-1) > 0).all()
    for step in (0, 29):
        changed = channels.clone()
        changed[0, step, 0] += 3
        assert (model(changed) - found)[0, 15].abs().max() > 1e-6


def test_the_median_stays_within_the_fills():
    channels = 100 * torch.randn(3, 20, 5)
    median, fills = net()(channels)[..., len(LEVELS) // 2], channels[..., -FILLS:]
    assert (median <= fills.amax(dim=-1) + 1e-3).all()
    assert (median >= fills.amin(dim=-1) - 1e-3).all()
    assert (median - fills.mean(dim=-1)).abs().max() > 1


def test_the_loss_by_hand():
    task = ImputeTask(net(random=False), OptimConfig(), 0)
    channels = torch.zeros(1, 3, 5)
    batch = {"channels": channels, "target": torch.tensor([[1.0, NAN, NAN]])}
    loss, valid = task.losses(batch)
    assert valid.tolist() == [[True, False, False]]
    quantile = task.net(channels)[0, 0].tolist()
    by_hand = [level * (1 - q) if q < 1 else (level - 1) * (1 - q) for level, q in zip(LEVELS, quantile, strict=True)]
    assert loss[0, 0].item() == pytest.approx(np.mean(by_hand), rel=1e-5)


@pytest.mark.parametrize("length", [1, 15, 16, 17, 40, 61])
def test_windows_cover_every_step_once_and_equal_the_whole_where_it_fits(length):
    model, channels = net(), torch.randn(length, 5)
    found = read_in_windows(model, channels, 16)
    assert found.isfinite().all()
    assert found.shape == (length, len(LEVELS))
    with torch.no_grad():
        whole = model(channels[None])[0]
    torch.testing.assert_close(read_in_windows(model, channels, 128), whole)
    if length <= 16:
        torch.testing.assert_close(found, whole)


def test_simple_fills_by_hand():
    y = np.array([NAN, 1, 2, NAN, NAN, 6, NAN])
    np.testing.assert_array_equal(last_value(y), [1, 1, 2, 2, 2, 6, 6])
    np.testing.assert_allclose(seasonal_naive(y, 3), [1, 1, 2, 10 / 3, 1, 6, 6])
    np.testing.assert_allclose(both_seasons(y, 3), [1, 1, 2, 10 / 3, 1, 6, 6])
    np.testing.assert_array_equal(both_seasons(np.array([1.0, NAN, 5]), 1), [1, 3, 5])


@pytest.mark.parametrize("fill", [last_value, lambda y: seasonal_naive(y, 4), lambda y: both_seasons(y, 4)])
def test_simple_fills_leave_known_values_and_nothing_open(fill):
    y = np.random.default_rng(0).normal(size=30)
    gaps = np.random.default_rng(1).random(30) < 0.6
    filled = fill(np.where(gaps, NAN, y))
    np.testing.assert_array_equal(filled[~gaps], y[~gaps])
    assert np.isfinite(filled).all()
    assert np.isfinite(fill(np.full(5, NAN))).all()
