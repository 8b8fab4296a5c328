import multiprocessing
import os
import pickle
from pathlib import Path

import pytest

from seqkit.data.fasta import Fasta
from seqkit.errors import InputError
from seqkit.files import sha256

CHR1 = "ACGTacgtNNRYACGTTTGACCAGTAGGCATCAG"


@pytest.mark.parametrize("how", ["plain", "bgzip", "gzip"])
@pytest.mark.parametrize("width", [1, 7, 100])
@pytest.mark.parametrize("kept", [0, 1 << 21])
def test_every_interval_has_the_bases_of_the_string(write_fasta, monkeypatch, how, width, kept):
    monkeypatch.setattr("seqkit.data.fasta._KEPT_RECORD_BASES", kept)
    fasta = Fasta(
        write_fasta({"chr1": CHR1, "chr2": "GATTACA"}, "r.fa" + (".gz" if how != "plain" else ""), how, width)
    )
    padded = "N" * 5 + CHR1.upper() + "N" * 20
    for start in range(-5, len(CHR1) + 5):
        for end in (start, start + 1, start + 8, len(CHR1) + 5):
            if end >= start:
                assert fasta.fetch("chr1", start, end).decode() == padded[start + 5 : end + 5]
    assert fasta.fetch("chr2", 0, 7) == b"GATTACA"


def test_soft_mask_is_kept_on_request(write_fasta):
    fasta = Fasta(write_fasta({"chr1": CHR1}))
    assert fasta.fetch("chr1", 2, 6, soft_mask=True) == b"GTac"
    assert fasta.fetch("chr1", 2, 6) == b"GTAC"


@pytest.mark.parametrize("alias", ["chr1", "1", "Chr1", "NC_000001.11", "NC_000001"])
def test_contig_aliases_reach_the_same_record(write_fasta, alias):
    fasta = Fasta(write_fasta({"chr1": CHR1, "chrM": "ACGT"}))
    assert fasta.resolve(alias) == "chr1"
    assert fasta.fetch(alias, 0, 4) == b"ACGT"
    for mitochondrion in ("MT", "M", "chrM", "chrMT", "NC_012920.1"):
        assert fasta.resolve(mitochondrion) == "chrM"
    assert fasta.resolve("chr2") is None


def test_region_records_lie_where_their_name_says(write_fasta):
    fasta = Fasta(write_fasta({"chr17:1001-1008": "AACCGGTT", "chr17:1011-1014": "ACGT", "HLA-A*01:01-02": "GGG"}))
    assert fasta.contigs == ["chr17", "HLA-A*01:01-02"]
    assert fasta.fetch("17", 998, 1016) == b"NNAACCGGTTNNACGTNN"
    assert fasta.lengths["chr17"] == 1014
    assert fasta.covers("chr17", 1000, 1008)
    assert not fasta.covers("chr17", 1000, 1009)
    assert [piece.is_piece for piece in fasta.pieces("chr17")] == [True, True]


def test_region_name_with_another_length_is_a_plain_name(write_fasta):
    assert Fasta(write_fasta({"chr1:1-100": "ACGT"})).contigs == ["chr1:1-100"]


def test_build_is_guessed_from_whole_contigs_only(write_fasta):
    assert Fasta(write_fasta({"chr1": CHR1, "chr17:1-4": "ACGT"})).build is None


def test_missing_contig_names_those_there_are(write_fasta):
    with pytest.raises(InputError, match=r"chr1.*got 'chr9'"):
        Fasta(write_fasta({"chr1": CHR1})).fetch("chr9", 0, 1)


def test_end_before_start_is_refused(write_fasta):
    with pytest.raises(InputError, match="end >= start"):
        Fasta(write_fasta({"chr1": CHR1})).fetch("chr1", 5, 4)


def test_broken_files_say_what_is_wrong(tmp_path, write_fasta):
    empty = tmp_path / "empty.fa"
    empty.touch()
    text = tmp_path / "text.fa"
    text.write_text("hello\n")
    fake = tmp_path / "fake.fa.gz"
    fake.write_text(">chr1\nACGT\n")
    cut = write_fasta({"chr1": CHR1 * 200}, "cut.fa.gz", "gzip")
    cut.write_bytes(cut.read_bytes()[:40])
    for path, words in (
        (tmp_path / "absent.fa", "no such file"),
        (tmp_path, "a folder"),
        (empty, "empty file"),
        (text, "starts with"),
        (fake, "gz"),
        (cut, "complete gzip"),
    ):
        with pytest.raises(InputError, match=words):
            Fasta(path)
    uneven = tmp_path / "uneven.fa"
    uneven.write_text(">chr1\nACGT\nAC\nACGT\n")
    twice = tmp_path / "twice.fa"
    twice.write_text(">chr1\nACGT\n>chr1\nACGT\n")
    for path in (uneven, twice):
        with pytest.raises(InputError, match="unique names and lines of one length"):
            Fasta(path).contigs  # noqa: B018
        assert not list(tmp_path.glob(".partial*"))


def test_index_stands_beside_the_file_or_in_the_cache(write_fasta, tmp_path, monkeypatch):
    path = write_fasta({"chr1": CHR1})
    assert Fasta(path).contigs == ["chr1"]
    assert Path(f"{path}.fai").is_file()
    other = write_fasta({"chr1": CHR1}, "other.fa")
    real = os.access
    monkeypatch.setattr(os, "access", lambda p, mode: False if Path(p) == tmp_path else real(p, mode))
    assert Fasta(other).fetch("1", 0, 4) == b"ACGT"
    assert not Path(f"{other}.fai").exists()
    assert list((tmp_path / "cache").glob("*other.fa.fai"))


def test_old_index_is_left_alone_and_a_new_one_made(write_fasta, tmp_path):
    path = write_fasta({"chr1": CHR1})
    assert Fasta(path).contigs == ["chr1"]
    write_fasta({"chr2": CHR1 + "ACGT"})
    index = Path(f"{path}.fai")
    before = index.read_bytes()
    os.utime(index, (1, 1))
    assert Fasta(path).contigs == ["chr2"]
    assert index.read_bytes() == before


def test_plain_gzip_is_decompressed_once(write_fasta, caplog):
    path = write_fasta({"chr1": CHR1}, "r.fa.gz", "gzip")
    assert Fasta(path).fetch("1", 0, 4) == b"ACGT"
    assert "decompressing it once" in caplog.text
    caplog.clear()
    Fasta(path)
    assert not caplog.text


def _fetch(fasta):
    return fasta.fetch("1", 10, 20)


def test_pickles_and_works_in_a_spawned_process(write_fasta):
    fasta = Fasta(write_fasta({"chr1": CHR1}))
    expected = fasta.fetch("1", 10, 20)
    assert pickle.loads(pickle.dumps(fasta)).fetch("1", 10, 20) == expected
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(_fetch, (fasta,)) == expected


def test_checksums(write_fasta):
    path = write_fasta({"chr1": "acgtACGT"})
    fasta = Fasta(path)
    assert fasta.contig_md5("1") == "cc0af3a4fedb18378b4b57b98068e69f"
    assert fasta.digest() == f"sha256:{sha256(path)}"


def test_a_truncated_bgzip_is_an_input_error(tmp_path):
    from seqkit.data import bundled

    whole = bundled.brca1().fasta.read_bytes()
    broken = tmp_path / "broken.fa.gz"
    broken.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="complete bgzip"):
        Fasta(broken).fetch("17", 41_100_000, 41_100_010)
