"""``seqkit estimate``, and refusals by memory of the verbs that run."""

import json

import pytest
import torch

from seqkit import cli
from seqkit.backbones import BackboneConfig
from seqkit.estimate import advice, timing
from seqkit.estimate.workload import Workload

LONG = ["--length", "65536", "--stages.tokens_per_step", "65536"]
MODEL = ["--model.d_model", "32", "--model.layout", "mamba2*2", "--model.headdim", "16"]


def test_a_card(capsys):
    assert cli.main(["estimate", "--model", "dna-rc", "--length", "1048576", "--for", "h100-80gb"]) == 0
    text = capsys.readouterr().out
    for needle in ("0.25 M parameters", "1 x 1,048,576 tokens", "peak memory", "bytes a token", "fits in 78.60 GiB"):
        assert needle in text


def test_a_card_that_is_too_small(capsys):
    arguments = ["--model", "dna-tiny", "--length", "4194304", "--for", "12gb", "--json"]
    assert cli.main(["estimate", *arguments]) == 5
    found = json.loads(capsys.readouterr().out)
    assert not found["fits"]
    assert found["peak_bytes"] > found["limit_bytes"]
    assert found["advice"].startswith("fits with --model.checkpoint true")
    assert found["seconds"] is None


def test_this_machines_cpu(capsys):
    assert cli.main(["estimate", *MODEL, "--length", "2048", "--for", "cpu", "--json", "--inference"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["seconds"] > 0
    assert found["speed_from"] == "short steps, here"
    assert sum(found["parts_bytes"].values()) == found["peak_bytes"]


@pytest.mark.parametrize(("quadratic", "parabola"), [(0.0, False), (1e-9, True)])
def test_longer_steps_follow_from_short_ones(quadratic, parabola):
    def spent(n):
        return 0.01 + 1e-5 * n + quadratic * n * n

    points = [(n, spent(n)) for n in (1024, 2048, 4096)]
    assert timing._extrapolate(points, 65_536, parabola) == pytest.approx(spent(65_536))


def test_short_steps_are_cut_as_the_whole_is():
    model = BackboneConfig(d_model=16, layout="mamba1", slab=1000, sequence_chunk=5000)
    short = timing._short(Workload(model=model, length=4000, batch=3), 512)
    assert (short.model.slab, short.model.sequence_chunk, short.batch) == (256, 5000, 1)


@pytest.mark.parametrize(("option", "value"), [("--length", "0"), ("--for", "h100"), ("--precision", "fp8")])
def test_usage_errors(option, value, capsys):
    assert cli.main(["estimate", *MODEL, option, value]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_fit_ends_with_one_line_before_it_reads_a_window(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(advice, "free_bytes", lambda device: 100 << 20)
    out = tmp_path / "run"
    code = cli.main(["fit", "--task", "pretrain", "--device", "cpu", *LONG, "--out", str(out)])
    error = capsys.readouterr().err
    assert code == 5
    assert "65,536 tokens" in error
    assert "--model.checkpoint true" in error
    assert "Traceback" not in error


def test_running_out_of_memory_anywhere_is_one_line(monkeypatch, capsys):
    def fail(argv):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr("seqkit.commands.configs.run", fail)
    assert cli.main(["configs"]) == 5
    assert capsys.readouterr().err.count("\n") == 1


def test_predict_ends_with_one_line_that_names_a_batch(monkeypatch, binary_run, own_data, tmp_path, capsys):
    monkeypatch.setattr(advice, "free_bytes", lambda device: 1 << 20)
    data = own_data[:6]
    out = tmp_path / "out.tsv"
    arguments = ["--ckpt", str(binary_run), *data, "--out", str(out), "--device", "cpu"]
    assert cli.main(["predict", *arguments, "--batch-size", "4096"]) == 5
    error = capsys.readouterr().err
    assert "Fits with --batch-size " in error
    assert not out.exists()
