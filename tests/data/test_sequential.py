import gzip

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqkit.data import sequential
from seqkit.data.fasta import Fasta
from seqkit.data.sequential import read_sequences
from seqkit.errors import ConfigError, InputError

TEXT = b">one first\nACGTN\nacg\n>empty\n>two\r\nTTTT\r\nGG\r\n"


def pieces(path, size=4):
    return [(s.contig, s.start, s.bases.tobytes()) for s in read_sequences(path, size)]


@pytest.mark.parametrize("opener", [open, gzip.open])
def test_known_file(tmp_path, opener):
    with opener(tmp_path / "x.fa", "wb") as out:
        out.write(TEXT)
    expected = [("one", 0, b"ACGT"), ("one", 4, b"Nacg"), ("two", 0, b"TTTT"), ("two", 4, b"GG")]
    assert pieces(tmp_path / "x.fa") == expected


@given(
    records=st.lists(st.text("ACGTNacgt", max_size=40), min_size=1, max_size=4),
    width=st.integers(1, 12), size=st.integers(1, 50), block=st.integers(1, 30),
)  # fmt: skip
def test_pieces_join_to_the_records(tmp_path_factory, records, width, size, block):
    path = tmp_path_factory.mktemp("fasta") / "x.fa"
    lines = [
        f">record{i} of them\n" + "".join(r[at : at + width] + "\n" for at in range(0, len(r), width))
        for i, r in enumerate(records)
    ]
    path.write_text("".join(lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sequential, "_BLOCK_BYTES", block)
        found = pieces(path, size)
    for i, record in enumerate(records):
        own = [(start, bases) for name, start, bases in found if name == f"record{i}"]
        assert b"".join(bases for _, bases in own).decode() == record
        assert [start for start, _ in own] == list(range(0, len(record), size))


def test_a_bgzip_genome_reads_as_by_index(shared_data):
    path = shared_data / "human-chr20-hg19" / "20.fa.gz"
    piece = next(s for s in read_sequences(path, 1_000_000) if s.start == 2_000_000)
    np.testing.assert_array_equal(piece.bases, Fasta(path).fetch_array("20", 2_000_000, 3_000_000, soft_mask=True))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no records"),
        (b"ACGT\n", "starts with b'ACGT'"),
        (gzip.compress(TEXT * 99)[:-20], "Fetch it again"),
        (None, "no such"),
    ],
)
def test_files_that_are_no_whole_fasta(tmp_path, content, message):
    if content is not None:
        (tmp_path / "x.fa").write_bytes(content)
    with pytest.raises(InputError, match=message):
        pieces(tmp_path / "x.fa")


def test_a_size_of_nothing(tmp_path):
    with pytest.raises(ConfigError, match="at least 1 base"):
        pieces(tmp_path / "x.fa", 0)
