import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from seqkit import Forecaster, cli

ROOT = Path(__file__).resolve().parents[2]
HOURS = np.arange(24 * 15)
FRAME = pl.DataFrame({
    "unique_id": "a",
    "ds": pl.datetime_range(pl.datetime(2024, 1, 1), pl.datetime(2024, 1, 15, 23), "1h", eager=True),
    "y": 10 + 3 * np.sin(HOURS / 24 * 2 * np.pi) + np.random.default_rng(0).normal(size=len(HOURS)) * 0.3,
})  # fmt: skip
KNOWN, LATER = FRAME[:300], FRAME[300:]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("follow") / "model"
    settings = {"model": {"d_model": 8, "headdim": 8, "layout": "mamba2"}, "trainer": {"max_epochs": 1}}
    carried = {"net": {"context": "carried"}, "tokens": {"kind": "step"}, "data": {"chunk": 32, "batch_size": 4}}
    forecaster = Forecaster(h=4, lookback=24, **settings, **carried).fit(KNOWN)
    forecaster.save(folder)
    KNOWN.write_csv(folder.parent / "known.csv")
    return folder


def run(model, text, *options, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    code = cli.main(["predict", "--ckpt", str(model), "--follow", *map(str, options)])
    said = capsys.readouterr()
    return code, said.out, said.err


def expected(model, frame):
    return Forecaster.load(model).predict(frame, level=[80, 95])


def test_every_row_gives_the_forecast_of_everything_read(model, monkeypatch, capsys):
    rows = LATER[:5].write_csv()
    options = ["--table", model.parent / "known.csv", "--horizon", 2]
    code, out, err = run(model, rows, *options, monkeypatch=monkeypatch, capsys=capsys)
    frame = pl.read_csv(io.StringIO(out), try_parse_dates=True)
    assert code == 0
    assert err == "seqkit predict: 5 rows read, 0 left out\n"
    assert frame.columns[:4] == ["unique_id", "ds", "cutoff", "seqkit"]
    for step in range(5):
        wanted = expected(model, pl.concat([KNOWN, LATER[: step + 1]]))[:2]
        got = frame[2 * step : 2 * step + 2]
        assert got["ds"].to_list() == wanted["ds"].to_list()
        np.testing.assert_allclose(got["seqkit-lo-80"], wanted["seqkit-lo-80"], rtol=1e-5)


def test_a_state_goes_on_as_if_unbroken(model, tmp_path, monkeypatch, capsys):
    state = tmp_path / "state.safetensors"
    known = ["--table", model.parent / "known.csv"]
    run(model, LATER[:7].write_csv(), "--state", state, *known, monkeypatch=monkeypatch, capsys=capsys)
    _, out, _ = run(model, LATER[7:9].write_csv(), "--state", state, monkeypatch=monkeypatch, capsys=capsys)
    whole = expected(model, pl.concat([KNOWN, LATER[:9]]))
    np.testing.assert_allclose(pl.read_csv(io.StringIO(out))[-4:]["seqkit"], whole["seqkit"], rtol=1e-5)
    code, _, err = run(model, "", "--state", state, *known, monkeypatch=monkeypatch, capsys=capsys)
    assert code == 2
    assert "no table beside a state that exists" in err


BAD = {
    "2024-01-14 00:00:00,abc": "y: expected a number, or nothing, got 'abc'",
    "soon,1": "got text",
    "2024-01-13 00:00:00,1": "rows of 'a' after 2024-01-13 12:00:00",
    "2024-01-14 00:30:00,1": "off the grid",
    "2024-01-14 00:00:00": "as many fields as the header has, got fewer",
    "2024-01-14 00:00:00,1,2": "as many fields as the header has, got more",
    "2024-01-14 00:00:00,inf": "finite numbers or NaN",
}


def test_bad_rows_are_reported_and_left_out(model, monkeypatch, capsys):
    good = ["2024-01-13 12:00:00,11.0", "2024-01-13 13:00:00,", "2024-01-13 16:00:00,12.0"]
    lines = ["unique_id,ds,y", f"a,{good[0]}", *(f"a,{row}" for row in BAD), f"a,{good[1]}", "", f"a,{good[2]}"]
    options = ["--table", model.parent / "known.csv"]
    code, out, err = run(model, "\n".join(lines) + "\n", *options, monkeypatch=monkeypatch, capsys=capsys)
    assert code == 0
    assert pl.read_csv(io.StringIO(out)).height == 3 * 4
    said = err.splitlines()
    assert said[-1] == "seqkit predict: 3 rows read, 7 left out"
    for number, (line, message) in enumerate(zip(said[:-1], BAD.values(), strict=True), 3):
        assert line.startswith(f"seqkit predict: line {number} left out: ")
        assert message in line


def test_series_come_and_go_without_a_beginning(model, tmp_path, monkeypatch, capsys):
    rows = pl.concat([LATER[:3], LATER[:3].with_columns(unique_id=pl.lit("b"))]).sort("ds").write_csv()
    state = tmp_path / "state.safetensors"
    _, out, _ = run(model, rows, "--state", state, "--horizon", 1, monkeypatch=monkeypatch, capsys=capsys)
    frame = pl.read_csv(io.StringIO(out))
    assert frame["unique_id"].to_list() == ["a", "b"] * 3
    assert frame["seqkit"].is_finite().all()


def test_each_forecast_is_flushed_and_the_state_survives_an_interrupt(model, tmp_path):
    state = tmp_path / "state.safetensors"
    command = [sys.executable, "-m", "seqkit", "predict", "--ckpt", model, "--follow", "--state", state]
    command += ["--table", model.parent / "known.csv", "--horizon", "1"]
    process = subprocess.Popen(
        list(map(str, command)), cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    lines = LATER[:2].write_csv().splitlines(keepends=True)
    process.stdin.write(lines[0] + lines[1])
    process.stdin.flush()
    assert process.stdout.readline().startswith("unique_id,ds")
    assert process.stdout.readline().startswith("a,2024-01-13T13:00")  # before any further row
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "1 rows read, 0 left out; state in" in err
    assert Forecaster.load(model) is not None
    assert state.stat().st_size > 0


@pytest.mark.parametrize(("options", "message"), [
    (["--follow", "--out", "file.csv"], "--out: expected - with --follow"),
    (["--state", "s", "--out", "-", "--table", "t.csv"], "--state: expected --follow beside it"),
    (["--follow", "--horizon", "9"], "h: expected 1 to 4"),
])  # fmt: skip
def test_contradictions_are_refused(options, message, model, capsys):
    assert cli.main(["predict", "--ckpt", str(model), *options]) == 2
    assert message in capsys.readouterr().err
