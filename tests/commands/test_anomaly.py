import json

import numpy as np
import polars as pl
import pytest

from seqkit import cli

QUICK = [
    "--detector.chunks.epochs",
    "2",
    "--detector.net.lags",
    "4",
    "--detector.model.d_model",
    "8",
    "--device",
    "cpu",
]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Two hourly series with a daily rhythm; in one, a day is upside down."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("series")
    stamps = pl.datetime_range(pl.datetime(2024, 1, 1), pl.datetime(2024, 2, 19, 23), "1h", eager=True)
    rhythm = 10 * np.sin(np.arange(len(stamps)) * 2 * np.pi / 24)
    odd = np.zeros(len(stamps), bool)
    odd[900:924] = True
    frames = []
    for name, flip in (("a", odd), ("b", np.zeros_like(odd))):
        y = np.where(flip, -rhythm, rhythm) + rng.normal(size=len(stamps))
        frames.append(pl.DataFrame({"unique_id": name, "ds": stamps, "y": y, "odd": flip.astype(int)}))
    pl.concat(frames).write_parquet(folder / "table.parquet")
    return folder / "table.parquet"


@pytest.fixture(scope="module")
def run(table, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    arguments = ["--table", str(table), "--normal", "400", "--seed", "1", *QUICK, "--out", str(folder)]
    assert cli.main(["fit", "--task", "anomaly", *arguments]) == 0
    return folder


def test_a_run_folder_says_what_was_found(run):
    metrics = json.loads((run / "metrics.json").read_text())["series"]
    assert metrics["a"]["normal_rows"] == 400
    page = (run / "report.html").read_text()
    assert "Anomalies of numeric series" in page
    assert page.count("data:image/png") == 1
    assert metrics["a"]["anomalous_rows"] > metrics["b"]["anomalous_rows"]
    assert {"config.yaml", "manifest.json", "model.safetensors", "scores.parquet", "scores.png"} <= {
        path.name for path in run.iterdir()
    }


def test_scores_from_the_loaded_run_are_those_of_the_fit(run, table, tmp_path):
    out = tmp_path / "scores.csv"
    assert cli.main(["predict", "--ckpt", str(run), "--table", str(table), "--out", str(out), "--device", "cpu"]) == 0
    again, first = pl.read_csv(out), pl.read_parquet(run / "scores.parquet")
    np.testing.assert_allclose(again["score"], first["score"], rtol=1e-5, atol=1e-6)
    assert again["anomaly"].to_list() == first["anomaly"].to_list()


def test_a_reconstruction_is_fitted_saved_and_opened_again(table, tmp_path):
    score = ["--detector.score", "reconstruction", "--device", "cpu"]
    fit = ["--table", str(table), "--normal", "400", *score, "--out", str(tmp_path / "run")]
    assert cli.main(["fit", "--task", "anomaly", *fit]) == 0
    first, out = pl.read_parquet(tmp_path / "run" / "scores.parquet"), tmp_path / "scores.csv"
    again = ["--ckpt", str(tmp_path / "run"), "--table", str(table), "--out", str(out), "--device", "cpu"]
    assert cli.main(["predict", *again]) == 0
    np.testing.assert_allclose(pl.read_csv(out)["score"], first["score"], rtol=1e-9)
    assert first["score"].is_finite().all()
    assert 0 < first["anomaly"].sum() < len(first) / 4


def test_labels_are_measured_by_events(run, table, tmp_path, capsys):
    arguments = ["--ckpt", str(run), "--table", str(table), "--label", "odd", "--out", str(tmp_path / "test")]
    assert cli.main(["test", *arguments, "--device", "cpu"]) == 0
    metrics = json.loads((tmp_path / "test" / "metrics.json").read_text())
    assert list(metrics) == ["a"]
    assert metrics["a"]["recall"] == metrics["a"]["recall_at_1_a_month"] == 1.0
    assert metrics["a"]["vus_pr"] > 0.3
    assert "recall 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["test", "--ckpt", "RUN"], "--label"),
        (["predict", "--ckpt", "RUN", "--task", "forecast"], "--task"),
        (["predict", "--ckpt", "RUN", "--table", "OTHER"], "expected a series of the run"),
        (["fit", "--task", "anomaly", "--normal", "0"], "normal: expected a share"),
        (["fit", "--task", "anomaly", "--detector.net.lag", "3"], "lags"),
    ],
)
def test_what_cannot_be_is_one_line(run, table, tmp_path, arguments, message, capsys):
    other = tmp_path / "other.parquet"
    pl.read_parquet(table).with_columns(unique_id=pl.lit("new")).head(500).write_parquet(other)
    places = {"RUN": str(run), "OTHER": str(other)}
    assert cli.main([places.get(word, word) for word in arguments]) == 2 + (message.startswith("expected a series"))
    assert message in capsys.readouterr().err
