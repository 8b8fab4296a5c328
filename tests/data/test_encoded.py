import pickle

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seqkit.data import encoded
from seqkit.data.encoded import SOFT_MASK, EncodedGenome, encode_fasta, open_genome
from seqkit.data.fasta import Fasta
from seqkit.errors import InputError
from seqkit.tokenizers import DNATokenizer


def write(path, records):
    path.write_text("".join(f">{name}\n{bases}\n" for name, bases in records.items()))
    return path


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SEQKIT_CACHE", str(tmp_path / "cache"))


def test_bases_soft_mask_and_places(tmp_path):
    genome = open_genome(write(tmp_path / "g.fa", {"a": "ACgtNn", "chr2:11-14": "RyAC"}))
    assert DNATokenizer().decode(genome.ids(0, 10)) == "ACGTNNRYAC"
    assert (genome.bases >= SOFT_MASK).tolist() == [c.islower() for c in "ACgtNnRyAC"]
    assert genome.unknown_R2.tolist() == [[4, 8]]  # what two records share an edge of is one run of offsets
    assert str(genome.where(7, 9)) == "chr2:12-13"
    with pytest.raises(InputError, match="within one record"):
        genome.where(4, 8)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text("ACGTacgtNnRY", min_size=1, max_size=60), chunk=st.integers(1, 70))
def test_encoding_is_the_tokenizer_at_any_chunk(tmp_path, monkeypatch, text, chunk):
    monkeypatch.setattr(encoded, "_CHUNK", chunk)
    path = write(tmp_path / "g.fa", {"a": text})
    (tmp_path / "g.fa.fai").unlink(missing_ok=True)
    encode_fasta(Fasta(path), tmp_path / "g.skgenome")
    genome = EncodedGenome(tmp_path / "g.skgenome")
    assert genome.ids(0, len(text)).tolist() == DNATokenizer().encode(text).tolist()
    known = np.isin(list(text.upper()), list("ACGT"))
    ends = np.arange(len(text) + 1)
    assert genome.unknown(np.zeros_like(ends), ends).tolist() == np.cumsum([0, *~known]).tolist()


def test_second_opening_reads_the_cache(tmp_path, monkeypatch):
    path = write(tmp_path / "g.fa", {"a": "ACGT" * 10})
    first = open_genome(path)
    monkeypatch.setattr(encoded, "encode_fasta", None)
    assert open_genome(path).sha256 == first.sha256
    assert pickle.loads(pickle.dumps(first)).bases.tolist() == first.bases.tolist()


def test_a_changed_fasta_is_encoded_again(tmp_path):
    open_genome(write(tmp_path / "g.fa", {"a": "ACGT"}))
    (tmp_path / "g.fa.fai").unlink()
    assert len(open_genome(write(tmp_path / "g.fa", {"a": "ACGTAC"}))) == 6


@pytest.mark.parametrize("keep", [0, 10, -1])
def test_a_file_cut_short_is_refused(tmp_path, keep):
    path = tmp_path / "g.skgenome"
    encode_fasta(Fasta(write(tmp_path / "g.fa", {"a": "ACGT" * 100})), path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match="cut short"):
        open_genome(path)


def test_changed_bases_are_noticed(tmp_path):
    path = tmp_path / "g.skgenome"
    encode_fasta(Fasta(write(tmp_path / "g.fa", {"a": "ACGT" * 100})), path)
    data = bytearray(path.read_bytes())
    data[7] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match="damaged"):
        open_genome(path)


def test_a_letter_that_is_no_base_leaves_no_file(tmp_path):
    with pytest.raises(InputError, match="b from base 1"):
        encode_fasta(Fasta(write(tmp_path / "g.fa", {"a": "ACGT", "b": "AC-T"})), tmp_path / "g.skgenome")
    assert not list(tmp_path.glob("*skgenome*"))
