import json
import shutil

import numpy as np
import polars as pl
import pytest

from seqkit import cli
from seqkit.commands.series_label_report import figures

QUICK = ["--device", "cpu", "--model.d_model", "16", "--model.d_state", "8", "--trainer.max_epochs"]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """60 series of 20 to 40 steps: class by which of two channels moves, size by how much."""
    rng, frames = np.random.default_rng(0), []
    for number in range(60):
        steps, kind, size = int(rng.integers(20, 41)), number % 2, float(rng.uniform(1, 5))
        moves = size * np.sin(np.arange(steps)) + 0.05 * rng.normal(size=steps)
        still = 0.05 * rng.normal(size=steps)
        columns = {"ds": np.arange(steps), "a": still if kind else moves, "b": moves if kind else still}
        names = {"unique_id": f"s{number:02d}", "label": "ab"[kind], "size": size}
        frames.append(pl.DataFrame(columns).with_columns(**{k: pl.lit(v) for k, v in names.items()}))
    path = tmp_path_factory.mktemp("table") / "table.parquet"
    pl.concat(frames).write_parquet(path)
    return path


@pytest.fixture(scope="module")
def arguments(table):
    return ["--table", str(table), "--channels", '["a","b"]', "--data.scaler", "global", "--freq", "1", *QUICK]


@pytest.fixture(scope="module")
def run(arguments, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "classes"
    assert cli.main(["fit", "--task", "series-classify", *arguments, "12", "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def numbers(arguments, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "numbers"
    label = ["--label", "size", "--out", str(folder)]
    assert cli.main(["fit", "--task", "series-regress", *arguments, "12", *label]) == 0
    return folder


def test_figures_by_hand():
    found = figures(np.array([0.0, 0, 0, 1]), np.array([0.0, 0, 1, 1]), ["x", "y"])
    assert found["accuracy"] == found["balanced_accuracy"] == 0.75
    assert found["macro_f1"] == pytest.approx((0.8 + 2 / 3) / 2)
    assert figures(np.array([1.0, 2]), np.array([2.0, 4]), [])["mae"] == 1.5


def test_a_run_learns_which_channel_moves(run):
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["series"] == {"train": 36, "validation": 8, "test": 16}
    assert metrics["results"]["seqkit"]["accuracy"] == 1.0
    assert metrics["results"]["majority"]["accuracy"] == 0.5
    simple = ["random convolutions, ridge", "1-NN, stretched", "ridge, stretched", "majority"]
    assert list(metrics["results"]) == ["seqkit", *simple]
    names = {"config.yaml", "manifest.json", "model.safetensors", "predictions.parquet", "results.md", "history.csv"}
    assert names <= {path.name for path in run.iterdir()}
    assert (run / "plots" / "confusion.png").is_file()
    page = (run / "report.html").read_text()
    assert "1-NN, stretched" in page
    assert page.count("data:image/png") == 2


def test_a_number_is_predicted_better_than_by_the_mean(numbers):
    results = json.loads((numbers / "metrics.json").read_text())["results"]
    assert results["seqkit"]["mae"] < 0.7 * results["mean"]["mae"]
    frame = pl.read_parquet(numbers / "predictions.parquet")
    assert (frame["lo-90"] < frame["prediction"]).all()


def test_predictions_from_the_loaded_run_are_those_of_the_fit(run, table, tmp_path):
    pl.read_parquet(table).drop("label", "size").write_parquet(tmp_path / "new.parquet")
    out = tmp_path / "out.csv"
    assert cli.main(["predict", "--ckpt", str(run), "--table", str(tmp_path / "new.parquet"), "--out", str(out)]) == 0
    first = pl.read_parquet(run / "predictions.parquet").drop("label")
    again = pl.read_csv(out).filter(pl.col("unique_id").is_in(first["unique_id"].implode()))
    assert again.columns == first.columns == ["unique_id", "prediction", "p_a", "p_b"]
    assert again["prediction"].to_list() == first["prediction"].to_list()
    np.testing.assert_allclose(again["p_a"], first["p_a"], atol=1e-5)


@pytest.mark.parametrize("kind", ["run", "numbers"])
def test_test_measures_beside_the_same_answer_for_all(kind, request, table, tmp_path, capsys):
    place = ["--ckpt", str(request.getfixturevalue(kind)), "--table", str(table), "--out", str(tmp_path / "test")]
    assert cli.main(["test", *place]) == 0
    metrics = json.loads((tmp_path / "test" / "metrics.json").read_text())
    assert list(metrics["results"]) == ["seqkit", "majority" if kind == "run" else "mean"]
    assert "60 test series" in capsys.readouterr().out


def test_a_killed_run_ends_with_the_figures_of_an_unbroken_one(arguments, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    fit = ["fit", "--task", "series-classify", *arguments, "3", "--out"]
    assert cli.main([*fit, str(whole)]) == 0
    shutil.copytree(whole, broken)
    for name in ("metrics.json", "model.json", "model.safetensors"):
        (broken / name).unlink()
    assert cli.main([*fit, str(broken)]) == 2
    assert cli.main([*fit, str(broken), "--resume"]) == 0
    results = [json.loads((folder / "metrics.json").read_text())["results"] for folder in (whole, broken)]
    assert results[0] == results[1]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["fit", "--task", "series-regress", "--table", "TABLE", "--channels", '["a"]'], 3, "label: expected numbers"),
        (["fit", "--task", "series-classify", "--table", "TABLE", "--channels", '["a"]', "--label", "unique_id"], 3,
         "columns: expected another column"),
        (["fit", "--task", "series-classify", "--class-weights", "{a: 1}"], 2, "one weight for each of falling"),
        (["fit", "--task", "series-classify", "--net.stems", "3"], 2, "stem"),
        (["predict", "--ckpt", "RUN", "--task", "series-regress"], 2, "--task"),
        (["predict", "--ckpt", "RUN", "--table", "EMPTY"], 3, "none"),
        (["test", "--ckpt", "RUN"], 2, "--table"),
        (["test", "--ckpt", "RUN", "--table", "OTHER"], 3, "expected a class of the run: a, b, got q"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_line(run, table, tmp_path, words, code, message, capsys):
    rows = pl.read_parquet(table)
    rows.with_columns(label=pl.lit("q")).write_parquet(tmp_path / "other.parquet")
    places = {"RUN": str(run), "TABLE": str(table), "OTHER": str(tmp_path / "other.parquet"), "EMPTY": "gone.csv"}
    out = ["--out", str(tmp_path / "out")] if words[0] == "fit" else []
    assert cli.main([*(places.get(word, word) for word in words), *out]) == code
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_ecg200_from_its_files(shared_data, tmp_path):
    folder = shared_data / "ucr-long-series"
    files = ["--table", str(folder / "ECG200_TRAIN.tsv.gz"), "--test-table", str(folder / "ECG200_TEST.tsv.gz")]
    out = ["--out", str(tmp_path / "ecg"), *QUICK, "1"]
    assert cli.main(["fit", "--task", "series-classify", *files, *out]) == 0
    metrics = json.loads((tmp_path / "ecg" / "metrics.json").read_text())
    assert metrics["series"]["test"] == 100
    found = {name: row["accuracy"] for name, row in metrics["results"].items()}
    assert (found["1-NN"], found["ridge"], found["majority"]) == (0.88, 0.83, 0.64)
    assert min(found["seqkit"], found["random convolutions, ridge"]) >= 0.88
