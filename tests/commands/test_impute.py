import json
import shutil

import numpy as np
import polars as pl
import pytest

from seqkit import cli

QUICK = ["--device", "cpu", "--model.d_model", "16", "--model.layout", "mamba2", "--mask.window", "96",
         "--data.windows_per_epoch", "128", "--mask.repeats", "2", "--trainer.max_epochs"]  # fmt: skip


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Two hourly series with a daily rhythm, one with a value missing and two rows missing."""
    rng, frames = np.random.default_rng(0), []
    stamps = pl.datetime_range(pl.datetime(2024, 1, 1), pl.datetime(2024, 2, 9, 23), "1h", eager=True)
    for number, name in enumerate("ab"):
        y = (number + 1) * np.sin(np.arange(len(stamps)) * 2 * np.pi / 24) + 0.1 * rng.normal(size=len(stamps))
        frames.append(pl.DataFrame({"shop": name, "ds": stamps, "sold": y}))
    frames[1] = frames[1].with_columns(
        pl.when(pl.int_range(pl.len()) == 500).then(None).otherwise("sold").alias("sold")
    )
    frames[1] = pl.concat([frames[1][:300], frames[1][302:]])
    path = tmp_path_factory.mktemp("table") / "table.parquet"
    pl.concat(frames).write_parquet(path)
    return path


@pytest.fixture(scope="module")
def arguments(table):
    return ["--table", str(table), "--columns", "{id: shop, target: sold}", *QUICK]


@pytest.fixture(scope="module")
def run(arguments, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert cli.main(["fit", "--task", "impute", *arguments, "4", "--out", str(folder)]) == 0
    return folder


def test_a_run_stands_beside_simple_methods_on_the_same_values(run):
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["missing"] == 3
    assert metrics["run"] == metrics["season"] == 24
    for kind in ("points", "runs"):
        results = metrics["results"][kind]
        assert len(results) == 5
        assert results["seqkit"]["mae"] < results["last value"]["mae"]
    assert metrics["results"]["runs"]["seqkit"]["mae"] < metrics["results"]["runs"]["linear interpolation"]["mae"]
    assert {"config.yaml", "manifest.json", "filled.parquet", "results.md"} <= {path.name for path in run.iterdir()}
    page = (run / "report.html").read_text()
    assert "runs of 24 steps hidden" in page
    assert page.count("data:image/png") == 2


def test_known_values_come_back_bit_for_bit_and_gaps_are_filled(run, table, tmp_path):
    out = tmp_path / "filled.parquet"
    assert cli.main(["predict", "--ckpt", str(run), "--table", str(table), "--out", str(out), "--device", "cpu"]) == 0
    given, filled = pl.read_parquet(table), pl.read_parquet(out)
    both = filled.join(given, on=["shop", "ds"], suffix="_given").filter(pl.col("sold_given").is_not_null())
    assert both["sold"].to_list() == both["sold_given"].to_list()
    gaps = filled.filter("imputed")
    assert gaps.height == 3
    assert filled.height == given.height + 2
    assert (gaps["sold-lo-95"] <= gaps["sold-lo-80"]).all()
    assert (gaps["sold-lo-80"] <= gaps["sold"]).all()
    assert (gaps["sold"] <= gaps["sold-hi-80"]).all()
    assert filled.filter(~pl.col("imputed"))["sold-hi-95"].null_count() == filled.height - 3
    assert filled.equals(pl.read_parquet(run / "filled.parquet"))


def test_a_filled_value_depends_on_both_sides_of_its_gap(run, table, tmp_path):
    given = pl.read_parquet(table).filter(pl.col("shop") == "b")
    found = []
    for change in (0.0, 2.0):
        moved = pl.when(pl.int_range(pl.len()).is_between(499, 502)).then(pl.col("sold") + change).otherwise("sold")
        given.with_columns(moved.alias("sold")).write_parquet(tmp_path / "in.parquet")
        place = ["--table", str(tmp_path / "in.parquet"), "--out", str(tmp_path / "out.parquet")]
        assert cli.main(["predict", "--ckpt", str(run), *place]) == 0
        found.append(pl.read_parquet(tmp_path / "out.parquet").filter("imputed")["sold"][-1])
    assert abs(found[1] - found[0]) > 0.1


def test_test_measures_on_all_rows_of_a_table(run, table, tmp_path, capsys):
    place = ["--ckpt", str(run), "--table", str(table), "--level", "[90]", "--out", str(tmp_path / "test")]
    assert cli.main(["test", *place]) == 0
    metrics = json.loads((tmp_path / "test" / "metrics.json").read_text())
    assert "coverage_90" in metrics["results"]["points"]["seqkit"]
    assert "all rows of the table" in capsys.readouterr().out


def test_a_killed_run_ends_with_the_figures_of_an_unbroken_one(arguments, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    fit = ["fit", "--task", "impute", *arguments, "2", "--out"]
    assert cli.main([*fit, str(whole)]) == 0
    shutil.copytree(whole, broken)
    for name in ("metrics.json", "model.json", "model.safetensors"):
        (broken / name).unlink()
    assert cli.main([*fit, str(broken), "--resume"]) == 0
    results = [json.loads((folder / "metrics.json").read_text())["results"] for folder in (whole, broken)]
    assert results[0] == results[1]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["fit", "--task", "impute", "--level", "[85]"], 2, "level: expected any of 50, 80, 90, 95"),
        (["fit", "--task", "impute", "--mask.windows", "3"], 2, "mask.window"),
        (["fit", "--task", "impute", "--data.test", "0.7"], 2, "data.test"),
        (["fit", "--task", "impute", "--table", "EMPTY"], 3, "known value"),
        (["predict", "--ckpt", "RUN", "--task", "forecast"], 2, "--task"),
        (["predict", "--ckpt", "RUN", "--table", "EMPTY"], 3, "a known value in every series, got none in a"),
        (["predict", "--ckpt", "RUN", "--table", "gone.csv"], 3, "gone.csv"),
        (["test", "--ckpt", "RUN"], 2, "--table"),
        (["test", "--ckpt", "RUN", "--table", "EMPTY"], 3, "known value"),
    ],
)
def test_what_cannot_be_is_one_line(run, tmp_path, words, code, message, capsys):
    empty = pl.DataFrame({"shop": "a", "ds": range(50), "sold": [None] * 50}, schema_overrides={"sold": pl.Float64})
    empty.write_parquet(tmp_path / "empty.parquet")
    places = {"RUN": str(run), "EMPTY": str(tmp_path / "empty.parquet")}
    columns = ["--columns", "{id: shop, target: sold}"] if "EMPTY" in words else []
    out = ["--out", str(tmp_path / "out.csv")]
    assert cli.main([*(places.get(word, word) for word in words), *columns, *out]) == code
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
