"""The workflows of ``examples/``: gathered records equal those of one run."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from seqkit.data import bundled
from seqkit.data.fasta import Fasta

pysam = pytest.importorskip("pysam")
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
BRCA1 = bundled.brca1()
REGIONS = ["17:1-41150000", "17:41150001-41200000", "17:41200001-41250000", "17:41250001-99000000"]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """400 single-base changes over the bundled reference, compressed and indexed."""
    path = tmp_path_factory.mktemp("source") / "in.vcf.gz"
    bases = Fasta(BRCA1.fasta).fetch("17", 41_100_000, 41_300_000).decode()
    with pysam.BGZFile(str(path), "w") as out:
        out.write(b"##fileformat=VCFv4.2\n##contig=<ID=17>\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n")
        for i in range(100, len(bases) - 100, 500):
            alt = {"A": "G", "G": "A", "C": "T", "T": "C"}[bases[i]]
            out.write(f"17\t{41_100_001 + i}\tv{i}\t{bases[i]}\t{alt}\t.\t.\t.\n".encode())
    pysam.tabix_index(str(path), preset="vcf")
    return path


def predict(run, source, out, *more):
    inputs = ["--variants", str(source), "--fasta", str(BRCA1.fasta), "--gff", str(BRCA1.annotation), "--device", "cpu"]
    command = [sys.executable, "-m", "seqkit", "predict", "--ckpt", str(run), *inputs, "--out", str(out), *more]
    subprocess.run(command, check=True, capture_output=True)


def records(path):
    """Fields with the status, and the scores."""
    with pysam.VariantFile(str(path)) as handle:
        found = [(str(r).split("SKPROB")[0], r.info["SKSTAT"], r.info["SKPROB"][0]) for r in handle]
    return [row[:2] for row in found], pytest.approx([row[2] for row in found], rel=1e-4)


def same(path, whole):
    texts, scores = records(path)
    return texts == whole[0] and scores.expected == whole[1]


@pytest.fixture(scope="module")
def whole(binary_run, source):
    out = source.parent / "whole.vcf.gz"
    predict(binary_run, source, out)
    return records(out)


def test_gathered_regions_are_the_whole(binary_run, source, whole, tmp_path):
    """What the Snakemake workflow runs, job by job."""
    parts = [tmp_path / f"{i}.vcf.gz" for i in range(len(REGIONS))]
    for region, part in zip(REGIONS, parts, strict=True):
        predict(binary_run, source, part, "--regions", region, "--resume")
    out = tmp_path / "all.vcf.gz"
    subprocess.run([sys.executable, str(EXAMPLES / "gather.py"), str(out), *map(str, parts)], check=True)
    assert len(whole[0]) == 400
    assert same(out, whole)
    with pysam.VariantFile(str(out)) as handle:
        assert sum(1 for _ in handle.fetch("17", 41_150_000, 41_200_000)) == 100


def test_the_snakemake_workflow_gives_the_records_of_one_run(binary_run, source, whole, tmp_path):
    snakemake = os.environ.get("SEQKIT_SNAKEMAKE") or shutil.which("snakemake")
    if snakemake is None:
        pytest.skip("Snakemake is not installed; SEQKIT_SNAKEMAKE may name it")
    settings = {"variants": source, "fasta": BRCA1.fasta, "ckpt": binary_run, "out": "scored.vcf.gz",
                "regions": ",".join(REGIONS), "python": sys.executable,
                "options": f"--device cpu --gff {BRCA1.annotation}"}  # fmt: skip
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({k: str(v) for k, v in settings.items()}))
    command = [
        snakemake,
        "-s",
        str(EXAMPLES / "snakemake" / "Snakefile"),
        "--cores",
        "2",
        "--configfile",
        "config.yaml",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert same(tmp_path / "scored.vcf.gz", whole)


def test_the_slurm_profile_and_the_environment_are_yaml():
    profile = yaml.safe_load((EXAMPLES / "snakemake" / "profiles" / "slurm" / "config.yaml").read_text())
    assert profile["executor"] == "slurm"
    assert "USR1" in profile["default-resources"]["slurm_extra"]
    assert yaml.safe_load((EXAMPLES / "environment.yml").read_text())["name"] == "seqkit"
