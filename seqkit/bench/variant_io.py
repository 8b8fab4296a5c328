"""Reading, annotating and writing a VCF without a model, beside pysam's own copy loop.

``python -m seqkit.bench.variant_io --records 1000000``: records a second of both, and how much memory grew.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import sys
import tempfile
import time
from pathlib import Path

import polars as pl

from seqkit.commands.predict import CHUNK
from seqkit.commands.variant_output import VariantOutput
from seqkit.data.fasta import Fasta
from seqkit.data.stream import left_alone, open_source

COLUMNS = {"prob": pl.Float64, "fwd": pl.Float64, "rc": pl.Float64, "status": pl.String}


def write_plain(path: Path, records: int, seed: int = 0) -> None:
    """A VCF of single-base changes, compressed where the name ends in .gz."""
    import pysam

    chance = random.Random(seed)
    header = (
        f"##fileformat=VCFv4.2\n##contig=<ID=chr1,length={records * 20 + 100}>\n"
        '##INFO=<ID=DP,Number=1,Type=Integer,Description="Depth">\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n'
    )
    with pysam.BGZFile(str(path), "wb") if path.suffix == ".gz" else path.open("wb") as out:
        out.write(header.encode())
        for i in range(records):
            ref, alt = chance.sample("ACGT", 2)
            quality, depth = chance.randint(1, 99), chance.randint(1, 99)
            out.write(f"chr1\t{20 * i + 5}\trs{i}\t{ref}\t{alt}\t{quality}\tPASS\tDP={depth}\n".encode())


def pysam_copy(source: Path, target: Path) -> float:
    """Seconds of pysam's copy loop."""
    import pysam

    begun = time.perf_counter()
    mode = {".gz": "wz", ".bcf": "wb", ".vcf": "w"}[target.suffix]
    with pysam.VariantFile(str(source)) as records, pysam.VariantFile(str(target), mode, header=records.header) as out:
        for record in records:
            out.write(record)
    return time.perf_counter() - begun


def our_path(source: Path, target: Path, fasta: Fasta) -> float:
    """Seconds of ours: read in chunks, four typed fields an allele, the partial output and its index."""
    begun = time.perf_counter()
    opened = open_source(str(source))
    output = VariantOutput(
        str(target), opened, columns=COLUMNS, fasta=fasta, notes={}, prefix="SK", identity={}, resume=False
    )
    done = 0
    with left_alone():
        for chunk in opened.chunks(opened.chunk_records(CHUNK)):
            n = len(chunk.table)
            scores = pl.DataFrame(
                {"prob": [0.123456] * n, "fwd": [None] * n, "rc": [0.123456] * n, "status": ["OK"] * n}, schema=COLUMNS
            )
            output.write(chunk, scores)
            done += chunk.size
            output.save(records=done)
    output.finish()
    return time.perf_counter() - begun


def intact(source: Path, target: Path) -> bool:
    """True where the output has the input's records in order, with every field but ours as it was."""
    import pysam

    with pysam.VariantFile(str(source)) as before, pysam.VariantFile(str(target)) as after:
        for one in before:
            other = next(after, None)
            if other is None or str(other).partition(";SK")[0] != str(one).rstrip("\n"):
                return False
        return next(after, None) is None


def peak_mib() -> float:
    """Largest resident size of this process so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def measure(records: int, suffix: str, repeats: int) -> dict[str, float | str | int]:
    """Records a second of both paths (best of ``repeats``, taken in turn), and memory."""
    with tempfile.TemporaryDirectory() as folder:
        source, ours, copied = (Path(folder) / f"{name}{suffix}" for name in ("in", "ours", "copy"))
        write_plain(source, records)
        (Path(folder) / "ref.fa").write_text(">chr1\nACGT\n")
        fasta = Fasta(Path(folder) / "ref.fa")
        before = peak_mib()
        times = [(our_path(source, ours, fasta), pysam_copy(source, copied)) for _ in range(repeats)]
        own, theirs = (min(column) for column in zip(*times, strict=True))
        return {
            "format": suffix, "records": records, "seqkit_records_per_s": round(records / own),
            "pysam_copy_records_per_s": round(records / theirs), "share_of_copy": round(theirs / own, 3),
            "intact": intact(source, ours), "peak_before_mib": round(before), "peak_after_mib": round(peak_mib()),
        }  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    """One JSON line a format."""
    parser = argparse.ArgumentParser(prog="python -m seqkit.bench.variant_io", description=__doc__)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args(argv)
    for suffix in (".vcf.gz", ".vcf"):
        print(json.dumps(measure(given.records, suffix, given.repeats)), flush=True)


if __name__ == "__main__":
    main()
