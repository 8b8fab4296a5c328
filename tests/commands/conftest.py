import polars as pl
import pytest

from seqkit import cli
from seqkit.data import bundled

SMALL = [
    "--task", "variant-effect", "--device", "cpu", "--trainer.threads", "1", "--trainer.max_epochs", "3",
    "--window", "16", "--model.layout", "mamba1", "--model.d_model", "8", "--model.d_state", "4",
]  # fmt: skip


@pytest.fixture(scope="session")
def small_arguments():
    """A model that trains in a second."""
    return SMALL


@pytest.fixture(scope="session")
def small_table(tmp_path_factory):
    """400 rows of the bundled assay, all exons among them, with made-up further labels."""
    rows = pl.read_csv(bundled.brca1().table, separator="\t", infer_schema_length=10_000)[::10]
    path = tmp_path_factory.mktemp("table") / "small.tsv"
    rows.with_columns(
        pl.when(pl.int_range(pl.len()) % 7 > 0).then(pl.col("p.nonfunctional")).alias("score with holes"),
        (pl.col("func.class") == "LOF").cast(pl.Int8).alias("is lost"),
        pl.when(pl.int_range(pl.len()) % 5 > 0)
        .then((pl.col("func.class") != "FUNC").cast(pl.Int8))
        .alias("is lost with holes"),
    ).write_csv(path, separator="\t")
    return path


@pytest.fixture(scope="session")
def own_data(small_table):
    """Arguments that name a table of the user's own with its reference and annotation."""
    data = bundled.brca1()
    return [
        "--variants", str(small_table), "--fasta", str(data.fasta), "--gff", str(data.annotation),
        "--data.block", "experiment", "--data.split", "block",
    ]  # fmt: skip


@pytest.fixture(scope="session")
def binary_run(tmp_path_factory, own_data):
    """A finished run on a binary label."""
    out = tmp_path_factory.mktemp("binary") / "run"
    label = ["--label", "func.class", "--positive", "LOF", "--compare", "CADD.score"]
    assert cli.main(["fit", *SMALL, *own_data, *label, "--out", str(out)]) == 0
    return out
