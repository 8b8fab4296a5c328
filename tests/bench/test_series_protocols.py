"""The simple methods reach the figures published or measured elsewhere for the same protocol."""

import gzip
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from seqkit.bench.series import anomalies, command, ecg, files, m4, memory, one_step, seismic, taxi, ucr
from seqkit.errors import InputError
from seqkit.tasks.next_step_fit import ChunkConfig
from seqkit.tasks.series_linear import fit_autoregression


def found(rows):
    return {(row.protocol, row.method): row.metrics for row in rows}


def test_taxi(shared_data):
    rows = found(taxi.baselines(shared_data))
    expected = {"naive": 6973, "seasonal naive 48": 3397, "seasonal naive 336": 2764, "mean of four weeks": 2798}
    expected |= {"nlinear ridge 336": 2149, "nlinear ridge 672": 2221}
    assert {name: round(rows["NAB taxi", name]["mae"]) for name in expected} == expected
    adaptive = rows["NAB taxi", "nlinear ridge 336, adaptive"]
    assert adaptive["mae"] == rows["NAB taxi", "nlinear ridge 336"]["mae"]
    assert adaptive["coverage80"] == pytest.approx(0.8, abs=0.03)
    assert adaptive["coverage95"] == pytest.approx(0.95, abs=0.03)


def test_a_taxi_model_forecasts_from_the_same_origins(shared_data, monkeypatch):
    quick = {"trainer": {"threads": 1, "max_epochs": 1}, "data": {"windows_per_epoch": 64}}
    monkeypatch.setattr(taxi, "SETTINGS", quick)
    times, y, _ = files.nab(shared_data, "nyc_taxi")
    origins = taxi.load(shared_data)[1]
    found = taxi.scored(origins, *taxi.model_quantiles(times, y, 0, "cpu"))
    assert found["mae"] == pytest.approx(2149, rel=0.05)  # it begins at the ridge
    assert found["coverage80"] < 0.9 < found["coverage95"]


def test_m4_hourly_by_the_organizers_rules(shared_data):
    panel = m4.load(shared_data, "Hourly")
    naive2 = m4.point_metrics(panel, panel.naive2)
    assert (round(naive2["smape"], 3), round(naive2["mase"], 3)) == (18.383, 2.395)
    seasonal = m4.each_series(panel, m4.GROUPS["Hourly"], m4.seasonal)
    assert (round(seasonal["smape"], 3), round(seasonal["mase"], 3)) == (13.912, 1.193)
    assert m4.each_series(panel, m4.GROUPS["Hourly"], m4.lag_ridge)["owa"] == pytest.approx(0.530, abs=0.001)


def test_taxi_anomalies(shared_data):
    metrics = anomalies.residual_metrics(anomalies.load(shared_data, "nyc_taxi"))
    counts = [(metrics[f"recall z > {z}"], metrics[f"false events z > {z}"]) for z in (3, 4, 5)]
    assert counts == [(1.0, 11), (1.0, 8), (0.8, 8)]
    assert [metrics[f"false points z > {z}"] for z in (3, 4, 5)] == [168, 69, 36]


def test_ecg_one_step(shared_data):
    lead = ecg.load(shared_data)[0]
    assert ecg.one_step_autoregression(lead, 32)["mse"] == pytest.approx(0.01290, abs=1e-5)


def test_one_neighbour_on_ecg200(shared_data):
    assert found(ucr.baselines(shared_data))["ECG200", "1-NN"] == {"accuracy": 0.88}


def test_format_212_by_hand(tmp_path, monkeypatch):
    """Samples 1023 and -2 pack to ff, e3, fe."""
    monkeypatch.setattr(files, "read_checked", lambda folder, name: bytes([0xFF, 0xF3, 0xFE]))
    np.testing.assert_allclose(files.ecg(tmp_path), [[-1 / 200], [-1026 / 200]])


def test_ecg_models_forecast_from_the_same_origins(shared_data):
    series = ecg.load(shared_data)[0]
    test = ecg.parts(series)[2]
    batch = test.batch(torch.arange(len(test)))
    histories, futures = ecg.origins(series, ecg.LOOKBACK)
    np.testing.assert_allclose(batch["z"][:, 0], histories, rtol=1e-5)
    np.testing.assert_allclose(batch["target"][:, 0], futures, rtol=1e-5)


def test_memory_is_measured_in_a_process_of_its_own(shared_data, monkeypatch):
    monkeypatch.setattr(memory, "LENGTHS", (20_000,))
    (row,) = memory.models(shared_data, "cpu", [0])
    assert row.protocol == "seismic memory 20000"
    assert 50 < row.metrics["before_mib"] < row.metrics["peak_mib"] < 2000


def test_a_changed_file_is_refused(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "nyc_taxi.csv.gz").write_bytes(gzip.compress(b"timestamp,value\n"))
    with pytest.raises(InputError, match=r"nyc_taxi.csv: expected sha256 d8fa6f7f"):
        files.nab(tmp_path, "nyc_taxi")


def test_what_is_missing_is_said_before_anything_runs(tmp_path, capsys):
    for part in ("TRAIN", "TEST"):
        (tmp_path / f"ECG200_{part}.tsv").touch()
    with pytest.raises(InputError, match="Rock_TRAIN"):
        command.main(["--data-dir", str(tmp_path), "--only", "ucr"])
    command.main(["--list", "--data-dir", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert (
        sum(line.startswith("  missing") for line in lines)
        == sum(len(command.protocol(n).FILES) for n in command.PROTOCOLS) - 2
    )


def test_rows_are_json_lines(shared_data, tmp_path, capsys):
    out = tmp_path / "made" / "rows.jsonl"
    command.main(["--data-dir", str(shared_data), "--only", "ucr", "--seeds", "--out", str(out)])
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 4
    assert rows[0].keys() >= {"protocol", "method", "seed", "accuracy", "seconds", "device", "torch"}
    assert "1-NN" in capsys.readouterr().err


def test_the_detector_finds_all_five_taxi_windows_with_fewer_false_events(shared_data):
    series = anomalies.load(shared_data, "nyc_taxi")
    metrics = anomalies.model_metrics(series, seed=0, device="cpu")
    assert metrics["season"] == 7 * series.day
    assert metrics["recall at 1"] == 1.0
    assert metrics["false events quiet maximum"] < 8


def test_one_step_models_begin_at_the_autoregression(shared_data):
    z, _ = seismic.load(shared_data)
    net = replace(seismic.ONE_STEP.net, noise="normal")
    short = replace(seismic.ONE_STEP, net=net, chunks=ChunkConfig(streams=4, chunk=256, epochs=1))
    metrics = one_step.one_step_metrics(short, z[:40_000], 30_000, 32_000, 0, "cpu")
    start = fit_autoregression(z[:30_000], 32).log_likelihood(z[32_000 - 32 : 40_000], start=32)
    assert metrics["log_likelihood"] > start - 0.05
