"""Haplotype windows against a naive oracle: edit the whole sequence, then cut the window out."""

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seqkit.data.fasta import Fasta
from seqkit.data.haplotypes import Edit, Haplotype, conflicts, haplotype_windows, own_edit, read_genotype, spliced
from seqkit.data.sites import locate
from seqkit.data.variants import read_variants
from seqkit.tokenizers.dna import DNATokenizer

QUICK = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
TOKENS = DNATokenizer()
COMPLEMENT = str.maketrans("ACGTN", "TGCAN")


@st.composite
def haplotypes(draw):
    """A sequence, edits one base or more apart, and which of them is the allele."""
    bases = draw(st.text("ACGT", min_size=30, max_size=90))
    edits, at = [], draw(st.integers(1, 4))
    while at < len(bases) - 6:
        gone = draw(st.integers(0, 5))
        new = draw(st.text("ACGT", min_size=0 if gone else 1, max_size=4))
        old = bases[at : at + gone]
        if not (new and old and (new[0] == old[0] or new[-1] == old[-1])):
            edits.append(Edit(at, at + gone, new))
        at += gone + draw(st.integers(1, 9))
    if not edits:
        edits = [Edit(10, 11, "A" if bases[10] != "A" else "C")]
    return bases, edits, draw(st.integers(0, len(edits) - 1))


def naive(bases, edits):
    for edit in sorted(edits, reverse=True):
        bases = bases[: edit.start] + edit.new + bases[edit.end :]
    return bases


def cut(text, first, length):
    padded = "N" * 200 + text + "N" * 200
    return padded[first + 200 : first + 200 + length]


@QUICK
@given(haplotypes(), st.integers(12, 24), st.sampled_from([1, -1]))
def test_windows_are_cut_from_the_edited_sequence(tmp_path, drawn, length, strand):
    bases, edits, chosen = drawn
    own = edits[chosen]
    path = tmp_path / "r.fa"
    for old in tmp_path.glob("r.fa*"):
        old.unlink()
    path.write_text(f">c\n{bases}\n")
    anchor = bases[own.start - 1]
    row = {"chrom": ["c"], "pos": [own.start], "ref": [anchor + bases[own.start : own.end]], "alt": [anchor + own.new]}
    sites = locate(read_variants(pl.DataFrame(row)), Fasta(path), length=length, strand=[strand], max_n_fraction=1)
    written = own_edit(sites, 0)
    others = [e for e in edits if e != own]
    if any(conflicts(e, written) or e.end > written.start > own.start for e in others):
        return  # trimming moved an insertion into a repeat beside it
    carried = {"c": Haplotype([*others, written])}
    windows = haplotype_windows(sites, Fasta(path), np.array([0]), length, carried, ["c"])
    shift = sum(len(e.new) - (e.end - e.start) for e in others if e.end <= written.start)
    ref = bases[written.start : written.end]
    for here, made, ids in (
        (ref, others, windows.ref_ids_BW[0]),
        (written.new, [*others, written], windows.alt_ids_BW[0]),
    ):
        text, first = naive(bases, made), written.start + shift
        if strand < 0:
            text = text.translate(COMPLEMENT)[::-1]
            first = len(text) - (first + len(here))
        expected = cut(text, first - length // 2, length)
        assert TOKENS.encode(expected).tolist() == ids.tolist()


@QUICK
@given(haplotypes())
def test_splicing_is_editing_and_sources_ascend(tmp_path, drawn):
    bases, edits, _ = drawn
    path = tmp_path / "s.fa"
    for old in tmp_path.glob("s.fa*"):
        old.unlink()
    path.write_text(f">c\n{bases}\n")
    letters, source = spliced(Fasta(path), "c", 0, len(bases), Haplotype(edits).edits)
    assert letters.tobytes().decode() == naive(bases, edits)
    assert (np.diff(source) >= 0).all()
    assert source.min() >= 0
    assert source.max() < len(bases)


@QUICK
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 4), st.text("ACGT", max_size=3)), max_size=12))
def test_a_haplotype_keeps_edits_that_can_all_be_made(drawn):
    found = Haplotype(Edit(s, s + n, new) for s, n, new in drawn if n or new).edits
    assert found == sorted(found)
    assert not any(conflicts(a, b) for i, a in enumerate(found) for b in found[i + 1 :])


@pytest.mark.parametrize(
    ("text", "alleles", "phased"),
    [("0|1", (0, 1), True), ("1/1", (1, 1), True), ("0/1", (0, 1), False), ("1", (1,), True), (".", (None,), True),
     ("./.", (None, None), True), ("./1", (None, 1), False), ("2|0", (2, 0), True), ("|0|1", (0, 1), True)],
)  # fmt: skip
def test_genotypes(text, alleles, phased):
    found = read_genotype(text)
    assert (found.alleles, found.phased) == (alleles, phased)
