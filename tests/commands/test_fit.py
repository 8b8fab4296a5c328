import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import polars as pl
import pytest
import torch
import yaml
from safetensors import safe_open

from seqkit import cli
from seqkit.errors import ConfigError

LOF = ["--label", "func.class", "--positive", "LOF"]


def predictions(run):
    return pl.read_parquet(run / "predictions.parquet")


def test_run_folder_is_complete(binary_run):
    names = {p.relative_to(binary_run).as_posix() for p in binary_run.rglob("*") if p.is_file()}
    assert {
        "config.yaml", "manifest.json", "metrics.json", "model.json", "model.safetensors", "history.csv",
        "predictions.parquet", "checkpoints/best.ckpt", "checkpoints/last.ckpt",
    } <= names  # fmt: skip
    plots = {name.split("/")[1] for name in names if name.startswith("plots/")}
    for plot in ("training", "ranking", "reliability", "confusion", "consequence", "gene"):
        assert {f"{plot}.png", f"{plot}.svg"} <= plots
    assert not [name for name in names if "partial" in name]


def test_metrics_have_every_method_with_intervals(binary_run):
    metrics = json.loads((binary_run / "metrics.json").read_text())
    figures = metrics["results"]["func.class"]
    assert list(figures) == [
        "seqkit", "trinucleotide context", "consequence regression", "regression, our features",
        "boosted trees, our features", "neighbours' labels", "CADD.score",
    ]  # fmt: skip
    for method, values in figures.items():
        for name in ("auroc", "auprc", "mcc"):
            assert values[name]["low"] <= values[name]["value"] <= values[name]["high"], (method, name)
    assert {"brier", "ece"} <= set(figures["seqkit"])
    assert "brier" not in figures["CADD.score"]
    assert metrics["split"]["name"] == "block"


def test_predictions_hold_validation_and_test_rows_once(binary_run):
    frame = predictions(binary_run)
    metrics = json.loads((binary_run / "metrics.json").read_text())
    assert frame.filter(pl.col("part") == "test").height == metrics["rows"]["test"]
    assert frame.filter(pl.col("part") == "validation").height == metrics["rows"]["validation"]
    assert frame["index"].is_unique().all()
    assert frame["seqkit"].is_between(0, 1).all()


def test_stored_metrics_are_those_of_the_stored_predictions(binary_run):
    from sklearn.metrics import average_precision_score, roc_auc_score

    test = predictions(binary_run).filter(pl.col("part") == "test")
    stored = json.loads((binary_run / "metrics.json").read_text())["results"]["func.class"]["seqkit"]
    assert stored["auroc"]["value"] == pytest.approx(roc_auc_score(test["label"], test["seqkit"]))
    assert stored["auprc"]["value"] == pytest.approx(average_precision_score(test["label"], test["seqkit"]))


def test_resolved_config_repeats_the_run(binary_run, tmp_path):
    config = binary_run / "config.yaml"
    assert yaml.safe_load(config.read_text())["data"]["window"] == 16
    again = tmp_path / "again"
    assert cli.main(["fit", "--task", "variant-effect", "--config", str(config), "--out", str(again)]) == 0
    assert predictions(again).equals(predictions(binary_run))


def test_weights_and_checkpoints_load_without_running_code(binary_run):
    with safe_open(binary_run / "model.safetensors", "pt") as weights:
        assert "net.head.wide" in weights.keys()  # noqa: SIM118
    torch.load(binary_run / "checkpoints" / "last.ckpt", weights_only=True)


def test_finished_run_is_shown_again_by_resume_and_refused_without(binary_run, own_data, small_arguments, capsys):
    arguments = ["fit", *small_arguments, *own_data, *LOF, "--compare", "CADD.score", "--out", str(binary_run)]
    before = (binary_run / "metrics.json").stat().st_mtime_ns
    assert cli.main([*arguments, "--resume"]) == 0
    assert "AUROC" in capsys.readouterr().out
    assert (binary_run / "metrics.json").stat().st_mtime_ns == before
    assert cli.main(arguments) == 2
    assert "--resume or --overwrite" in capsys.readouterr().err


def stopped_after_the_first_epoch(command, out, environment):
    """(exit code, stderr) of a run that gets SIGTERM; on a busy machine it may be done before, and is started again."""
    for _attempt in range(3):
        shutil.rmtree(out, ignore_errors=True)
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        while process.poll() is None and not (out / "history.csv").exists():
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate()
        if process.returncode:
            break
    return process.returncode, errors


def test_interrupted_run_resumes_to_the_unbroken_result(binary_run, own_data, small_arguments, tmp_path):
    """SIGTERM after the first epoch, then --resume: the same predictions, bit for bit."""
    out = tmp_path / "broken"
    command = [sys.executable, "-m", "seqkit", "fit", *small_arguments, *own_data, *LOF, "--compare", "CADD.score",
               "--out", str(out)]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    code, errors = stopped_after_the_first_epoch(command, out, environment)
    assert code == 143, errors
    assert "--resume" in errors
    assert not (out / "metrics.json").exists()
    assert not (out / "model.json").exists()
    done = subprocess.run([*command, "--resume"], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert (out / "history.csv").read_text().count("\n") == (binary_run / "history.csv").read_text().count("\n")
    assert predictions(out).equals(predictions(binary_run))


def test_a_damaged_checkpoint_starts_over_to_the_same_result(binary_run, own_data, small_arguments, tmp_path, capsys):
    out = tmp_path / "run"
    shutil.copytree(binary_run, out)
    for name in ("metrics.json", "model.json", "predictions.parquet"):
        (out / name).unlink()
    last = out / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:2000])
    arguments = ["fit", *small_arguments, *own_data, *LOF, "--compare", "CADD.score", "--out", str(out), "--resume"]
    assert cli.main(arguments) == 0
    assert "damaged" in capsys.readouterr().err
    assert predictions(out).equals(predictions(binary_run))


@pytest.mark.parametrize(
    ("label", "kind", "metric"),
    [
        (["--label", "func.class"], "multiclass", "macro_auroc"),
        (["--label", "score with holes"], "continuous", "spearman"),
        (["--data.label", "[function.score.r1, score with holes]"], "continuous", "r2"),
        (["--data.label", "[is lost, is lost with holes]"], "binary", "auroc"),
    ],
)
def test_other_kinds_of_labels(own_data, small_arguments, tmp_path, label, kind, metric):
    out = tmp_path / "run"
    arguments = [*small_arguments, "--trainer.max_epochs", "1"]
    assert cli.main(["fit", *arguments, *own_data, *label, "--out", str(out)]) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["kind"] == kind
    for figures in metrics["results"].values():
        assert np.isfinite(figures["seqkit"][metric]["value"])
    assert cli.main(["predict", "--ckpt", str(out), *own_data[:6], "--out", str(tmp_path / "p.tsv")]) == 0
    frame = pl.read_csv(tmp_path / "p.tsv", separator="\t", infer_schema_length=None)
    scores = [name for name in frame.columns if name.startswith(("prob", "value"))]
    assert len(scores) == (3 if kind == "multiclass" else len(metrics["results"]))
    assert frame.select(pl.all_horizontal(pl.col(scores).is_not_null())).to_series().all()


def test_an_equivariant_backbone_reads_the_annotation_channels(own_data, small_arguments, tmp_path):
    out = tmp_path / "run"
    model = ["--model.rc-equivariant", "true", "--trainer.max-epochs", "1"]
    assert cli.main(["fit", *small_arguments, *own_data, *LOF, *model, "--out", str(out)]) == 0
    assert cli.main(["test", "--ckpt", str(out), "--out", str(tmp_path / "again")]) == 0
    first, again = (json.loads((f / "metrics.json").read_text()) for f in (out, tmp_path / "again"))
    ours = [m["results"]["func.class"]["seqkit"]["auroc"]["value"] for m in (first, again)]
    assert ours[0] == pytest.approx(ours[1], abs=1e-6)


def test_user_columns_change_the_result(own_data, small_arguments, binary_run, tmp_path):
    out = tmp_path / "run"
    columns = ["--features", "CADD.score,phyloP (mammalian)"]
    assert cli.main(["fit", *small_arguments, *own_data, *LOF, *columns, "--out", str(out)]) == 0
    metrics = json.loads((out / "metrics.json").read_text())["results"]["func.class"]
    assert {"CADD.score", "phyloP (mammalian)"} <= set(metrics)
    assert not predictions(out)["seqkit"].equals(predictions(binary_run)["seqkit"])


def test_cross_validation_tests_every_row_once_per_seed(own_data, small_arguments, small_table, tmp_path, capsys):
    out = tmp_path / "cv"
    arguments = [*small_arguments, "--trainer.max_epochs", "1", "--data.folds", "3", *own_data, *LOF]
    command = ["fit", *arguments, "--cross-validate", "--seeds", "0,1", "--out", str(out)]
    assert cli.main(command) == 0
    summary = json.loads((out / "cross_validation.json").read_text())
    rows = pl.read_csv(small_table, separator="\t", infer_schema_length=None).height
    assert summary["rows"]["all"] == rows
    assert summary["seeds"] == [0, 1]
    ours = summary["groups"]["all"]["seqkit"]["auroc"]
    assert len(ours["fold_mean"]) == 2
    parts = [pl.read_parquet(p) for p in (out / "seed-0").glob("fold-*/predictions.parquet")]
    tested = pl.concat([p.filter(pl.col("part") == "test")["index"] for p in parts])
    assert sorted(tested.to_list()) == list(range(rows))
    assert "seqkit minus this" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--fasta", "x.fa"], 2, "--variants"),
        (["--label", "func.clas"], 3, "func.class"),
        (["--label", "func.class", "--positive", "LOFF"], 3, "LOF"),
        (["--features", "CADD"], 2, "CADD.score"),
        (["--data.blok", "x"], 2, "--data.block"),
        (["--model.layout", "mamba4"], 2, "mamba"),
        (["--model", "dna-tin"], 2, "dna-tiny"),
        (["--variants", "nothing.tsv", "--fasta", "x.fa", "--label", "y"], 3, "nothing.tsv"),
        (["--data.fold", "9"], 2, "fold"),
        (["--seeds", "a", "--cross-validate"], 2, "--seeds"),
    ],
)
def test_bad_arguments_get_one_line_and_their_code(arguments, code, message, tmp_path, capsys):
    assert cli.main(["fit", "--task", "variant-effect", *arguments, "--out", str(tmp_path / "r")]) == code
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err


def test_the_bundled_table_on_the_other_assembly_is_refused(shared_data, tmp_path, capsys):
    source = shared_data / "brca1-sge-findlay2018" / "brca1_hg38.txt.gz"
    bases = gzip.decompress(source.read_bytes()).decode().strip()
    fasta = tmp_path / "hg38.fa"
    fasta.write_text(f">chr17:43000001-43200000\n{bases}\n")
    from seqkit.data import bundled

    arguments = ["--variants", str(bundled.brca1().table), "--fasta", str(fasta), *LOF]
    assert cli.main(["fit", "--task", "variant-effect", *arguments, "--out", str(tmp_path / "r")]) == 4
    err = capsys.readouterr().err
    assert "hg19" in err
    assert "GRCh38" in err


def test_random_split_warns(own_data, small_arguments, tmp_path, capsys):
    arguments = [*small_arguments, "--trainer.max_epochs", "1", *own_data[:6], *LOF, "--data.split", "random"]
    assert cli.main(["fit", *arguments, "--out", str(tmp_path / "r")]) == 0
    assert "too high" in capsys.readouterr().err


def test_every_shipped_model_preset_trains(own_data, tmp_path):
    from seqkit import configs
    from seqkit.backbones import Backbone, BackboneConfig

    for name in configs.names("model"):
        settings = yaml.safe_load(configs.path("model", name).read_text())
        backbone = Backbone(BackboneConfig.from_dict(settings))
        hidden, _ = backbone(torch.randint(7, 11, (2, 33)))
        hidden.square().mean().backward()
        assert hidden.shape == (2, 33, backbone.hidden_width), name


def test_a_preset_is_taken_by_name():
    from seqkit import configs
    from seqkit.commands.variant_effect import model_presets

    path = str(configs.path("model", "dna-tiny"))
    assert model_presets(["--model", "dna-tiny"]) == ["--model", path]
    assert model_presets(["--model=dna-tiny"]) == [f"--model={path}"]
    with pytest.raises(ConfigError, match="dna-tiny"):
        model_presets(["--model", "dna-tinny"])
