"""Scores from Python and from the command agree; features come from where they were declared."""

import polars as pl
import pytest

import seqkit
from seqkit import cli
from seqkit.commands.trained import load_trained
from seqkit.data import bundled
from seqkit.data.fasta import Fasta
from seqkit.errors import InputError, ReferenceMismatchError

pysam = pytest.importorskip("pysam")
BRCA1 = bundled.brca1()
ROWS = pl.DataFrame(
    {"chrom": ["17", "chr17", "17", "5"], "pos": [41276135, 41276134, 41276133, 7], "ref": ["T", "T", "C", "A"],
     "alt": ["G", "C,A", "*", "C"], "extra": [1, 2, 3, 4]}
)  # fmt: skip


def test_frames_and_files_give_the_scores_of_the_command(binary_run, tmp_path):
    path, out = tmp_path / "in.tsv", tmp_path / "out.parquet"
    ROWS.write_csv(path, separator="\t")
    inputs = ["--fasta", str(BRCA1.fasta), "--gff", str(BRCA1.annotation), "--max-mismatch", "0.5", "--device", "cpu"]
    assert cli.main(["predict", "--ckpt", str(binary_run), "--variants", str(path), "--out", str(out), *inputs]) == 0
    command = pl.read_parquet(out)
    reference = Fasta(BRCA1.fasta)
    model = load_trained(str(binary_run))
    training = model.task.training
    for variants in (ROWS, path, str(path)):
        frame = seqkit.score_variants(model, variants, reference, max_mismatch=0.5, device="cpu")
        assert frame.columns == ["row", "chrom", "pos", "ref", "alt", "prob", "fwd", "rc", "status"]
        assert frame["status"].to_list() == ["OK", "OK", "OK", "STAR", "CONTIG_MISSING"]
        assert frame["row"].to_list() == [0, 1, 1, 2, 3]
        assert frame["prob"].to_list()[:3] == pytest.approx(command["prob"].to_list()[:3], rel=1e-6)
        assert frame["prob"].is_not_null().to_list() == [True] * 3 + [False] * 2
    assert model.task.training == training
    assert reference.fetch("17", 41276134, 41276135) == b"T"
    with pytest.raises(ReferenceMismatchError):
        seqkit.score_variants(str(binary_run), ROWS, str(BRCA1.fasta), max_mismatch=0.1)
    with pytest.raises(InputError, match=r"columns\.ref"):
        seqkit.score_variants(model, ROWS.drop("ref"), reference)


def test_what_seqkit_offers():
    assert callable(seqkit.score_variants)
    with pytest.raises(AttributeError, match="no_such"):
        seqkit.no_such  # noqa: B018


@pytest.fixture(scope="module")
def feature_run(tmp_path_factory, own_data, small_arguments):
    """A run fitted with a numeric column."""
    out = tmp_path_factory.mktemp("features") / "run"
    label = ["--label", "func.class", "--positive", "LOF", "--features", "CADD.score"]
    assert cli.main(["fit", *small_arguments, *own_data, *label, "--out", str(out)]) == 0
    return out


VCF = (
    '##fileformat=VCFv4.2\n##contig=<ID=17>\n##INFO=<ID=CADD,Number=A,Type=Float,Description="x">\n'
    "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n17\t41276135\t.\tT\tG,A\t.\t.\tCADD=25,1\n"
    "17\t41276134\t.\tT\tC\t.\t.\tCADD=.\n17\t41276133\t.\tC\t*\t.\t.\t.\n"
)


@pytest.mark.parametrize("how", ["INFO", "tabix"])
def test_features_come_from_their_declared_source(feature_run, tmp_path, how):
    (tmp_path / "in.vcf").write_text(VCF)
    source = "INFO/CADD"
    if how == "tabix":
        source = str(tmp_path / "cadd.tsv.gz")
        with pysam.BGZFile(source, "w") as out:
            out.write(b"#Chrom\tPos\tRef\tAlt\tPHRED\n17\t41276135\tT\tA\t1\n17\t41276135\tT\tG\t25\n")
        pysam.tabix_index(source, seq_col=0, start_col=1, end_col=1, meta_char="#")
        source += ":PHRED"
    declared = ["--sources", f'{{"CADD.score": "{source}"}}']
    inputs = ["--variants", str(tmp_path / "in.vcf"), "--fasta", str(BRCA1.fasta), "--gff", str(BRCA1.annotation)]
    command = ["predict", "--ckpt", str(feature_run), *inputs, "--out", str(tmp_path / "o.tsv"), "--device", "cpu"]
    assert cli.main([*command, *declared]) == 0
    frame = pl.read_csv(tmp_path / "o.tsv", separator="\t")
    assert frame["status"].to_list() == ["OK", "OK", "FEATURE_MISSING", "STAR"]
    table = pl.DataFrame({"chrom": ["17"] * 2, "pos": [41276135] * 2, "ref": ["T", "T"], "alt": ["G", "A"],
                          "CADD.score": [25.0, 1.0]})  # fmt: skip
    direct = seqkit.score_variants(feature_run, table, BRCA1.fasta, device="cpu")
    assert frame["prob"].to_list()[:2] == pytest.approx(direct["prob"].to_list(), rel=1e-5)
    assert frame["prob"].null_count() == 2


def test_a_feature_without_a_source_is_a_usage_error(feature_run, tmp_path, capsys):
    (tmp_path / "in.vcf").write_text(VCF)
    inputs = ["--variants", str(tmp_path / "in.vcf"), "--fasta", str(BRCA1.fasta), "--gff", str(BRCA1.annotation)]
    assert cli.main(["predict", "--ckpt", str(feature_run), *inputs, "--out", str(tmp_path / "o.vcf")]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "CADD.score" in err
    assert "--sources" in err
