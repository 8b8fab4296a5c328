import numpy as np
import polars as pl
import pytest
from Bio.Seq import Seq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seqkit.data.consequence import CONSEQUENCES, CONTEXT, predict_consequences
from seqkit.data.fasta import Fasta
from seqkit.data.genome import trim_alleles
from seqkit.data.regions import read_annotation
from seqkit.data.sites import locate

# 0-based: UTR 10-13, coding 13-20 (exon 10-20), intron 20-40, exon 40-58 with coding 40-54 and UTR 54-58;
# coding: ATG AAA T|GG CAT CGT TTA TAA, so codon 3 is split over the intron.
LEFT, RIGHT = "ATGAAAT", "GGCATCGTTTATAA"
GENE = "C" * 10 + "GGG" + LEFT + "GTAAGT" + "C" * 11 + "CAG" + RIGHT + "CCCC" + "T" * 12
GFF = """##gff-version 3
chrA\tx\tgene\t11\t58\t.\t+\t.\tID=g;gene_name=GEN
chrA\tx\tmRNA\t11\t58\t.\t+\t.\tID=t;Parent=g
chrA\tx\texon\t11\t20\t.\t+\t.\tParent=t
chrA\tx\texon\t41\t58\t.\t+\t.\tParent=t
chrA\tx\tCDS\t14\t20\t.\t+\t0\tParent=t
chrA\tx\tCDS\t41\t54\t.\t+\t2\tParent=t
"""
COMPLEMENT = str.maketrans("ACGT", "TGCA")

# 1-based position on the gene's strand, ref, alt, class, codon position, residues, donor and acceptor distances.
CASES = [
    (5, "C", "A", "intergenic", None, None, None, None, None),
    (11, "G", "A", "5_prime_UTR", None, None, None, -10, -30),
    (14, "A", "G", "start_lost", 1, "M", "V", -7, -27),
    (17, "A", "T", "stop_gained", 1, "K", "*", -4, -24),
    (18, "A", "G", "missense", 2, "K", "R", -3, -23),
    (19, "A", "G", "splice_region", 3, "K", "K", -2, -22),
    (20, "T", "C", "missense", 1, "W", "R", -1, -21),
    (21, "G", "A", "splice_donor", None, None, None, 1, -20),
    (22, "T", "A", "splice_donor", None, None, None, 2, -19),
    (23, "A", "G", "splice_region", None, None, None, 3, -18),
    (28, "C", "G", "splice_region", None, None, None, 8, -13),
    (29, "C", "G", "intron", None, None, None, 9, -12),
    (32, "C", "G", "intron", None, None, None, 12, -9),
    (33, "C", "G", "splice_region", None, None, None, 13, -8),
    (39, "A", "G", "splice_acceptor", None, None, None, 19, -2),
    (40, "G", "T", "splice_acceptor", None, None, None, 20, -1),
    (41, "G", "A", "stop_gained", 2, "W", "*", 21, 1),
    (42, "G", "A", "stop_gained", 3, "W", "*", 22, 2),
    (43, "C", "T", "missense", 1, "H", "Y", 23, 3),
    (45, "T", "C", "synonymous", 3, "H", "H", 25, 5),
    (52, "T", "C", "stop_lost", 1, "*", "Q", 32, 12),
    (54, "A", "G", "synonymous", 3, "*", "*", 34, 14),
    (55, "C", "A", "3_prime_UTR", None, None, None, 35, 15),
    (70, "T", "A", "intergenic", None, None, None, None, None),
    (45, "T", "TA", "frameshift", 1, "R", "X", 25, 5),
    (43, "CAT", "C", "frameshift", 2, "H", "X", 24, 4),
    (45, "T", "TGCG", "inframe_insertion", 1, "R", "A", 25, 5),
    (45, "T", "TTAA", "stop_gained", 1, "R", "*", 25, 5),
    (42, "GCAT", "G", "inframe_deletion", 1, "H", "X", 23, 3),
    (46, "CGT", "TAA", "stop_gained", 1, "R", "*", 26, 6),
    (46, "CGT", "AAA", "missense", 1, "R", "K", 26, 6),
    (14, "ATG", "CCC", "start_lost", 1, "M", "X", -5, -25),
    (15, "TG", "T", "start_lost", 3, "M", "X", -5, -25),
    (19, "ATG", "A", "splice_donor", 1, None, None, -1, -20),
    (29, "C", "CAA", "intron", None, None, None, 9, -11),
]


@pytest.fixture(params=[1, -1], ids=["plus", "minus"])
def gene(request, tmp_path, write_fasta):
    """The gene on either strand: reference, annotation, and a function that turns its coordinates into positions."""
    size, strand = len(GENE), request.param
    gff = tmp_path / "genes.gff3"
    if strand > 0:
        gff.write_text(GFF)
        return Fasta(write_fasta({"chrA": GENE})), read_annotation(gff), lambda pos, ref, alt: (pos, ref, alt)
    lines = []
    for line in GFF.splitlines()[1:]:
        cells = line.split("\t")
        cells[3], cells[4] = str(size + 1 - int(cells[4])), str(size + 1 - int(cells[3]))
        cells[6] = "-"
        lines.append("\t".join(cells))
    gff.write_text("\n".join(lines) + "\n")

    def turned(pos, ref, alt):
        # Both alleles keep their shared first base on the gene's strand, which becomes a shared last one.
        return size - pos - len(ref) + 2, ref.translate(COMPLEMENT)[::-1], alt.translate(COMPLEMENT)[::-1]

    return Fasta(write_fasta({"chrA": GENE.translate(COMPLEMENT)[::-1]})), read_annotation(gff), turned


def predict(gene, table_of, *variants, tables=None):
    fasta, annotation, place = gene
    table = table_of(*(("A", *place(*variant)) for variant in variants))
    sites = locate(table, fasta, length=24)
    assert set(sites.status_names()) <= {"OK", "EDGE"}
    return predict_consequences(sites, fasta, annotation, codon_tables=tables)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}{case[1]}>{case[2]}")
def test_hand_known_consequences(gene, table_of, case):
    row = predict(gene, table_of, case[:3]).row(0, named=True)
    found = tuple(
        row[name]
        for name in ("consequence", "codon_position", "aa_ref", "aa_alt", "donor_distance", "acceptor_distance")
    )
    assert found == case[3:]
    assert row["consequence"] in CONSEQUENCES
    assert row["strand"] == (0 if case[3] == "intergenic" else gene[1].transcripts[0].strand)


def test_all_at_once_equals_one_by_one(gene, table_of):
    whole = predict(gene, table_of, *(case[:3] for case in CASES))
    assert whole["consequence"].to_list() == [case[3] for case in CASES]


def test_residues_around_and_positions(gene, table_of):
    frame = predict(gene, table_of, (43, "C", "T"), (20, "T", "C"))
    protein, margin = "MKWHRL*", "X" * CONTEXT
    padded = margin + protein + margin
    assert frame["aa_context"].to_list() == [padded[i : i + 2 * CONTEXT + 1] for i in (3, 2)]
    assert frame["protein_position"].to_list() == [4, 3]
    assert frame["cds_position"].to_list() == [10, 7]
    assert frame["gene"].to_list() == ["GEN", "GEN"]


def test_the_contigs_genetic_code_counts(gene, table_of, tmp_path, write_fasta):
    # TGA is Trp and AGA a stop in vertebrate mitochondria.
    assert predict(gene, table_of, (42, "G", "A"), tables={"chrA": 2})["consequence"][0] == "splice_region"
    fasta = Fasta(write_fasta({"chrM": "ATGTGACGATAA"}, "m.fa"))
    gff = tmp_path / "m.gff3"
    gff.write_text("MT\tx\tCDS\t1\t12\t.\t+\t0\tID=c;gene=ND\n")
    table = table_of(("chrM", 7, "C", "A"), ("M", 6, "A", "G"), ("MT", 3, "G", "A"))
    frame = predict_consequences(locate(table, fasta, length=4), fasta, read_annotation(gff))
    assert frame["consequence"].to_list() == ["stop_gained", "synonymous", "synonymous"]
    assert frame["aa_ref"].to_list() == ["R", "W", "M"]


def test_unplaced_alleles_know_nothing(gene, table_of):
    fasta, annotation, _ = gene
    sites = locate(table_of(("A", 43, "A" if GENE[42] != "A" else "C", "<DEL>"), ("B", 1, "A", "C")), fasta, length=8)
    frame = predict_consequences(sites, fasta, annotation)
    assert frame["consequence"].to_list() == ["intergenic"] * 2
    assert frame.select(pl.exclude("consequence", "strand").is_null().all()).row(0) == (True,) * 10


def test_bundled_predictions_agree_with_the_published_columns(brca1):
    frame = predict_consequences(brca1.sites, brca1.fasta, brca1.annotation)
    published = {
        "Missense": ("missense", "start_lost"),
        "Nonsense": ("stop_gained",),
        "Synonymous": ("synonymous",),
        "Canonical splice": ("splice_donor", "splice_acceptor"),
        "Splice region": ("splice_region",),
        "Intronic": ("intron",),
        "5' UTR": ("5_prime_UTR",),
    }
    residue = pl.when(pl.col("aa_ref") == pl.col("aa_alt")).then(pl.lit("=")).otherwise(pl.col("aa_alt"))
    both = brca1.table.records.select("transcript_variant", "protein_variant", given="consequence").hstack(
        frame.select("consequence", protein=pl.format("p.{}{}{}", "aa_ref", "protein_position", residue))
    )
    expected = pl.col("given").replace_strict(published, return_dtype=pl.List(pl.String))
    odd = both.filter(
        ~expected.list.contains(pl.col("consequence")) | pl.col("protein_variant").ne_missing(pl.col("protein"))
    )
    print(f"{len(odd)} of {len(both)} differ: {odd['transcript_variant'].to_list()}")
    # The codon of c.301 ends in exon 6, which the derived annotation does not have.
    assert set(odd["transcript_variant"]) == {"c.301T>A", "c.301T>G"}


BODY = "ATG" + "".join(np.random.default_rng(8).choice(["GCT", "AAA", "CGT", "GAC", "TTC", "TGG", "CAA"], 20)) + "TAA"
EDGES = [
    "chrB\tx\tmRNA\t6\t100\t.\t+\t.\tID=t",
    f"chrB\tx\texon\t6\t{30 + len(BODY)}\t.\t+\t.\tParent=t",
    f"chrB\tx\tCDS\t21\t{20 + len(BODY)}\t.\t+\t0\tParent=t",
]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, len(BODY) - 6), st.integers(1, 5), st.text("ACGT", min_size=1, max_size=5))
def test_changes_within_an_exon_agree_with_translating_the_whole(write_fasta, table_of, tmp_path, at, reach, alt):
    ref = BODY[at : at + reach]
    left, gone, _ = trim_alleles(ref, alt)
    if trim_alleles(ref, alt)[1:] == ("", "") or (at + left == 0 and not gone):
        return  # nothing changes, or bases are put before the start codon, which stays whole
    fasta = Fasta(write_fasta({"chrB": "C" * 20 + BODY + "C" * 40}))
    gff = tmp_path / "b.gff3"
    gff.write_text("\n".join(EDGES) + "\n")
    sites = locate(table_of(("chrB", 21 + at, ref, alt)), fasta, length=24)
    row = predict_consequences(sites, fasta, read_annotation(gff)).row(0, named=True)
    changed = BODY[:at] + alt + BODY[at + reach :]
    before, after = (str(Seq(text[: len(text) // 3 * 3]).translate()) for text in (BODY, changed))
    shift = len(alt) - len(ref)
    kind = row["consequence"]
    if not changed.startswith("ATG"):
        assert kind == "start_lost"
    elif shift % 3:
        assert kind == "frameshift"
    elif "*" not in after:
        assert kind == "stop_lost"
    elif after.index("*") < len(after) - 1:
        assert kind == "stop_gained"
    elif shift:
        assert kind == ("inframe_insertion" if shift > 0 else "inframe_deletion")
    else:
        assert kind == ("synonymous" if before == after else "missense")
        if kind == "missense":
            first = next(i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b)
            assert (row["aa_ref"], row["aa_alt"]) == (before[first], after[first])
