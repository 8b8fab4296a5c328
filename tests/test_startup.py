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
            "triton_math",
            "triton_exponentials",
            "gates",
            "rotation",
            "slices",
            "spans",
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
