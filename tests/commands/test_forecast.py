import json

import numpy as np
import polars as pl
import pytest

from seqkit import cli

SMALL = [
    "--task", "forecast", "--device", "cpu", "--trainer.threads", "1", "--trainer.max_epochs", "1",
    "--data.windows_per_epoch", "16", "--model.layout", "mamba2", "--model.d_model", "8", "--model.headdim", "8",
    "--lookback", "24", "--horizon", "6",
]  # fmt: skip


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Two series with a daily season, a gap and a covariate that moves them."""
    hours, rng = np.arange(24 * 30), np.random.default_rng(0)
    frames = []
    for name, level in (("north", 50.0), ("south", 500.0)):
        sale = rng.integers(0, 2, len(hours))
        y = level * (1 + 0.2 * np.sin(hours / 24 * 2 * np.pi) + 0.1 * sale + 0.02 * rng.normal(size=len(hours)))
        frames.append(pl.DataFrame({"unique_id": name, "hour": hours, "y": y, "sale": sale}))
    frame = pl.concat(frames).with_columns(ds=pl.datetime(2024, 1, 1) + pl.duration(hours=pl.col("hour"))).drop("hour")
    path = tmp_path_factory.mktemp("table") / "t.parquet"
    frame.filter(~((pl.col("ds").dt.day() == 5) & (pl.col("unique_id") == "south"))).write_parquet(path)
    return path


@pytest.fixture(scope="module")
def run(table, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "run"
    assert cli.main(["fit", *SMALL, "--table", str(table), "--future", "sale", "--out", str(out)]) == 0
    return out


def test_run_folder_is_complete(run):
    names = {path.name for path in run.rglob("*")}
    assert {"config.yaml", "metrics.json", "manifest.json", "model.json", "model.safetensors", "results.md"} <= names
    assert {"predictions.parquet", "fan.png", "horizon.svg", "coverage.png", "backtest.png", "history.csv"} <= names


def test_the_report_is_one_page_with_the_table_and_the_plots(run):
    page = (run / "report.html").read_text()
    assert page.count("<img") == 5
    assert "linear (ridge)" in page
    assert "24 missing rows filled in" in page
    assert "http" not in page.replace("http-equiv", "")


def test_metrics_are_those_of_the_predictions(run):
    metrics = json.loads((run / "metrics.json").read_text())
    frame = pl.read_parquet(run / "predictions.parquet")
    assert metrics["notes"] == ["24 missing rows filled in as missing values"]
    assert frame.height == metrics["windows"]["test"] * 6
    for method, values in metrics["results"].items():
        kept = frame.filter(pl.col("y").is_not_nan())
        assert values["mae"] == pytest.approx((kept["y"] - kept[method]).abs().mean())
        inside = kept["y"].is_between(kept[f"{method}-lo-80"], kept[f"{method}-hi-80"])
        assert values["coverage_80"] == pytest.approx(inside.mean())


def test_predictions_carry_their_cutoff(run):
    frame = pl.read_parquet(run / "predictions.parquet")
    ahead = (frame["ds"] - frame["cutoff"]).dt.total_hours()
    assert ahead.to_list() == list(range(1, 7)) * (frame.height // 6)
    assert (frame["seqkit-lo-95"] <= frame["seqkit-lo-80"]).all()
    assert (frame["seqkit-hi-80"] <= frame["seqkit-hi-95"]).all()


def test_the_same_seed_gives_the_same_run(run, table, tmp_path):
    assert cli.main(["fit", *SMALL, "--table", str(table), "--future", "sale", "--out", str(tmp_path / "again")]) == 0
    assert (tmp_path / "again" / "metrics.json").read_text() == (run / "metrics.json").read_text()


def test_resuming_a_finished_run_prints_its_table(run, table, capsys):
    arguments = [*SMALL, "--table", str(table), "--future", "sale", "--out", str(run), "--resume"]
    assert cli.main(["fit", *arguments]) == 0
    assert "seasonal naive" in capsys.readouterr().out


@pytest.mark.parametrize("options", [
    ["--net.head", "normal", "--tokens.kind", "patch", "--tokens.patch", "8", "--data.scaler", "running"],
    ["--net.head", "point", "--net.mix", "true", "--net.norm", "mean", "--data.gaps", "fill"],
    ["--net.head", "student-t", "--tokens.kind", "bins", "--data.scaler", "global", "--nonnegative", "true"],
])  # fmt: skip
def test_every_head_and_tokenizer_trains(options, table, tmp_path):
    out = tmp_path / "run"
    assert cli.main(["fit", *SMALL, *options, "--table", str(table), "--out", str(out)]) == 0
    results = json.loads((out / "metrics.json").read_text())["results"]
    assert all(np.isfinite(list(values.values())).all() for values in results.values())


def test_a_useless_network_is_not_kept(table, tmp_path):
    out = tmp_path / "run"
    assert cli.main(["fit", *SMALL, "--optim.lr", "10", "--table", str(table), "--out", str(out)]) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["best_epoch"] == -1
    assert metrics["results"]["seqkit"] == metrics["results"]["linear (ridge)"]


@pytest.mark.parametrize(("options", "message"), [
    (["--horizon", "700"], "more than 700 training rows"),
    (["--future", "price"], "covariates: expected columns among"),
    (["--freq", "fortnight"], "freq: expected a polars duration"),
    (["--table", "nothing.csv"], "nothing.csv, which is none"),
])  # fmt: skip
def test_what_cannot_work_is_said_in_one_line(options, message, table, tmp_path, capsys):
    table_options = [] if "--table" in options else ["--table", str(table)]
    code = cli.main(["fit", *SMALL[:-2], *table_options, *options, "--out", str(tmp_path / "run")])
    error = capsys.readouterr().err
    assert code in (2, 3)
    assert message in error
    assert len(error.strip().splitlines()) == 1
