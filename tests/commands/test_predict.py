import gzip
import json
import shutil

import numpy as np
import polars as pl
import pysam
import pytest

from seqkit import cli
from seqkit.data import bundled

BRCA1 = bundled.brca1()
ODD = """chrom\tpos\tref\talt\tnote
17\t41276135\tT\tG\tSNV
17\t41276134\tT\tC,A\ttwo alternates
17\t41276133\tC\tCTT\tinsertion
chr17\t41276132\tA\t*\tstar
17\t41276000\tN\tA\tunknown base
5\t100\tA\tC\tno such contig
17\t41222945\tG\tA\twrong REF
17\t41222945\tA\t<DEL>\tsymbolic
17\t41100002\tC\tT\tedge
"""
STATUS = ["OK", "OK", "OK", "OK", "STAR", "N_IN_WINDOW", "CONTIG_MISSING", "REF_MISMATCH", "SYMBOLIC", "EDGE"]


@pytest.fixture
def odd(tmp_path):
    path = tmp_path / "odd.tsv"
    path.write_text(ODD)
    return path


def predict(binary_run, variants, out, *more):
    inputs = ["--variants", str(variants), "--fasta", str(BRCA1.fasta), "--gff", str(BRCA1.annotation)]
    return cli.main(["predict", "--ckpt", str(binary_run), *inputs, "--out", str(out), "--device", "cpu", *more])


@pytest.mark.parametrize("suffix", [".tsv", ".csv", ".parquet", ".tsv.gz"])
def test_tables_keep_every_row_in_order_with_a_reason(binary_run, odd, tmp_path, suffix):
    out = tmp_path / f"scored{suffix}"
    assert predict(binary_run, odd, out, "--max-mismatch", "0.9") == 0
    if suffix == ".parquet":
        frame = pl.read_parquet(out)
    else:
        frame = pl.read_csv(out, separator="," if suffix == ".csv" else "\t")
    assert frame["status"].to_list() == STATUS
    notes = [line.split("\t")[4] for line in ODD.splitlines()[1:]]
    assert frame["note"].to_list() == [notes[0], notes[1], notes[1], *notes[2:]]
    scored = frame["status"].is_in(["OK", "EDGE"])
    assert (frame["prob"].is_not_null() == scored).all()
    assert frame.filter(scored)["prob"].is_between(0, 1).all()


def test_scores_of_known_rows_are_those_of_the_run(binary_run, small_table, tmp_path):
    out = tmp_path / "scored.parquet"
    assert predict(binary_run, small_table, out) == 0
    scored = pl.read_parquet(out)
    run = pl.read_parquet(binary_run / "predictions.parquet")
    np.testing.assert_allclose(scored["prob"].to_numpy()[run["index"].to_numpy()], run["seqkit"], atol=1e-6)


def test_vcf_keeps_records_fields_and_gets_typed_scores(binary_run, tmp_path):
    source = tmp_path / "in.vcf"
    source.write_text(
        "##fileformat=VCFv4.2\n##contig=<ID=17,length=81195210>\n"
        '##INFO=<ID=DP,Number=1,Type=Integer,Description="Depth">\n'
        '##FILTER=<ID=q10,Description="Low">\n##FORMAT=<ID=GT,Number=1,Type=String,Description="Genotype">\n'
        "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\ts1\n"
        "17\t41276135\trs1\tT\tG,A\t9\tPASS\tDP=3\tGT\t0/1\n"
        "17\t41276134\t.\tT\t*\t.\tq10\t.\tGT\t1/1\n"
    )
    out = tmp_path / "out.vcf.gz"
    assert predict(binary_run, source, out, "--info-prefix", "ZZ") == 0
    with pysam.VariantFile(str(out)) as vcf:
        assert vcf.header.info["ZZPROB"].number == "A"
        assert vcf.header.info["ZZPROB"].type == "Float"
        assert vcf.header.info["ZZSTAT"].type == "String"
        assert "seqkit_version" in str(vcf.header)
        first, second = list(vcf)
    assert (first.pos, first.id, first.qual, first.info["DP"], first.samples["s1"]["GT"]) == (
        41276135,
        "rs1",
        9,
        3,
        (0, 1),
    )
    assert first.info["ZZSTAT"] == ("OK", "OK")
    assert all(0 <= p <= 1 for p in first.info["ZZPROB"])
    # The gene lies on the minus strand: only that strand is read.
    assert first.info["ZZRC"] == pytest.approx(first.info["ZZPROB"])
    assert first.info["ZZFWD"] == (None, None)
    assert list(second.filter) == ["q10"]
    assert second.info["ZZSTAT"] == ("STAR",)
    assert second.info["ZZPROB"] == (None,)


def test_a_table_becomes_a_vcf(binary_run, odd, tmp_path):
    out = tmp_path / "out.vcf"
    assert predict(binary_run, odd, out, "--max-mismatch", "0.9") == 0
    with pysam.VariantFile(str(out)) as vcf:
        records = list(vcf)
    assert len(records) == len(ODD.splitlines()) - 1
    assert [status for record in records for status in record.info["SKSTAT"]] == STATUS


def test_too_many_mismatches_write_nothing_and_exit_4(binary_run, odd, tmp_path, capsys):
    out = tmp_path / "out.tsv"
    assert predict(binary_run, odd, out, "--max-mismatch", "0.05") == 4
    assert not out.exists()
    assert capsys.readouterr().err.count("\n") == 1


def test_an_own_reference_needs_its_annotation(binary_run, tmp_path, odd, capsys):
    fasta = tmp_path / "other.fa"
    fasta.write_text(">chr17\n" + "ACGT" * 100 + "\n")
    arguments = ["--variants", str(odd), "--fasta", str(fasta), "--out", str(tmp_path / "x.tsv")]
    assert cli.main(["predict", "--ckpt", str(binary_run), *arguments]) == 2
    assert "--gff" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--out", "x.tsv", "--variants", "v.tsv"], 2, "--ckpt"),
        (["--ckpt", "RUN", "--variants", "v.tsv"], 2, "--out"),
        (["--ckpt", "RUN", "--out", "x.tsv"], 2, "--variants"),
        (["--ckpt", "RUN", "--out", "x.tsv", "--variants", "v.tsv", "--task", "forecast"], 2, "--task"),
        (["--ckpt", "RUN", "--out", "x.tsv", "--variants", "v.tsv"], 3, "v.tsv"),
        (["--ckpt", "nowhere", "--out", "x.tsv", "--variants", "v.tsv"], 3, "nowhere"),
        (["--ckpt", "RUN", "--out", "x.docx", "--variants", "ODD", "--max-mismatch", "1"], 3, "x.docx"),
    ],
)
def test_bad_arguments_get_one_line_and_their_code(binary_run, odd, arguments, code, message, tmp_path, capsys):
    named = {
        "RUN": str(binary_run),
        "ODD": str(odd),
        "x.tsv": str(tmp_path / "x.tsv"),
        "x.docx": str(tmp_path / "x.docx"),
    }
    assert cli.main(["predict", *(named.get(a, a) for a in arguments)]) == code
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize("damage", ["truncated", "missing", "other format", "no description"])
def test_a_damaged_run_is_named_and_nothing_is_written(binary_run, odd, tmp_path, damage, capsys):
    run = tmp_path / "run"
    shutil.copytree(binary_run, run)
    weights, description = run / "model.safetensors", run / "model.json"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif damage == "missing":
        weights.unlink()
    elif damage == "other format":
        description.write_text(json.dumps({**json.loads(description.read_text()), "format": 99}))
    else:
        description.unlink()
    assert predict(run, odd, tmp_path / "out.tsv", "--max-mismatch", "1") == 3
    assert not (tmp_path / "out.tsv").exists()
    assert str(run) in capsys.readouterr().err


def test_measuring_the_run_again_gives_its_own_figures(binary_run, tmp_path, capsys):
    out = tmp_path / "test"
    assert cli.main(["test", "--ckpt", str(binary_run), "--out", str(out), "--device", "cpu"]) == 0
    again, first = (json.loads((f / "metrics.json").read_text())["results"]["func.class"] for f in (out, binary_run))
    for name in ("auroc", "auprc", "mcc", "brier"):
        assert again["seqkit"][name]["value"] == pytest.approx(first["seqkit"][name]["value"], abs=1e-6)
    assert "AUROC" in capsys.readouterr().out
    assert (out / "plots" / "ranking.png").exists()


def test_measuring_on_another_table_uses_all_its_labelled_rows(binary_run, tmp_path):
    rows = pl.read_csv(BRCA1.table, separator="\t", infer_schema_length=10_000)[3::40]
    table = tmp_path / "more.csv"
    rows.write_csv(table)
    inputs = ["--variants", str(table), "--fasta", str(BRCA1.fasta), "--compare", "CADD.score"]
    out = tmp_path / "test"
    assert cli.main(["test", "--ckpt", str(binary_run), *inputs, "--out", str(out)]) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["rows"] == {"train": 0, "validation": 0, "test": rows.height}
    assert list(metrics["results"]["func.class"]) == ["seqkit", "CADD.score"]


def test_gzipped_output_has_no_time_stamp(binary_run, odd, tmp_path):
    first, second = tmp_path / "a.tsv.gz", tmp_path / "b.tsv.gz"
    for out in (first, second):
        predict(binary_run, odd, out, "--max-mismatch", "1")
    assert first.read_bytes() == second.read_bytes()
    assert gzip.decompress(first.read_bytes()).startswith(b"chrom")


def test_a_run_has_one_page_with_thresholds_and_plots(binary_run):
    page = (binary_run / "report.html").read_text(encoding="utf-8")
    for word in ("best MCC", "95% sensitivity", "95% specificity", "LR+", "CADD.score", "seed", "sha256"):
        assert word in page
    assert page.count("<img ") == len(list((binary_run / "plots").glob("*.png"))) >= 5
    assert 'src="plots' not in page
