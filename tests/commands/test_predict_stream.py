"""``predict`` in a pipeline: every record comes back, from files and pipes, whole, in parts and after a kill."""

import gzip
import io
import itertools
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter

import polars as pl
import pytest

from seqkit import cli
from seqkit.commands import predict as predict_module
from seqkit.data import bundled
from seqkit.data.fasta import Fasta

pysam = pytest.importorskip("pysam")
bcftools = pytest.importorskip("pysam.bcftools")

BRCA1 = bundled.brca1()
FIRST, LAST = 41_100_001, 41_300_000
WINDOW = 16
INPUTS = ["--fasta", str(BRCA1.fasta), "--gff", str(BRCA1.annotation), "--device", "cpu", "--max-mismatch", "1"]
HEADER = (
    "##fileformat=VCFv4.3\n##contig=<ID=17,length=81195210>\n##contig=<ID=5>\n"
    '##INFO=<ID=DP,Number=1,Type=Integer,Description="Depth">\n'
    '##INFO=<ID=AF,Number=A,Type=Float,Description="Frequency, with a comma, and \\"quotes\\"">\n'
    '##INFO=<ID=END,Number=1,Type=Integer,Description="End">\n##INFO=<ID=DB,Number=0,Type=Flag,Description="Flag">\n'
    '##INFO=<ID=TXT,Number=.,Type=String,Description="Text">\n##FILTER=<ID=q10,Description="Low">\n'
    '##FORMAT=<ID=GT,Number=1,Type=String,Description="Genotype">\n'
    '##FORMAT=<ID=PL,Number=G,Type=Integer,Description="Likelihoods">\n'
    "##source=somebody's caller v1\n"
    "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\tS1\tS two\n"
)

DECLARED = (
    '##contig=<ID=GL1>\n##FILTER=<ID=undeclared,Description="x">\n'
    '##INFO=<ID=NEW,Number=1,Type=String,Description="x">\n#CHROM'
)


def odd_records(number, seed=0):
    """Lines of records with every odd case, and the status every allele must get."""
    chance, fasta = random.Random(seed), Fasta(BRCA1.fasta)
    bases = fasta.fetch("chr17", FIRST - 1, LAST).decode()
    other = {b: [o for o in "ACGT" if o != b] for b in "ACGT"}
    kinds = itertools.cycle(
        ["snv"] * 6 + ["two", "insertion", "deletion", "mnv", "star", "del", "non_ref", "breakend", "none", "lower",
         "iupac", "iupac_alt", "wrong", "contig", "undeclared", "beyond", "zero", "long", "edge", "mixed"]
    )  # fmt: skip
    places = sorted(chance.sample(range(200, len(bases) - 200), number))
    for i, (place, kind) in enumerate(zip(places, kinds, strict=False)):
        ref, contig, pos = bases[place], "17", FIRST + place
        alt, status = chance.choice(other[ref]), ["OK"]
        if kind == "two":
            alt, status = ",".join(other[ref][:2]), ["OK", "OK"]
        elif kind == "insertion":
            alt = ref + "".join(chance.choices("ACGT", k=chance.randint(1, 7)))
        elif kind in ("deletion", "mnv"):
            ref = bases[place : place + chance.randint(2, 7)]
            alt = ref[0] if kind == "deletion" else "".join(other[b][0] for b in ref)
        elif kind == "mixed":
            alt, status = f"{alt},*,<DEL>,{ref}GG", ["OK", "STAR", "SYMBOLIC", "OK"]
        elif kind == "lower":
            ref, alt = ref.lower(), alt.lower()
        elif kind == "long":
            ref = bases[place : place + WINDOW]
            alt, status = ref[0], ["TOO_LONG"]
        elif kind == "edge":
            ref, pos, status = bases[3], FIRST + 3, ["EDGE"]
            alt = other[ref][0]
        else:
            changed = {
                "star": ("17", pos, ref, "*", "STAR"), "del": ("17", pos, ref, "<DEL>", "SYMBOLIC"),
                "non_ref": ("17", pos, ref, "<NON_REF>", "SYMBOLIC"),
                "breakend": ("17", pos, ref, f"{ref}]5:123]", "SYMBOLIC"), "none": ("17", pos, ref, ".", "none"),
                "iupac": ("17", pos, "R", "A", "N_IN_WINDOW"), "iupac_alt": ("17", pos, ref, "N", "N_IN_WINDOW"),
                "wrong": ("17", pos, other[ref][0], ref, "REF_MISMATCH"),
                "contig": ("5", 100, "A", "C", "CONTIG_MISSING"), "undeclared": ("GL1", 7, "A", "C", "CONTIG_MISSING"),
                "beyond": ("17", 90_000_000, "A", "C", "CONTIG_MISSING"),
                "zero": ("17", 0, "N", "A", "N_IN_WINDOW"),
            }  # fmt: skip
            if kind in changed:
                contig, pos, ref, alt, reason = changed[kind]
                status = [reason]
        info = chance.choice(["DP=3", ".", "DB", "TXT=a%3Bb,c;DP=1", f"END={pos}", "NEW=1;DB"])
        if chance.random() < 0.3:
            info = "AF=" + ",".join(["0.125"] * len(alt.split(","))) + ("" if info == "." else f";{info}")
        identity = chance.choice([".", f"rs{i}", f"a{i};b{i}"])
        quality, passed = chance.choice([".", "30", "29.5"]), chance.choice([".", "PASS", "q10", "undeclared;q10"])
        fields = [contig, str(pos), identity, ref, alt, quality, passed, info]
        samples = chance.choice([["GT", "0/1", "1|1"], ["GT:PL", "./.:.", "0/0:."], ["GT", "0", "."]])
        yield "\t".join((*fields, *samples)), status


def predict(run, variants, out, *more):
    return cli.main(["predict", "--ckpt", str(run), "--variants", str(variants), "--out", str(out), *INPUTS, *more])


def command(run, variants, out, *more):
    arguments = ["--ckpt", str(run), "--variants", str(variants), "--out", str(out), *INPUTS, *more]
    return [sys.executable, "-m", "seqkit", "predict", *arguments]


def text_of(path):
    data = path.read_bytes()
    return (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode()


def records_of(text):
    return [line for line in text.splitlines() if not line.startswith("#")]


@pytest.fixture(scope="module")
def odd_vcf(tmp_path_factory):
    """3,000 odd records in every format; a BCF cannot hold what its header does not declare."""
    folder = tmp_path_factory.mktemp("odd")
    (folder / "odd.vcf").write_text(
        HEADER.replace("#CHROM", DECLARED) + "".join(f"{line}\n" for line, _ in odd_records(3000))
    )
    with pysam.BGZFile(str(folder / "odd.vcf.gz"), "w") as out:
        out.write((folder / "odd.vcf").read_bytes())
    bcftools.view("-Ob", "-o", str(folder / "odd.bcf"), str(folder / "odd.vcf"), catch_stdout=False)
    return folder


@pytest.fixture
def small_chunks(monkeypatch):
    """So that a small file has many."""
    monkeypatch.setattr(predict_module, "CHUNK", 64)


def test_ten_thousand_odd_records_come_back(binary_run, tmp_path):
    lines, statuses = zip(*odd_records(10_000, seed=1), strict=True)
    source, out = tmp_path / "in.vcf.gz", tmp_path / "out.vcf.gz"
    with pysam.BGZFile(str(source), "w") as handle:
        handle.write((HEADER + "\n".join(lines) + "\n").encode())
    assert predict(binary_run, source, out) == 0
    text = text_of(out)
    header = [line for line in text.splitlines() if line.startswith("##")]
    assert [line for line in HEADER.splitlines()[:-1] if line not in header] == []
    assert HEADER.splitlines()[-1] in text
    for line, status, record in zip(lines, statuses, records_of(text), strict=True):
        before, after = line.split("\t"), record.split("\t")
        assert after[:7] == before[:7]
        assert after[8:] == before[8:]
        info = after[7].split(";")
        ours = dict(item.split("=") for item in info if item.startswith("SK"))
        assert [item for item in info if not item.startswith("SK")] == [i for i in before[7].split(";") if i != "." or
                                                                        not ours]  # fmt: skip
        if status == ["none"]:
            assert not ours
            continue
        assert ours["SKSTAT"].split(",") == status
        scored = [value != "." for value in ours["SKPROB"].split(",")]
        assert scored == [one in ("OK", "EDGE") for one in status]


@pytest.mark.parametrize("name", ["odd.vcf", "odd.vcf.gz", "odd.bcf"])
@pytest.mark.usefixtures("small_chunks")
def test_every_format_and_chunk_size_gives_the_same_records(binary_run, odd_vcf, tmp_path, name):
    assert predict(binary_run, odd_vcf / name, tmp_path / "small.vcf") == 0
    predict_module.CHUNK = 4096
    assert predict(binary_run, odd_vcf / "odd.vcf", tmp_path / "large.bcf") == 0
    bcftools.view("-Ov", "-o", str(tmp_path / "large.vcf"), str(tmp_path / "large.bcf"), catch_stdout=False)
    small, large = (records_of(text_of(tmp_path / n)) for n in ("small.vcf", "large.vcf"))
    assert len(small) == 3000
    same = [re.sub(r"SK(PROB|FWD|RC)=[^;\t]*", "", line) for line in small]
    assert same == [re.sub(r"SK(PROB|FWD|RC)=[^;\t]*", "", line) for line in large]
    values = [[float(v) for v in re.findall(r"SKPROB=([0-9][0-9.e-]*)", line)] for line in small]
    others = [[float(v) for v in re.findall(r"SKPROB=([0-9][0-9.e-]*)", line)] for line in large]
    for one, two in zip(values, others, strict=True):
        assert one == pytest.approx(two, rel=1e-4)


@pytest.mark.parametrize("how", ["vcf.gz", "tsv"])
def test_pipes_in_and_out(binary_run, odd_vcf, tmp_path, how):
    if how == "tsv":
        rows = [line.split("\t")[:5] for line in records_of(text_of(odd_vcf / "odd.vcf"))][:300]
        data = "\n".join("\t".join(r) for r in [["chrom", "pos", "id", "ref", "alt"], *rows] if r[1] != "0").encode()
        expected = sum(len(r[4].split(",")) for r in rows if r[1] != "0") + 1
    else:
        data, expected = (odd_vcf / f"odd.{how}").read_bytes(), 3000
    done = subprocess.run(command(binary_run, "-", "-"), input=data, capture_output=True, check=True)
    assert len(records_of(done.stdout.decode())) == expected
    assert b"alleles" in done.stderr
    process = f"cat {odd_vcf / 'odd.vcf.gz'} | {' '.join(command(binary_run, '/dev/stdin', '-'))} | head -c 100"
    if how == "vcf.gz":
        piped = subprocess.run(["bash", "-c", f"set -o pipefail; {process}"], capture_output=True)
        assert piped.stdout.startswith(b"##fileformat")
        assert b"Error" not in piped.stderr
        assert b"Broken" not in piped.stderr


@pytest.mark.usefixtures("small_chunks")
def test_regions_and_shards_together_are_the_whole(binary_run, odd_vcf, tmp_path):
    source = tmp_path / "in.vcf.gz"
    shutil.copy(odd_vcf / "odd.vcf.gz", source)
    assert predict(binary_run, source, tmp_path / "whole.vcf") == 0
    whole = records_of(text_of(tmp_path / "whole.vcf"))
    parts = []
    for i in range(1, 5):
        assert predict(binary_run, source, tmp_path / f"{i}.vcf", "--shard", f"{i}/4") == 0
        parts += [re.sub(r"SK(PROB|FWD|RC)=[^;\t]*", "", x) for x in records_of(text_of(tmp_path / f"{i}.vcf"))]
    assert parts == [re.sub(r"SK(PROB|FWD|RC)=[^;\t]*", "", line) for line in whole]
    gathered = []
    for region in ("chr17:1-41150000", "17:41,150,001-41,200,000 chr17:41200001-41250000", "17:41250001-99000000", "5"):
        out = tmp_path / "region.vcf"
        assert predict(binary_run, source, out, "--regions", region) == 0
        gathered += records_of(text_of(out))
    assert Counter(g.split("SKPROB")[0] for g in gathered) == Counter(
        line.split("SKPROB")[0] for line in whole if not line.startswith(("GL1", "17\t0\t"))
    )


@pytest.mark.parametrize("index", ["none", "fresh", "stale"])
def test_regions_with_and_without_an_index(binary_run, tmp_path, index, caplog):
    lines = [line for line, _ in odd_records(500, seed=2) if line.startswith("17\t41")]
    lines.sort(key=lambda line: int(line.split("\t")[1]))
    source = tmp_path / "in.vcf.gz"
    with pysam.BGZFile(str(source), "w") as handle:
        handle.write((HEADER + "\n".join(lines) + "\n").encode())
    if index != "none":
        pysam.tabix_index(str(source), preset="vcf")
        if index == "stale":
            os.utime(f"{source}.tbi", (1, 1))
    bed = tmp_path / "regions.bed"
    bed.write_text("track name=x\nchr17\t41149999\t41200000\n17\t41200000\t41210000\n")
    assert predict(binary_run, source, tmp_path / "o.vcf", "--regions", str(bed)) == 0
    kept = [line for line in lines if 41_150_000 <= int(line.split("\t")[1]) <= 41_210_000]
    got = records_of(text_of(tmp_path / "o.vcf"))
    assert [g.split("\t")[:5] for g in got] == [k.split("\t")[:5] for k in kept]
    assert ("in.vcf.gz" in caplog.text) == (index != "fresh")


def test_an_empty_region_gives_an_empty_file(binary_run, odd_vcf, tmp_path):
    for name in ("o.vcf.gz", "o.tsv", "o.parquet"):
        assert predict(binary_run, odd_vcf / "odd.vcf", tmp_path / name, "--regions", "chr9") == 0
    assert records_of(text_of(tmp_path / "o.vcf.gz")) == []
    assert pl.read_parquet(tmp_path / "o.parquet").height == 0
    assert pl.read_csv(tmp_path / "o.tsv", separator="\t").columns == pl.read_parquet(tmp_path / "o.parquet").columns


SLOW = """
import sys, time
from seqkit import cli
from seqkit.commands import predict, variant_scores
predict.CHUNK = 64
score = variant_scores.VariantScorer.score
def slowly(self, table):
    time.sleep(0.02)
    print("chunk", flush=True)
    return score(self, table)
variant_scores.VariantScorer.score = slowly
raise SystemExit(cli.main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def slow(binary_run, odd_vcf, tmp_path_factory):
    """A predict of many chunks that says when each begins: its command for an output, and the unbroken result."""

    def arguments(out):
        rest = command(binary_run, odd_vcf / "odd.vcf.gz", out, "--resume")[3:]
        return [sys.executable, "-c", SLOW, *rest]

    whole = tmp_path_factory.mktemp("whole") / "o.vcf.gz"
    subprocess.run(arguments(whole), check=True, capture_output=True)
    return arguments, whole


KILLS = [("SIGTERM", 143), ("SIGKILL", -9)] * int(os.environ.get("SEQKIT_TEST_KILLS", "1"))


@pytest.mark.parametrize("kill", range(len(KILLS)))
def test_killed_and_resumed_gives_the_bytes_of_an_unbroken_run(slow, tmp_path, kill):
    """Twice; SEQKIT_TEST_KILLS=5 makes ten of it."""
    arguments, whole = slow
    signum, code = KILLS[kill]
    broken = tmp_path / "broken" / "o.vcf.gz"
    process = subprocess.Popen(arguments(broken), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    chance = random.Random(time.time_ns())
    for _ in range(chance.randint(1, 46)):
        process.stdout.readline()
    time.sleep(chance.random() / 20)
    process.send_signal(getattr(signal, signum))
    _, err = process.communicate()
    assert process.returncode == code
    assert not broken.exists()
    if code > 0:
        assert err.strip().splitlines()[-1].startswith(f"seqkit predict: stopped by {signum}")
        assert "--resume" in err
    subprocess.run(arguments(broken), check=True, capture_output=True)
    clean = re.compile(r"--out \S+")
    assert clean.sub("", text_of(broken)) == clean.sub("", text_of(whole))
    assert sorted(p.name for p in broken.parent.iterdir()) == sorted(p.name for p in whole.parent.iterdir())


def test_a_resume_of_other_inputs_is_refused(binary_run, odd_vcf, tmp_path, capsys, monkeypatch):
    def fail(self, table):
        raise cli.Stopped(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr("seqkit.commands.variant_scores.VariantScorer.score", fail)
        assert predict(binary_run, odd_vcf / "odd.vcf", tmp_path / "o.vcf") == 143
    assert (tmp_path / "o.vcf.partial").is_dir()
    assert predict(binary_run, odd_vcf / "odd.bcf", tmp_path / "o.vcf", "--resume") == 2
    assert "--variants" in capsys.readouterr().err
    assert predict(binary_run, odd_vcf / "odd.vcf", tmp_path / "o.vcf", "--resume") == 0
    assert not (tmp_path / "o.vcf.partial").exists()


@pytest.mark.parametrize(
    "arguments",
    [["--shard", "0/4"], ["--shard", "5/4"], ["--shard", "x"], ["--regions", "chr17:9-3"], ["--regions", "chr17:x"],
     ["--regions", ""], ["--out", "-", "--resume"], ["--variants", "-", "--shard", "1/2"]],
)  # fmt: skip
def test_impossible_requests_are_usage_errors(binary_run, odd_vcf, tmp_path, arguments, capsys):
    given = {"--variants": str(odd_vcf / "odd.vcf"), "--out": str(tmp_path / "o.vcf")}
    for name, value in zip(arguments[::2], [*arguments[1::2], None], strict=False):
        if name in given:
            given[name] = value
    rest = [a for i, a in enumerate(arguments) if a not in given and (i == 0 or arguments[i - 1] not in given)]
    flat = [part for pair in given.items() for part in pair]
    assert cli.main(["predict", "--ckpt", str(binary_run), *flat, *INPUTS, *rest]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "o.vcf").exists()


def test_memory_does_not_grow_with_the_file(binary_run, tmp_path):
    """Peak memory of scoring 40,000 records is that of 8,000."""
    peaks = []
    line = "17\t41276135\t.\tT\t<X>\t.\t.\t.\n"
    for records in (8_000, 40_000):
        source = tmp_path / "in.vcf"
        source.write_text("##fileformat=VCFv4.2\n##contig=<ID=17>\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n")
        with source.open("a") as out:
            out.writelines(itertools.repeat(line, records))
        code = "import resource, sys; from seqkit import cli; code = cli.main(sys.argv[1:]); " + (
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss); raise SystemExit(code)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, *command(binary_run, source, tmp_path / "o.vcf")[3:]],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        peaks.append(int(done.stdout) / 1024)
    assert peaks[1] - peaks[0] < 30


def test_progress_is_for_people_only(binary_run, odd_vcf, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert predict(binary_run, odd_vcf / "odd.vcf", tmp_path / "o.tsv") == 0
    assert "scoring" not in sys.stderr.getvalue()
