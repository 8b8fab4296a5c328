import numpy as np
import pytest

from seqkit.data.fasta import Fasta
from seqkit.data.sites import locate
from seqkit.data.splice_sites import motif_bits, splice_changes

UP = "ATCATCATCATCATCATCATCATCATCATCATCATC"
DONOR = "CAGGTAAGT"  # exonic CAG, intronic GTAAGT: the consensus
ACCEPTOR = "TTTTTTTTTTTTTTTTTTTTTTCCAG"[-20:] + "GTA"
DOWN = "ATCATCATCATCATCATCATCATCATCATCATCATC"


def changes(write_fasta, table_of, sequence, variants, donor, acceptor=None, strand=1):
    fasta = Fasta(write_fasta({"chr1": sequence}))
    sites = locate(table_of(*variants), fasta, length=64, max_n_fraction=1.0)
    n = len(variants)
    sites = sites.with_strand(np.full(n, strand))
    nothing = np.full(n, np.nan)
    return splice_changes(
        sites, fasta, np.array(donor, float) if donor else nothing, np.array(acceptor, float) if acceptor else nothing
    )


def bits(motif, place, base):
    return motif_bits()[motif][place, "ACGT".index(base)]


def test_motifs_have_their_spans():
    assert motif_bits()["donor"].shape == (9, 5)
    assert motif_bits()["acceptor"].shape == (23, 5)
    assert (motif_bits()["donor"][:, 4] == 0).all()


@pytest.mark.parametrize(
    ("place", "distance", "ref", "alt"),
    [(0, -3, "C", "T"), (2, -1, "G", "A"), (3, 1, "G", "A"), (4, 2, "T", "C"), (7, 5, "G", "T"), (8, 6, "T", "G")],
)
def test_a_donor_changes_by_the_bits_of_the_base(write_fasta, table_of, place, distance, ref, alt):
    variant = ("chr1", len(UP) + place + 1, ref, alt)
    found = changes(write_fasta, table_of, UP + DONOR + DOWN, [variant], [distance])
    assert found.donor[0] == pytest.approx(bits("donor", place, alt) - bits("donor", place, ref))
    assert found.donor_reference[0] == pytest.approx(sum(bits("donor", i, b) for i, b in enumerate(DONOR)))


def test_the_minus_strand_gives_the_same(write_fasta, table_of):
    complement = str.maketrans("ACGT", "TGCA")
    sequence = (UP + DONOR + DOWN).translate(complement)[::-1]
    position = len(sequence) - (len(UP) + 3)
    found = changes(write_fasta, table_of, sequence, [("chr1", position, "C", "T")], [1], strand=-1)
    assert found.donor[0] == pytest.approx(bits("donor", 3, "A") - bits("donor", 3, "G"))


def test_an_acceptor_changes_by_the_bits_of_the_base(write_fasta, table_of):
    place = 18  # the A of AG, distance -2
    variant = ("chr1", len(UP) + place + 1, "A", "T")
    found = changes(write_fasta, table_of, UP + ACCEPTOR + DOWN, [variant], None, [-2])
    assert found.acceptor[0] == pytest.approx(bits("acceptor", 18, "T") - bits("acceptor", 18, "A"))
    assert found.donor[0] == 0


def test_a_far_site_does_not_change(write_fasta, table_of):
    found = changes(write_fasta, table_of, UP + DONOR + DOWN, [("chr1", 3, "C", "T")], [-37])
    assert found.donor[0] == 0


def test_a_new_donor_is_a_gain_and_the_annotated_one_is_not(write_fasta, table_of):
    weak = "CAGATAAGT"
    variant = ("chr1", len(UP) + 4, "A", "G")
    made = changes(write_fasta, table_of, UP + weak + DOWN, [variant], None)
    assert made.new_donor[0] == pytest.approx(sum(bits("donor", i, b) for i, b in enumerate(DONOR)))
    restored = changes(write_fasta, table_of, UP + weak + DOWN, [variant], [1])
    assert restored.new_donor[0] == 0


def test_a_new_ag_is_seen_on_either_side_of_the_change(write_fasta, table_of):
    sequence = "TTTTTTTTTTTTTTTTTTTTATTTTCTGTTTTTTTTTTTTTTT"
    variants = [("chr1", 22, "T", "G"), ("chr1", 27, "T", "A"), ("chr1", 26, "C", "A")]
    sequence = sequence[:26] + "TG" + sequence[28:]
    found = changes(write_fasta, table_of, sequence, variants, None)
    assert found.new_ag.tolist() == [1, 1, 0]


def test_a_deletion_of_an_intronic_base_moves_what_lies_behind(write_fasta, table_of):
    sequence = UP + DONOR + DOWN
    variant = ("chr1", len(UP) + 5, "TA", "T")  # GTAAGT becomes GTAGTA
    found = changes(write_fasta, table_of, sequence, [variant], [3])
    expected = sum(bits("donor", i, b) for i, b in enumerate("CAGGTAGTA"))
    assert found.donor[0] == pytest.approx(expected - found.donor_reference[0])


def test_alleles_without_a_window_have_no_change(write_fasta, table_of):
    found = changes(write_fasta, table_of, UP + DONOR + DOWN, [("chr1", 40, "G", "<DEL>")], [1])
    assert all(values[0] == 0 for values in found)
