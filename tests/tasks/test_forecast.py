import numpy as np
import pytest
import torch

from seqkit.backbones import BackboneConfig
from seqkit.backbones.series_heads import LEVELS
from seqkit.errors import ConfigError
from seqkit.tasks.base import OptimConfig
from seqkit.tasks.forecast import ForecastTask, conformal_shift
from seqkit.tasks.ridge import fit_ridge
from seqkit.tasks.series_encoder import SeriesEncoder, SeriesShape, TokenConfig
from seqkit.tasks.series_net import ForecastNetConfig, SeriesNet, normalise

L, H = 23, 5
LAYOUTS = ["mamba1", "mamba2", "mamba3", "attention"]


def backbone(layout="mamba2", **options):
    sizes = {"d_model": 16, "d_state": 8, "headdim": 8, "attention_headdim": 8}
    return BackboneConfig(layout=layout, **(sizes | options))


def shape(**options):
    return SeriesShape(**({"lookback": L, "horizon": H} | options))


def make_net(layout="mamba2", tokens=None, config=None, **options):
    return SeriesNet(
        backbone(layout), tokens or TokenConfig(), config or ForecastNetConfig(dropout=0), shape(**options)
    )


def make_batch(net, rows=4, missing=0.1):
    sizes = net.shape
    z = torch.randn(rows, sizes.channels, L)
    z[torch.rand_like(z) < missing] = torch.nan
    batch = {"z": z, "target": torch.randn(rows, sizes.channels, H)}
    batch |= {
        "loc": torch.full((rows, sizes.channels), 3.0).double(),
        "scale": torch.full((rows, sizes.channels), 2.0).double(),
    }
    for name, length in (("future", L + H), ("past", L)):
        if getattr(sizes, name):
            batch[name] = torch.randn(rows, length, getattr(sizes, name))
    if sizes.static:
        batch["static"] = torch.randn(rows, sizes.static)
    return batch


def shaken(net):
    """A network that no longer says nothing."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return net.eval()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["step", "patch", "bins"])
def test_hidden_states_know_nothing_of_later_steps(layout, kind):
    encoder = SeriesEncoder(backbone(layout), TokenConfig(kind=kind, patch=3), shape(future=2)).eval()
    z, future = torch.randn(2, 1, 24), torch.randn(2, 24, 2)
    hidden, _ = encoder(z, {"future": future})
    later = z.clone()
    later[..., 12:] += 5
    future[:, 12:] += 1
    changed, _ = encoder(later, {"future": future})
    upto = 12 // encoder.patch
    torch.testing.assert_close(hidden[:, :upto], changed[:, :upto])
    assert not torch.allclose(hidden[:, upto:], changed[:, upto:])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["step", "bins"])
def test_steps_give_the_hidden_states_of_the_window(layout, kind):
    encoder = SeriesEncoder(backbone(layout), TokenConfig(kind=kind), shape(past=1)).eval()
    z, past = torch.randn(3, 1, 9), torch.randn(3, 9, 1)
    hidden, _ = encoder(z, {"past": past})
    state = None
    for t in range(9):
        step, state = encoder.step(z[..., t], {"past": past[:, t : t + 1]}, state)
        torch.testing.assert_close(step, hidden[:, t], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"future": 3}, {"past": 2, "static": 4}, {"channels": 3, "future": 1}])
@pytest.mark.parametrize("kind", ["step", "patch"])
def test_every_input_and_parameter_is_used(options, kind):
    net = shaken(make_net(tokens=TokenConfig(kind=kind, patch=4), **options))
    batch = make_batch(net, missing=0.0)
    inputs = {name: batch[name].requires_grad_() for name in ("z", "future", "past", "static") if name in batch}
    forecast = net(batch)
    assert forecast.centre_BCH.shape == (4, net.shape.channels, H)
    net.head.loss(forecast.centre_BCH, forecast.raw_BCHK, batch["target"]).sum().backward()
    for name, value in inputs.items():
        assert value.grad.abs().sum() > 0, name
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name


def test_missing_values_are_not_zeros():
    net = shaken(make_net())
    batch = make_batch(net, missing=0.0)
    hidden_gap = {**batch, "z": batch["z"].clone()}
    hidden_zero = {**batch, "z": batch["z"].clone()}
    hidden_gap["z"][..., 5] = torch.nan
    hidden_zero["z"][..., 5] = batch["z"][..., -1]  # what a missing value becomes in front of the linear path
    gap, zero = net(hidden_gap), net(hidden_zero)
    assert gap.centre_BCH.isfinite().all()
    assert not torch.allclose(gap.centre_BCH, zero.centre_BCH)


@pytest.mark.parametrize("norm", ["last", "mean", "none"])
@pytest.mark.parametrize("fill", [float("nan"), 2.5])
def test_windows_without_information_stay_finite(norm, fill):
    net = shaken(make_net(config=ForecastNetConfig(norm=norm)))
    batch = make_batch(net) | {"z": torch.full((4, 1, L), fill)}
    forecast = net(batch)
    assert all(value.isfinite().all() for value in forecast)


def test_normalisation_by_hand():
    z = torch.tensor([[[1.0, 3.0, float("nan")]]])
    last, mean = normalise(z, "last"), normalise(z, "mean")
    assert (last.shift_BC1.item(), last.spread_BC1.item()) == (3, 1)
    assert (mean.shift_BC1.item(), mean.spread_BC1.item()) == (2, 1)
    assert last.x_BCL[0, 0, :2].tolist() == [-2, 0]


def linear_windows(rows=400, noise=0.0):
    true = torch.randn(H, L) * 0.3
    x = torch.randn(rows, L)
    return true, x, x @ true.T + noise * torch.randn(rows, H)


def test_ridge_finds_a_linear_map():
    true, x, y = linear_windows()
    ridge = fit_ridge([(x, y, torch.ones(400))], [(x[:50], y[:50], torch.ones(50))], L, H)
    assert ridge.penalty < 1e-4
    torch.testing.assert_close(ridge.weight_HL.float(), true, rtol=1e-2, atol=1e-3)


def test_ridge_leaves_windows_with_missing_targets_out_and_minds_weights():
    true, x, y = linear_windows()
    y[::2] += 100
    weight = torch.ones(400)
    weight[::2] = 0
    weighted = fit_ridge([(x, y, weight)], [], L, H)
    y[::2] = torch.nan
    masked = fit_ridge([(x, y, torch.ones(400))], [], L, H)
    torch.testing.assert_close(weighted.weight_HL.float(), true, rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(masked.weight_HL.float(), true, rtol=1e-2, atol=1e-3)


def test_ridge_without_windows_is_the_naive_forecast():
    ridge = fit_ridge([], [], L, H)
    assert not ridge.weight_HL.any()
    assert np.isnan(ridge.penalty)


def make_task(**options):
    return ForecastTask(make_net(**options), optim=OptimConfig(), seed=0)


def test_a_run_starts_at_the_linear_model():
    task = make_task()
    true, x, _ = linear_windows(600)
    y = x @ true.T + x[:, -1:]
    batch = make_batch(task.net, 600) | {"z": x.unsqueeze(1), "target": y.unsqueeze(1)}
    task.start(lambda: [batch], lambda: [batch])
    values = task.quantiles(batch, torch.tensor([0.5]))[:, 0, :, 0]
    x_last = x - x[:, -1:]
    ridge = fit_ridge([(x_last, y - x[:, -1:], torch.ones(600))], [], L, H)
    expected = (x_last.double() @ ridge.weight_HL.T + ridge.bias_H + x[:, -1:]) * 2 + 3
    assert (values - expected).abs().mean() < 0.2 * expected.std()


def test_loss_counts_observed_targets_in_scaled_units():
    task = make_task()
    batch = make_batch(task.net)
    batch["target"][:, :, 2:] = torch.nan
    loss, valid = task.losses(task.net(batch), batch)
    assert loss.isfinite().all()
    assert valid.sum() == 4 * 2
    loss[valid].sum().backward()
    assert task.net.linear.bias.grad[2:].abs().sum() == 0
    assert task.net.linear.bias.grad[:2].abs().sum() > 0


@pytest.mark.parametrize("head", ["quantile", "normal", "student-t", "point"])
def test_calibrated_quantiles_leave_their_share_below(head):
    task = make_task(config=ForecastNetConfig(head=head, dropout=0))
    task.eval()
    held, fresh = ({**make_batch(task.net, 2000), "z": torch.zeros(2000, 1, L)} for _ in range(2))
    for batch in (held, fresh):
        batch["target"] = 1 + 4 * torch.randn(2000, 1, H)
    assert task.calibrate([held]) == 2000
    levels = torch.tensor(LEVELS).double()
    values = task.quantiles(fresh, levels)
    below = (fresh["target"].unsqueeze(-1) * 2 + 3 <= values).double().mean((0, 1, 2))
    assert (below - levels).abs().max() < 0.03
    assert (values.diff(dim=-1) >= 0).all()


def test_calibration_pools_steps_where_windows_are_few():
    scores = torch.zeros(10, 41, 1).double()
    scores[:, 40] = 100.0
    level = torch.tensor([0.9]).double()
    assert conformal_shift(scores, level)[:, 0].tolist() == [0.0] * 41
    assert conformal_shift(scores.repeat(100, 1, 1), level)[:, 0].tolist() == [0.0] * 40 + [100.0]


def test_counts_are_read_and_forecast_in_the_units_of_the_data():
    task = make_task(config=ForecastNetConfig(head="negative-binomial", dropout=0, norm="none")).eval()
    unit = {"loc": torch.full((4, 1), 30.0).double(), "scale": torch.full((4, 1), 10.0).double()}
    batch = make_batch(task.net, missing=0) | unit
    with torch.no_grad():
        for parameter in (task.net.linear.weight, task.net.linear.bias, *task.net.decoder.output.parameters()):
            parameter.zero_()  # the forecast is the level, 30
        task.net.decoder.direct.weight.zero_()
    loss, _ = task.losses(task.net(batch), batch)
    law = task.net.head.distribution(torch.full((1, 1, 1), 30.0), torch.zeros(1, 1, 1, 2))
    counts = (batch["target"] * 10 + 30).clamp(min=0)
    torch.testing.assert_close(loss, -law.log_prob(counts).float(), rtol=1e-3, atol=1e-3)
    values = task.quantiles(batch, torch.tensor([0.1, 0.5, 0.9]).double())
    assert (values == values.round()).all()
    assert abs(float(values[..., 1].mean()) - 30) < 3
    assert (values[..., 0] < values[..., 2]).all()


def test_nonnegative_forecasts():
    task = make_task()
    task.nonnegative = True
    batch = make_batch(task.net) | {"loc": torch.full((4, 1), -50.0).double()}
    assert (task.quantiles(batch, torch.tensor([0.1, 0.5])) == 0).all()


@pytest.mark.parametrize(("make", "argument"), [
    (lambda: ForecastNetConfig(norm="max"), "net.norm"),
    (lambda: TokenConfig(kind="words"), "tokens.kind"),
    (lambda: make_net(config=ForecastNetConfig(head="gamma")), "head"),
    (lambda: make_net(tokens=TokenConfig(kind="bins"), channels=2), "tokens.kind"),
    (lambda: SeriesEncoder(backbone(bidirectional=True), TokenConfig(), shape()), "bidirectional"),
])  # fmt: skip
def test_nonsense_is_refused(make, argument):
    with pytest.raises(ConfigError, match=argument):
        make()
