"""The benchmark reports what is correct, and nothing else."""

import json

import pytest
import torch

from seqkit.errors import ConfigError
from seqkit.kernels import bench


@pytest.mark.parametrize("op", bench.REGISTRY)
def test_the_reference_passes_its_own_gate(op):
    assert bench.verify(op, "reference") == ""


def test_rows_are_json_with_device_versions_and_date(tmp_path, capsys):
    out = tmp_path / "rows.jsonl"
    arguments = ["--op", "causal_conv", "--provider", "reference", "--length", "64", "--repeats", "2"]
    assert bench.main([*arguments, "--threads", "1", "--out", str(out)]) == 0
    row = json.loads(out.read_text())
    assert {"op", "provider", "L", "dtype", "forward_s", "both_s", "device", "threads", "torch", "date"} <= row.keys()
    assert row["both_s"] >= 0
    assert "us_per_token" in capsys.readouterr().out


def test_a_wrong_provider_is_not_reported(monkeypatch, capsys):
    entry = bench.REGISTRY["causal_conv"]
    monkeypatch.setitem(entry.providers, "torch", lambda t: bench._conv_reference(t) * 1.001)
    arguments = ["--op", "causal_conv", "--length", "64", "--repeats", "1", "--threads", "1"]
    assert bench.main(arguments) == 1
    captured = capsys.readouterr()
    assert "causal_conv torch: not reported, y: RMS(error)" in captured.err
    assert [json.loads(line)["provider"] for line in captured.out.splitlines() if line[0] == "{"] == ["reference"]


def test_nothing_to_report_is_an_error():
    with pytest.raises(ConfigError, match="--provider: expected one that is installed"):
        bench.main(["--op", "causal_conv", "--provider", "nobody"])


def test_a_wrong_gradient_fails_the_gate(monkeypatch):
    class Crooked(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad * 1.001

    entry = bench.REGISTRY["causal_conv"]
    monkeypatch.setitem(entry.providers, "torch", lambda t: bench._conv_reference({**t, "x": Crooked.apply(t["x"])}))
    assert bench.verify("causal_conv", "torch").startswith("dx: RMS(error)")
