"""Left-normalisation, allele edits and circular windows against naive oracles on random sequences."""

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seqkit.data.fasta import Fasta
from seqkit.data.normalise import left_normalise, normalised
from seqkit.data.sites import locate
from seqkit.data.variants import read_variants
from seqkit.data.windows import build_windows
from seqkit.errors import ConfigError
from seqkit.tokenizers.dna import DNATokenizer

QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
TOKENS = DNATokenizer()
repeats = st.lists(st.sampled_from(["A", "C", "AC", "AAC", "G", "TTA"]), min_size=6, max_size=20).map("".join)


@pytest.fixture
def reference(tmp_path, monkeypatch):
    monkeypatch.setenv("SEQKIT_CACHE", str(tmp_path / "cache"))
    made = iter(range(10**6))

    def make(bases, **more):
        path = tmp_path / f"{next(made)}.fa"
        path.write_text(f">c\n{bases}\n")
        return Fasta(path, **more)

    return make


def edited(bases, start, ref, alt):
    assert bases[start : start + len(ref)] == ref
    return bases[:start] + alt + bases[start + len(ref) :]


@QUICK
@given(repeats, st.data())
def test_every_way_of_writing_an_indel_meets_in_the_leftmost(reference, bases, data):
    start = data.draw(st.integers(1, len(bases) - 2))
    gone = data.draw(st.integers(0, min(4, len(bases) - start - 1)))
    new = "" if gone else data.draw(st.text("ACGT", min_size=1, max_size=4))
    target = bases[:start] + new + bases[start + gone :]
    fasta, found = reference(bases), set()
    for low in range(1, len(bases)):  # all placements that give the same sequence
        for high in range(low, min(low + gone, len(bases)) + 1):
            if high - low != gone:
                continue
            inserted = target[low : low + len(new)]
            if bases[:low] + inserted + bases[high:] == target:
                ref, alt = bases[low - 1 : high], bases[low - 1] + inserted
                found.add(left_normalise(fasta, "c", low - 1, ref, alt))
                right = bases[high : high + 2]
                found.add(left_normalise(fasta, "c", low - 1, ref + right, alt + right))
    assert len(found) == 1 or target == bases
    place, ref, alt = found.pop()
    assert edited(bases, place, ref, alt) == target
    if place > 1 and target != bases:
        longer = ref if len(ref) > len(alt) else alt
        assert longer[0] != longer[-1]


@QUICK
@given(repeats, st.integers(2, 6), st.integers(1, 3))
def test_one_indel_in_two_spellings_gets_one_window(reference, bases, length, size):
    bases = "GATTC" * 4 + bases + "C" + "AC" * 5 + "GTTAG" * 4
    fasta = reference(bases)
    run = bases.index("C" + "AC" * 5 + "G") + 1
    first, last = (run - 1, bases[run - 1 : run + 2]), (run + 7, bases[run + 7 : run + 10])
    rows = [("c", s + 1, text, text[0]) for s, text in (first, last)]
    table = read_variants(pl.DataFrame(rows, schema=["chrom", "pos", "ref", "alt"], orient="row"))
    sites = locate(table, fasta, length=2 * length + 4)
    moved = normalised(table, sites, fasta)
    assert moved is not None
    sites = locate(moved, fasta, length=2 * length + 4)
    windows = build_windows(sites, fasta, [0, 1], 2 * length + 4)
    assert (windows.ref_ids_BW[0] == windows.ref_ids_BW[1]).all()
    assert (windows.alt_ids_BW[0] == windows.alt_ids_BW[1]).all()
    assert table.alleles["pos"].to_list() == [run, run + 8]


@QUICK
@given(st.text("ACGT", min_size=9, max_size=40), st.data())
def test_windows_of_a_circle_are_those_of_the_turned_circle(reference, bases, data):
    size = len(bases)
    place, length = data.draw(st.integers(0, size - 1)), data.draw(st.integers(2, size))
    other = data.draw(st.sampled_from([b for b in "ACGT" if b != bases[place]]))
    turn = (place - size // 2) % size
    turned = bases[turn:] + bases[:turn]
    found = []
    for text, at in ((bases, place), (turned, (place - turn) % size)):
        fasta = reference(text, circular=["c"])
        table = read_variants(pl.DataFrame({"chrom": ["c"], "pos": [at + 1], "ref": [text[at]], "alt": [other]}))
        sites = locate(table, fasta, length=length)
        assert sites.status_names() == ["OK"]
        windows = build_windows(sites, fasta, [0], length)
        assert (windows.ref_source_BW >= 0).all()
        assert (windows.ref_source_BW < size).all()
        found.append((windows.ref_ids_BW[0].tolist(), windows.alt_ids_BW[0].tolist()))
    assert found[0] == found[1]
    assert reference(bases, circular=["c"]).fetch("c", -3, size + 3).decode() == bases[-3:] + bases + bases[:3]


@QUICK
@given(st.text("ACGT", min_size=12, max_size=30), st.data())
def test_an_edit_and_its_inverse_and_its_reverse_complement(reference, bases, data):
    """The alternate window of an allele is the reference window of the edited sequence, on both strands."""
    start = data.draw(st.integers(4, len(bases) - 6))
    ref = bases[start : start + data.draw(st.integers(1, 3))]
    alt = data.draw(st.text("ACGT", min_size=1, max_size=3).filter(lambda a: a != ref))
    after = edited(bases, start, ref, alt)
    assert edited(after, start, alt, ref) == bases
    for strand in (1, -1):
        windows = []
        for text, a, b in ((bases, ref, alt), (after, alt, ref)):
            fasta = reference(text)
            table = read_variants(pl.DataFrame({"chrom": ["c"], "pos": [start + 1], "ref": [a], "alt": [b]}))
            sites = locate(table, fasta, length=8, strand=[strand], max_n_fraction=1)
            windows.append(build_windows(sites, fasta, [0], 8))
        assert (windows[0].alt_ids_BW == windows[1].ref_ids_BW).all()
        assert (windows[0].ref_ids_BW == windows[1].alt_ids_BW).all()


def test_only_whole_contigs_can_be_circles(reference, tmp_path):
    with pytest.raises(ConfigError, match="no such contig"):
        reference("ACGT", circular=["MT"])
    (tmp_path / "piece.fa").write_text(">c:11-14\nACGT\n")
    with pytest.raises(ConfigError, match="piece"):
        Fasta(tmp_path / "piece.fa", circular=["c"])
