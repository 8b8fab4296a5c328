import gzip

import numpy as np
import polars as pl
import pytest

from seqkit.data.fasta import Fasta
from seqkit.data.reference_check import check_reference
from seqkit.data.variants import read_variants
from seqkit.errors import ReferenceMismatchError

SHIFT = 1_847_983


def test_bundled_table_fits_its_reference(brca1):
    report = check_reference(brca1.table, brca1.fasta)
    assert (report.checked, report.mismatch_rate, report.counts) == (3893, 0.0, {"OK": 3893})
    assert (report.table_build, report.shift) == ("GRCh37", None)


def test_hg19_table_on_an_hg38_window_names_both(shared_data, brca1, write_fasta):
    with gzip.open(shared_data / "brca1-sge-findlay2018" / "brca1_hg38.txt.gz", "rt") as handle:
        bases = handle.read().strip()
    fasta = Fasta(write_fasta({"chr17:43000001-43200000": bases}, width=60))
    with pytest.raises(ReferenceMismatchError) as caught:
        check_reference(brca1.table, fasta)
    message = str(caught.value)
    assert "positions look like GRCh37 (hg19) while the reference is GRCh38" in message
    assert f"+{SHIFT:,}" in message
    assert "'position (hg19)' names GRCh37" in message
    assert caught.value.exit_code == 4
    moved = brca1.table.records.with_columns(pos=pl.col("position (hg19)") + SHIFT).drop("position (hg19)")
    assert check_reference(read_variants(moved), fasta).mismatch_rate == 0


def test_hg38_positions_on_the_bundled_window_without_a_telling_column(brca1):
    moved = brca1.table.records.with_columns(pos=pl.col("position (hg19)") + SHIFT).drop("position (hg19)")
    with pytest.raises(ReferenceMismatchError, match="look like GRCh38 while the reference is GRCh37"):
        check_reference(read_variants(moved), brca1.fasta)


def test_unknown_shift_and_wrong_numbering_are_told(brca1):
    zero_based = brca1.table.records.with_columns(pos=pl.col("position (hg19)") - 1).drop("position (hg19)")
    with pytest.raises(ReferenceMismatchError, match=r"adding \+1 to the positions"):
        check_reference(read_variants(zero_based), brca1.fasta)


def test_record_without_its_offset_is_recognised(brca1, write_fasta):
    bases = brca1.fasta.fetch("chr17", 41_100_000, 41_300_000).decode()
    with pytest.raises(ReferenceMismatchError, match="a region must be named chr17:START-END"):
        check_reference(brca1.table, Fasta(write_fasta({"chr17": bases}, width=80)))


def test_threshold_counts_only_alleles_with_sequence(write_fasta, table_of):
    fasta = Fasta(write_fasta({"chr1": "ACGT" * 25}))
    rows = [("1", 4 * i + 1, "A", "C") for i in range(20)]
    rows += [("1", 2, "A", "C"), ("9", 1, "A", "C"), ("1", 5, "A", "<DEL>"), ("1", 5, "A", "*")]
    report = check_reference(table_of(*rows), fasta, max_mismatch=0.1)
    assert (report.checked, report.missing_contigs) == (22, ("9",))
    assert report.mismatch_rate == pytest.approx(2 / 22)
    with pytest.raises(ReferenceMismatchError, match="no contig 9"):
        check_reference(table_of(*rows), fasta, max_mismatch=0.05)


def test_random_alleles_give_no_shift(write_fasta, table_of):
    rng = np.random.default_rng(0)
    fasta = Fasta(write_fasta({"chr1": "".join(rng.choice(list("ACGT"), 3000))}, width=60))
    rows = [("1", int(p) + 1, str(rng.choice(list("ACGT"))), "C") for p in range(0, 2000, 20)]
    with pytest.raises(ReferenceMismatchError) as caught:
        check_reference(table_of(*rows), fasta)
    assert "adding" not in str(caught.value)
