import json

import pytest
import torch

from seqkit.bench import stream
from seqkit.inference.stream import stream as run_stream

SMALL = ["--layout", "mamba2 mamba1", "--d-model", "16", "--piece", "64", "--device", "cpu"]
FASTA = ">one\n" + "ACGTTGCA" * 30 + "\n>two\nAC\n"


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch):
    monkeypatch.setattr(stream, "_REPLAYS", 3)
    monkeypatch.setattr(stream, "_ROUNDS", 3)


def rows(tmp_path, *options):
    code = stream.main([*SMALL, *options, "--out", str(tmp_path / "rows.jsonl")])
    return code, [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]


def test_every_measurement_is_a_line(tmp_path):
    (tmp_path / "x.fa").write_text(FASTA)
    code, found = rows(tmp_path, "--fasta", str(tmp_path / "x.fa"), "--equal", "200", "--positions", "130", "20")
    assert code == 0
    assert [row["what"] for row in found] == ["pass", "equal", "step", "step"]
    whole, equal, early, late = found
    assert (whole["bases"], whole["input"], whole["finite"]) == (242, "x.fa", True)
    assert (equal["bases"], equal["error_ratio"] < 1e-5) == (200, True)
    assert (early["position"], late["position"]) == (20, 130)
    assert early["state_bytes"] == late["state_bytes"] == whole["state_bytes"]
    assert late["cache_bytes"] == 2 * 1 * 16 * 130 * 4
    assert all({"device", "torch", "date", "seed", "command"} <= row.keys() for row in found)


def test_random_bases_as_many_as_asked_for(tmp_path):
    _, (row,) = rows(tmp_path, "--bases", "150", "--equal", "0", "--positions")
    assert (row["bases"], row["input"]) == (150, "random bases")


def test_a_stream_that_differs_fails(tmp_path, monkeypatch):
    def forgetful(model, chunks, **options):
        for chunk in chunks:
            for part in torch.as_tensor(chunk).split(64, dim=-1):
                yield from run_stream(model, [part])

    monkeypatch.setattr(stream, "stream", forgetful)
    code, found = rows(tmp_path, "--bases", "150", "--equal", "150", "--positions")
    assert code == 1
    assert found[-1]["error_ratio"] > 0.01


@pytest.mark.parametrize("length", [1_000, 10**9])
def test_time_steps_suit_the_length(length):
    model = stream.causal_model("mamba2", 256, length=length, device="cpu", dtype=torch.float32, seed=0)
    dt = torch.nn.functional.softplus(model.stack.blocks[0].mixer.dt_bias.double())
    low = max(1 / length, 1e-6)
    assert low <= dt.min() * 1.01
    assert dt.max() <= 0.101
