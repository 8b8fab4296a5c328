"""``predict --sample``: both haplotypes of a sample into FORMAT."""

import pytest

from seqkit import cli
from seqkit.commands import haplotype_scores
from seqkit.commands import predict as predict_module
from seqkit.data import bundled
from seqkit.data.fasta import Fasta
from seqkit.data.haplotypes import haplotype_windows

pysam = pytest.importorskip("pysam")
BRCA1 = bundled.brca1()
FASTA = Fasta(BRCA1.fasta)
PLACE = 41_276_100
WINDOW = 16


def base(pos):
    return FASTA.fetch("17", pos - 1, pos).decode()


def other(pos, number=0):
    return [b for b in "ACGT" if b != base(pos)][number]


def record(pos, gt, *, gt2="0|0", alt=None, form="GT"):
    return f"17\t{pos}\t.\t{base(pos)}\t{alt or other(pos)}\t.\t.\t.\t{form}\t{gt2}\t{gt}"


def write(path, lines):
    head = (
        '##fileformat=VCFv4.2\n##contig=<ID=17>\n##FORMAT=<ID=GT,Number=1,Type=String,Description="x">\n'
        '##FORMAT=<ID=DP,Number=1,Type=Integer,Description="x">\n'
        "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\tmother\tchild\n"
    )
    path.write_text(head + "".join(f"{line}\n" for line in lines))
    return path


def predict(run, source, out, *more):
    inputs = ["--variants", str(source), "--fasta", str(BRCA1.fasta), "--gff", str(BRCA1.annotation)]
    return cli.main(["predict", "--ckpt", str(run), *inputs, "--out", str(out), "--device", "cpu", *more])


def cells(path, sample="child"):
    with pysam.VariantFile(str(path)) as handle:
        return [(r.samples[sample]["SKHAP"], r.samples[sample]["SKHST"], r.info["SKPROB"]) for r in handle]


def test_each_haplotype_has_its_score_or_its_reason(binary_run, tmp_path):
    lines = [
        record(PLACE, "0|1"),
        record(PLACE + 100, "0/1"),
        record(PLACE + 200, "1/1"),
        record(PLACE + 300, "1|.", alt="*"),
        record(PLACE + 400, "2|1", alt=f"{other(PLACE + 400)},{other(PLACE + 400, 1)}"),
        record(PLACE + 500, "1"),
        record(PLACE + 600, "7:0|1", form="DP:GT").replace("DP:GT\t0|0\t7:0|1", "GT:DP\t0|0:5\t0|1:7"),
    ]
    source, out = write(tmp_path / "in.vcf", lines), tmp_path / "out.vcf.gz"
    assert predict(binary_run, source, out, "--sample", "child") == 0
    found = cells(out)
    assert [c[1] for c in found] == [
        ("REF", "OK"), ("UNPHASED", "UNPHASED"), ("OK", "OK"), ("STAR", "MISSING"), ("OK", "OK"), ("OK",),
        ("REF", "OK"),
    ]  # fmt: skip
    # No other variant lies within a window, so a haplotype's score is that of the allele on the reference.
    assert found[0][0] == pytest.approx((None, found[0][2][0]))
    assert found[2][0] == pytest.approx((found[2][2][0],) * 2)
    assert found[4][0] == pytest.approx(tuple(reversed(found[4][2])))
    assert found[5][0] == pytest.approx((found[5][2][0],))
    with pysam.VariantFile(str(out)) as handle:
        records = list(handle)
        assert records[6].samples["child"]["DP"] == 7
        assert records[6].samples["mother"]["DP"] == 5
        assert records[0].samples["mother"]["SKHAP"] in ((None,), None)
        assert handle.header.formats["SKHAP"].type == "Float"


@pytest.mark.parametrize("chunk", [1, 4096])
def test_other_variants_count_on_their_own_haplotype(binary_run, tmp_path, monkeypatch, chunk):
    """A neighbour is in both windows of the haplotype that carries it and in none of the other's."""
    monkeypatch.setattr(predict_module, "CHUNK", chunk)
    monkeypatch.setattr("seqkit.data.vcf_stream.VcfSource.chunk_records", lambda self, size: size)
    seen = {}

    def spy(**how):
        found = haplotype_windows(**how)
        for row, i in enumerate(how["indices"]):
            key = int(how["sites"].start_N[i]) + 1
            seen.setdefault(key, []).append((found.ref_ids_BW[row].tolist(), found.alt_ids_BW[row].tolist()))
        return found

    monkeypatch.setattr(haplotype_scores, "haplotype_windows", spy)
    windows = {}
    for name, place, neighbour in (("alone", 2, "0|0"), ("cis", 2, "0|1"), ("trans", 2, "1|0"), ("before", -3, "0|1")):
        lines = [record(PLACE, "0|1"), record(PLACE + place, neighbour)]
        lines.sort(key=lambda line: int(line.split("\t")[1]))
        source, out = write(tmp_path / "in.vcf", lines), tmp_path / f"{name}.vcf"
        seen.clear()
        assert predict(binary_run, source, out, "--sample", "child") == 0
        (windows[name],) = seen[PLACE]
    assert windows["alone"] == windows["trans"]
    # The gene is read on the minus strand, so a place further on in the genome comes earlier in the window.
    for name, offset in (("cis", -2), ("before", 3)):
        for mine, alone in zip(windows[name], windows["alone"], strict=True):
            assert [i - WINDOW // 2 for i in range(WINDOW) if mine[i] != alone[i]] == [offset]


def test_what_cannot_be_on_one_haplotype_says_so(binary_run, tmp_path):
    three = FASTA.fetch("17", PLACE - 1, PLACE + 2).decode()
    deletion = f"17\t{PLACE}\t.\t{three}\t{three[0]}\t.\t.\t.\tGT\t0|0\t0|1"
    source = write(tmp_path / "in.vcf", [deletion, record(PLACE + 1, "0|1"), record(PLACE + 2, "1|0")])
    assert predict(binary_run, source, tmp_path / "o.vcf", "--sample", "child") == 0
    statuses = [c[1] for c in cells(tmp_path / "o.vcf")]
    assert statuses == [("REF", "OVERLAP"), ("REF", "OVERLAP"), ("OK", "REF")]


@pytest.mark.parametrize(
    ("more", "word"),
    [(["--sample", "chidl"], "child"), (["--sample", "child", "--shard", "1/2"], "--sample"),
     (["--sample", "child", "--norm"], "--norm"), (["--sample", "child", "--regions", "17"], "--sample"),
     (["--sample", "child", "--out", "x.tsv"], "--sample")],
)  # fmt: skip
def test_impossible_samples(binary_run, tmp_path, more, word, capsys):
    source = write(tmp_path / "in.vcf", [record(PLACE, "0|1")])
    out = [] if "--out" in more else ["--out", str(tmp_path / "o.vcf")]
    inputs = ["--variants", str(source), "--fasta", str(BRCA1.fasta), "--gff", str(BRCA1.annotation)]
    assert cli.main(["predict", "--ckpt", str(binary_run), *inputs, *out, *more]) == 2
    assert word in capsys.readouterr().err
