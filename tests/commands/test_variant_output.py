import math

import polars as pl
import pytest

import seqkit
from seqkit.commands.variant_output import VariantOutput
from seqkit.data.fasta import Fasta
from seqkit.data.stream import open_source
from seqkit.data.tables import plain_suffix, read_table
from seqkit.errors import ConfigError, InputError

pysam = pytest.importorskip("pysam")

HEADER = "\n".join(
    [
        "##fileformat=VCFv4.2",
        '##FILTER=<ID=PASS,Description="All filters passed">',
        "##contig=<ID=1,length=40>",
        "##contig=<ID=2>",
        '##INFO=<ID=DP,Number=1,Type=Integer,Description="x">',
        '##INFO=<ID=END,Number=1,Type=Integer,Description="x">',
        '##INFO=<ID=SKPROB,Number=1,Type=String,Description="an earlier run">',
        '##FORMAT=<ID=GT,Number=1,Type=String,Description="x">',
        '##FILTER=<ID=low,Description="x">',
        "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\tS1\tS2",
        "",
    ]
)
RECORDS = [
    "2\t9\trs2\tA\tC,<DEL>,*\t50\tPASS\tDP=7;SKPROB=old\tGT\t0/1\t1|2",
    "1\t15\t.\tA\t.\t.\t.\t.\tGT\t0/0\t./.",
    "1\t9\trs1;rs3\tACG\tA,ACGT\t.\tlow\tDP=1;END=11\tGT\t0/1\t0/0",
    "1\t9\t.\ta\t<NON_REF>\t.\tlow\t.\tGT\t0/1\t0/0",
]
SCORES = pl.DataFrame(
    {
        "prob": [0.25, None, None, None, float("nan"), 0.75, 1e-7],
        "llr": [-1.5, None, None, None, None, 2.0, 1234567.0],
        "status": ["OK", "SYMBOLIC", "STAR", "SYMBOLIC", "REF_MISMATCH", "EDGE", "OK"],
    }
)


@pytest.fixture
def vcf(tmp_path):
    path = tmp_path / "in.vcf"
    path.write_text(HEADER + "\n".join(RECORDS) + "\n")
    return path


@pytest.fixture
def fasta(tmp_path, monkeypatch):
    monkeypatch.setenv("SEQKIT_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "ref.fa"
    path.write_text(">chr1\n" + "ACGT" * 9 + "\n>chr7:101-104\nACGT\n")
    return Fasta(path)


def write(source, out, scores, fasta, size=4096, *, resume=False, notes=None, identity=None, stop_after=None):
    source = open_source(str(source))
    source.whole = plain_suffix(out) in (".tsv", ".csv", ".parquet")
    output = VariantOutput(
        str(out), source, columns=scores.schema, fasta=fasta, notes=notes or {}, prefix="SK",
        identity=identity or {}, resume=resume,
    )  # fmt: skip
    done, alleles = output.progress.get("records", 0), output.progress.get("alleles", 0)
    for number, chunk in enumerate(source.chunks(size, start=done)):
        if number == stop_after:
            return
        output.write(chunk, scores[alleles : alleles + len(chunk.table)])
        done, alleles = done + chunk.size, alleles + len(chunk.table)
        output.place.save({"records": done, "alleles": alleles, "head_bytes": output.head_bytes}, now=True)
    output.finish()


def read_vcf(path):
    with pysam.VariantFile(str(path)) as handle:
        return str(handle.header), list(handle)


@pytest.mark.parametrize("name", ["out.vcf", "out.vcf.gz", "out.bcf"])
@pytest.mark.parametrize("size", [1, 3, 4096])
def test_vcf_keeps_records_and_adds_typed_fields(vcf, fasta, tmp_path, name, size):
    write(vcf, tmp_path / name, SCORES, fasta, size, notes={"seqkit_version": seqkit.__version__, "model": "m1"})
    header, records = read_vcf(tmp_path / name)
    assert f"##seqkit=seqkit_version={seqkit.__version__}; model=m1" in header
    for key, kind in (("SKPROB", "Float"), ("SKLLR", "Float"), ("SKSTAT", "String")):
        assert f"##INFO=<ID={key},Number=A,Type={kind}," in header
    kept = [line for line in HEADER.splitlines() if "SKPROB" not in line]
    assert [line for line in header.splitlines() if line in kept] == kept
    for line, record in zip(RECORDS, records, strict=True):
        before, after = line.split("\t"), str(record)[:-1].split("\t")
        assert before[:7] == after[:7]
        assert before[8:] == after[8:]
        own = [item for item in after[7].split(";") if not item.startswith("SK") and item != "."]
        assert own == [item for item in before[7].split(";") if not item.startswith("SK") and item != "."]
    assert records[0].info["SKPROB"] == (0.25, None, None)
    assert records[0].info["SKSTAT"] == ("OK", "SYMBOLIC", "STAR")
    assert "SKPROB" not in records[1].info
    assert records[2].info["SKPROB"] == (None, 0.75)
    assert records[2].info["SKLLR"] == (None, 2.0)
    assert records[3].info["SKPROB"] == pytest.approx((1e-7,))
    assert records[3].info["SKLLR"] == pytest.approx((1234570.0,))
    assert not list(tmp_path.glob("*.csi"))
    assert not list(tmp_path.glob("*partial*"))


@pytest.mark.parametrize("name", ["a.vcf.gz", "a.bcf"])
def test_sorted_compressed_output_gets_an_index(tmp_path, fasta, name):
    table = tmp_path / "in.tsv"
    table.write_text("chrom\tpos\tref\talt\n1\t1\tA\tC\n1\t5\tA\tC\n")
    (tmp_path / f"{name}.tbi").write_text("of an older file")
    write(table, tmp_path / name, pl.DataFrame({"prob": [0.5, 0.25]}), fasta, 1)
    with pysam.VariantFile(str(tmp_path / name)) as handle:
        assert [record.pos for record in handle.fetch("chr1", 3, 10)] == [5]
    assert not (tmp_path / f"{name}.tbi").exists()


def test_table_input_becomes_a_vcf(tmp_path, fasta):
    table = tmp_path / "in.tsv"
    table.write_text("chrom\tpos\tref\talt\n1\t1\tA\tC,T\nun\t3\t-\tG\n7\t101\tA\t-\n1\t2\tC\t<DEL>\n")
    scores = pl.DataFrame({"prob": [0.5, None, None, None, None], "status": ["OK"] * 5})
    for size in (1, 4096):
        write(table, tmp_path / "o.bcf", scores, fasta, size)
        with pysam.VariantFile(str(tmp_path / "o.bcf")) as handle:
            assert list(handle.header.contigs) == ["chr1", "chr7", "un"]
            assert handle.header.contigs["chr1"].length == 36
            rows = [(r.contig, r.pos, r.ref, r.alts) for r in handle]
        assert rows == [
            ("chr1", 1, "A", ("C", "T")),
            ("un", 3, "N", ("G",)),
            ("chr7", 101, "A", ("<INVALID>",)),
            ("chr1", 2, "C", ("<DEL>",)),
        ]


TABLE = '#top remark kept\nchrom\tpos\tref\talt\tprob\tcode\n1\t5\ta\tC,T\tmi"ne\t007\n2\t7\tG\tGA\ttoo\t.\n'


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("name", ["o.tsv", "o.csv", "o.tsv.gz", "o.parquet"])
def test_tables_have_a_row_an_allele_and_keep_the_input(tmp_path, name, fasta, end):
    source = tmp_path / "in.tsv"
    source.write_bytes(TABLE.removeprefix("#top remark kept\n").replace("\n", end).encode())
    scores = pl.DataFrame({"prob": [0.5, None, float("nan")], "status": ["OK", "STAR", "TOO_LONG"]})
    write(source, tmp_path / name, scores, fasta, 1, notes={"model": "m1"})
    frame = read_table(tmp_path / name)
    names = ["chrom", "pos", "ref", "alt", "prob", "code", "allele", "allele_alt", "seqkit.prob", "status"]
    assert frame.columns == names
    assert frame["alt"].to_list() == ["C,T", "C,T", "GA"]
    assert frame["ref"].to_list() == ["a", "a", "G"]
    assert frame["allele_alt"].to_list() == ["C", "T", "GA"]
    assert frame["prob"].to_list() == ['mi"ne', 'mi"ne', "too"]
    assert frame["seqkit.prob"].to_list() == [0.5, None, None]
    if name.endswith(".parquet"):
        assert pl.read_parquet_metadata(tmp_path / name)["model"] == "m1"
        assert frame["pos"].to_list() == [5, 5, 7]
        assert frame["code"].to_list() == ["007", "007", None]
    if name == "o.tsv":
        text = (tmp_path / name).read_bytes().decode()
        assert text.split(end)[1].startswith('1\t5\ta\tC,T\tmi"ne\t007\t0\tC\t0.5\tOK')
        assert text.count(end) == text.count("\n") == 4


def test_csv_cells_with_ends_of_lines_survive(tmp_path, fasta):
    source = tmp_path / "in.csv"
    source.write_text('chrom,pos,ref,alt,note\n1,5,A,C,"two\nlines, ""quoted"""\n1,6,A,C,x\n')
    write(source, tmp_path / "o.csv", pl.DataFrame({"prob": [0.5, 0.25]}), fasta, 1)
    frame = pl.read_csv(tmp_path / "o.csv")
    assert frame["note"].to_list() == ['two\nlines, "quoted"', "x"]
    assert frame["prob"].to_list() == [0.5, 0.25]


def test_parquet_keeps_its_types(tmp_path, fasta):
    source = tmp_path / "in.parquet"
    frame = pl.DataFrame({"chrom": ["1", "1", "1"], "pos": [5, 6, 7], "ref": ["A"] * 3, "alt": ["C"] * 3,
                          "list": [[1, 2], [], [3]], "when": ["2026-11-23"] * 3})  # fmt: skip
    frame.with_columns(pl.col("when").str.to_date()).write_parquet(source)
    write(source, tmp_path / "o.parquet", pl.DataFrame({"prob": [0.5, 0.25, 1.0]}), fasta, 2)
    out = pl.read_parquet(tmp_path / "o.parquet")
    assert out["list"].to_list() == [[1, 2], [], [3]]
    assert out.schema["when"] == pl.Date
    assert out["prob"].to_list() == [0.5, 0.25, 1.0]


def test_vcf_becomes_a_table(vcf, tmp_path, fasta):
    write(vcf, tmp_path / "o.parquet", SCORES, fasta, 2)
    frame = pl.read_parquet(tmp_path / "o.parquet")
    assert frame["INFO/DP"].to_list() == [7, 7, 7, None, 1, 1, None]
    assert frame["POS"].to_list() == [9, 9, 9, 15, 9, 9, 9]
    assert frame["status"].to_list() == SCORES["status"].to_list()


def test_failed_writing_leaves_the_old_file(tmp_path, vcf, fasta):
    path = tmp_path / "out.vcf"
    path.write_text("precious")
    with pytest.raises(pl.exceptions.PolarsError, match="status"):
        write(vcf, path, SCORES.with_columns(status=pl.struct("prob")), fasta)
    assert path.read_text() == "precious"


@pytest.mark.parametrize("name", ["out.vcf", "out.vcf.gz", "out.bcf", "out.tsv", "out.tsv.gz", "out.parquet"])
@pytest.mark.parametrize("stop_after", [0, 1, 3])
def test_a_stopped_output_goes_on_to_the_same_bytes(vcf, tmp_path, fasta, name, stop_after):
    whole, broken = tmp_path / "whole" / name, tmp_path / "broken" / name
    write(vcf, whole, SCORES, fasta, 1)
    write(vcf, broken, SCORES, fasta, 1, stop_after=stop_after, identity={"--fasta": "x"})
    assert not broken.exists()
    body = tmp_path / "broken" / f"{name}.partial" / "body"
    if body.exists():
        body.write_bytes(body.read_bytes() + b"half a piece")
    with pytest.raises(ConfigError, match="--fasta"):
        write(vcf, broken, SCORES, fasta, 1, resume=True, identity={"--fasta": "y"})
    write(vcf, broken, SCORES, fasta, 1, resume=True, identity={"--fasta": "x"})
    assert broken.read_bytes() == whole.read_bytes()
    assert sorted(p.name for p in broken.parent.iterdir()) == sorted(p.name for p in whole.parent.iterdir())


def test_a_partial_folder_without_its_body_starts_over(vcf, tmp_path, fasta):
    """Killed between the final name and the removal of the folder, and the result deleted by a workflow engine."""
    write(vcf, tmp_path / "o.vcf", SCORES, fasta, 1, stop_after=2)
    (tmp_path / "o.vcf.partial" / "body").unlink()
    write(vcf, tmp_path / "o.vcf", SCORES, fasta, 1, resume=True)
    assert len(read_vcf(tmp_path / "o.vcf")[1]) == len(RECORDS)


@pytest.mark.parametrize("suffix", [".vcf", ".vcf.gz", ".bcf"])
@pytest.mark.parametrize("size", [1, 4096])
def test_what_a_header_does_not_declare_is_kept(tmp_path, fasta, suffix, size):
    """htslib reads it, and ends the process when it writes such a record under the old header."""
    source = tmp_path / "in.vcf"
    source.write_text(
        "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
        "chr1\t5\t.\tA\tG\t.\tq10\tFOO=1\nchr2\t7\t.\tC\tT\t.\tPASS\tBAR\n"
    )
    out = tmp_path / f"out{suffix}"
    write(source, out, pl.DataFrame({"prob": [0.5, None], "status": ["OK", "CONTIG_MISSING"]}), fasta, size)
    _, (first, second) = read_vcf(out)
    assert (first.contig, list(first.filter), first.info["FOO"], first.info["SKPROB"]) == ("chr1", ["q10"], "1", (0.5,))
    assert (second.contig, "BAR" in second.info, second.info["SKSTAT"]) == ("chr2", True, ("CONTIG_MISSING",))


def test_wrong_names(tmp_path, vcf, fasta):
    with pytest.raises(InputError, match="ends in one of"):
        write(vcf, tmp_path / "o.xlsx", SCORES, fasta)
    (tmp_path / "o.vcf").mkdir()
    with pytest.raises(InputError, match="a folder"):
        write(vcf, tmp_path / "o.vcf", SCORES, fasta)


def test_compressed_text_is_the_same_each_time(vcf, tmp_path, fasta):
    for name in ("x.tsv.gz", "y.tsv.gz"):
        write(vcf, tmp_path / name, SCORES, fasta)
    assert (tmp_path / "x.tsv.gz").read_bytes() == (tmp_path / "y.tsv.gz").read_bytes()
    assert (tmp_path / "x.tsv.gz").stat().st_mode & 0o077
    assert math.isclose(read_table(tmp_path / "x.tsv.gz")["llr"][5], 2.0)
