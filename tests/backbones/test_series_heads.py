import math

import pytest
import torch

from seqkit.backbones.series_heads import LEVELS, build_head, interpolate_quantiles
from seqkit.errors import ConfigError

H, B, C = 3, 5, 2


def inputs(head):
    return torch.randn(B, C, H), torch.randn(B, C, H, head.width) * 0.3


@pytest.mark.parametrize("kind", ["quantile", "normal", "student-t", "negative-binomial", "point"])
def test_quantiles_rise_and_gradients_flow(kind):
    head = build_head(kind, H)
    centre, raw = inputs(head)
    levels = torch.tensor([0.01, 0.1, 0.33, 0.5, 0.9, 0.995])
    head.initialise(torch.randn(200, H))
    quantiles = head.quantiles(centre, raw, levels)
    assert quantiles.shape == (B, C, H, 6)
    assert (quantiles.diff(dim=-1) >= 0).all()
    raw.requires_grad_()
    head.loss(centre, raw, torch.randn(B, C, H)).sum().backward()
    assert (raw.grad.abs().sum((0, 1, 2)) > 0).all()


def test_pinball_of_the_median_is_the_absolute_error():
    head = build_head("quantile", H, (0.5,))
    centre = torch.zeros(1, 1, H)
    loss = head.loss(centre, torch.zeros(1, 1, H, head.width), torch.tensor([[[1.0, -2.0, 0.5]]]))
    torch.testing.assert_close(loss, torch.tensor([[[1.0, 2.0, 0.5]]]))


def test_quantile_head_starts_from_the_quantiles_of_residuals():
    head = build_head("quantile", 2, (0.1, 0.5, 0.9))
    residuals = torch.stack([torch.arange(101.0), torch.full((101,), float("nan"))], dim=1)
    head.initialise(residuals)
    quantiles = head.quantiles(torch.zeros(1, 1, 2), torch.zeros(1, 1, 2, 4), head.levels)
    torch.testing.assert_close(quantiles[0, 0], torch.tensor([[10.0, 50, 90], [0, 0, 0]]))


def test_distributions_know_their_quantiles():
    normal, student = build_head("normal", 1), build_head("student-t", 1)
    zero = torch.zeros(1, 1, 1)
    levels = torch.tensor([0.025, 0.5, 0.975])
    raw = torch.zeros(1, 1, 1, 2)
    torch.testing.assert_close(
        normal.quantiles(zero, raw, levels)[0, 0, 0], torch.tensor([-1.95996, 0, 1.95996]), rtol=1e-4, atol=1e-5
    )
    law = student.distribution(zero, torch.zeros(1, 1, 1, 3))
    draws = law.sample((100_000,)).flatten()
    wanted = student.quantiles(zero, torch.zeros(1, 1, 1, 3), levels)[0, 0, 0]
    for level, value in zip(levels, wanted, strict=True):
        assert abs((draws <= value).float().mean() - level) < 0.005


@pytest.mark.parametrize("centre", [-3.0, 0.2, 2.0, 80.0])
def test_counts_know_mean_variance_and_quantiles(centre):
    head = build_head("negative-binomial", 1)
    inputs = torch.full((1, 1, 1), centre), torch.zeros(1, 1, 1, 2)
    torch.manual_seed(0)
    draws = head.distribution(*inputs).sample((100_000,)).flatten().float()
    mean, dispersion = math.log1p(math.exp(centre)), math.exp(-2.0)
    assert draws.mean() == pytest.approx(mean, rel=0.05)
    assert draws.var() == pytest.approx(mean + dispersion * mean**2, rel=0.1)
    low, high = head.quantiles(*inputs, torch.tensor([0.1, 0.9])).flatten().tolist()
    assert (low, high) == (int(low), int(high))
    assert (draws <= high).float().mean() >= 0.89
    assert (draws < low).float().mean() <= 0.11


def test_counts_have_the_likelihood_of_poisson_where_nothing_more_scatters():
    head = build_head("negative-binomial", 1)
    raw = torch.zeros(1, 1, 1, 2)
    torch.nn.init.constant_(head.log_dispersion_H, -30.0)
    loss = head.loss(torch.full((1, 1, 1), 50.0), raw, torch.full((1, 1, 1), 47.0))
    expected = -torch.distributions.Poisson(50.0).log_prob(torch.tensor(47.0))
    torch.testing.assert_close(loss.squeeze(), expected, rtol=1e-2, atol=0)


@pytest.mark.parametrize(("kind", "power"), [("quantile", 1), ("point", 2)])
def test_loss_grows_with_the_stated_power_of_the_unit(kind, power):
    head = build_head(kind, H)
    raw = torch.zeros(B, C, H, head.width)
    centre, target = torch.randn(B, C, H), torch.randn(B, C, H)
    assert head.degree == power
    torch.testing.assert_close(head.loss(3 * centre, raw, 3 * target), 3**power * head.loss(centre, raw, target))


def test_normal_scores_interpolate_a_normal_exactly():
    levels, wanted = torch.tensor(LEVELS), torch.tensor([0.01, 0.15, 0.42, 0.99])
    values = 2 + 3 * torch.special.ndtri(levels.double())
    torch.testing.assert_close(
        interpolate_quantiles(values, levels, wanted), 2 + 3 * torch.special.ndtri(wanted.double())
    )


@pytest.mark.parametrize("levels", [(), (0.5, 0.5), (0.9, 0.1), (0.0, 0.5), (0.5, 1.0)])
def test_levels_must_rise_between_0_and_1(levels):
    with pytest.raises(ConfigError, match="levels"):
        build_head("quantile", H, levels)
    with pytest.raises(ConfigError, match="quantile or normal"):
        build_head("gamma", H)


def test_spread_is_learned_as_a_factor():
    head = build_head("quantile", 1, (0.1, 0.9))
    head.initialise(torch.linspace(-1, 1, 101)[:, None])
    raw = torch.zeros(1, 1, 1, 3)
    raw[..., 0] = math.log(2.0)
    torch.testing.assert_close(head.values(torch.zeros(1, 1, 1), raw).flatten(), torch.tensor([-1.6, 1.6]))
