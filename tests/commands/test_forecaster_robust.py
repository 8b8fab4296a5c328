"""Real series are broken in known ways: each is forecast all the same, or refused in one line."""

import numpy as np
import polars as pl
import pytest

from seqkit import Forecaster
from seqkit.errors import InputError

H = 6
SMALL = {
    "model": {"d_model": 8, "headdim": 8, "layout": "mamba2"},
    "trainer": {"max_epochs": 1},
    "data": {"windows_per_epoch": 16},
    "lookback": 24,
}
T = np.arange(24 * 15)
WAVE = 10 + 3 * np.sin(T / 24 * 2 * np.pi) + 0.3 * np.random.default_rng(0).normal(size=len(T))


def series(y=WAVE, ds=None, name="a"):
    ds = np.arange(len(y)) if ds is None else ds
    return pl.DataFrame({"unique_id": name, "ds": ds, "y": np.asarray(y, dtype=float)})


def with_run(value, start=100, stop=200):
    y = WAVE.copy()
    y[start:stop] = value
    return y


HANDLED = {
    "a run of NaN": series(with_run(np.nan)),
    "NaN at both ends": series(np.r_[[np.nan] * 30, WAVE, [np.nan] * 30]),
    "a constant series": series(np.full(200, 7.0)),
    "a series of zeros beside one that moves": pl.concat([series(), series(np.zeros(200), name="b")]),
    "a series shorter than the lookback": pl.concat([series(), series(WAVE[:11], name="b")]),
    "a series of one row": pl.concat([series(), series(WAVE[:1], name="b")]),
    "a series without a value": pl.concat([series(), series([np.nan] * 50, name="b")]),
    "rows in any order": series().sample(fraction=1, shuffle=True, seed=0),
    "a step": series(with_run(1e6, 150, 360)),
    "a series far from zero": series(WAVE + 1e9),
    "whole numbers": series().with_columns(pl.col("y").round().cast(pl.Int32)),
}


@pytest.mark.parametrize("context", ["window", "carried"])
@pytest.mark.parametrize("case", HANDLED)
def test_handled(case, context):
    carried = {"net": {"context": "carried"}, "tokens": {"kind": "step"}, "data": {"chunk": 64, "batch_size": 4}}
    frame = HANDLED[case]
    out = Forecaster(h=H, freq=1, **(SMALL | (carried if context == "carried" else {}))).fit(frame).predict()
    assert out.height == H * frame["unique_id"].n_unique()
    assert out.select(pl.col(pl.Float64).is_finite().all()).row(0) == (True,) * 5


def test_a_constant_series_is_forecast_as_such():
    out = Forecaster(h=H, freq=1, **SMALL).fit(HANDLED["a constant series"]).predict()
    np.testing.assert_allclose(out["seqkit"], 7.0, atol=1e-3)
    assert out.columns[3] == "seqkit-lo-95"
    assert (out["seqkit-hi-95"] - out["seqkit-lo-95"]).max() < 1e-2


def test_a_series_far_from_zero_keeps_its_precision():
    near = Forecaster(h=H, freq=1, **SMALL).fit(series()).predict()
    far = Forecaster(h=H, freq=1, **SMALL).fit(HANDLED["a series far from zero"]).predict()
    np.testing.assert_allclose(far["seqkit"] - 1e9, near["seqkit"], atol=1e-3)


REFUSED = {
    "an infinity": (series(with_run(np.inf, 7, 8)), {}, r"y: expected finite numbers or NaN, got 1 infinite: a at 7"),
    "a stamp twice": (series(ds=np.maximum(T - 1, 0)), {}, r"one row per series and stamp, got 1 more: a at 0"),
    "mixed frequencies": (pl.concat([series(), series(ds=3 * T, name="b")]), {"freq": None},
                          r"one frequency for all series, got 1 in 'a' and 3 in 'b'"),
    "a horizon longer than the history": (series(WAVE[:20]), {"h": 24}, r"more than 24 training rows \(the horizon\)"),
    "nothing but NaN": (series([np.nan] * 50), {}, r"y: expected at least one value to train on, got 40 missing ones"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_line(case):
    frame, options, message = REFUSED[case]
    with pytest.raises(InputError, match=message) as caught:
        Forecaster(**({"h": H, "freq": 1} | SMALL | options)).fit(frame)
    assert "\n" not in str(caught.value)


def test_counts_are_whole_numbers_from_zero_up_and_hold():
    rng = np.random.default_rng(0)
    rate = 0.8 + 0.7 * np.sin(np.arange(600) * 2 * np.pi / 24)
    frame = pl.DataFrame({"ds": np.arange(600), "y": rng.poisson(rate)})
    model = Forecaster(h=H, freq=1, net={"head": "negative-binomial"}, **SMALL)
    rows = model.cross_validation(frame, n_windows=20, level=[80])
    found = rows.select("seqkit", "seqkit-lo-80", "seqkit-hi-80").to_numpy()
    assert (found == found.round()).all()
    assert found.min() == 0
    held = ((rows["seqkit-lo-80"] <= rows["y"]) & (rows["y"] <= rows["seqkit-hi-80"])).mean()
    assert held > 0.75  # whole numbers hold at least what they say
    with pytest.raises(InputError, match="expected counts, 0 or more"):
        model.cross_validation(frame.with_columns(y=pl.col("y") - 1))
