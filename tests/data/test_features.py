import numpy as np
import pytest

from seqkit.data.consequence import predict_consequences
from seqkit.data.fasta import Fasta
from seqkit.data.features import GROUPS, TRINUCLEOTIDES, consequence_features, context_features, contexts
from seqkit.data.residues import blosum62, grantham, properties
from seqkit.data.sites import locate
from seqkit.errors import ConfigError, InputError


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


def features_of(brca1, rows=None, **options):
    table = brca1.table if rows is None else brca1.table.take(rows)
    sites = locate(table, brca1.fasta, length=64)
    consequences = predict_consequences(sites, brca1.fasta, brca1.annotation)
    return consequence_features(sites, brca1.fasta, consequences, **options)


def test_consequence_features_are_finite_and_named_once(brca1):
    matrix, names = features_of(brca1)
    assert matrix.shape == (3893, len(names))
    assert matrix.dtype == np.float32
    assert np.isfinite(matrix).all()
    assert len(set(names)) == len(names)
    classes = [i for i, name in enumerate(names) if name.startswith("class=")]
    np.testing.assert_array_equal(matrix[:, classes].sum(1), 1)


def test_an_alleles_features_do_not_depend_on_the_others(brca1):
    matrix, _ = features_of(brca1)
    rows = np.array([5, 3000, 77])
    np.testing.assert_allclose(features_of(brca1, rows)[0], matrix[rows], rtol=1e-5, atol=1e-5)


def test_groups_are_chosen_by_name(brca1):
    rows = np.arange(20)
    whole, names = features_of(brca1, rows)
    parts = [features_of(brca1, rows, groups=[group]) for group in GROUPS]
    assert [name for _, found in parts for name in found] == list(names)
    np.testing.assert_array_equal(np.concatenate([matrix for matrix, _ in parts], axis=1), whole)
    assert features_of(brca1, rows, groups=[])[0].shape == (20, 0)
    with pytest.raises(ConfigError, match="class"):
        features_of(brca1, rows, groups=["clas"])


def test_features_of_alleles_without_a_gene_or_window_are_finite(brca1, table_of):
    table = table_of(("17", 41_150_000, "N", "<DEL>"), ("9", 5, "A", "C"), ("17", 41_276_135, "T", "TG"))
    sites = locate(table, brca1.fasta, length=64)
    consequences = predict_consequences(sites, brca1.fasta, brca1.annotation)
    assert np.isfinite(consequence_features(sites, brca1.fasta, consequences)[0]).all()
