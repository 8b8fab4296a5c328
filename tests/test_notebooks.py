import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHARED_DATA = ROOT.parent / "shared" / "data"
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path):
    return pytest.importorskip("nbformat").read(path, as_version=4)


@each_notebook
def test_notebook_runs(path, tmp_path, monkeypatch):
    if SHARED_DATA.is_dir():  # one of them reads a public record where there is one
        monkeypatch.setenv("SEQKIT_DATA", str(SHARED_DATA))
    notebook, nbclient = read(path), pytest.importorskip("nbclient")
    options = {"timeout": 120, "shutdown_kernel": "immediate"}  # a graceful end takes seconds a notebook
    nbclient.NotebookClient(notebook, resources={"metadata": {"path": str(tmp_path)}}, **options).execute()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs or "assert" in cell.source for cell in code)
    assert [output.text for cell in code for output in cell.outputs if output.get("name") == "stderr"] == []
    assert list(tmp_path.iterdir()) == []


@each_notebook
def test_what_is_kept_is_small_and_says_nothing_about_the_machine(path):
    text = path.read_text(encoding="utf-8")
    assert len(text) < 150_000
    assert re.findall(r"(?:/work|/tmp|/home|/root|site-packages|Warning)\b", text) == []
    code = [cell for cell in read(path).cells if cell.cell_type == "code"]
    assert all(cell.outputs or "assert" in cell.source for cell in code)
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))


@each_notebook
def test_readme_names_it(path):
    assert f"`notebooks/{path.name}`" in (ROOT / "README.md").read_text(encoding="utf-8")
