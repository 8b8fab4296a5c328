"""How fast one process feeds training windows from an encoded genome, beside the same windows from the FASTA file.

``python -m seqkit.bench.genome --fasta hg38.fa``: million bases a second by window length, one JSON line each.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from seqkit.data import bundled
from seqkit.data.encoded import EncodedGenome, open_genome
from seqkit.data.fasta import Fasta
from seqkit.data.genome_windows import GenomeWindows
from seqkit.data.held_out import split_genome
from seqkit.tokenizers.dna import DNATokenizer


def rate(take: Callable[[int], int], repeats: int) -> float:
    """Median of bases a second over ``repeats`` calls, each of which returns its number of bases."""
    found = []
    for turn in range(repeats):
        begun = time.perf_counter()
        bases = take(turn)
        found.append(bases / (time.perf_counter() - begun))
    return statistics.median(found)


def measure(genome: EncodedGenome, fasta: Fasta, length: int, bases: int, repeats: int) -> dict[str, float | int | str]:
    """Rates of both ways for windows of one length, in random order and on both strands."""
    windows = GenomeWindows(genome, split_genome(genome).train, length)
    count, tokenizer = max(1, bases // length), DNATokenizer()

    def mapped(turn: int) -> int:
        return windows.take(turn * count, count)["ids"].numel()

    def indexed(turn: int) -> int:
        start_N, bases_N, _ = windows.plan(0)
        total = 0
        for i in range(turn * count, turn * count + count):
            start, end = int(start_N[i % len(start_N)]), int(bases_N[i % len(start_N)])
            place = genome.where(start, start + end)
            total += len(tokenizer.encode(fasta.fetch(place.contig, place.start, place.end, soft_mask=True)))
        return total

    mapped(repeats)  # the file is then in the page cache for both
    return {
        "genome": genome.source, "bases": len(genome), "window": length, "windows_a_batch": count,
        "encoded_mbases_per_s": round(rate(mapped, repeats) / 1e6, 1),
        "fasta_mbases_per_s": round(rate(indexed, repeats) / 1e6, 2),
    }  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    """One JSON line a window length."""
    parser = argparse.ArgumentParser(prog="seqkit bench genome", description=__doc__.splitlines()[0])
    parser.add_argument("--fasta", type=Path, default=bundled.chr17().fasta)
    parser.add_argument("--length", type=int, nargs="+", default=[1024, 8192, 131_072, 1_048_576])
    parser.add_argument("--bases", type=int, default=1 << 22, help="bases of a batch")
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args(argv)
    begun = time.perf_counter()
    genome = open_genome(given.fasta)  # encoded first, where the cache does not hold it
    print(json.dumps({"genome": genome.source, "opened_s": round(time.perf_counter() - begun, 2)}), flush=True)
    for length in given.length:
        print(json.dumps(measure(genome, Fasta(given.fasta), length, given.bases, given.repeats)), flush=True)


if __name__ == "__main__":
    main()
