"""Who may import whom: the contracts of pyproject hold, are all there, and do catch what they forbid."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

pytest.importorskip("importlinter")

ROOT = Path(__file__).resolve().parents[1]
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
UPPER = {"seqkit.tasks", "seqkit.data", "seqkit.configs", "seqkit.inference", "seqkit.report", "seqkit.bench"}
COMMANDS = {"seqkit.commands", "seqkit.cli"}
LEAST_FORBIDDEN = {
    "seqkit.kernels": UPPER | COMMANDS | {"seqkit.backbones", "seqkit.tokenizers", "lightning", "polars", "pysam"},
    "seqkit.backbones": UPPER | COMMANDS | {"seqkit.tokenizers", "lightning", "polars", "pysam"},
    "seqkit.tokenizers": UPPER | COMMANDS | {"seqkit.backbones", "seqkit.kernels"},
    "seqkit.data": UPPER - {"seqkit.data"} | COMMANDS | {"seqkit.backbones", "seqkit.kernels"},
    "seqkit.tasks": UPPER - {"seqkit.tasks"} | COMMANDS | {"seqkit.kernels"},
    "seqkit.inference": COMMANDS,
    "seqkit.report": COMMANDS,
    "seqkit.configs": COMMANDS,
    **{f"seqkit.kernels.{op}.reference": {"triton"} for op in ("selective", "ssd", "conv", "norm")},
}


def lint(folder):
    environment = os.environ | {"PYTHONPATH": str(folder), "COLUMNS": "200"}
    command = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    arguments = [sys.executable, "-c", command, "--no-cache", "--config", str(ROOT / "pyproject.toml")]
    return subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


def test_every_contract_is_kept():
    result = lint(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"{len(CONTRACTS)} kept, 0 broken" in result.stdout
    for contract in CONTRACTS:
        assert f"{contract['name']} KEPT" in result.stdout


@pytest.mark.parametrize("source", LEAST_FORBIDDEN)
def test_no_contract_was_dropped_or_weakened(source):
    forbidden = set()
    for contract in CONTRACTS:
        assert contract["type"] == "forbidden"
        assert not contract.get("ignore_imports")
        if source in contract["source_modules"]:
            forbidden |= set(contract["forbidden_modules"])
    assert forbidden >= LEAST_FORBIDDEN[source]


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The package with its links followed, to break in."""
    folder = tmp_path_factory.mktemp("broken")
    shutil.copytree(ROOT / "seqkit", folder / "seqkit", ignore=shutil.ignore_patterns("__pycache__", "bundled"))
    (folder / "seqkit" / "data" / "bundled").mkdir()
    return folder


@pytest.mark.parametrize(
    ("where", "statement"),
    [
        ("kernels/__init__.py", "import seqkit.data"),
        ("kernels/conv/__init__.py", "import polars"),
        ("backbones/__init__.py", "import seqkit.tokenizers"),
        ("tokenizers/__init__.py", "import seqkit.backbones"),
        ("data/__init__.py", "import seqkit.kernels"),
        ("tasks/__init__.py", "import seqkit.data"),
        ("report/__init__.py", "import seqkit.cli"),
        ("kernels/ssd/reference.py", "import triton"),
    ],
)
def test_a_forbidden_import_is_found(copy, where, statement):
    path = copy / "seqkit" / where
    before = path.read_text()
    path.write_text(before + "\n\ndef inner():\n    " + statement + "\n")
    try:
        result = lint(copy)
    finally:
        path.write_text(before)
    assert result.returncode == 1
    assert "BROKEN" in result.stdout
    assert statement.removeprefix("import ") in result.stdout
