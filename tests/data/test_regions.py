import gzip

import numpy as np
import pytest

from seqkit.data.regions import read_annotation, read_bed
from seqkit.data.transcripts import KNOWN_INTRON, TranscriptGeometry, codon_table_of
from seqkit.errors import InputError

GTF = "\n".join(
    [
        "#!genome-build x",
        'chr1\te\ttranscript\t101\t400\t.\t-\t.\tgene_id "G1"; transcript_id "T1"; gene_name "AAA"; tag "MANE_Select";',
        'chr1\te\texon\t301\t400\t.\t-\t.\tgene_id "G1"; transcript_id "T1"; gene_name "AAA";',
        'chr1\te\tCDS\t301\t350\t.\t-\t0\tgene_id "G1"; transcript_id "T1"; gene_name "AAA";',
        'chr1\te\texon\t101\t200\t.\t-\t.\tgene_id "G1"; transcript_id "T1"; gene_name "AAA";',
        'chr1\te\tCDS\t154\t200\t.\t-\t1\tgene_id "G1"; transcript_id "T1"; gene_name "AAA";',
        'chr1\te\tstop_codon\t151\t153\t.\t-\t0\tgene_id "G1"; transcript_id "T1"; gene_name "AAA";',
        'chr1\te\texon\t101\t400\t.\t-\t.\tgene_id "G1"; transcript_id "T2"; gene_name "AAA";',
        'chr1\te\tCDS\t101\t400\t.\t-\t0\tgene_id "G1"; transcript_id "T2"; gene_name "AAA";',
        'chr2\te\texon\t1\t9\t.\t+\t.\tgene_id "G2"; transcript_id "T3";',
    ]
)
GFF3 = "\n".join(
    [
        "##gff-version 3",
        "chr1\tn\tgene\t1\t90\t.\t+\t.\tID=gene-B;Name=BBB",
        "chr1\tn\tmRNA\t1\t90\t.\t+\t.\tID=rna-1;Parent=gene-B;Name=x",
        "chr1\tn\tmRNA\t1\t90\t.\t+\t.\tID=rna-2;Parent=gene-B;tag=basic,MANE Select",
        "chr1\tn\texon\t1\t30\t.\t+\t.\tID=e1;Parent=rna-1,rna-2",
        "chr1\tn\texon\t61\t90\t.\t+\t.\tID=e2;Parent=rna-1,rna-2",
        "chr1\tn\tCDS\t5\t30\t.\t+\t0\tID=c1;Parent=rna-1",
        "chr1\tn\tCDS\t11\t30\t.\t+\t2\tID=c2;Parent=rna-2",
        "chr1\tn\tCDS\t61\t70\t.\t+\t0\tID=c2;Parent=rna-2",
        "chr2\tn\tgene\t1\t12\t.\t+\t.\tID=gene-C;Name=CCC",
        "chr2\tn\tCDS\t1\t12\t.\t+\t0\tID=cds-C;Parent=gene-C",
        "##FASTA",
        ">chr1",
        "ACGT",
    ]
)


@pytest.mark.parametrize("how", ["plain", "gzip"])
def test_gtf_keeps_mane_and_joins_the_stop_codon(tmp_path, how):
    path = tmp_path / ("a.gtf" + (".gz" if how == "gzip" else ""))
    path.write_bytes(gzip.compress(GTF.encode()) if how == "gzip" else GTF.encode())
    annotation = read_annotation(path)
    assert [t.transcript_id for t in annotation.transcripts] == ["T1", "T3"]
    first = annotation.on("1")[0]
    assert (first.strand, first.gene_name, first.mane_select) == (-1, "AAA", True)
    assert [(e.start, e.end, e.acceptor, e.donor) for e in first.exons] == [
        (300, 400, False, True),
        (100, 200, True, False),
    ]
    assert [(c.start, c.end, c.position) for c in first.coding] == [(300, 350, 1), (150, 200, 51)]
    assert first.coding_length == 100
    assert annotation.on("chr2")[0].coding == ()
    assert annotation.on("chrX") == []


def test_gff3_takes_phases_shared_parents_and_bare_coding_parts(tmp_path):
    path = tmp_path / "a.gff3"
    path.write_text(GFF3)
    annotation = read_annotation(path)
    chosen = annotation.on("chr1")[0]
    assert (chosen.transcript_id, chosen.gene_id, chosen.gene_name) == ("rna-2", "gene-B", "BBB")
    # Phase 2 at the first coding part: its first base is the second of a codon; the next part's phase 0 fits no count.
    assert [part.position for part in chosen.coding] == [2, 22]
    bare = annotation.on("2")[0]
    assert [(e.start, e.end) for e in bare.exons] == [(0, 12)]
    assert (bare.gene_name, bare.coding_length) == ("CCC", 12)


def test_longest_coding_sequence_without_a_tag(tmp_path):
    path = tmp_path / "a.gtf"
    path.write_text(GTF.replace('tag "MANE_Select";', ""))
    assert read_annotation(path).on("chr1")[0].transcript_id == "T2"


def test_broken_annotations(tmp_path):
    for text, words in (
        ("", "nine tab-separated"),
        ("chr1 x exon 1 2\n", "nine tab-separated"),
        ("chr1\tx\texon\tone\t2\t.\t+\t.\tID=e\n", "numbers in columns"),
        ("chr1\tx\tgene\t1\t2\t.\t+\t.\tID=e\n", "exon or CDS"),
    ):
        path = tmp_path / "bad.gff3"
        path.write_text(text)
        with pytest.raises(InputError, match=words):
            read_annotation(path)
    with pytest.raises(InputError, match="no such file"):
        read_annotation(tmp_path / "absent.gff3")


def test_bed(tmp_path):
    path = tmp_path / "a.bed"
    path.write_text("track name=x\n# note\nchr1\t0\t10\ta\t0\t-\nchr2\t5\t5\tb\t0\t+\n")
    frame = read_bed(path)
    assert frame.rows() == [("chr1", 0, 10, "a", "0", "-"), ("chr2", 5, 5, "b", "0", "+")]
    for text in ("chr1\t10\t0\n", "chr1\t1\n", "chr1\tx\t5\n", "# nothing\n"):
        path.write_text(text)
        with pytest.raises(InputError):
            read_bed(path)


def test_splice_sites_that_are_not_known_are_not_used(brca1):
    transcript = brca1.annotation.on("chr17")[0]
    geometry = TranscriptGeometry(transcript)
    x15 = next(i for i, part in enumerate(transcript.coding) if part.position == 4891)
    assert not transcript.exons[x15].acceptor
    assert not transcript.exons[-1].donor
    assert (len(geometry.acceptors), len(geometry.donors)) == (12, 12)
    inside_x15 = np.array([geometry.exons[x15, 0] + 2])
    assert geometry.acceptor_distance(inside_x15)[0] not in range(-60, 61)
    # The gap between X5 and X15 hides exons 6 to 14: only what touches X5's donor is called intron.
    gap = geometry.introns[(geometry.introns[:, 0] >= geometry.exons[x15 - 1, 1])][0]
    assert gap.tolist() == [geometry.exons[x15 - 1, 1], geometry.exons[x15 - 1, 1] + KNOWN_INTRON]


def test_genetic_code_by_contig():
    assert [codon_table_of(name) for name in ("chr1", "chrM", "MT", "NC_012920.1")] == [1, 2, 2, 2]
