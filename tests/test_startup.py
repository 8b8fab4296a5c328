"""What starting up costs, and which libraries each part does without."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "triton", "lightning", "polars", "matplotlib", "numpy", "sklearn", "torchmetrics", "pysam", "pyfaidx")
STARTS = {
    "import": "import seqkit",
    "help": "from seqkit.cli import main\nassert main(['--help']) == 0",
    "version": "from seqkit.cli import main\nassert main(['--version']) == 0",
    "usage": "from seqkit.cli import main\nassert main(['no-such-verb']) == 2",
}
LIMIT_S = 0.5


def python(code):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("start", STARTS)
def test_nothing_heavy_is_imported(start):
    loaded = "import json, sys\nprint()\nprint(json.dumps(sorted(m for m in sys.modules if '.' not in m)))"
    result = python(STARTS[start] + "\n" + loaded)
    assert result.returncode == 0, result.stderr
    modules = set(json.loads(result.stdout.splitlines()[-1]))
    assert "seqkit" in modules
    assert modules & set(HEAVY) == set()


@pytest.mark.parametrize("start", ["import", "help"])
def test_starts_within_half_a_second(start):
    fastest = float("inf")
    for _ in range(8):  # the fastest of several: the machine may be busy, and one quick start shows what it takes
        begun = time.perf_counter()
        result = python(STARTS[start])
        fastest = min(fastest, time.perf_counter() - begun)
        assert result.returncode == 0, result.stderr
        if fastest < LIMIT_S:
            return
    raise AssertionError(f"{start} took {fastest:.2f} s at best, limit {LIMIT_S} s")


def test_pretraining_does_with_an_encoded_genome_and_without_the_table_libraries(tmp_path):
    """A GPU machine has torch, Lightning and matplotlib, and may lack all of these."""
    fasta = tmp_path / "g.fa"
    fasta.write_text(">one\n" + "GATTACA" * 90 + "\n")
    encode = f"from seqkit.data.encoded import main\nmain([{str(fasta)!r}, {str(tmp_path / 'g.skgenome')!r}])"
    assert python(encode).returncode == 0
    arguments = [
        "fit", "--task", "pretrain", "--fasta", str(tmp_path / "g.skgenome"), "--out", str(tmp_path / "run"),
        "--length", "32", "--stages.ramp", "[]", "--stages.tokens_per_step", "64", "--trainer.max_steps", "2",
        "--model.d_model", "8", "--model.headdim", "8", "--device", "cpu",
    ]  # fmt: skip
    absent = ("polars", "pysam", "pyfaidx", "Bio", "sklearn")
    code = f"import sys\nfor name in {absent}:\n    sys.modules[name] = None\n"
    result = python(code + f"from seqkit.cli import main\nsys.exit(main({arguments}))")
    assert result.returncode == 0, result.stderr
    assert "Markov, order 2" in result.stdout


def test_module_entry_point_prints_the_verbs():
    command = [sys.executable, "-m", "seqkit", "--help"]
    result = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert result.returncode == 0
    assert "fit" in result.stdout
    assert result.stderr == ""


# What a machine may lack, and the modules that need it by their nature: a GPU node has torch and Triton alone;
# Windows has neither pysam nor Triton.
ABSENT = {
    "kernels and backbones do with torch": (
        ("kernels", "backbones"),
        ("lightning", "polars", "pysam", "pyfaidx", "Bio", "torchmetrics", "sklearn", "matplotlib", "rich", "yaml"),
        (),
    ),
    "everything imports without pysam": (
        ("kernels", "backbones", "tokenizers", "data", "tasks", "report", "configs", "inference", "commands"),
        ("pysam", "triton"),
        # Triton programs
        (
            "forward",
            "backward",
            "tiles",
            "triton_provider",
            "triton_chunks",
            "triton_compiled",
            "triton_lanes",
            "triton_math",
            "triton_sums",
            "triton_exponentials",
            "rotation",
            "scan",
            "sum_kernels",
            "tokens",
            "turns",
            "weights",
        ),
    ),
}


@pytest.mark.parametrize("case", ABSENT)
def test_imports_without(case):
    parts, missing, needing = ABSENT[case]
    code = f"""
import importlib, pkgutil, sys
for name in {missing}:
    sys.modules[name] = None
for part in {parts}:
    package = importlib.import_module("seqkit." + part)
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if module.name.rsplit(".")[-1] not in {needing}:
            importlib.import_module(module.name)
"""
    result = python(code)
    assert result.returncode == 0, result.stderr
