import re

import polars as pl
import pytest

from seqkit.data import bundled
from seqkit.data.bundled.derive import exon_table, gff_lines, main
from seqkit.data.fasta import Fasta
from seqkit.errors import InputError
from seqkit.files import sha256


def test_files_are_those_of_the_provenance(brca1):
    text = brca1.paths.provenance.read_text()
    sums = dict(re.findall(r"\| `([\w.]+)`.*`([0-9a-f]{64})`", text))
    for path in (brca1.paths.table, brca1.paths.fasta, brca1.paths.annotation):
        assert sums[path.name] == sha256(path)
    assert brca1.fasta.contig_md5("17") in text


def test_table_is_complete(brca1):
    table = brca1.table
    assert len(table) == 3893
    counts = dict(table.records["func.class"].value_counts().iter_rows())
    assert counts == {"FUNC": 2821, "INT": 249, "LOF": 823}
    assert set(table.records[brca1.paths.block]) == set(brca1.paths.blocks)


def test_reference_window_needs_no_index_of_ours(brca1):
    record = brca1.fasta.records[0]
    assert (record.contig, record.start, record.length) == ("chr17", 41_100_000, 200_000)
    assert brca1.fasta.fetch("17", 41_100_000, 41_100_010, soft_mask=True) == b"gcttcccagc"
    assert brca1.fasta.covers("17", 41_100_000, 41_300_000)


def test_annotation_is_what_the_table_says(brca1):
    exons = exon_table(brca1.table.records)
    assert brca1.paths.annotation.read_text() == "\n".join(gff_lines(exons)) + "\n"
    # Internal exon lengths known from the gene's structure.
    lengths = dict(exons.select("experiment", pl.col("end") - pl.col("start")).iter_rows())
    assert {name: lengths[name] for name in ("X3", "X4", "X5", "X16", "X18", "X20")} == {
        "X3": 54, "X4": 78, "X5": 89, "X16": 88, "X18": 41, "X20": 55,
    }  # fmt: skip


def test_derivation_makes_the_same_files(shared_data, brca1, tmp_path, monkeypatch):
    window = shared_data / "brca1-sge-findlay2018" / "brca1_hg19.txt.gz"
    monkeypatch.setattr("sys.argv", ["derive", str(brca1.paths.table), str(window), str(tmp_path)])
    main()
    made = Fasta(tmp_path / "brca1_hg19.fa.gz")
    whole = ("chr17", 41_100_000, 41_300_000)
    assert made.fetch(*whole, soft_mask=True) == brca1.fasta.fetch(*whole, soft_mask=True)
    assert (tmp_path / "brca1_hg19.gff3").read_bytes() == brca1.paths.annotation.read_bytes()


def test_derivation_refuses_what_does_not_line_up(brca1):
    records = brca1.table.records.head(400)
    with pytest.raises(InputError, match="line up"):
        exon_table(records.with_columns(pl.col("position (hg19)").shuffle(seed=1)))
    with pytest.raises(InputError, match="notation"):
        exon_table(records.with_columns(transcript_variant=pl.lit("?")))


def test_no_path_leaves_the_package():
    paths = bundled.brca1()
    assert all(path.is_file() for path in (paths.table, paths.fasta, paths.annotation, paths.provenance))
