import math

import polars as pl
import pytest

import seqkit
from seqkit.data.fasta import Fasta
from seqkit.data.tables import read_table
from seqkit.data.variants import read_variants
from seqkit.data.writers import write_scores, write_table
from seqkit.errors import InputError

pysam = pytest.importorskip("pysam")

VCF = "\n".join(
    [
        "##fileformat=VCFv4.2",
        "##contig=<ID=1,length=40>",
        "##contig=<ID=2>",
        '##INFO=<ID=DP,Number=1,Type=Integer,Description="x">',
        '##INFO=<ID=SKPROB,Number=1,Type=String,Description="an earlier run">',
        '##FORMAT=<ID=GT,Number=1,Type=String,Description="x">',
        '##FILTER=<ID=low,Description="x">',
        "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\tS1\tS2",
        "2\t9\trs2\tA\tC,<DEL>,*\t50\tPASS\tDP=7;SKPROB=old\tGT\t0/1\t1|2",
        "1\t15\t.\tA\t.\t.\t.\t.\tGT\t0/0\t./.",
        "1\t9\trs1;rs3\tACG\tA,ACGT\t.\tlow\tDP=1\tGT\t0/1\t0/0",
        "",
    ]
)
SCORES = pl.DataFrame(
    {
        "prob": [0.25, None, None, None, float("nan"), 0.75],
        "llr": [-1.5, None, None, None, None, 2.0],
        "status": ["OK", "SYMBOLIC", "STAR", "SYMBOLIC", "REF_MISMATCH", "EDGE"],
    }
)


@pytest.fixture
def vcf(tmp_path):
    path = tmp_path / "in.vcf"
    path.write_text(VCF)
    return read_variants(path)


@pytest.mark.parametrize("name", ["out.vcf", "out.vcf.gz", "out.bcf"])
def test_vcf_keeps_records_and_adds_typed_fields(vcf, tmp_path, name):
    path = tmp_path / name
    write_scores(vcf, SCORES, path, provenance={"model": "m1"})
    with pysam.VariantFile(str(tmp_path / "in.vcf")) as before, pysam.VariantFile(str(path)) as after:
        for key, kind in (("SKPROB", "Float"), ("SKLLR", "Float"), ("SKSTAT", "String")):
            assert (after.header.info[key].number, after.header.info[key].type) == ("A", kind)
        header = str(after.header)
        assert f"##seqkit=seqkit_version={seqkit.__version__}; model=m1" in header
        assert list(after.header.samples) == ["S1", "S2"]
        records = list(after)
        for old, new in zip(before, records, strict=True):
            assert str(old).split("\t")[:7] == str(new).split("\t")[:7]
            assert str(old).split("\t")[8:] == str(new).split("\t")[8:]
            assert old.info.get("DP") == new.info.get("DP")
        assert records[0].info["SKPROB"] == (0.25, None, None)
        assert records[0].info["SKSTAT"] == ("OK", "SYMBOLIC", "STAR")
        assert "SKPROB" not in records[1].info
        assert records[2].info["SKPROB"] == (None, 0.75)
        assert records[2].info["SKLLR"] == (None, 2.0)
    assert not list(tmp_path.glob("*.csi"))
    assert not list(tmp_path.glob(".partial*"))


def test_sorted_compressed_output_gets_an_index(tmp_path, write_fasta, table_of):
    fasta = Fasta(write_fasta({"chr1": "ACGT" * 9}))
    table = table_of(("1", 1, "A", "C"), ("1", 5, "A", "C"))
    scores = pl.DataFrame({"prob": [0.5, 0.25]})
    for name in ("a.vcf.gz", "a.bcf"):
        write_scores(table, scores, tmp_path / name, fasta=fasta)
        with pysam.VariantFile(str(tmp_path / name)) as handle:
            assert [record.pos for record in handle.fetch("chr1", 3, 10)] == [5]


def test_table_input_becomes_a_vcf(tmp_path, write_fasta, table_of):
    fasta = Fasta(write_fasta({"chr1": "ACGT" * 9, "chr7:101-104": "ACGT"}))
    table = table_of(("1", 1, "A", "C,T"), ("un", 3, "-", "G"), ("7", 101, "A", "-"), ("1", 2, "C", "<DEL>"))
    scores = pl.DataFrame({"prob": [0.5, None, None, None, None], "status": ["OK"] * 5})
    path = tmp_path / "o.vcf"
    write_scores(table, scores, path, fasta=fasta)
    with pysam.VariantFile(str(path)) as handle:
        assert list(handle.header.contigs) == ["chr1", "chr7", "un"]
        assert handle.header.contigs["chr1"].length == 36
        rows = [(r.contig, r.pos, r.ref, r.alts) for r in handle]
    assert rows == [
        ("chr1", 1, "A", ("C", "T")),
        ("un", 3, "N", ("G",)),
        ("chr7", 101, "A", ("<INVALID>",)),
        ("chr1", 2, "C", ("<DEL>",)),
    ]
    with pytest.raises(InputError, match="reference"):
        write_scores(table, scores, path)


@pytest.mark.parametrize("name", ["o.tsv", "o.csv", "o.tsv.gz", "o.parquet"])
def test_tables_have_a_row_an_allele_and_keep_the_input(tmp_path, name, table_of):
    table = table_of(("1", 5, "a", "C,T"), ("2", 7, "G", "GA"), prob=["mine", "too"])
    scores = pl.DataFrame({"prob": [0.5, None, float("nan")], "status": ["OK", "STAR", "TOO_LONG"]})
    write_scores(table, scores, tmp_path / name, provenance={"model": "m1"})
    frame = read_table(tmp_path / name)
    assert frame.columns == ["chrom", "pos", "ref", "alt", "prob", "allele", "allele_alt", "seqkit.prob", "status"]
    assert frame["alt"].to_list() == ["C,T", "C,T", "GA"]
    assert frame["ref"].to_list() == ["a", "a", "G"]
    assert frame["allele_alt"].to_list() == ["C", "T", "GA"]
    assert frame["seqkit.prob"].to_list() == [0.5, None, None]
    if name.endswith(".parquet"):
        assert pl.read_parquet_metadata(tmp_path / name)["model"] == "m1"


def test_failed_writing_leaves_the_old_file(tmp_path, vcf):
    path = tmp_path / "out.vcf"
    path.write_text("precious")
    bad = SCORES.with_columns(prob=pl.Series(["x"] * 6))
    with pytest.raises((InputError, TypeError, ValueError)):
        write_scores(vcf, bad, path)
    assert path.read_text() == "precious"
    assert not list(tmp_path.glob(".partial*"))


def test_wrong_requests(tmp_path, vcf):
    with pytest.raises(InputError, match="6 rows"):
        write_scores(vcf, SCORES.head(2), tmp_path / "o.tsv")
    with pytest.raises(InputError, match="ends in one of"):
        write_scores(vcf, SCORES, tmp_path / "o.xlsx")


def test_compressed_text_is_the_same_each_time(tmp_path):
    frame = pl.DataFrame({"a": [1, 2], "b": [math.pi, None]})
    for name in ("x.tsv.gz", "y.tsv.gz"):
        write_table(frame, tmp_path / name)
    assert (tmp_path / "x.tsv.gz").read_bytes() == (tmp_path / "y.tsv.gz").read_bytes()
    assert (tmp_path / "x.tsv.gz").stat().st_mode & 0o077


@pytest.mark.parametrize("suffix", [".vcf", ".vcf.gz", ".bcf"])
def test_what_a_header_does_not_declare_is_kept(tmp_path, suffix):
    """htslib ends the whole process when it writes a record that its header does not cover."""
    source = tmp_path / "in.vcf"
    source.write_text(
        "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
        "chr1\t5\t.\tA\tG\t.\tq10\tFOO=1\nchr2\t7\t.\tC\tT\t.\tPASS\tBAR\n"
    )
    table = read_variants(source)
    assert table.records["INFO/FOO"].to_list() == ["1", None]
    out = tmp_path / f"out{suffix}"
    write_scores(table, pl.DataFrame({"prob": [0.5, None], "status": ["OK", "CONTIG_MISSING"]}), out)
    with pysam.VariantFile(str(out)) as vcf:
        first, second = list(vcf)
    assert (first.contig, list(first.filter), first.info["FOO"], first.info["SKPROB"]) == ("chr1", ["q10"], "1", (0.5,))
    assert (second.contig, "BAR" in second.info, second.info["SKSTAT"]) == ("chr2", True, ("CONTIG_MISSING",))
