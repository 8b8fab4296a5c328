from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from seqkit.data.covariates import CovariateEncoder, Encoded
from seqkit.data.series import load_panel, panel_of_array
from seqkit.data.series_data import SeriesDataConfig, batches, prepare
from seqkit.data.series_grid import GridConfig
from seqkit.data.series_splits import split_by_time
from seqkit.data.series_windows import ScaledPanel, SeriesWindows, WindowIndex
from seqkit.errors import ConfigError, InputError
from seqkit.tokenizers.numeric import SeriesScaler

BARE = Encoded(None, None, None, None)


def panel_of(*lengths):
    """Series whose values tell series and step: 100 s + t."""
    frames = [
        pl.DataFrame({"unique_id": f"s{s}", "ds": np.arange(n), "y": 100.0 * s + np.arange(n)})
        for s, n in enumerate(lengths)
    ]
    return load_panel(pl.concat(frames))


def windows_of(panel, index, lookback, horizon, scaler="none", **options):
    data = ScaledPanel(panel, SeriesScaler(scaler), BARE, **options)
    return SeriesWindows(data, index, lookback=lookback, horizon=horizon)


@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(-3, 20)), min_size=1, max_size=6),
    st.integers(1, 5),
)
def test_index_counts_every_cutoff_once(spans, stride):
    offsets = np.cumsum([0, *(25 for _ in spans)])
    first = offsets[:-1] + [a for a, _ in spans]
    last = first + [b for _, b in spans]
    index = WindowIndex(offsets, first, last, stride=stride)
    expected = [(s, c) for s, (a, b) in enumerate(zip(first, last, strict=True)) for c in range(a, b + 1, stride)]
    assert len(index) == len(expected)
    if expected:
        series, cutoff = index.locate(np.arange(len(index)))
        assert list(zip(series.tolist(), cutoff.tolist(), strict=True)) == expected


def test_windows_hold_the_steps_before_and_behind_the_cutoff():
    panel = panel_of(9, 12)
    index = WindowIndex(panel.offsets, panel.offsets[:-1] + 3, panel.offsets[1:] - 2)
    batch = windows_of(panel, index, 3, 2)[0]
    assert batch["z"].tolist() == [[0, 1, 2]]
    assert batch["target"].tolist() == [[3, 4]]
    last = windows_of(panel, index, 3, 2)[len(index) - 1]
    assert last["z"].tolist() == [[107, 108, 109]]
    assert last["target"].tolist() == [[110, 111]]
    assert last["series"] == 1


def test_what_lies_outside_a_series_is_missing():
    panel = panel_of(4, 4)
    windows = windows_of(panel, WindowIndex(panel.offsets, np.array([0, 4]), np.array([0, 4])), 3, 2)
    batch = windows.at(np.array([1, 1]), np.array([5, 7]))
    np.testing.assert_array_equal(batch["z"][:, 0], [[np.nan, np.nan, 100], [100, 101, 102]])
    np.testing.assert_array_equal(batch["target"][:, 0], [[101, 102], [103, np.nan]])


def test_fillers_have_no_targets():
    panel = panel_of(12)
    windows = windows_of(panel, WindowIndex(panel.offsets, np.array([4]), np.array([8])), 4, 2)
    batch = windows.__getitems__([2, -3])
    assert batch["index"].tolist() == [2, -1]
    assert batch["target"][1].isnan().all()
    torch.testing.assert_close(batch["z"][0], batch["z"][1])


def test_channels_share_a_window():
    panel = panel_of_array(np.arange(10)[:, None] + np.array([0.0, 100.0, 200.0]))
    split = split_by_time(panel, lookback=3, horizon=2, validation=0, test=0)
    windows = windows_of(panel, split.windows("train", series=0), 3, 2, channels=True)
    batch = windows.__getitems__([0, 1])
    assert len(windows) == 6
    assert batch["z"][1].tolist() == [[1, 2, 3], [101, 102, 103], [201, 202, 203]]
    assert batch["target"][1].tolist() == [[4, 5], [104, 105], [204, 205]]
    with pytest.raises(InputError, match="share all stamps"):
        windows_of(panel_of(4, 5), None, 1, 1, channels=True)


@pytest.mark.parametrize("scaler", ["none", "global", "series", "running"])
def test_scaling_is_undone_by_loc_and_scale(scaler):
    panel = panel_of(40, 30)
    data = prepare(panel, SeriesDataConfig(lookback=5, horizon=3, scaler=scaler, calendar=False))
    for batch in batches(data.windows("train"), 7):
        value = batch["z"].double() * batch["scale"][..., None] + batch["loc"][..., None]
        series = batch["series"][:, None, None]
        np.testing.assert_allclose(value, 100 * series + (value - 100 * series).round(), atol=1e-4)
        np.testing.assert_allclose(value.diff(dim=-1), 1, atol=1e-4)


def test_running_scaling_knows_nothing_of_later_rows():
    y = np.random.default_rng(0).normal(5, 3, 50)
    changed = y.copy()
    changed[30:] += 1000
    tables = [SeriesScaler("running").tables(v, np.array([0, 50]), ["a"]) for v in (y, changed)]
    for one, other in zip(*tables, strict=True):
        np.testing.assert_array_equal(one[:30], other[:30])
        assert (one[30:] != other[30:]).all()


def test_split_keeps_targets_apart_with_a_gap():
    panel = panel_of(100, 50)
    split = split_by_time(panel, lookback=8, horizon=4, validation=0.2, test=0.1, gap=3)
    assert split.bounds["test"].tolist() == [[90, 100], [145, 150]]
    assert split.bounds["validation"].tolist() == [[67, 87], [132, 142]]
    assert split.bounds["train"].tolist() == [[0, 64], [100, 129]]
    for part in ("train", "validation", "test"):
        series, cutoff = split.windows(part).locate(np.arange(len(split.windows(part))))
        start, stop = split.bounds[part][series].T
        assert (cutoff >= start).all()
        assert (cutoff + 4 <= stop).all()


def test_short_series_give_windows_with_missing_beginnings():
    split = split_by_time(panel_of(6), lookback=20, horizon=2, validation=0, test=0)
    _, cutoff = split.windows("train").locate(np.arange(len(split.windows("train"))))
    assert cutoff.tolist() == [4]


def test_a_horizon_longer_than_the_history_is_refused():
    with pytest.raises(InputError, match=r"more than 24 training rows.*got 4 in the longest, 's0' of 52 rows"):
        split_by_time(panel_of(52), lookback=4, horizon=24)


@pytest.mark.parametrize(("name", "value"), [("lookback", 0), ("horizon", -1), ("gap", -2), ("test", 1.5)])
def test_impossible_sizes_are_refused(name, value):
    with pytest.raises(ConfigError, match=name):
        split_by_time(panel_of(99), **({"lookback": 4, "horizon": 2} | {name: value}))


def covariate_panel():
    n = 30
    frame = pl.DataFrame({
        "unique_id": np.repeat(["a", "b"], n),
        "ds": np.tile(pl.date_range(pl.date(2024, 1, 1), pl.date(2024, 1, n), "1d", eager=True), 2),
        "y": np.arange(2.0 * n),
        "price": np.tile(np.arange(n) * 10.0, 2),
        "weather": np.tile(["sun", "rain", "sun"], 20),
        "region": np.repeat(["north", "south"], n),
    }).with_columns(pl.col("ds").cast(pl.Date))  # fmt: skip
    return load_panel(frame, exogenous=("price", "weather", "region"))


def test_covariates_are_standardised_and_one_hot():
    panel = covariate_panel()
    rows = np.arange(60)
    encoder = CovariateEncoder.fit(panel, rows, future=("price",), past=("weather",), static=("region",))
    encoded = encoder.encode(panel)
    assert encoder.widths == {"future": 1 + 7, "past": 2, "static": 2}
    assert abs(encoded.future_NF[:, 0].mean()) < 1e-5
    assert encoded.past_NP[:3].tolist() == [[0, 1], [1, 0], [0, 1]]
    assert encoded.static_SK.tolist() == [[1, 0], [0, 1]]
    assert encoded.future_NF[:7, 1:].argmax(1).tolist() == [0, 1, 2, 3, 4, 5, 6]  # 2024-01-01 was a Monday
    assert CovariateEncoder.from_dict(encoder.to_dict()) == encoder


def test_unseen_categories_and_missing_numbers_add_nothing():
    panel = covariate_panel()
    encoder = CovariateEncoder.fit(panel, np.arange(60), past=("weather", "price"))
    table = panel.exogenous.with_columns(weather=pl.lit("hail"), price=pl.lit(None, pl.Float64))
    other = replace(panel, exogenous=table)
    assert not encoder.encode(other).past_NP.any()


def test_static_covariates_must_not_vary():
    with pytest.raises(InputError, match=r"weather: expected one value per series.*several in 'a'"):
        CovariateEncoder.fit(covariate_panel(), np.arange(60), static=("weather",))


def test_windows_carry_covariates_of_their_rows():
    panel = covariate_panel()
    config = SeriesDataConfig(lookback=4, horizon=2, future="price", past="weather", static="region", calendar=False)
    data = prepare(panel, config)
    batch = data.windows("train").at(np.array([1, 0]), np.array([36, 2]))
    price = data.encoder.future[0]
    future = batch["future"][..., 0] * price.scale + price.mean
    torch.testing.assert_close(future[0], torch.tensor([20.0, 30, 40, 50, 60, 70]))
    assert batch["future"][1, :2].abs().sum() == 0
    torch.testing.assert_close(future[1, 2:], torch.tensor([0.0, 10, 20, 30]))
    assert batch["past"].shape == (2, 4, 2)
    assert batch["static"].tolist() == [[0, 1], [1, 0]]


def test_distances_of_irregular_series():
    frame = pl.DataFrame({"unique_id": "a", "ds": [0, 2, 4, 10, 12, 13, 15, 17], "y": range(8)})
    panel = load_panel(frame, grid=GridConfig(irregular=True))
    data = prepare(panel, SeriesDataConfig(lookback=3, horizon=1, irregular=True, validation=0, test=1))
    batch = data.windows("train").at(np.array([0]), np.array([4]))
    torch.testing.assert_close(batch["step"], torch.tensor([[1.0, 1.0, 3.0, 1.0]]))
