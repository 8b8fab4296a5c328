"""What other tools got wrong with variants, one test each: the fault is named, the tool is in the comment."""

import polars as pl
import pytest

import seqkit
from seqkit import cli
from seqkit.commands.trained import load_trained
from seqkit.data import bundled
from seqkit.data.fasta import Fasta
from seqkit.data.genome import canonical_contig
from seqkit.data.sites import locate
from seqkit.data.variants import read_variants
from seqkit.data.windows import build_windows
from seqkit.errors import ReferenceMismatchError
from seqkit.tokenizers.dna import DNATokenizer

pysam = pytest.importorskip("pysam")
BRCA1 = bundled.brca1()
REFERENCE = Fasta(BRCA1.fasta)
PLACE = 41_276_100


@pytest.fixture(scope="module")
def model(binary_run):
    return load_trained(str(binary_run))


def bases(pos, number=1):
    return REFERENCE.fetch("17", pos - 1, pos - 1 + number).decode()


def other(base):
    return {"A": "C", "C": "G", "G": "T", "T": "A"}[base]


def score(model, *rows, **more):
    frame = pl.DataFrame(list(rows), schema=["chrom", "pos", "ref", "alt"], orient="row")
    more = {"max_mismatch": 1, "device": "cpu"} | more
    return seqkit.score_variants(model, frame, REFERENCE, **more)


def predict(run, source, out, *more):
    inputs = ["--variants", str(source), "--fasta", str(BRCA1.fasta), "--gff", str(BRCA1.annotation)]
    return cli.main(["predict", "--ckpt", str(run), *inputs, "--out", str(out), "--device", "cpu", *more])


def vcf(path, *rows, header="##contig=<ID=17>\n"):
    lines = "".join("\t".join((*map(str, row), ".", ".", ".")) + "\n" for row in rows)
    columns = "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
    text = f"##fileformat=VCFv4.2\n{header}{columns}{lines}"
    if path.suffix == ".gz":
        with pysam.BGZFile(str(path), "w") as out:
            out.write(text.encode())
    else:
        path.write_text(text)
    return path


@pytest.mark.parametrize("length", [1, 2, 3, 5, 7])
def test_the_whole_of_a_long_ref_is_compared_where_it_lies(model, length):
    # gReLU compared REF with an interval centred on POS, right for one and two bases alone.
    ref = bases(PLACE, length)
    wrong = ref[:-1] + other(ref[-1])
    found = score(model, ("17", PLACE, ref, other(ref[0])), ("17", PLACE, wrong, other(other(wrong[0]))))
    assert found["status"].to_list() == ["OK", "REF_MISMATCH"]


def test_checking_the_reference_is_a_call_that_works(model):
    # gReLU: check_reference=True called the flag.
    with pytest.raises(ReferenceMismatchError):
        score(model, ("17", PLACE, other(bases(PLACE)), bases(PLACE)), max_mismatch=0.0)


def test_longer_alternates_are_not_cut_to_their_first_base(model):
    # GPN scored AT and A,T as A, and insertions as 0.
    ref = bases(PLACE)
    alt = other(ref)
    found = score(
        model, ("17", PLACE, ref, alt), ("17", PLACE, ref, alt + "TTACGT"), ("17", PLACE, ref, f"{alt},{ref}GG")
    )
    assert found["alt"].to_list() == [alt, alt + "TTACGT", alt, f"{ref}GG"]
    values = found["prob"].to_list()
    assert values[0] == pytest.approx(values[2], abs=1e-6)
    assert len({round(v, 9) for v in (values[0], values[1], values[3])}) == 3


def test_one_wrong_row_does_not_end_the_others(model):
    # GPN asserted on the whole batch.
    ref = bases(PLACE)
    found = score(model, ("17", PLACE, ref, other(ref)), ("17", PLACE, other(ref), ref), ("17", PLACE, ref, other(ref)))
    assert found["status"].to_list() == ["OK", "REF_MISMATCH", "OK"]
    assert found["prob"][0] == pytest.approx(found["prob"][2])


def test_the_format_goes_by_the_suffix_alone(binary_run, tmp_path):
    # GPN took every path with "csv" in it for a CSV.
    folder = tmp_path / "old.csv.runs"
    folder.mkdir()
    source = vcf(folder / "in.csv.vcf", ("17", PLACE, ".", bases(PLACE), other(bases(PLACE))))
    assert predict(binary_run, source, folder / "x.csv.parquet") == 0
    frame = pl.read_parquet(folder / "x.csv.parquet")
    assert {"CHROM", "POS", "REF", "ALT", "prob"} <= set(frame.columns)  # GPN's had the score alone


def test_records_that_are_no_snv_stay_wherever_they_stand(binary_run, tmp_path):
    # PlantCAD wrote records with an SNV only, and ran past its list on any record after the last one.
    ref = bases(PLACE, 3)
    alleles = [(ref, ref[0]), (ref[0], other(ref[0])), (ref, ref[0] + "TT"), (ref[0], "<DUP>")]
    rows = [("17", PLACE, ".", *pair) for pair in alleles]
    assert predict(binary_run, vcf(tmp_path / "in.vcf", *rows), tmp_path / "o.vcf") == 0
    with pysam.VariantFile(str(tmp_path / "o.vcf")) as handle:
        assert [(r.ref, r.info["SKSTAT"]) for r in handle] == [
            (ref, ("OK",)), (ref[0], ("OK",)), (ref, ("OK",)), (ref[0], ("SYMBOLIC",)),
        ]  # fmt: skip


def test_unsorted_contigs_come_back(binary_run, tmp_path):
    # PlantCAD dropped a chromosome from memory once it had passed it.
    row = ("17", PLACE, ".", bases(PLACE), other(bases(PLACE)))
    rows = [
        row,
        ("5", 7, ".", "A", "C"),
        row,
        ("5", 9, ".", "A", "C"),
        ("17", PLACE - 50, ".", bases(PLACE - 50), "<X>"),
    ]
    source = vcf(tmp_path / "in.vcf", *rows, header="##contig=<ID=17>\n##contig=<ID=5>\n")
    assert predict(binary_run, source, tmp_path / "o.vcf.gz", "--max-mismatch", "1") == 0
    with pysam.VariantFile(str(tmp_path / "o.vcf.gz")) as handle:
        assert [(r.contig, r.pos) for r in handle] == [(r[0], r[1]) for r in rows]


def test_a_score_does_not_depend_on_what_else_is_in_the_batch(model):
    # Evo 2 counted one padding term too many in batches of several lengths.
    ref = bases(PLACE, 8)
    rows = [("17", PLACE, ref[0], other(ref[0])), ("17", PLACE, ref, ref[0]), ("17", PLACE, ref[0], ref[0] + "ACGTA")]
    together = score(model, *rows)["prob"].to_list()
    assert together == pytest.approx([score(model, row)["prob"][0] for row in rows], abs=1e-6)


@pytest.mark.parametrize("arguments", [["--variants", "no.vcf"], ["--fasta", "no.fa"], ["--ckpt", "no"]])
def test_fatal_errors_leave_with_a_code(binary_run, tmp_path, arguments):
    # SpliceAI called exit(), and so status 0.
    source = vcf(tmp_path / "in.vcf", ("17", PLACE, ".", bases(PLACE), other(bases(PLACE))))
    given = {"--variants": str(source), "--fasta": str(BRCA1.fasta), "--ckpt": str(binary_run)} | dict([arguments])
    flat = [part for pair in given.items() for part in pair]
    assert cli.main(["predict", *flat, "--gff", str(BRCA1.annotation), "--out", str(tmp_path / "o.vcf")]) == 3


@pytest.mark.parametrize(("name", "bare"), [("chrc1", "c1"), ("chrhr", "hr"), ("hrc", "hrc"), ("rchr", "rchr")])
def test_chr_is_a_prefix_and_no_set_of_letters(name, bare):
    # SpliceAI: strip("chr").
    assert canonical_contig(name) == bare


def test_every_contig_finds_its_own_spelling(tmp_path):
    # SpliceAI decided on chr1 or 1 by the first name of the file.
    (tmp_path / "r.fa").write_text(">chr1\nACGT\n>2\nACGT\n>NC_000003.12\nACGT\n>MT\nACGT\n")
    fasta = Fasta(tmp_path / "r.fa")
    assert [fasta.resolve(n) for n in ("1", "chr2", "chr3", "chrM")] == ["chr1", "2", "NC_000003.12", "MT"]


def test_compressed_vcf_and_a_dot_for_alt(binary_run, tmp_path):
    # Selene read plain text alone and took a dot for a separator.
    source = vcf(tmp_path / "in.vcf.gz", ("17", PLACE, ".", bases(PLACE), "."))
    assert predict(binary_run, source, tmp_path / "o.tsv") == 0
    assert pl.read_csv(tmp_path / "o.tsv", separator="\t")["status"].to_list() == ["SYMBOLIC"]


def test_a_wrong_ref_never_enters_a_window(model):
    # Selene put the VCF's REF into the reference window and scored it.
    found = score(model, ("17", PLACE, other(bases(PLACE)), bases(PLACE)))
    assert found["status"].to_list() == ["REF_MISMATCH"]
    assert found["prob"].to_list() == [None]


@pytest.mark.parametrize("number", [1, 255, 256, 257])
def test_no_last_batch_is_dropped(model, number):
    # Caduceus: drop_last=True, and a sampler that evens out.
    ref = bases(PLACE)
    found = score(model, *[("17", PLACE, ref, other(ref))] * number)
    assert found.height == number
    assert found["prob"].null_count() == 0


def test_the_first_changed_base_is_the_centre(tmp_path):
    # Caduceus took the last difference of two windows for the variant; Selene and ExPecto differed by one base.
    (tmp_path / "r.fa").write_text(">c\n" + "ACGTTGCA" * 8 + "\n")
    fasta = Fasta(tmp_path / "r.fa")
    table = read_variants(
        pl.DataFrame({"chrom": ["c"] * 2, "pos": [33, 33], "ref": ["ACGT", "A"], "alt": ["ATGA", "AGG"]})
    )
    windows = build_windows(locate(table, fasta, length=20), fasta, [0, 1], 20)
    changed = [(r != a).nonzero()[0].min() for r, a in zip(windows.ref_ids_BW, windows.alt_ids_BW, strict=True)]
    assert changed == windows.centre_B.tolist() == [10, 10]
    assert windows.ref_source_BW[:, 10].tolist() == [33, 33]


def test_reading_beyond_the_ends_keeps_its_length(tmp_path):
    # pyfaidx answers a negative start with nothing, and cuts at the end without a word.
    (tmp_path / "r.fa").write_text(">c\nACGT\n")
    fasta = Fasta(tmp_path / "r.fa")
    assert fasta.fetch("c", -3, 6) == b"NNNACGTNN"
    assert fasta.fetch("c", 9, 12) == b"NNN"


def test_a_scaffold_shorter_than_the_window_is_scored(tmp_path):
    # songlab-cal/gpn#16: crash on short scaffolds.
    (tmp_path / "r.fa").write_text(">s\nACGTACGTAA\n")
    table = read_variants(pl.DataFrame({"chrom": ["s"], "pos": [2], "ref": ["C"], "alt": ["G"]}))
    sites = locate(table, Fasta(tmp_path / "r.fa"), length=64)
    assert sites.status_names() == ["EDGE"]
    ids = build_windows(sites, Fasta(tmp_path / "r.fa"), [0], 64).ref_ids_BW[0]
    assert ids.tolist() == DNATokenizer().encode("N" * 31 + "ACGTACGTAA" + "N" * 23).tolist()


def test_a_header_without_contigs_is_no_crash(binary_run, tmp_path):
    # Illumina/SpliceAI#2: segmentation fault.
    source = vcf(tmp_path / "in.vcf", ("17", PLACE, ".", bases(PLACE), other(bases(PLACE))), header="")
    assert predict(binary_run, source, tmp_path / "o.vcf.gz") == 0
    with pysam.VariantFile(str(tmp_path / "o.vcf.gz")) as handle:
        assert next(handle).info["SKSTAT"] == ("OK",)


def test_quotes_in_the_header_survive(binary_run, tmp_path):
    # Illumina/SpliceAI#132.
    line = '##INFO=<ID=Q,Number=1,Type=String,Description="says \\"hi\\", twice">'
    source = vcf(tmp_path / "in.vcf", ("17", PLACE, ".", bases(PLACE), "<X>"), header=f"##contig=<ID=17>\n{line}\n")
    assert predict(binary_run, source, tmp_path / "o.vcf") == 0
    assert line in (tmp_path / "o.vcf").read_text()


def test_mnv_and_delins_are_one_joint_edit(model):
    # Illumina/SpliceAI#109: anything but a simple indel got dots.
    ref = bases(PLACE, 4)
    rows = [("17", PLACE, ref, other(ref[0]) + ref[1:3] + other(ref[3])), ("17", PLACE, ref, other(ref[0]) + "A")]
    found = score(model, *rows, ("17", PLACE, ref[0], other(ref[0])))
    assert found["status"].to_list() == ["OK"] * 3
    assert found["prob"].n_unique() == 3


def test_one_indel_in_two_spellings_gets_one_score_with_norm(binary_run, tmp_path):
    # broadinstitute/SpliceAI-lookup#67.
    text = bases(41_250_001, 20_000)
    run = next(i for i in range(5, len(text)) if len(set(text[i : i + 5])) == 1)
    first, last = 41_250_001 + run - 1, 41_250_001 + run + 3
    rows = [("17", first, ".", bases(first, 2), bases(first)), ("17", last, ".", bases(last, 2), bases(last))]
    source = vcf(tmp_path / "in.vcf", *rows)
    for flags in ([], ["--norm"]):
        assert predict(binary_run, source, tmp_path / "o.vcf", *flags) == 0
        with pysam.VariantFile(str(tmp_path / "o.vcf")) as handle:
            assert ("left-normalised for scoring" in str(handle.header)) == bool(flags)
            records = list(handle)
    assert [r.pos for r in records] == [first, last]
    assert records[0].info["SKPROB"] == records[1].info["SKPROB"]


def test_names_that_match_nothing_are_said_at_once(binary_run, tmp_path, capsys):
    # deeptools/deepTools#532, aertslab/pycisTopic#8: names without chr failed in silence.
    source = vcf(tmp_path / "in.vcf", ("Chromosome17", PLACE, ".", "A", "C"), header="##contig=<ID=Chromosome17>\n")
    assert predict(binary_run, source, tmp_path / "o.vcf") == 4
    assert "Chromosome17" in capsys.readouterr().err


def test_an_ensembl_vcf_is_read(binary_run, tmp_path):
    # biodatageeks/polars-bio#192: undeclared keys, flags with values, percent signs.
    path = tmp_path / "in.vcf"
    row = f"17\t{PLACE}\trs1\t{bases(PLACE)}\t{other(bases(PLACE))}\t.\t.\tdbSNP_154;TSA=SNV;E_Freq;CSQ=a|b%2C|;MA=T\n"
    vcf(path, header="")
    path.write_text(path.read_text() + row)
    assert predict(binary_run, path, tmp_path / "o.vcf") == 0
    assert "dbSNP_154;TSA=SNV;E_Freq;CSQ=a|b%2C|;MA=T;SK" in (tmp_path / "o.vcf").read_text()


def test_no_index_is_asked_for(binary_run, tmp_path):
    # gagneurlab/MMSplice_MTSplice#70: an undocumented .tbi.
    source = vcf(tmp_path / "in.vcf.gz", ("17", PLACE, ".", bases(PLACE), other(bases(PLACE))))
    assert predict(binary_run, source, tmp_path / "o.vcf", "--regions", "17") == 0
    assert not list(tmp_path.glob("in.vcf.gz.*"))
