import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from seqkit import cli, environment
from seqkit.commands import doctor, golden
from seqkit.commands.trainer import torch_device
from seqkit.errors import ConfigError


def report(capsys):
    code = cli.main(["doctor"])
    return code, capsys.readouterr().out


def test_this_machine_is_ready(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("SEQKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(doctor, "nvidia_devices", lambda: [])
    code, out = report(capsys)
    assert code == 0, out
    assert out.splitlines()[-1] == "Ready."
    for op in golden.ANSWERS:
        assert f"{op} cpu" in out
    assert "FAIL" not in out


@pytest.mark.parametrize("op", golden.ANSWERS)
def test_known_answers_are_those_of_float64(op):
    got = golden.run(op, torch.device("cpu"), torch.float64)
    assert got == pytest.approx(golden.ANSWERS[op], rel=1e-9)
    assert golden.error(op, torch.device("cpu")) < golden.TOLERANCE / 2


def test_a_wrong_answer_fails(capsys, monkeypatch):
    monkeypatch.setitem(golden.ANSWERS, "causal_conv", (1.0, 1.0))
    monkeypatch.setattr(doctor, "CHECKS", (doctor.check_answers,))
    code, out = report(capsys)
    assert code == 3
    assert next(line for line in out.splitlines() if "FAIL" in line).startswith("FAIL  causal_conv cpu")


def test_a_cache_that_cannot_be_written_fails(capsys, monkeypatch):
    monkeypatch.setenv("SEQKIT_CACHE", "/proc/no/such/folder")
    monkeypatch.setattr(doctor, "CHECKS", (doctor.check_folders,))
    code, out = report(capsys)
    assert code == 3
    assert "SEQKIT_CACHE" in out


def test_another_seqkit_is_named(capsys, tmp_path, monkeypatch):
    other, ours = tmp_path / "go" / "seqkit", tmp_path / "ours" / "seqkit"
    for path, text in ((other, "#!/bin/sh\necho fasta\n"), (ours, "#!/usr/bin/python\nfrom seqkit.cli import main\n")):
        path.parent.mkdir()
        path.write_text(text)
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{other.parent}{os.pathsep}{ours.parent}{os.pathsep}{other.parent}")
    monkeypatch.setattr(doctor, "CHECKS", (doctor.check_path,))
    code, out = report(capsys)
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[:-1]] == ["note", "ok"]
    assert "seqkit-ml" in out


@pytest.mark.parametrize("verb", ["stats", "seq", "grep", "fx2tab"])
def test_verbs_of_the_other_seqkit_get_one_line(verb, capsys):
    assert cli.main([verb, "in.fa"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "seqkit-ml" in err
    assert "Did you mean" not in err


def test_ours_are_not_taken_for_theirs():
    assert not cli.OTHER_SEQKIT & set(cli.VERBS)


def test_an_nvidia_device_that_torch_cannot_use_stops_a_run(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("seqkit.commands.trainer.nvidia_devices", lambda: ["/dev/nvidia0"])
    with pytest.raises(ConfigError, match="--device cpu"):
        torch_device("auto")
    assert torch_device("cpu").type == "cpu"
    monkeypatch.setattr(doctor, "nvidia_devices", lambda: ["/dev/nvidia0"])
    monkeypatch.setattr(doctor, "CHECKS", (doctor.check_torch,))
    assert report(capsys)[0] == 3


@pytest.mark.parametrize(
    ("variables", "count"),
    [({}, None), ({"CUDA_VISIBLE_DEVICES": ""}, 0), ({"CUDA_VISIBLE_DEVICES": "-1"}, 0), ({"SLURM_JOB_ID": "7"}, 0),
     ({"SLURM_JOB_ID": "7", "SLURM_JOB_GPUS": "0"}, None), ({"CUDA_VISIBLE_DEVICES": "1"}, None)],
)  # fmt: skip
def test_devices_that_a_job_was_not_given_do_not_count(monkeypatch, variables, count):
    for name in ("CUDA_VISIBLE_DEVICES", "SLURM_JOB_ID", "SLURM_JOB_GPUS", "SLURM_STEP_GPUS", "SLURM_GPUS_ON_NODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "glob", lambda self, pattern: [Path("/dev/nvidia1"), Path("/dev/nvidia0")])
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert len(environment.nvidia_devices()) == (2 if count is None else count)


def test_cpus_of_a_job(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    assert environment.cpu_count() == 8
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "3")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_TMPDIR", "/scratch/7")
    assert environment.cpu_count() == 3
    for name in ("OMP_NUM_THREADS", "POLARS_MAX_THREADS", "TRITON_CACHE_DIR", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "to be restored")
        monkeypatch.delenv(name)
    environment.prepare()
    assert os.environ["OMP_NUM_THREADS"] == os.environ["POLARS_MAX_THREADS"] == "3"
    assert os.environ["TRITON_CACHE_DIR"].startswith("/scratch/7/")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    environment.prepare()
    assert os.environ["OMP_NUM_THREADS"] == "1"


def test_a_fit_under_srun_is_one_process(small_arguments, own_data, tmp_path):
    """Lightning alone would compare SLURM's number of tasks with its devices and stop."""
    slurm = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0",
             "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_JOB_NAME": "variants", "SLURM_STEP_ID": "0",
             "SLURM_NNODES": "1", "SLURM_NODELIST": "node1", "SLURM_CPUS_PER_TASK": "1"}  # fmt: skip
    label = ["--label", "func.class", "--positive", "LOF", "--trainer.max_epochs", "1"]
    command = [
        sys.executable,
        "-m",
        "seqkit",
        "fit",
        *small_arguments,
        *own_data,
        *label,
        "--out",
        str(tmp_path / "run"),
    ]
    done = subprocess.run(command, env=os.environ | slurm, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "metrics.json").is_file()
