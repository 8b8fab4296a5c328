import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from seqkit import cli

SMALL = [
    "--task", "pretrain", "--device", "cpu", "--trainer.threads", "1", "--model.layout", "mamba2", "--model.d_model",
    "16", "--model.d_state", "8", "--model.headdim", "16", "--length", "64", "--stages.ramp", "[32]",
    "--stages.ramp_share", "0.5",
    "--stages.tokens_per_step", "256", "--trainer.max_steps", "12", "--trainer.curve_points", "4",
]  # fmt: skip
MASKED = ["--objective", "masked", "--model.bidirectional", "true"]


@pytest.fixture(scope="module")
def fasta(tmp_path_factory):
    """Two contigs of which one is held out, with unknown bases and a soft mask."""
    folder = tmp_path_factory.mktemp("genome")
    random = np.random.default_rng(0)
    unit = "".join(random.choice(list("ACGT"), 40))
    (folder / "g.fa").write_text(f">one\n{unit * 60}{'N' * 50}{unit.lower() * 20}\n>two\n{unit * 5}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEQKIT_CACHE", str(folder / "cache"))
        yield str(folder / "g.fa")


@pytest.fixture(scope="module")
def run(fasta, tmp_path_factory):
    """A finished run."""
    out = tmp_path_factory.mktemp("run") / "run"
    assert cli.main(["fit", *SMALL, "--fasta", fasta, "--out", str(out)]) == 0
    return out


def history(folder):
    with (folder / "history.csv").open() as handle:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(handle)]


def results(folder):
    return json.loads((folder / "metrics.json").read_text())["results"]


def test_run_folder_is_complete(run):
    names = {p.relative_to(run).as_posix() for p in run.rglob("*") if p.is_file()}
    assert names == {
        "config.yaml", "manifest.json", "metrics.json", "model.json", "model.safetensors", "history.csv", "results.md",
        "report.html", "plots/curve.png", "plots/curve.svg", "checkpoints/last.ckpt",
    }  # fmt: skip
    torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


def test_figures_stand_beside_the_simple_models(run):
    found = results(run)
    assert list(found) == [
        "seqkit, windows of 64", "seqkit, windows of 32", "seqkit, state carried throughout",
        "Markov, orders 0 to 12 mixed", "Markov, order 12", "Markov, order 2", "uniform",
    ]  # fmt: skip
    assert found["uniform"]["value"] == 2
    assert found["Markov, orders 0 to 12 mixed"]["value"] < 0.2
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["bases"] == {"train": 3250, "held out": 200, "scored": 188}
    assert "contig two" in metrics["split"]


def test_curve_has_a_row_a_point_and_the_lengths_grow(run):
    rows = history(run)
    assert [row["step"] for row in rows] == ["3", "6", "9", "12"]
    assert [row["tokens"] for row in rows] == ["768", "1536", "2304", "3072"]
    assert [row["length"] for row in rows] == ["32", "32", "64", "64"]
    assert float(rows[-1]["held_out_bits"]) < float(rows[0]["held_out_bits"])


def test_killed_anywhere_it_resumes_to_the_same_figures(run, fasta, tmp_path):
    """SIGKILL in the middle of an interval of the curve, then --resume."""
    out = tmp_path / "broken"
    command = [sys.executable, "-m", "seqkit", "fit", *SMALL, "--fasta", fasta, "--out", str(out),
               "--trainer.checkpoint_seconds", "0"]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    while process.poll() is None and not (out / "history.csv").exists():
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (out / "metrics.json").exists()
    done = subprocess.run([*command, "--resume"], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert history(out) == history(run)
    assert results(out) == results(run)


def test_a_rehearsal_leaves_no_trace(run, fasta, tmp_path, monkeypatch):
    """Only a GPU rehearses; here the CPU does."""
    seen = []

    def rehearse_anywhere(self, trainer, pl_module):
        self.rehearse(trainer, pl_module)
        seen.append(all(p.grad is None for p in pl_module.parameters()))

    monkeypatch.setattr("seqkit.commands.pretrain_curve.Rehearsal.on_train_start", rehearse_anywhere)
    out = tmp_path / "rehearsed"
    assert cli.main(["fit", *SMALL, "--fasta", fasta, "--out", str(out)]) == 0
    assert seen == [True]
    assert (history(out), results(out)) == (history(run), results(run))


def test_resolved_config_repeats_the_run(run, tmp_path):
    again = tmp_path / "again"
    config = run / "config.yaml"
    assert yaml.safe_load(config.read_text())["stages"]["length"] == 64
    assert cli.main(["fit", "--task", "pretrain", "--config", str(config), "--out", str(again)]) == 0
    assert results(again) == results(run)


def test_finished_run_is_shown_again_by_resume_and_refused_without(run, fasta, capsys):
    arguments = ["fit", *SMALL, "--fasta", fasta, "--out", str(run)]
    assert cli.main([*arguments, "--resume"]) == 0
    assert "bits per base" in capsys.readouterr().out
    assert cli.main(arguments) == 2


def test_time_alone_ends_a_run(fasta, tmp_path):
    steps = SMALL.index("--trainer.max_steps")
    arguments = [*SMALL[:steps], *SMALL[steps + 2 :], "--fasta", fasta, "--out", str(tmp_path / "r")]
    assert cli.main(["fit", *arguments, "--max-time", "00:00:02"]) == 0
    metrics = json.loads((tmp_path / "r" / "metrics.json").read_text())
    assert metrics["training"]["seconds"] >= 2
    assert metrics["training"]["steps"] > 0
    assert history(tmp_path / "r")[-1]["length"] == "64"


@pytest.mark.parametrize(
    "changes",
    [
        MASKED,
        [*MASKED, "--model.rc_equivariant", "true", "--objective.soft_mask_weight", "0.1"],
        ["--model.layout", "mamba1 attention", "--model.attention_headdim", "8"],
        ["--model.layout", "mamba3", "--precision", "bf16-mixed", "--data.held_out", "0.1"],
        ["--stages.tokens_at_once", "64", "--held-out", "one:100-400", "--data.exclude", "two"],
    ],
    ids=["masked", "equivariant", "hybrid", "mamba3", "accumulated"],
)
def test_objectives_and_architectures_train(fasta, tmp_path, changes):
    out = tmp_path / "run"
    assert cli.main(["fit", *SMALL, "--fasta", fasta, "--out", str(out), *changes]) == 0
    found = results(out)
    assert ("seqkit, state carried throughout" in found) == (
        changes[:2] != MASKED[:2] and "attention" not in changes[1]
    )
    assert ("neighbours, 0 to 5 a side mixed" in found) == (changes[:2] == MASKED[:2])
    assert 0 < next(iter(found.values()))["value"] < 5
    assert found["uniform"]["value"] == 2


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        (["--model.bidirectional", "true"], 2, "bidirectional: expected false"),
        (["--model.rc_equivariant", "true"], 2, "rc_equivariant: expected false"),
        (["--objective", "masked"], 2, "model.bidirectional"),
        (["--objective", "next"], 2, "causal or masked"),
        (["--precision", "16-mixed"], 2, "bf16-mixed"),
        (["--max-time", "ten minutes"], 2, "HH:MM:SS"),
        (["--trainer.max_steps", "null"], 2, "max_time"),
        (["--held-out", "three"], 2, "one, two"),
        (["--fasta", "nothing.fa"], 3, "no such file"),
        (["--stages.tokens_per_step", "100"], 2, "multiple of every length"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_leaves_no_folder(fasta, tmp_path, capsys, changes, code, message):
    given = [] if "--fasta" in changes else ["--fasta", fasta]
    assert cli.main(["fit", *SMALL, *given, "--out", str(tmp_path / "r"), *changes]) == code
    assert message in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


def test_test_repeats_the_figures_of_the_run(run, capsys):
    assert cli.main(["test", "--ckpt", str(run), "--device", "cpu"]) == 0
    assert results(run / "test") == results(run)
    assert "bits per base" in capsys.readouterr().out
    shutil.rmtree(run / "test")


def test_test_on_another_sequence(run, tmp_path, capsys):
    (tmp_path / "new.fa").write_text(">new\n" + "ACGTTGCA" * 30 + "\n")
    arguments = ["test", "--ckpt", str(run), "--device", "cpu", "--fasta", str(tmp_path / "new.fa")]
    assert cli.main([*arguments, "--out", str(tmp_path / "whole"), "--length", "32"]) == 0
    metrics = json.loads((tmp_path / "whole" / "metrics.json").read_text())
    assert metrics["bases"] == {"train": 0, "held out": 240, "scored": 228}
    assert "seqkit, windows of 32" in metrics["results"]
    assert cli.main([*arguments, "--out", str(tmp_path / "part"), "--held-out", "new:1-100"]) == 0
    assert json.loads((tmp_path / "part" / "metrics.json").read_text())["bases"]["scored"] == 88


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        (["--held-out", "one"], 2, "learnt from"),
        (["--task", "variant-effect"], 2, "pretrain"),
        (["--fasta", "nothing.fa"], 3, "no such file"),
    ],
)
def test_test_refuses(run, tmp_path, capsys, changes, code, message):
    assert cli.main(["test", "--ckpt", str(run), "--out", str(tmp_path / "t"), *changes]) == code
    assert message in capsys.readouterr().err


def test_variant_effects_start_from_a_pretrained_backbone(run, own_data, small_arguments, tmp_path, capsys):
    label = ["--label", "func.class", "--positive", "LOF"]
    arguments = [a for pair in zip(*[iter(small_arguments)] * 2, strict=True) if "model" not in pair[0] for a in pair]
    arguments = ["fit", *arguments, *own_data, *label, "--init", str(run), "--out", str(tmp_path / "v")]
    assert cli.main([*arguments, "--optim.lr", "1e-9", "--optim.weight_decay", "0"]) == 0
    assert json.loads((tmp_path / "v" / "model.json").read_text())["model"]["layout"] == "mamba2"
    trained, tuned = (load_file(folder / "model.safetensors") for folder in (run, tmp_path / "v"))
    name = "backbone.stack.blocks.0.mixer.in_proj.weight"
    torch.testing.assert_close(tuned[f"net.sequence.{name}"], trained[name], atol=1e-5, rtol=0)
    assert cli.main(["predict", "--ckpt", str(tmp_path / "v"), *own_data[:6], "--out", str(tmp_path / "p.tsv")]) == 0
    assert cli.main([*arguments, "--model.layout", "mamba1", "--overwrite"]) == 2
    assert "no architecture beside --init" in capsys.readouterr().err
