import numpy as np
import polars as pl
import pytest

from seqkit.data.feature_sources import feature_matrix, open_sources
from seqkit.data.variants import read_variants
from seqkit.errors import ConfigError

pysam = pytest.importorskip("pysam")
ROWS = {"chrom": ["1", "chr1", "chr1", "2", "9"], "pos": [5, 5, 21, 3, 4], "ref": ["A", "A", "CG", "T", "A"],
        "alt": ["C", "T", "C", "G", "C"]}  # fmt: skip


@pytest.fixture
def table():
    return read_variants(pl.DataFrame(ROWS).with_columns(own=pl.Series([1.0, None, 3.0, 4.0, 5.0])))


@pytest.fixture
def scores(tmp_path):
    """A CADD-like table: two alleles at one position, a dot, a missing position."""
    path = tmp_path / "scores.tsv.gz"
    with pysam.BGZFile(str(path), "w") as out:
        out.write(b"## a remark\n#Chrom\tPos\tRef\tAlt\tRawScore\tPHRED\n1\t5\tA\tC\t0.5\t10\n1\t5\tA\tT\t.\t20\n"
                  b"2\t3\tT\tG\t-1.5\t7\n2\t4\tT\tG\t-2\t8\n")  # fmt: skip
    pysam.tabix_index(str(path), seq_col=0, start_col=1, end_col=1, meta_char="#")
    return path


@pytest.fixture
def track(tmp_path):
    pybigtools = pytest.importorskip("pybigtools")
    path = tmp_path / "track.bw"
    intervals = [("chr1", 4, 5, 0.5), ("chr1", 20, 21, 1.0), ("chr1", 21, 22, 3.0)]
    pybigtools.open(str(path), "w").write({"chr1": 100, "chr2": 50}, iter(intervals))
    return path


def test_columns_tabix_and_bigwig_meet_by_allele_and_alias(table, scores, track):
    declared = {"raw": f"{scores}:RawScore", "PHRED": str(scores), "phyloP": str(track)}
    sources = open_sources("own,raw,PHRED,phyloP", declared, table.records.columns)
    matrix, names = feature_matrix(table, sources)
    nan = float("nan")
    expected = [[1, 0.5, 10, 0.5], [nan, nan, 20, 0.5], [3, nan, nan, 2.0], [4, -1.5, 7, nan], [5, nan, nan, nan]]
    assert names == ("own", "raw", "PHRED", "phyloP")
    np.testing.assert_allclose(matrix, expected)
    assert matrix.dtype == np.float32


def test_a_table_without_alleles_goes_by_position(tmp_path, table):
    path = tmp_path / "by_position.tsv.gz"
    with pysam.BGZFile(str(path), "w") as out:
        out.write(b"#chr\tpos\tscore\nchr1\t5\t2.5\n")
    pysam.tabix_index(str(path), seq_col=0, start_col=1, end_col=1, meta_char="#")
    matrix, _ = feature_matrix(table, open_sources(["score"], {"score": str(path)}, []))
    np.testing.assert_allclose(matrix[:3, 0], [2.5, 2.5, np.nan])


@pytest.mark.parametrize(
    ("declared", "words"),
    [
        ({}, ["'AFF'", "--sources"]),
        ({"AFF": "INFO/AFX"}, ["INFO/AFX", "INFO/AF"]),
        ({"AFF": "nowhere.tsv.gz"}, ["nowhere.tsv.gz"]),
        ({"AFF": "SCORES:Other"}, ["'Other'", "RawScore"]),
        ({"AFF": "PLAIN"}, ["PLAIN"]),
        ({"AFF": "FAKE.bw"}, ["FAKE.bw"]),
    ],
)
def test_a_missing_source_is_a_usage_error(scores, tmp_path, declared, words):
    (tmp_path / "PLAIN").write_text("#a\tb\n")
    (tmp_path / "FAKE.bw").write_text("no track")
    pytest.importorskip("pybigtools")
    places = {"SCORES": str(scores), "PLAIN": str(tmp_path / "PLAIN"), "FAKE.bw": str(tmp_path / "FAKE.bw")}
    for name, place in places.items():
        declared = {key: value.replace(name, place) for key, value in declared.items()}
    with pytest.raises(ConfigError) as caught:
        open_sources(["AFF"], declared, ["INFO/AF", "INFO/DP"])
    assert caught.value.exit_code == 2
    assert all(word in str(caught.value) for word in words)
