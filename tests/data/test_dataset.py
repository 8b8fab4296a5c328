import pickle

import numpy as np
import pytest
import torch

from seqkit.data.channels import CHANNELS, COMPLEMENT_ORDER, base_channels, window_channels
from seqkit.data.dataset import VariantWindowDataset
from seqkit.data.fasta import Fasta
from seqkit.data.regions import read_annotation
from seqkit.data.sites import locate
from seqkit.data.windows import build_windows
from seqkit.errors import InputError
from seqkit.tokenizers.dna import DNATokenizer


def dataset(brca1, **options):
    labels = brca1.labels[:, None]
    features = np.arange(2 * len(labels), dtype=np.float32).reshape(-1, 2)
    sites = brca1.sites.with_strand(-np.ones(len(labels)))
    return VariantWindowDataset(
        sites, brca1.fasta, **{"length": 33, "labels_NK": labels, "features_NF": features, **options}
    )


def test_batch_keys_shapes_and_types(brca1):
    rows = dataset(brca1, annotation=brca1.annotation, indices=np.array([7, 3000, 5]))
    batch = rows.__getitems__([2, 0])
    shapes = {name: (tuple(value.shape), value.dtype) for name, value in batch.items()}
    assert shapes == {
        "ref_ids": ((2, 33), torch.int64),
        "alt_ids": ((2, 33), torch.int64),
        "ref_channels": ((2, 33, 7), torch.float32),
        "alt_channels": ((2, 33, 7), torch.float32),
        "centre": ((2,), torch.int64),
        "stranded": ((2,), torch.bool),
        "index": ((2,), torch.int64),
        "features": ((2, 2), torch.float32),
        "label": ((2, 1), torch.float32),
    }
    assert batch["index"].tolist() == [5, 7]
    assert batch["features"][0].tolist() == [10, 11]
    assert (batch["ref_ids"] != batch["alt_ids"]).sum() == 2
    assert (batch["ref_ids"] != batch["alt_ids"])[:, 16].all()
    single = rows[2]
    assert all(torch.equal(single[name], batch[name][0]) for name in batch)


def test_without_annotation_features_and_labels_their_keys_are_absent(brca1):
    batch = dataset(brca1, labels_NK=None, features_NF=None).__getitems__([0])
    assert set(batch) == {"ref_ids", "alt_ids", "centre", "stranded", "index"}


@pytest.mark.parametrize("annotated", [True, False])
def test_windows_in_memory_and_on_the_fly_are_the_same(brca1, monkeypatch, annotated):
    options = {"annotation": brca1.annotation if annotated else None, "indices": np.arange(0, 3893, 50)}
    kept = dataset(brca1, **options).__getitems__([3, 70, 1])
    monkeypatch.setattr("seqkit.data.dataset._KEPT_BYTES", 0)
    fresh = dataset(brca1, **options)
    again = fresh.__getitems__([3, 70, 1])
    assert fresh._kept is None
    assert all(torch.equal(kept[name], again[name]) for name in kept)


def test_fillers_carry_no_label(brca1):
    batch = dataset(brca1).__getitems__([4, -5])
    assert batch["index"].tolist() == [4, -1]
    assert batch["label"].isnan().tolist() == [[False], [True]]
    assert torch.equal(batch["ref_ids"][0], batch["ref_ids"][1])
    assert not np.isnan(brca1.labels).any()


def test_pickled_copies_leave_windows_behind(brca1):
    rows = dataset(brca1)
    before = rows.__getitems__([1])
    copy = pickle.loads(pickle.dumps(rows))
    assert copy._kept is None
    assert torch.equal(copy.__getitems__([1])["alt_ids"], before["alt_ids"])


def test_refused_rows_and_matrices(brca1, write_fasta, table_of):
    fasta = Fasta(write_fasta({"chr1": "ACGT" * 9}))
    sites = locate(table_of(("1", 1, "A", "C"), ("1", 1, "A", "*")), fasta, length=8)
    assert VariantWindowDataset(sites, fasta, length=8).indices.tolist() == [0]
    with pytest.raises(InputError, match="STAR"):
        VariantWindowDataset(sites, fasta, length=8, indices=np.array([1]))
    with pytest.raises(InputError, match="2 rows"):
        VariantWindowDataset(sites, fasta, length=8, labels_NK=np.zeros((1, 1), np.float32))


@pytest.fixture
def small(tmp_path, write_fasta):
    """Minus-strand gene: exons 10-20 and 30-40 (0-based), coding 12-20 and 30-37."""
    gff = tmp_path / "s.gff3"
    gff.write_text(
        "c\tx\tmRNA\t11\t40\t.\t-\t.\tID=t\nc\tx\texon\t11\t20\t.\t-\t.\tParent=t\nc\tx\texon\t31\t40\t.\t-\t.\tParent=t\n"
        "c\tx\tCDS\t13\t20\t.\t-\t2\tParent=t\nc\tx\tCDS\t31\t37\t.\t-\t0\tParent=t\n"
    )
    return Fasta(write_fasta({"c": "ACGTTGCAAC" * 6})), read_annotation(gff)


def test_channels_of_a_small_gene(small):
    _, annotation = small
    channels = base_channels(annotation, ["c"], np.arange(50)[None], np.array([True]))[0]
    where = {name: np.flatnonzero(channels[:, i]).tolist() for i, name in enumerate(CHANNELS)}
    assert where["exon"] == [*range(10, 20), *range(30, 40)]
    assert where["intron"] == list(range(20, 30))
    assert where["gene_other_strand"] == list(range(10, 40))
    assert where["gene_same_strand"] == []
    # Read from 36 down: codon places 1 2 3 1 2 3 1 | 2 3 1 2 3 1 2 3.
    assert where["codon_1"] == [14, 17, 30, 33, 36]
    assert where["codon_2"] == [13, 16, 19, 32, 35]
    assert where["codon_3"] == [12, 15, 18, 31, 34]


def test_channels_flip_under_reverse_complement(small, table_of):
    fasta, annotation = small
    bases = fasta.fetch("c", 0, 60).decode()
    table = table_of(*(("c", pos + 1, bases[pos], "T" if bases[pos] != "T" else "A") for pos in range(5, 50)))
    sites = locate(table, fasta, length=21)
    plus = build_windows(sites, fasta, np.arange(45), 21)
    minus_sites = sites.with_strand(-np.ones(45))
    minus = build_windows(minus_sites, fasta, np.arange(45), 21)
    contigs = ["c"] * 45
    for plus_BWC, minus_BWC in zip(
        window_channels(annotation, contigs, plus, np.ones(45, bool)),
        window_channels(annotation, contigs, minus, np.zeros(45, bool)),
        strict=True,
    ):
        np.testing.assert_array_equal(plus_BWC[:, ::-1][..., list(COMPLEMENT_ORDER)], minus_BWC)
    complement = DNATokenizer().reverse_complement(plus.ref_ids_BW)
    np.testing.assert_array_equal(complement, minus.ref_ids_BW)


def test_alternate_channels_follow_insertions_and_deletions(small, table_of):
    fasta, annotation = small
    bases = fasta.fetch("c", 0, 60).decode()
    table = table_of(
        ("c", 33, bases[32], bases[32] + ("GG" if bases[33] != "G" else "CC")), ("c", 33, bases[32:35], bases[32])
    )
    sites = locate(table, fasta, length=9)
    windows = build_windows(sites, fasta, np.arange(2), 9, centre=4)
    ref, alt = window_channels(annotation, ["c", "c"], windows, np.ones(2, bool))
    np.testing.assert_array_equal(alt[:, :4], ref[:, :4])
    # Inserted bases lie in the exon but at no place in a codon; what follows is pushed on.
    assert alt[0, 4:6, :3].sum() == 0
    assert alt[0, 4:6, 3].tolist() == [1, 1]
    np.testing.assert_array_equal(alt[0, 6:], ref[0, 4:7])
    np.testing.assert_array_equal(alt[1, 4:7], ref[1, 6:9])
