import numpy as np
import pytest

from seqkit.data.consequence import predict_consequences
from seqkit.data.fasta import Fasta
from seqkit.data.features import TRINUCLEOTIDES, context_features, contexts
from seqkit.data.residues import blosum62, grantham, properties
from seqkit.data.sites import locate
from seqkit.errors import InputError


def test_contexts_are_read_on_the_sites_strand(write_fasta, table_of):
    fasta = Fasta(write_fasta({"chr1": "AACGTTNACGT"}))
    table = table_of(
        ("1", 3, "C", "T"), ("1", 6, "T", "A"), ("1", 3, "CG", "C"), ("1", 3, "G", "T"), ("1", 11, "T", "A")
    )
    sites = locate(table, fasta, length=4, max_n_fraction=1.0)
    assert contexts(sites, fasta).tolist() == ["ACG>T", "", "", "", ""]
    assert contexts(sites.with_strand(-np.ones(5)), fasta).tolist() == ["CGT>A", "", "", "", ""]


def test_context_features_on_the_bundled_set(brca1):
    strand = predict_consequences(brca1.sites, brca1.fasta, brca1.annotation)["strand"].to_numpy()
    assert set(strand) == {-1}
    matrix, names = context_features(brca1.sites.with_strand(strand), brca1.fasta)
    assert (matrix.shape, len(set(TRINUCLEOTIDES))) == ((3893, 200), 192)
    np.testing.assert_array_equal(matrix[:, :192].sum(1), 1)
    np.testing.assert_array_equal(matrix[:, 192:].sum(1), 2)
    # The change on the coding strand is the last part of the published c. notation.
    shown = [f"{names[192 + row[192:196].argmax()][-1]}>{names[196 + row[196:].argmax()][-1]}" for row in matrix]
    assert shown == brca1.table.records["transcript_variant"].str.tail(3).to_list()


def test_residue_tables_hold_known_values():
    at = {residue: ord(residue) for residue in "ACDEFGHIKLMNPQRSTVWY*X"}
    assert blosum62()[at["W"], at["W"]] == 11
    assert blosum62()[at["L"], at["I"]] == 2
    assert blosum62()[at["L"], at["X"]] == 0
    assert properties()["hydropathy"][at["I"]] == 4.5
    assert properties()["hydropathy"][at["*"]] == 0
    # Published distances: Leu-Ile 5, Cys-Trp 215, Ser-Arg 110.
    for pair, distance in (("LI", 5), ("CW", 215), ("SR", 110)):
        assert grantham()[at[pair[0]], at[pair[1]]] == pytest.approx(distance, abs=1.5)
    np.testing.assert_allclose(grantham(), grantham().T)


def test_contexts_never_build_windows_for_unscored_alleles(write_fasta, table_of):
    fasta = Fasta(write_fasta({"chr1": "ACGT"}))
    sites = locate(table_of(("1", 1, "A", "<DEL>")), fasta, length=4)
    assert contexts(sites, fasta).tolist() == [""]
    with pytest.raises(InputError):
        fasta.fetch("9", 0, 1)
