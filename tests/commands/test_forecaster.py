import json
import logging
import subprocess
import sys
from datetime import timedelta

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from polars.testing import assert_frame_equal
from utilsforecast.evaluation import evaluate
from utilsforecast.losses import coverage, mae, scaled_crps
from utilsforecast.plotting import plot_series

import seqkit
from seqkit import Forecaster
from seqkit.errors import CheckpointError, ConfigError, InputError

H = 6
SMALL = {
    "model": {"d_model": 8, "headdim": 8, "layout": "mamba2"},
    "trainer": {"max_epochs": 1},
    "data": {"windows_per_epoch": 16},
    "lookback": 24,
}


def hourly(days, names=("a", "b"), start="2024-01-01"):
    frames = []
    for place, name in enumerate(names):
        t = np.arange(24 * days)
        y = (10 + 90 * place) * (
            1 + 0.3 * np.sin(t / 24 * 2 * np.pi) + 0.05 * np.random.default_rng(place).normal(size=len(t))
        )
        ds = pl.datetime_range(
            pd.Timestamp(start), pd.Timestamp(start) + pd.Timedelta(hours=len(t) - 1), "1h", eager=True
        )
        frames.append(pl.DataFrame({"unique_id": name, "ds": ds, "y": y}))
    return pl.concat(frames)


FRAME = hourly(20)
LATER = hourly(25).join(FRAME, on=["unique_id", "ds"], how="anti")


@pytest.fixture(scope="module")
def fitted():
    return Forecaster(h=H, **SMALL).fit(FRAME)


@pytest.mark.parametrize(("convert", "kind"), [
    (lambda f: f, pl.DataFrame), (lambda f: f.lazy(), pl.DataFrame),
    (lambda f: f.to_pandas(), pd.DataFrame), (lambda f: f.to_arrow(), pa.Table),
])  # fmt: skip
def test_frames_come_out_as_they_went_in(convert, kind, fitted):
    out = fitted.predict(convert(FRAME), level=[80, 95])
    assert isinstance(out, kind)
    names = ["unique_id", "ds", "seqkit", "seqkit-lo-95", "seqkit-lo-80", "seqkit-hi-80", "seqkit-hi-95"]
    assert list(out.column_names if kind is pa.Table else out.columns) == names


def test_forecasts_follow_the_last_row_of_every_series(fitted):
    out = fitted.predict(h=3, level=[90], quantiles=[0.1, 0.5])
    assert out["unique_id"].to_list() == ["a"] * 3 + ["b"] * 3
    last = FRAME["ds"].max()
    assert ((out["ds"] - last).dt.total_hours() == pl.Series([1, 2, 3] * 2)).all()
    assert out["seqkit_ql0.5"].equals(out["seqkit"], check_names=False)
    assert (out["seqkit-lo-90"] <= out["seqkit_ql0.1"]).all()
    assert out["seqkit"].is_between(out["seqkit-lo-90"], out["seqkit-hi-90"]).all()
    assert out.filter(unique_id="b")["seqkit"].min() > 50


def test_names_of_the_frame_are_kept():
    frame = FRAME.rename({"unique_id": "shop", "ds": "when", "y": "sales"})
    model = Forecaster(h=H, id_col="shop", time_col="when", target_col="sales", alias="ours", **SMALL).fit(frame)
    assert model.predict(level=[80]).columns == ["shop", "when", "ours", "ours-lo-80", "ours-hi-80"]
    assert model.cross_validation(frame, level=[80]).columns[:5] == ["shop", "when", "cutoff", "sales", "ours"]


def test_the_same_seed_gives_the_same_forecasts_and_leaves_the_process_alone(fitted, capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    level, deterministic = logging.getLogger("lightning.pytorch").level, torch.are_deterministic_algorithms_enabled()
    again = Forecaster(h=H, **SMALL).fit(FRAME)
    assert torch.equal(torch.rand(3), expected)
    assert torch.are_deterministic_algorithms_enabled() == deterministic
    assert logging.getLogger("lightning.pytorch").level == level
    assert again.predict().equals(fitted.predict())
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


def test_cross_validation_rolls_and_utilsforecast_takes_it(fitted):
    rows = fitted.cross_validation(FRAME, n_windows=3, step_size=4, level=[80])
    assert rows.height == 2 * 3 * H
    cutoffs = rows["cutoff"].unique().sort()
    assert cutoffs.diff().drop_nulls().dt.total_hours().to_list() == [4, 4]
    assert (FRAME["ds"].max() - cutoffs[-1]).total_seconds() == H * 3600
    known = rows.join(FRAME, on=["unique_id", "ds"], how="left")
    assert known["y"].equals(known["y_right"], check_names=False)
    scores = evaluate(rows, metrics=[mae, coverage, scaled_crps], level=[80], models=["seqkit"], agg_fn="mean")
    assert scores.filter(metric="mae")["seqkit"].is_between(0, 20).all()
    figure = plot_series(FRAME, rows.drop("cutoff", "y"), level=[80], max_insample_length=48)
    assert len(figure.axes) >= 2


def test_refitting_trains_at_every_cutoff(fitted):
    one = fitted.cross_validation(FRAME, n_windows=2)
    two = fitted.cross_validation(FRAME, n_windows=2, refit=True)
    assert one.select("unique_id", "ds", "cutoff", "y").equals(two.select("unique_id", "ds", "cutoff", "y"))
    first = one["cutoff"] == one["cutoff"].min()
    assert one.filter(first).equals(two.filter(first))
    assert not one.filter(~first).equals(two.filter(~first))


@pytest.mark.parametrize("refit", [False, True])
def test_a_frame_without_ids_gets_none_and_a_backtest_leaves_a_model(refit):
    frame = FRAME.filter(unique_id="a").drop("unique_id")
    model = Forecaster(h=H, **SMALL)
    rows = model.cross_validation(frame, n_windows=2, level=[80], refit=refit)
    assert rows.columns == ["ds", "cutoff", "y", "seqkit", "seqkit-lo-80", "seqkit-hi-80"]
    assert rows["y"].to_list() == frame["y"].tail(2 * H).to_list()
    out = model.predict(level=[80])
    assert out.columns == ["ds", "seqkit", "seqkit-lo-80", "seqkit-hi-80"]
    assert out["ds"][0] - frame["ds"].max() == timedelta(hours=1)


def test_updating_equals_reading_everything(fitted, tmp_path):
    fitted.save(tmp_path / "model")
    streamed = Forecaster.load(tmp_path / "model")
    for _, rows in LATER.group_by("ds", maintain_order=True):
        streamed.update(rows)
    whole = fitted.predict(pl.concat([FRAME, LATER]))
    assert streamed.predict()["ds"].equals(whole["ds"])
    for name in whole.columns[2:]:
        np.testing.assert_allclose(streamed.predict()[name], whole[name], rtol=1e-5)


def test_seeds_differ():
    one, other = (Forecaster(h=H, seed=s, net={"linear": False}, **SMALL).fit(FRAME).predict() for s in (0, 1))
    assert not one.equals(other)


@pytest.mark.parametrize("scaler", ["running", "global"])
def test_updating_equals_reading_everything_with_other_scalers(scaler, tmp_path):
    settings = SMALL | {"data": SMALL["data"] | {"scaler": scaler}}
    model = Forecaster(h=H, **settings).fit(FRAME)
    whole = model.predict(pl.concat([FRAME, LATER]))
    model.update(LATER)
    model.save(tmp_path / "model")
    np.testing.assert_allclose(Forecaster.load(tmp_path / "model").predict()["seqkit"], whole["seqkit"], rtol=1e-5)


CARRIED = SMALL | {"net": {"context": "carried"}, "tokens": {"kind": "step"}, "data": {"chunk": 32, "batch_size": 4}}


def carried(layout, scaler):
    model = CARRIED["model"] | {"layout": layout, "d_state": 8}
    data = CARRIED["data"] | {"scaler": scaler}
    net = {"context": "carried", "linear": False}
    return Forecaster(h=H, **(CARRIED | {"model": model, "data": data, "net": net})).fit(FRAME)


@pytest.mark.parametrize(("layout", "scaler"), [("mamba1", "series"), ("mamba3", "running"), ("s4d*2", "global")])
def test_a_carried_state_equals_the_full_pass(layout, scaler, tmp_path):
    model = carried(layout, scaler)
    whole = model.predict(pl.concat([FRAME, LATER]))
    for rows in LATER.sort("ds").iter_slices(14):
        model.update(rows)
    model.save(tmp_path)
    out = Forecaster.load(tmp_path).predict()
    for name in whole.columns[2:]:
        np.testing.assert_allclose(out[name], whole[name], rtol=1e-5)


def test_another_process_goes_on_from_a_carried_state(tmp_path):
    model = carried("mamba2", "running")
    whole = model.predict(pl.concat([FRAME, LATER]))
    half = LATER["ds"].min() + pd.Timedelta(hours=50)
    model.update(LATER.filter(pl.col("ds") < half)).save(tmp_path)
    LATER.filter(pl.col("ds") >= half).write_parquet(tmp_path / "later.parquet")
    code = (
        "import sys, polars as pl; from seqkit import Forecaster; model = Forecaster.load(sys.argv[1])\n"
        "[model.update(rows) for _, rows in pl.read_parquet(sys.argv[2]).group_by('ds', maintain_order=True)]\n"
        "model.predict().write_parquet(sys.argv[3])"
    )
    paths = [str(tmp_path), str(tmp_path / "later.parquet"), str(tmp_path / "out.parquet")]
    subprocess.run([sys.executable, "-c", code, *paths], check=True)
    np.testing.assert_allclose(pl.read_parquet(paths[2])["seqkit"], whole["seqkit"], rtol=1e-5)


def test_what_a_forecaster_keeps_does_not_grow(tmp_path):
    model = Forecaster(h=H, **CARRIED).fit(FRAME)
    sizes = []
    for days in (25, 200):
        model.update(
            hourly(days)
            .join(FRAME, on=["unique_id", "ds"], how="anti")
            .filter(pl.col("ds") > model.memory.panel.ds.max())
        )
        model.save(tmp_path)
        sizes.append((tmp_path / "memory.safetensors").stat().st_size)
    assert sizes[1] < sizes[0] * 1.02
    assert model.memory.rows == {"a": 4800, "b": 4800}


def test_members_of_a_panel_join_a_carried_state():
    model = Forecaster(h=H, **CARRIED).fit(FRAME)
    new = hourly(3, names=("0",))
    model.update(pl.concat([LATER.filter(unique_id="b"), new]))
    out = model.predict()
    whole = model.predict(pl.concat([FRAME, LATER.filter(unique_id="b"), new]))
    for name in ("a", "b", "0"):
        one, other = (frame.filter(unique_id=name)["seqkit"] for frame in (out, whole))
        np.testing.assert_allclose(one, other, rtol=1e-5)


def test_mixed_channels_need_rows_of_all():
    settings = SMALL | {"net": {"mix": True}}
    model = Forecaster(h=H, **settings).fit(FRAME)
    whole = model.predict(pl.concat([FRAME, LATER]))
    np.testing.assert_allclose(model.update(LATER).predict()["seqkit"], whole["seqkit"], rtol=1e-5)
    with pytest.raises(InputError, match="new rows of all 2 mixed series, got of 1"):
        model.update(hourly(30).filter(pl.col("unique_id") == "a", pl.col("ds") > LATER["ds"].max()))


def loaded(fitted, folder):
    fitted.save(folder)
    return Forecaster.load(folder)


def test_a_gap_in_an_update_is_filled_with_missing_values(fitted, tmp_path):
    model = loaded(fitted, tmp_path)
    model.update(LATER.filter(pl.col("ds") > LATER["ds"].min() + pd.Timedelta(hours=2)))
    assert model.notes == ("6 missing rows filled in as missing values",)
    assert np.isnan(model.memory.panel.y).sum() == 0 or model.memory.panel.lengths.tolist() == [24, 24]
    assert model.predict()["seqkit"].is_finite().all()


def test_late_rows_are_refused_and_nothing_is_lost(fitted, tmp_path):
    model = loaded(fitted, tmp_path)
    before = model.predict()
    with pytest.raises(InputError, match=r"rows of 'a' after 2024-01-20 23:00:00.*got 4 at or before it"):
        model.update(FRAME.tail(2).vstack(FRAME.filter(unique_id="a").tail(2)))
    assert model.predict().equals(before)


def test_intervals_follow_their_misses_from_update_to_update(fitted, tmp_path):
    jump = LATER.with_columns(y=pl.when(pl.col("unique_id") == "a").then(pl.col("y") * 2).otherwise("y"))
    at_once, one_by_one = (Forecaster(h=H, adapt=0.3, **SMALL).fit(FRAME) for _ in range(2))
    plain = loaded(fitted, tmp_path / "plain")
    day = jump.sort("ds").head(2 * H)
    at_once.update(day)
    for _, rows in day.group_by("ds", maintain_order=True):
        one_by_one.update(rows)
        one_by_one = loaded(one_by_one, tmp_path / "adapting")
    plain.update(day)
    wide, same, narrow = (m.predict(level=[80]) for m in (at_once, one_by_one, plain))
    assert_frame_equal(wide, same)
    spread = pl.col("seqkit-hi-80") - pl.col("seqkit")
    ratio = (wide.select(spread) / narrow.select(spread)).to_series()
    np.testing.assert_allclose(ratio[:H], np.exp(0.9), rtol=1e-6)
    assert (ratio[H:] < np.exp(0.9)).all()


def test_members_of_a_panel_come_and_stay_away(fitted, tmp_path):
    model = loaded(fitted, tmp_path)
    new = hourly(2, names=("c",), start="2024-01-20")
    model.update(pl.concat([LATER.filter(unique_id="b"), new]))
    out = model.predict(h=1)
    assert out["unique_id"].to_list() == ["a", "b", "c"]
    ends = [FRAME["ds"].max(), LATER["ds"].max(), new["ds"].max()]
    assert [ds - pd.Timedelta(hours=1) for ds in out["ds"]] == ends
    assert 2 < out["seqkit"][2] < 20


def test_saved_files_run_nothing_and_say_what_is_wrong(fitted, tmp_path):
    fitted.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"model.json", "model.safetensors", "memory.safetensors"}
    assert Forecaster.load(tmp_path).predict().equals(fitted.predict())
    whole = (tmp_path / "memory.safetensors").read_bytes()
    (tmp_path / "memory.safetensors").write_bytes(whole[:100])
    with pytest.raises(CheckpointError, match="a forecaster's memory, intact"):
        Forecaster.load(tmp_path)
    other = Forecaster(h=H, seed=3, **SMALL).fit(FRAME)
    other.save(tmp_path)
    (tmp_path / "memory.safetensors").write_bytes(whole)
    with pytest.raises(CheckpointError, match="a forecaster's memory of this model, got one of another"):
        Forecaster.load(tmp_path)


def covariates(frame):
    promo = (pl.col("ds").dt.day() % 3 == 0).cast(pl.Float64)
    return frame.with_columns(promo=promo, region=pl.col("unique_id") + "-land")


def test_known_future_rows_are_read_and_a_missing_one_is_named():
    model = Forecaster(h=H, future=["promo"], static=["region"], **SMALL).fit(covariates(FRAME))
    future = covariates(LATER).drop("y")
    out = model.predict(future_df=future)
    assert out.height == 2 * H
    with pytest.raises(InputError, match=r"known-future rows with promo.*from 2024-01-21 00:00:00 on"):
        model.predict()
    lacking = (pl.col("unique_id") == "b") & (pl.col("ds").dt.hour() == 4)
    with pytest.raises(InputError, match=r"promo for 'b' at 2024-01-21 04:00:00.*1 of 12"):
        model.predict(future_df=future.filter(~lacking))


@pytest.mark.parametrize(("act", "message"), [
    (lambda m: m.predict(h=H + 1), r"h: expected 1 to 6.*Train with a horizon of 7"),
    (lambda m: m.predict(level=[120]), "percentages between 0 and 100"),
    (lambda m: m.cross_validation(FRAME, n_windows=0), "n_windows"),
    (lambda m: m.predict(FRAME.with_columns(pl.col("ds").dt.epoch("s"))), "a frequency of whole numbers"),
    (lambda m: Forecaster(h=3).predict(), "Call fit"),
    (lambda m: Forecaster(h=3, model={"layot": "mamba2"}), r"layout"),
    (lambda m: Forecaster(h=3, adapt=-1), "a rate of 0 or more"),
    (lambda m: Forecaster(h=3, adapt=1, future=["promo"]), "adapt: expected regular series without known-future"),
    (lambda m: m.predict(["no frame"]), "a polars or pandas frame"),
])  # fmt: skip
def test_what_cannot_work_is_said(act, message, fitted):
    with pytest.raises((ConfigError, InputError), match=message):
        act(fitted)


def test_irregular_series_forecast_at_given_stamps():
    rng = np.random.default_rng(0)
    ds = np.cumsum(rng.integers(1, 5, 400))
    frame = pl.DataFrame({"ds": ds, "y": np.sin(ds / 10)})
    model = Forecaster(h=3, lookback=24, model=SMALL["model"] | {"layout": "mamba1"}, trainer=SMALL["trainer"],
                       data={"irregular": True, "windows_per_epoch": 16}).fit(frame)  # fmt: skip
    given = pl.DataFrame({"ds": ds[-1] + np.array([2, 3, 7, 20])})
    assert model.predict(future_df=given)["ds"].to_list() == given["ds"].to_list()[:3]
    usual = round(np.median(np.diff(ds)))
    assert model.predict()["ds"].to_list() == (ds[-1] + usual * np.arange(1, 4)).tolist()


def test_training_on_everything_without_held_out_rows():
    model = Forecaster(h=H, **SMALL).fit(FRAME, val_size=0)
    assert json.dumps(model.predict().height) == "12"
    assert seqkit.Forecaster is Forecaster
