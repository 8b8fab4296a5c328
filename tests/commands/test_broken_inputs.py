"""Broken inputs: one clear line on stderr, the exit code of the manual, and nothing under the final name."""

import gzip
import os
import pickle
import random
import shutil
import subprocess
import sys

import pytest

from seqkit import cli
from seqkit.data import bundled

pysam = pytest.importorskip("pysam")

BRCA1 = bundled.brca1()
HEADER = '##fileformat=VCFv4.2\n##contig=<ID=17,length=81195210>\n##INFO=<ID=T,Number=1,Type=String,Description="x">\n'
COLUMNS = "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
RECORD = "17\t41276135\t.\tT\tG\t.\t.\t.\n"
GOOD = HEADER + COLUMNS + RECORD


def predict(run, variants, out, *more, fasta=BRCA1.fasta):
    inputs = ["--variants", str(variants), "--fasta", str(fasta), "--gff", str(BRCA1.annotation), "--device", "cpu"]
    return cli.main(["predict", "--ckpt", str(run), *inputs, "--out", str(out), *more])


def bgzip(path, text):
    with pysam.BGZFile(str(path), "w") as out:
        out.write(text.encode())
    return path.read_bytes()


def many(records=3000):
    return HEADER + COLUMNS + "".join(RECORD.replace("\t.\tT", f"\tid{i}\tT") for i in range(records))


def random_bases(number):
    return "".join(random.Random(0).choices("ACGT", k=number))


def cut_between_blocks(path):
    path.write_bytes(bgzip(path, GOOD)[:-28])


def cut_inside(path):
    data = bgzip(path, many())
    path.write_bytes(data[: len(data) // 2])


def cut_gzip(path):
    data = gzip.compress(many().encode())
    path.write_bytes(data[: len(data) // 2])


BROKEN = {
    "bgzip cut between blocks": ("in.vcf.gz", cut_between_blocks, "cut off"),
    "bgzip cut inside a block": ("in.vcf.gz", cut_inside, "cut off"),
    "gzip cut": ("in.vcf.gz", cut_gzip, "in.vcf.gz"),
    "gzip table cut": ("in.tsv.gz", cut_gzip, "in.tsv.gz"),
    "bgzip table cut between blocks": ("in.tsv.gz", cut_between_blocks, "cut off"),
    "empty": ("in.vcf", lambda p: p.write_text(""), "in.vcf"),
    "empty table": ("in.tsv", lambda p: p.write_text(""), "in.tsv"),
    "no fileformat line": ("in.vcf", lambda p: p.write_text(COLUMNS + RECORD), "in.vcf"),
    "no columns line": ("in.vcf", lambda p: p.write_text(HEADER + RECORD), "in.vcf"),
    "text as VCF": ("in.vcf", lambda p: p.write_text("hello\nworld\n"), "in.vcf"),
    "random bytes as BCF": ("in.bcf", lambda p: p.write_bytes(os.urandom(500)), "in.bcf"),
    "position is a word": ("in.vcf", lambda p: p.write_text(GOOD.replace("41276135", "here")), "in.vcf"),
    "half a record": ("in.vcf", lambda p: p.write_text(GOOD + "17\t41276135\t.\tT"), "in.vcf"),
    "non-UTF-8 record": ("in.vcf", lambda p: p.write_bytes(GOOD.replace("\t.\n", "\tT=caf\xe9\n").encode("latin-1")),
                         "UTF-8"),
    "non-UTF-8 header": ("in.vcf", lambda p: p.write_bytes(GOOD.replace('"x"', '"\xe9"').encode("latin-1")), "UTF-8"),
    "folder": ("in.vcf", lambda p: p.mkdir(), "folder"),
    "folder as table": ("in.tsv", lambda p: p.mkdir(), "folder"),
    "absent": ("in.vcf", lambda p: None, "no such file"),
    "unknown suffix": ("in.docx", lambda p: p.write_text(GOOD), "in.docx"),
    "position 0 in a table": ("in.tsv", lambda p: p.write_text("chrom\tpos\tref\talt\n17\t0\tA\tC\n"), "row 1"),
    "short row": ("in.tsv", lambda p: p.write_text("chrom\tpos\tref\talt\n17\t5\tA\tC\n17\t5\n"), "row 2"),
    "no such columns": ("in.tsv", lambda p: p.write_text("a\tb\n1\t2\n"), "columns.contig"),
    "open quote": ("in.csv", lambda p: p.write_text('chrom,pos,ref,alt\n17,5,A,"C\n'), "quote"),
    "parquet that is none": ("in.parquet", lambda p: p.write_text("PAR1"), "in.parquet"),
}  # fmt: skip


def one_line(capsys, *words):
    err = capsys.readouterr().err
    assert err.count("\n") == 1, err
    assert "Traceback" not in err
    assert "bug" not in err
    for word in words:
        assert word in err
    return err


@pytest.mark.parametrize("case", BROKEN)
@pytest.mark.parametrize("suffix", [".vcf.gz", ".parquet"])
def test_broken_variants(binary_run, tmp_path, case, suffix, capfd):
    name, make, word = BROKEN[case]
    make(tmp_path / name)
    out = tmp_path / "out" / f"o{suffix}"
    assert predict(binary_run, tmp_path / name, out) == 3
    one_line(capfd, word)
    assert not out.exists()


def cut_stream(path):
    return bgzip(path, many())[:-28]


def test_a_pipe_that_stops_early(binary_run, tmp_path):
    arguments = ["--ckpt", str(binary_run), "--variants", "-", "--fasta", str(BRCA1.fasta), "--gff",
                 str(BRCA1.annotation), "--device", "cpu", "--out", str(tmp_path / "o.vcf")]  # fmt: skip
    for data, word in ((cut_stream(tmp_path / "x"), b"cut off"), (b"", b"no bytes")):
        done = subprocess.run([sys.executable, "-m", "seqkit", "predict", *arguments], input=data, capture_output=True)
        assert done.returncode == 3
        assert word in done.stderr
        assert not (tmp_path / "o.vcf").exists()


FINE = {
    "plain gzip": ("in.vcf.gz", lambda p: p.write_bytes(gzip.compress(GOOD.encode()))),
    "several gzip members": ("in.tsv.gz", lambda p: p.write_bytes(
        gzip.compress(b"chrom\tpos\tref\talt\n") + gzip.compress(b"17\t41276135\tT\tG\n"))),
    "CRLF": ("in.vcf", lambda p: p.write_bytes(GOOD.replace("\n", "\r\n").encode())),
    "CRLF bgzip": ("in.vcf.gz", lambda p: bgzip(p, GOOD.replace("\n", "\r\n"))),
    "CRLF table": ("in.tsv", lambda p: p.write_bytes(b"chrom\tpos\tref\talt\r\n17\t41276135\tT\tG\r\n")),
    "no end of line at the end": ("in.vcf", lambda p: p.write_text(GOOD.rstrip("\n"))),
    "no contigs": ("in.vcf", lambda p: p.write_text(GOOD.replace("##contig=<ID=17,length=81195210>\n", ""))),
    "duplicate contigs": ("in.vcf", lambda p: p.write_text("##fileformat=VCFv4.2\n" + 2 * "##contig=<ID=17>\n" +
                                                           COLUMNS + RECORD)),
    "REF in lower case": ("in.vcf", lambda p: p.write_text(GOOD.replace("\tT\tG", "\tt\tg"))),
    "byte order mark": ("in.tsv", lambda p: p.write_bytes(b"\xef\xbb\xbfchrom\tpos\tref\talt\n17\t41276135\tT\tG\n")),
    "non-UTF-8 table": ("in.tsv", lambda p: p.write_bytes(b"chrom\tpos\tref\talt\tn\n17\t41276135\tT\tG\tcaf\xe9\n")),
}  # fmt: skip


@pytest.mark.parametrize("case", FINE)
def test_odd_but_readable_variants(binary_run, tmp_path, case, capfd):
    name, make = FINE[case]
    make(tmp_path / name)
    out = tmp_path / ("o.vcf" if ".vcf" in name else "o.tsv")
    assert predict(binary_run, tmp_path / name, out) == 0
    line = [text for text in out.read_bytes().splitlines() if not text.startswith(b"##")][1]
    assert b"OK" in line
    assert b"41276135" in line
    if case == "non-UTF-8 table":
        assert b"\tcaf\xe9\t" in line
    assert "[W::" not in capfd.readouterr().err


STATUS = {
    "IUPAC REF": (RECORD.replace("\tT\t", "\tR\t"), "N_IN_WINDOW"),
    "position 0": (RECORD.replace("41276135", "0"), "CONTIG_MISSING"),
    "beyond the end": (RECORD.replace("41276135", "99999999"), "CONTIG_MISSING"),
    "wrong REF": (RECORD.replace("T\tG", "A\tG"), "REF_MISMATCH"),
    "telomere REF": (RECORD.replace("41276135", "0").replace("\tT\t", "\tN\t"), "N_IN_WINDOW"),
}


@pytest.mark.parametrize("case", STATUS)
def test_records_that_cannot_be_scored_say_why(binary_run, tmp_path, case):
    record, status = STATUS[case]
    (tmp_path / "in.vcf").write_text(GOOD + record)
    assert predict(binary_run, tmp_path / "in.vcf", tmp_path / "o.vcf", "--max-mismatch", "1") == 0
    line = (tmp_path / "o.vcf").read_text().splitlines()[-1]
    assert f"SKSTAT={status}" in line
    assert "SKPROB=.;" in line


FASTA = {
    "empty": ("r.fa", lambda p: p.write_text("")),
    "header alone": ("r.fa", lambda p: p.write_text(">")),
    "duplicate contigs": ("r.fa", lambda p: p.write_text(">17\nACGT\n>17\nACGT\n")),
    "folder": ("r.fa", lambda p: p.mkdir()),
    "absent": ("r.fa", lambda p: None),
    "cut bgzip": ("r.fa.gz", lambda p: p.write_bytes(bgzip(p, ">17\n" + random_bases(99_000) + "\n")[:9000])),
    "VCF": ("r.fa", lambda p: p.write_text(GOOD)),
}


@pytest.mark.parametrize("case", FASTA)
def test_broken_references(binary_run, tmp_path, case, capfd, monkeypatch):
    monkeypatch.setenv("SEQKIT_CACHE", str(tmp_path / "cache"))
    name, make = FASTA[case]
    make(tmp_path / name)
    (tmp_path / "in.vcf").write_text(GOOD)
    assert predict(binary_run, tmp_path / "in.vcf", tmp_path / "o.vcf", fasta=tmp_path / name) == 3
    one_line(capfd, name)
    assert not (tmp_path / "o.vcf").exists()


def test_the_wrong_assembly_is_named(binary_run, tmp_path, capfd):
    (tmp_path / "in.vcf").write_text(
        GOOD.replace("81195210", "83257441") + "".join(RECORD.replace("41276135", str(43124118 + i)) for i in range(60))
    )
    assert predict(binary_run, tmp_path / "in.vcf", tmp_path / "o.vcf") == 4
    assert "GRCh38" in one_line(capfd, "REF")
    assert not (tmp_path / "o.vcf").exists()


def test_mismatches_that_come_late_write_nothing(binary_run, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr("seqkit.commands.predict.SCANNED", 1)
    monkeypatch.setattr("seqkit.commands.predict.CHUNK", 2)
    (tmp_path / "in.vcf").write_text(GOOD + RECORD + 8 * RECORD.replace("T\tG", "A\tG"))
    assert predict(binary_run, tmp_path / "in.vcf", tmp_path / "o.vcf") == 4
    assert "REF_MISMATCH" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == [tmp_path / "in.vcf"]


def test_a_full_disk(binary_run, tmp_path):
    """A limit on the size of files stands for it: the same kind of error at the same calls."""
    lines = (RECORD.replace("\t.\tT", f"\t{random.getrandbits(128):x}\tT") for _ in range(6000))
    (tmp_path / "in.vcf").write_text(HEADER + COLUMNS + "".join(lines))
    code = (
        "import sys, resource; resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000));"
        "from seqkit import cli; raise SystemExit(cli.main(sys.argv[1:]))"
    )
    arguments = ["predict", "--ckpt", str(binary_run), "--variants", str(tmp_path / "in.vcf"), "--fasta",
                 str(BRCA1.fasta), "--gff", str(BRCA1.annotation), "--device", "cpu"]  # fmt: skip
    for name in ("o.vcf", "o.vcf.gz", "o.bcf", "o.parquet"):
        out = tmp_path / name
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments, "--out", str(out)], capture_output=True, text=True
        )
        assert done.returncode == 3, done.stderr
        assert len([x for x in done.stderr.splitlines() if x.startswith("seqkit predict: ")]) <= 2
        assert "bug" not in done.stderr
        assert not out.exists()


def test_a_folder_that_cannot_be_written(binary_run, tmp_path, capfd):
    (tmp_path / "in.vcf").write_text(GOOD)
    closed = tmp_path / "closed"
    closed.mkdir()
    closed.chmod(0o555)
    out = closed / "o.vcf" if os.geteuid() else "/proc/o.vcf"
    assert predict(binary_run, tmp_path / "in.vcf", out) == 3
    assert capfd.readouterr().err.splitlines()[-1].startswith(f"seqkit predict: {out}.partial")


class Evil:
    def __reduce__(self):
        return os.system, ("touch EVIL",)


@pytest.mark.parametrize("case", ["other task", "truncated", "pickle as run", "pickle as weights", "pickle as file"])
def test_checkpoints_that_are_not_ours(binary_run, tmp_path, case, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.vcf").write_text(GOOD)
    run = tmp_path / "run"
    shutil.copytree(binary_run, run)
    if case == "other task":
        (run / "model.json").write_text((run / "model.json").read_text().replace("variant-effect", "folding"))
    elif case == "truncated":
        (run / "model.safetensors").write_bytes((run / "model.safetensors").read_bytes()[:-100])
    elif case == "pickle as run":
        (run / "model.json").write_bytes(pickle.dumps(Evil()))
    elif case == "pickle as weights":
        (run / "model.safetensors").write_bytes(pickle.dumps(Evil()))
    else:
        run = tmp_path / "model.ckpt"
        run.write_bytes(pickle.dumps(Evil()))
    assert predict(run, tmp_path / "in.vcf", tmp_path / "o.vcf") == 3
    one_line(capfd, str(run) if case != "other task" else "folding")
    assert not (tmp_path / "EVIL").exists()
    assert not (tmp_path / "o.vcf").exists()
