"""Make the bundled piece of chromosome 17 from the text it was published as.

``python -m seqkit.data.bundled.derive_chr17 TEXT OUT`` writes the indexed bgzip FASTA into ``OUT``. The text is the
reverse complement of chr17:42,425,000-43,600,000 (1-based) of GRCh38, without a header.
"""

from __future__ import annotations

import argparse
import gzip
from pathlib import Path

from Bio.Seq import reverse_complement

from seqkit.data.bundled.derive import write_fasta

OFFSET = 42_424_999


def main(argv: list[str] | None = None) -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args(argv)
    with gzip.open(args.text, "rt") as handle:
        bases = "".join(handle.read().split())
    write_fasta(reverse_complement(bases), args.out / "chr17_hg38.fa.gz", OFFSET)


if __name__ == "__main__":
    main()
