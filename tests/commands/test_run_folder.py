import json

import pytest

from seqkit.commands.run_folder import default_folder, differing_keys, open_run, write_manifest
from seqkit.errors import ConfigError
from seqkit.files import atomic, write_json


def test_new_folder_holds_the_config(tmp_path):
    folder = open_run(str(tmp_path / "run"), "t", "seed: 1\n", resume=False, overwrite=False)
    assert (folder / "config.yaml").read_text() == "seed: 1\n"


def test_occupied_folder_is_refused_and_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(ConfigError, match="--resume or --overwrite"):
        open_run(str(tmp_path), "t", "seed: 1\n", resume=False, overwrite=False)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_overwrite_empties_the_folder(tmp_path):
    (tmp_path / "old").write_text("x")
    folder = open_run(str(tmp_path), "t", "seed: 1\n", resume=False, overwrite=True)
    assert [p.name for p in folder.iterdir()] == ["config.yaml"]


def test_resume_needs_the_same_config_and_names_what_differs(tmp_path):
    open_run(str(tmp_path), "t", "seed: 1\ndata: {window: 3}\n", resume=False, overwrite=False)
    open_run(str(tmp_path), "t", "data: {window: 3}\nseed: 1\n", resume=True, overwrite=False)
    with pytest.raises(ConfigError, match=r"data\.window"):
        open_run(str(tmp_path), "t", "seed: 1\ndata: {window: 4}\n", resume=True, overwrite=False)


def test_resume_of_a_folder_that_is_no_run_is_refused(tmp_path):
    (tmp_path / "x").write_text("")
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        open_run(str(tmp_path), "t", "seed: 1\n", resume=True, overwrite=False)


def test_default_folders_count_up_and_resume_takes_the_last(tmp_path):
    assert default_folder(tmp_path / "t", last=False).name == "000"
    for name in ("000", "007", "notes"):
        (tmp_path / "t" / name).mkdir(parents=True)
    assert default_folder(tmp_path / "t", last=False).name == "008"
    assert default_folder(tmp_path / "t", last=True).name == "007"


def test_differing_keys_are_dotted():
    assert differing_keys({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 5}, "e": 4}) == ["a.c", "d", "e"]


def test_manifest_records_checksums_and_versions(tmp_path):
    source = tmp_path / "in.tsv"
    source.write_text("abc")
    write_manifest(tmp_path, seed=4, inputs={"variants": str(source), "gff": None}, device="cpu")
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert manifest["inputs"] == {"variants": {"path": str(source), "sha256": digest}}
    assert manifest["versions"]["torch"]
    assert manifest["seed"] == 4


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "scores.tsv"
    target.write_text("old")

    def fail():
        with atomic(target) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["scores.tsv"]


def test_json_has_null_for_what_is_not_a_number(tmp_path):
    write_json(tmp_path / "m.json", {"a": float("nan"), "b": [1.5, float("inf")]})
    assert json.loads((tmp_path / "m.json").read_text()) == {"a": None, "b": [1.5, None]}
