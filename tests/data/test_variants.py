import gzip
import sys

import numpy as np
import polars as pl
import pytest

from seqkit.data.labels import read_features, read_labels
from seqkit.data.tables import read_table
from seqkit.data.variants import column_map, read_variants
from seqkit.errors import InputError

ROWS = "chromosome\tposition (hg19)\treference\talt\tscore\n17\t100\ta\tT\t1.5\n17\t200\tC\tG,TT\tNA\n"


@pytest.mark.parametrize("name", ["v.tsv", "v.csv", "v.txt.gz", "v.tsv.gz", "v.parquet"])
def test_formats_give_the_same_alleles(tmp_path, name):
    path = tmp_path / name
    text = ROWS.replace("\t", ";") if name == "v.csv" else ROWS
    if name.endswith(".parquet"):
        pl.read_csv(ROWS.encode(), separator="\t", null_values="NA").write_parquet(path)
    else:
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    table = read_variants(path)
    assert table.alleles.rows() == [
        (0, 0, "17", 100, "A", "T", None),
        (1, 0, "17", 200, "C", "G", None),
        (1, 1, "17", 200, "C", "TT", None),
    ]
    assert table.build_hint == "GRCh37"
    assert table.column("score").to_list() == [1.5, None, None]
    assert table.records["reference"].to_list() == ["a", "C"]


def test_column_names_are_guessed_and_a_map_wins():
    assert column_map(["#CHROM", "POS", "ID", "REF", "ALT"])["contig"] == "#CHROM"
    assert column_map(["Chr", "pos_hg38", "Ref_Allele", "Alt_Allele", "rsID"])["pos"] == "pos_hg38"
    names = ["chrom", "pos", "start", "ref", "alt"]
    assert column_map(names, {"pos": "start"})["pos"] == "start"


@pytest.mark.parametrize(
    ("names", "given", "words"),
    [
        (["chrom", "pos", "ref"], None, "columns.alt.*'chrom', 'pos', 'ref'"),
        (["chrom", "position (hg19)", "position (hg38)", "ref", "alt"], None, "several that fit"),
        (["chrom", "posn", "ref", "alt"], {"pos": "pos"}, "Did you mean 'posn'"),
        (["chrom", "pos", "ref", "alt"], {"position": "pos"}, "keys among"),
    ],
)
def test_column_errors_name_what_there_is(names, given, words):
    with pytest.raises(InputError, match=words):
        column_map(names, given)


def test_bad_positions_name_the_first_row():
    frame = pl.DataFrame({"chrom": ["1", "1"], "pos": ["5", "five"], "ref": ["A", "A"], "alt": ["C", "C"]})
    with pytest.raises(InputError, match="1 rows without, first in row 2"):
        read_variants(frame)


def test_unreadable_tables(tmp_path):
    (tmp_path / "empty.tsv").touch()
    (tmp_path / "v.xlsx").write_text("x")
    (tmp_path / "cut.tsv.gz").write_bytes(gzip.compress(ROWS.encode())[:-12])
    (tmp_path / "bad.parquet").write_text("x")
    for name in ("empty.tsv", "v.xlsx", "cut.tsv.gz", "bad.parquet", "absent.tsv"):
        with pytest.raises(InputError):
            read_table(tmp_path / name)


def test_remarks_byte_order_mark_and_quotes(tmp_path):
    (tmp_path / "a.tsv").write_text("##made by\tx\n#CHROM\tPOS\tREF\tALT\n1\t5\tA\tC\n")
    assert read_variants(tmp_path / "a.tsv").alleles["pos"].to_list() == [5]
    (tmp_path / "a.csv").write_bytes(b'\xef\xbb\xbfchrom,pos,ref,alt,name\n1,5,A,C,"x, y"\n')
    assert read_variants(tmp_path / "a.csv").column("name").to_list() == ["x, y"]


def test_vcf_without_pysam_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pysam", None)
    (tmp_path / "v.vcf").write_text("##fileformat=VCFv4.2\n")
    with pytest.raises(InputError, match="TSV, CSV or Parquet"):
        read_variants(tmp_path / "v.vcf")


def test_vcf_alleles_and_info(tmp_path):
    path = tmp_path / "v.vcf"
    path.write_text(
        "##fileformat=VCFv4.2\n##contig=<ID=1>\n"
        '##INFO=<ID=AF,Number=A,Type=Float,Description="x">\n##INFO=<ID=CLNSIG,Number=.,Type=String,Description="x">\n'
        "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
        "1\t10\trs1\tA\tC,<DEL>,*\t.\tPASS\tAF=0.5,0.25,0;CLNSIG=a,b\n1\t5\t.\tg\t.\t3\t.\t.\n"
    )
    table = read_variants(path)
    assert table.alleles["alt"].to_list() == ["C", "<DEL>", "*", "."]
    assert table.alleles["row"].to_list() == [0, 0, 0, 1]
    assert table.column("INFO/AF").to_list() == [0.5, 0.25, 0.0, None]
    assert table.column("INFO/CLNSIG").to_list()[0] == "a,b"


def test_broken_vcf(tmp_path):
    for name, text in {"a.vcf": "hello\n", "b.vcf": "", "c.vcf": "##fileformat=VCFv4.2\n#CHROM\tPOS\n"}.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(InputError):
            read_variants(tmp_path / name)
    with pytest.raises(InputError, match="no such file"):
        read_variants(tmp_path / "absent.vcf")


def labelled(**columns):
    rows = len(next(iter(columns.values())))
    base = {"chrom": ["1"] * rows, "pos": list(range(1, rows + 1)), "ref": ["A"] * rows, "alt": ["C"] * rows}
    return read_variants(pl.DataFrame({**base, **columns}))


def test_labels_by_kind():
    table = labelled(
        cls=["LOF", "FUNC", None, "INT"], y=[0.5, None, 2.0, 1.0], z=[1, 0, None, 1], w=[True, False, True, None]
    )
    binary = read_labels(table, "cls", positive="LOF")
    assert binary.kind == "binary"
    np.testing.assert_array_equal(binary.values_NK[:, 0], [1, 0, np.nan, 0])
    np.testing.assert_array_equal(read_labels(table, "cls", positive=["LOF", "INT"]).values_NK[:, 0], [1, 0, np.nan, 1])
    several = read_labels(table, "cls")
    assert (several.kind, several.classes) == ("multiclass", ("FUNC", "INT", "LOF"))
    np.testing.assert_array_equal(several.values_NK[:, 0], [2, 0, np.nan, 1])
    both = read_labels(table, ["y", "z"])
    assert (both.kind, both.names, both.values_NK.dtype) == ("continuous", ("y", "z"), np.float32)
    np.testing.assert_array_equal(both.values_NK, [[0.5, 1], [np.nan, 0], [2, np.nan], [1, 1]])
    assert read_labels(table, ["z", "w"]).kind == "binary"


def test_label_errors():
    table = labelled(cls=["LOF", "FUNC"], text=["a", "b"], none=[None, None])
    with pytest.raises(InputError, match=r"FUNC, LOF.*Did you mean 'LOF'"):
        read_labels(table, "cls", positive="LOFF")
    with pytest.raises(InputError, match="Did you mean 'cls'"):
        read_labels(table, "clss")
    with pytest.raises(InputError, match="several"):
        read_labels(table, ["cls", "text"])
    with pytest.raises(InputError, match="missing values only"):
        read_labels(table, "none")


def test_features_are_float_with_nan_for_missing():
    table = labelled(**{"CADD.score": [1.5, None], "phyloP (mammalian)": ["2", ""], "text": ["a", "b"]})
    table = read_variants(table.records.with_columns(pl.col("phyloP (mammalian)").replace("", None)))
    matrix, names = read_features(table, "CADD.score,phyloP (mammalian)")
    assert (names, matrix.dtype) == (("CADD.score", "phyloP (mammalian)"), np.float32)
    np.testing.assert_array_equal(matrix, [[1.5, 2], [np.nan, np.nan]])
    with pytest.raises(InputError, match=r"Did you mean 'CADD.score'"):
        read_features(table, "CAD.score")
    with pytest.raises(InputError, match="numeric column"):
        read_features(table, "text")
