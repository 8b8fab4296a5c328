"""One import name everywhere: the links, the guards, and what wheel and sdist carry."""

import email
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LINKED = ("kernels", "tasks", "data", "configs")
DATA_PATTERNS = ("seqkit/py.typed", "seqkit/configs/**/*.yaml", "seqkit/data/bundled/**/*")
DIRECT = {"torch", "triton", "lightning", "biopython", "polars", "pyfaidx", "torchmetrics", "pysam", "scikit-learn"}


def run(*arguments, cwd, **variables):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"} | variables
    return subprocess.run(arguments, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


def git(*arguments):
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout")
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("name", LINKED)
def test_link_is_relative_and_points_at_the_real_folder(name):
    link = ROOT / "seqkit" / name
    assert link.is_symlink(), f"{link} is no link: clone on a file system with symbolic links (git core.symlinks)"
    assert os.readlink(link) == f"../{name}"
    assert (ROOT / name).is_dir()
    assert not (ROOT / name).is_symlink()


def test_git_tracks_the_links_as_links():
    lines = git("ls-files", "-s", *(f"seqkit/{name}" for name in LINKED)).splitlines()
    assert [line.split()[0] for line in lines] == ["120000"] * 4


@pytest.mark.parametrize("name", LINKED)
@pytest.mark.parametrize("module", ["", ".anything"])
def test_bare_import_names_the_right_one(name, module):
    result = run(sys.executable, "-c", f"import {name}{module}", cwd=ROOT, PYTHONPATH=str(ROOT))
    assert result.returncode == 1
    assert f"ImportError: import seqkit.{name}, not {name}" in result.stderr


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of the checkout with its links, so that a build leaves nothing in the tree."""
    folder = tmp_path_factory.mktemp("build") / "tree"
    shutil.copytree(
        ROOT, folder, symlinks=True,
        ignore=shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "*.egg-info", "runs", "notebooks"),
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def built(tree):
    pytest.importorskip("build")
    return build(tree, "--wheel", "--sdist")


@pytest.fixture(scope="module")
def contents(built):
    with zipfile.ZipFile(built["whl"]) as archive:
        return {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}


@pytest.fixture(scope="module")
def metadata(contents):
    (name,) = (name for name in contents if name.endswith(".dist-info/METADATA"))
    return email.message_from_bytes(contents[name])


def build(folder, *kinds):
    """Build without an isolated environment and so without network; paths by suffix."""
    arguments = [sys.executable, "-m", "build", "--no-isolation", *kinds, "--outdir", folder.parent / "out", folder]
    result = run(*map(str, arguments), cwd=folder.parent, PYTHONPATH="")
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return {path.suffix[1:]: path for path in (folder.parent / "out").iterdir()}


def expected_files(folder):
    """What the tree says a wheel must hold, links followed by hand."""
    found = set()
    for base, prefix in [(folder / "seqkit", "seqkit"), *((folder / name, f"seqkit/{name}") for name in LINKED)]:
        for path in base.rglob("*"):
            inside = f"{prefix}/{path.relative_to(base).as_posix()}"
            linked = base == folder / "seqkit" and path.relative_to(base).parts[0] in LINKED
            packaged = path.suffix == ".py" or any(_matches(inside, pattern) for pattern in DATA_PATTERNS)
            if path.is_file() and packaged and not linked:
                found.add(inside)
    return found


def _matches(name, pattern):
    head, stars, tail = pattern.partition("**/*")
    return name.startswith(head) and name.endswith(tail) if stars else name == pattern


def test_wheel_holds_the_tree_and_nothing_else(tree, contents):
    inside = {name for name in contents if ".dist-info/" not in name}
    expected = expected_files(tree)
    assert inside - expected == set()
    assert expected - inside == set()
    assert {name.split("/")[0] for name in inside} == {"seqkit"}
    for needle in ("seqkit/py.typed", "seqkit/kernels/__init__.py", "seqkit/configs/task/variant-effect.yaml"):
        assert needle in inside
    assert any(name.startswith("seqkit/data/bundled/brca1/") and name.endswith(".gz") for name in inside)


def test_wheel_files_are_the_trees_bytes(tree, contents):
    for name in sorted(name for name in contents if ".dist-info/" not in name):
        assert contents[name] == (tree / name).read_bytes(), name


def test_wheel_from_sdist_equals_wheel_from_tree(built, contents, tmp_path):
    with tarfile.open(built["gz"]) as archive:
        assert not [member.name for member in archive.getmembers() if member.issym() or member.islnk()]
        archive.extractall(tmp_path, filter="data")
    (folder,) = tmp_path.iterdir()
    with zipfile.ZipFile(build(folder, "--wheel")["whl"]) as archive:
        again = {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}
    records = {name for name in contents if name.endswith("/RECORD")}
    assert {name: again[name] for name in again.keys() - records} == {
        name: contents[name] for name in contents.keys() - records
    }


def test_building_leaves_the_links_alone(built, tree):
    for name in LINKED:
        assert (tree / "seqkit" / name).is_symlink()


def test_metadata(metadata, contents):
    assert metadata["Name"] == "seqkit"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert "seqkit fit --task variant-effect" in metadata.get_payload()  # the README
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in contents)
    (entry,) = (contents[name].decode() for name in contents if name.endswith("/entry_points.txt"))
    assert "seqkit = seqkit.cli:main" in entry


def test_dependencies_and_their_platforms(metadata):
    from packaging.requirements import Requirement

    needed = [Requirement(text) for text in metadata.get_all("Requires-Dist")]
    core = {need.name.lower(): need for need in needed if "extra ==" not in str(need.marker)}
    assert core.keys() >= DIRECT
    windows, linux = {"platform_system": "Windows"}, {"platform_system": "Linux"}
    for name in ("pysam", "triton"):
        assert core[name].marker.evaluate(linux)
        assert not core[name].marker.evaluate(windows)
    assert all(core[name].marker is None for name in DIRECT - {"pysam", "triton"})
    test = {
        need.name
        for need in needed
        if need.marker and need.marker.evaluate({"extra": "test"}) and "extra" in str(need.marker)
    }
    assert {"pytest", "hypothesis", "import-linter", "build"} <= test


def test_installed_wheel_imports_its_own_files(built, tmp_path):
    site = tmp_path / "site"
    with zipfile.ZipFile(built["whl"]) as archive:
        archive.extractall(site)
    code = (
        "import importlib, sys, importlib.resources as r\n"
        "for name in ('seqkit', 'seqkit.kernels', 'seqkit.tasks', 'seqkit.data', 'seqkit.configs'):\n"
        "    assert importlib.import_module(name).__file__.startswith(sys.argv[1]), name\n"
        "assert r.files('seqkit.configs').joinpath('task/variant-effect.yaml').read_text()\n"
    )
    result = run(sys.executable, "-c", code, str(site), cwd=tmp_path, PYTHONPATH=str(site))
    assert result.returncode == 0, result.stderr
