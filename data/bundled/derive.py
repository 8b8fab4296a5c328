"""Make the derived files of the bundled BRCA1 set from the published table and the reference window.

``python -m seqkit.data.bundled.derive TABLE WINDOW OUT`` writes the indexed bgzip FASTA and the GFF3 into ``OUT``.

The annotation is read off the table's own ``transcript_variant`` column: ``c.134+5A>G`` says that the base five before
(BRCA1 lies on the minus strand) is coding base 134 and the last of its exon. Nothing else is known here, so exons 1 and
6 to 14, the upstream part of X15 and the downstream part of X23 are absent; their ends are marked as no splice sites.
"""

from __future__ import annotations

import argparse
import gzip
from pathlib import Path

import polars as pl

from seqkit.errors import InputError

CONTIG, OFFSET, GENE, TRANSCRIPT = "chr17", 41_100_000, "BRCA1", "BRCA1.sge"
HEADER = (
    "##gff-version 3",
    "#!genome-build GRCh37",
    "# Derived from the column transcript_variant of findlay2018.tsv.gz by seqkit.data.bundled.derive.",
    "# Covers the 13 exons of the experiment only: exon 1, exons 6 to 14, the upstream part of X15 and the",
    "# downstream part of X23 are absent. acceptor_site and donor_site say which exon ends are splice sites;",
    "# cds_position is the coding base (c. number) of the first base in reading direction.",
)


def exon_table(variants: pl.DataFrame) -> pl.DataFrame:
    """Exons of the experiment from the c. notation of its variants.

    Args:
        variants: Columns ``position (hg19)``, ``transcript_variant``, ``experiment``.

    Returns:
        One row an exon in reading direction: ``experiment``, ``start`` and ``end`` (0-based half-open), ``c_first``,
        ``c_last`` (c. numbers, negative in the 5' UTR), ``acceptor`` and ``donor`` (is the end a splice site).

    Raises:
        InputError: A notation is not understood, or position and c. number do not run in opposite directions.
    """
    parts = variants.select(
        "experiment",
        pl.col("position (hg19)").alias("pos"),
        pl.col("transcript_variant").str.extract(r"^c\.(-?\d+)", 1).cast(pl.Int64).alias("c"),
        pl.col("transcript_variant").str.extract(r"^c\.-?\d+([+-]\d+)", 1).cast(pl.Int64).fill_null(0).alias("off"),
    )
    if parts["c"].null_count():
        raise InputError("transcript_variant", expected="c. notation such as c.134+5A>G", got="a row without it")
    rows = []
    for (name,), block in parts.group_by("experiment", maintain_order=True):
        # Minus strand: position + c. number is constant in an exon (there is no c.0, which costs one before the start).
        anchors = block.select(
            (pl.col("pos") + pl.col("off") + pl.col("c") + (pl.col("c") < 0).cast(pl.Int64)).alias("sum")
        )
        if anchors["sum"].n_unique() != 1:
            raise InputError(str(name), expected="one exon on the minus strand", got="positions that do not line up")
        total = anchors["sum"][0]
        first, last = block["c"].min(), block["c"].max()
        rows.append(
            {
                "experiment": name,
                "start": total - last - (last < 0) - 1,
                "end": total - first - (first < 0),
                "c_first": first,
                "c_last": last,
                "acceptor": bool((block["off"] < 0).any()),
                "donor": bool((block["off"] > 0).any()),
            }
        )
    return pl.DataFrame(rows).sort("c_first")


def gff_lines(exons: pl.DataFrame) -> list[str]:
    """GFF3 lines of gene, transcript, exons and coding parts; phases follow from the c. numbers."""
    low, high = exons["start"].min() + 1, exons["end"].max()
    note = f"gene_name={GENE};note=partial: only the exons of the experiment"

    def line(kind: str, start: int, end: int, phase: str, attributes: str) -> str:
        return f"{CONTIG}\tderived\t{kind}\t{start}\t{end}\t.\t-\t{phase}\t{attributes}"

    lines = [*HEADER, f"##sequence-region {CONTIG} {OFFSET + 1} {OFFSET + 200_000}"]
    lines.append(line("gene", low, high, ".", f"ID=gene:{GENE};gene_id={GENE};{note}"))
    lines.append(line("mRNA", low, high, ".", f"ID={TRANSCRIPT};Parent=gene:{GENE};transcript_id={TRANSCRIPT};{note}"))
    for row in exons.iter_rows(named=True):
        sites = f"acceptor_site={'yes' if row['acceptor'] else 'no'};donor_site={'yes' if row['donor'] else 'no'}"
        name = f"ID={TRANSCRIPT}.{row['experiment']};Parent={TRANSCRIPT}"
        lines.append(line("exon", row["start"] + 1, row["end"], ".", f"{name};{sites}"))
        coding = max(row["c_first"], 1)
        utr = -row["c_first"] if row["c_first"] < 0 else 0
        phase = -(coding - 1) % 3
        lines.append(
            line(
                "CDS",
                row["start"] + 1,
                row["end"] - utr,
                str(phase),
                f"ID={TRANSCRIPT}.cds;Parent={TRANSCRIPT};cds_position={coding}",
            )
        )
    return lines


def write_fasta(bases: str, path: Path, offset: int = OFFSET) -> None:
    """Write a piece of the contig as an indexed bgzip FASTA whose record name carries the offset; the soft mask stays.

    Args:
        bases: The letters.
        path: The file, named ``*.gz``.
        offset: 0-based position of the first base on the contig.
    """
    import pysam

    name = f"{CONTIG}:{offset + 1}-{offset + len(bases)}"
    with pysam.BGZFile(str(path), "w") as out:
        out.write(f">{name}\n".encode())
        for i in range(0, len(bases), 60):
            out.write(bases[i : i + 60].encode() + b"\n")
    pysam.faidx(str(path))


def main() -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", type=Path)
    parser.add_argument("window", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    variants = pl.read_csv(args.table, separator="\t", infer_schema_length=None)
    (args.out / "brca1_hg19.gff3").write_text("\n".join(gff_lines(exon_table(variants))) + "\n")
    with gzip.open(args.window, "rt") as handle:
        write_fasta(handle.read().strip(), args.out / "brca1_hg19.fa.gz")


if __name__ == "__main__":
    main()
