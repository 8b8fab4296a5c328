import numpy as np
import pytest

from seqkit.data.consequence import predict_consequences
from seqkit.data.fasta import Fasta
from seqkit.data.features import GROUPS, MODIFIERS, PLAIN_GROUPS, consequence_features, contexts
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


def test_contexts_of_the_bundled_set_end_in_the_published_change(brca1):
    strand = predict_consequences(brca1.sites, brca1.fasta, brca1.annotation)["strand"].to_numpy()
    assert set(strand) == {-1}
    found = contexts(brca1.sites.with_strand(strand), brca1.fasta)
    published = brca1.table.records["transcript_variant"].str.tail(3).to_list()
    assert [f"{text[1]}>{text[4]}" for text in found] == published


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
    parts = [features_of(brca1, rows, groups={name: group}) for name, group in GROUPS.items()]
    assert [name for _, found in parts for name in found] == list(names)
    np.testing.assert_array_equal(np.concatenate([matrix for matrix, _ in parts], axis=1), whole)
    assert features_of(brca1, rows, groups={})[0].shape == (20, 0)


def test_a_frameshift_counts_as_severe_though_no_training_row_is_one(brca1, table_of):
    position = brca1.table.alleles["pos"][brca1.table.records["transcript_variant"].to_list().index("c.181T>G")]
    sites = locate(table_of(("17", position - 1, "CA", "C")), brca1.fasta, length=64)
    consequences = predict_consequences(sites, brca1.fasta, brca1.annotation)
    matrix, names = consequence_features(sites, brca1.fasta, consequences)
    assert consequences["consequence"].to_list() == ["frameshift"]
    assert matrix[0, names.index("impact=high")] == 1
    assert matrix[0, names.index("deleted")] == np.float32(np.log(2))


def test_modifiers_are_features(brca1):
    assert set(MODIFIERS) <= set(features_of(brca1, np.arange(3))[1])


def test_plain_groups_know_no_splice_bits_and_no_surroundings(brca1):
    names = features_of(brca1, np.arange(3), groups=PLAIN_GROUPS)[1]
    assert {"aa_ref=C", "donor_distance"} <= set(names)
    assert not {"donor_change", "burial"} & set(names)


def column(brca1, name, variant):
    matrix, names = features_of(brca1)
    row = brca1.table.records["transcript_variant"].to_list().index(variant)
    return matrix[row, names.index(name)]


@pytest.mark.parametrize(
    ("variant", "name", "value"),
    [
        ("c.181T>G", "cysteine_pair", 1),  # C61G, a zinc ligand with a cysteine three residues on
        ("c.181T>G", "aa_alt=G", 1),
        ("c.181T>G", "codon_position=1", 1),
        ("c.181T>G", "blosum62", -3),
        ("c.181T>G", "class=missense", 1),
        ("c.80+1G>A", "donor=+1", 1),
        ("c.80+1G>A", "impact=high", 1),
        ("c.181T>G", "impact=moderate", 1),
        ("c.80+1G>A", "noncoding", 1),
        ("c.80+1G>A", "aa_alt=G", 0),
        ("c.5194-2A>G", "acceptor=-2", 1),
    ],
)
def test_known_variants_have_the_features_one_expects(brca1, variant, name, value):
    assert column(brca1, name, variant) == value


def test_substitution_changes_are_those_of_the_tables(brca1):
    # C61G: Kyte-Doolittle 2.5 to -0.4, volume 108.5 to 60.1 cubic angstrom, Grantham's distance 159.
    assert column(brca1, "hydropathy_change", "c.181T>G") == pytest.approx(-2.9)
    assert column(brca1, "hydropathy_loss", "c.181T>G") == pytest.approx(2.9 / 4)
    assert column(brca1, "volume_abs_change", "c.181T>G") == pytest.approx(48.4 / 50)
    assert column(brca1, "grantham", "c.181T>G") == pytest.approx(1.59, abs=0.01)


def test_features_of_alleles_without_a_gene_or_window_are_finite(brca1, table_of):
    table = table_of(("17", 41_150_000, "N", "<DEL>"), ("9", 5, "A", "C"), ("17", 41_276_135, "T", "TG"))
    sites = locate(table, brca1.fasta, length=64)
    consequences = predict_consequences(sites, brca1.fasta, brca1.annotation)
    assert np.isfinite(consequence_features(sites, brca1.fasta, consequences)[0]).all()
