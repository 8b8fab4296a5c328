"""Gene annotation from GFF3 and GTF, and intervals from BED, parsed with polars."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from seqkit.data.genome import canonical_contig
from seqkit.data.tables import plain_suffix, read_bytes
from seqkit.errors import InputError

_GFF_COLUMNS = ("contig", "source", "type", "start", "end", "score", "strand", "phase", "attributes")
_MANE = re.compile(r"MANE[_ ]Select")


@dataclass(frozen=True, slots=True)
class Exon:
    """One exon.

    Attributes:
        start: First base, 0-based.
        end: One past the last base.
        acceptor: Is the end that is read first a splice site?
        donor: Is the end that is read last a splice site?
    """

    start: int
    end: int
    acceptor: bool
    donor: bool


@dataclass(frozen=True, slots=True)
class CodingPart:
    """Coding bases of one exon.

    Attributes:
        start: First base, 0-based.
        end: One past the last base.
        position: Coding number (1-based, as in c. notation) of the base that is read first.
    """

    start: int
    end: int
    position: int


@dataclass(frozen=True)
class Transcript:
    """One transcript; exons and coding parts stand in reading order.

    Attributes:
        contig: Contig as the annotation writes it.
        strand: 1 or -1.
        transcript_id: Identifier.
        gene_id: Identifier of its gene.
        gene_name: Symbol, or the identifier where there is none.
        exons: At least one.
        coding: Empty for a non-coding transcript.
        mane_select: Tagged as MANE Select.
    """

    contig: str
    strand: int
    transcript_id: str
    gene_id: str
    gene_name: str
    exons: tuple[Exon, ...]
    coding: tuple[CodingPart, ...] = ()
    mane_select: bool = False

    @property
    def start(self) -> int:
        """First base on the contig, 0-based."""
        return min(exon.start for exon in self.exons)

    @property
    def end(self) -> int:
        """One past the last base on the contig."""
        return max(exon.end for exon in self.exons)

    @property
    def coding_length(self) -> int:
        """Number of coding bases."""
        return sum(part.end - part.start for part in self.coding)


@dataclass(frozen=True)
class Annotation:
    """Transcripts, one a gene, found by contig whatever alias is used."""

    transcripts: tuple[Transcript, ...]
    _by_contig: dict[str, list[Transcript]] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        for transcript in sorted(self.transcripts, key=lambda t: (t.start, t.end, t.transcript_id)):
            self._by_contig.setdefault(canonical_contig(transcript.contig), []).append(transcript)

    def on(self, contig: str) -> list[Transcript]:
        """Transcripts of a contig by start; empty where there are none."""
        return self._by_contig.get(canonical_contig(contig), [])


def read_annotation(path: str | Path) -> Annotation:
    """Read GFF3 or GTF, plain or compressed, and keep one transcript a gene.

    Of each gene the transcript tagged MANE Select is kept, else the one with most coding bases, then most exonic bases,
    then the first by name. Coding parts without exons (bacterial files) count as exons. In GTF the stop codon is joined
    to the coding part. Two attributes of an exon, ``acceptor_site`` and ``donor_site`` (yes or no), override the rule
    that every inner exon end is a splice site; ``cds_position`` of a coding part overrides its counted coding number
    (both are for annotations of which a part is missing).

    Raises:
        InputError: The file cannot be read, is no GFF3 or GTF, or holds no exon and no coding part.
    """
    path = Path(path)
    frame = _read_gff(path)
    style = "gtf" if plain_suffix(path) == ".gtf" or _looks_like_gtf(frame) else "gff3"
    parts, owners = _gtf_parts(frame) if style == "gtf" else _gff3_parts(frame)
    if parts.is_empty():
        raise InputError(str(path), expected="exon or CDS features", got=f"none among {frame.height} features")
    transcripts = [
        _transcript(key[0], group.to_dicts(), owners.get(key[0], {}))
        for key, group in parts.group_by("transcript", maintain_order=True)
    ]
    return Annotation(tuple(_choose(transcripts)))


def read_bed(path: str | Path) -> pl.DataFrame:
    """Read BED: columns ``contig``, ``start``, ``end`` (0-based half-open) and, where present, name, score, strand.

    Raises:
        InputError: The file cannot be read, or a row has no coordinates or ends before it starts.
    """
    path = Path(path)
    skipped = ("#", "track", "browser")
    lines = [line for line in _text_lines(path) if line.strip() and not line.startswith(skipped)]
    if not lines:
        raise InputError(str(path), expected="at least one interval", got="none")
    separator = "\t" if "\t" in lines[0] else " "
    frame = _csv("\n".join(lines), separator, str(path))
    names = ("contig", "start", "end", "name", "score", "strand")[: frame.width]
    frame = frame.select(frame.columns[: len(names)]).rename(dict(zip(frame.columns, names, strict=False)))
    if frame.width >= 3:
        frame = frame.with_columns(pl.col("start", "end").cast(pl.Int64, strict=False))
    if frame.width < 3 or frame.select((pl.col("end") < pl.col("start")).fill_null(True).any()).item():
        raise InputError(str(path), expected="BED rows: contig, start, end with end >= start", got="a row without")
    return frame


def _text_lines(path: Path) -> list[str]:
    if not path.is_file():
        raise InputError(str(path), expected="an annotation file", got="a folder" if path.is_dir() else "no such file")
    return read_bytes(path).decode("utf-8", "replace").splitlines()


def _csv(text: str, separator: str, label: str) -> pl.DataFrame:
    try:
        return pl.read_csv(
            io.BytesIO(text.encode()), separator=separator, has_header=False, quote_char=None, infer_schema=False
        )
    except pl.exceptions.PolarsError as error:
        raise InputError(label, expected="tab-separated rows", got=str(error).splitlines()[0]) from error


def _read_gff(path: Path) -> pl.DataFrame:
    lines = []
    for line in _text_lines(path):
        if line.startswith(("##FASTA", ">")):
            break
        if line and not line.startswith("#"):
            lines.append(line)
    frame = _csv("\n".join(lines), "\t", str(path)) if lines else pl.DataFrame()
    if frame.width != len(_GFF_COLUMNS):
        raise InputError(
            str(path), expected="GFF3 or GTF with nine tab-separated columns", got=f"{frame.width} columns"
        )
    frame = frame.rename(dict(zip(frame.columns, _GFF_COLUMNS, strict=True))).with_columns(
        pl.col("start", "end", "phase").cast(pl.Int64, strict=False)
    )
    if frame.select(pl.any_horizontal(pl.col("start", "end").is_null()).any()).item():
        raise InputError(str(path), expected="numbers in columns 4 and 5", got="a row without")
    # From here on 0-based half-open.
    return frame.with_columns(pl.col("start") - 1)


def _looks_like_gtf(frame: pl.DataFrame) -> bool:
    return bool(frame["attributes"].head(50).str.contains(r'^\s*\w+ "').any())


def _gff3(key: str) -> pl.Expr:
    return pl.col("attributes").str.extract(rf"(?:^|;)\s*{key}=([^;]+)", 1)


def _gtf(key: str) -> pl.Expr:
    return pl.col("attributes").str.extract(rf'(?:^|;)\s*{key} "([^"]*)"', 1)


def _gff3_parts(frame: pl.DataFrame) -> tuple[pl.DataFrame, dict[str, dict]]:
    named = frame.with_columns(
        _gff3("ID").alias("id"),
        _gff3("Parent").alias("parent"),
        pl.coalesce(_gff3("gene_name"), _gff3("gene"), _gff3("Name")).alias("name"),
    )
    parts = named.filter(pl.col("type").is_in(["exon", "CDS"])).with_columns(
        pl.coalesce("parent", "id").str.split(",").alias("transcript"),
        _gff3("acceptor_site").alias("acceptor"),
        _gff3("donor_site").alias("donor"),
        _gff3("cds_position").cast(pl.Int64, strict=False).alias("position"),
    )
    holders = named.filter(pl.col("id").is_not_null() & ~pl.col("type").is_in(["exon", "CDS"]))
    rows = {row["id"]: row for row in holders.select("id", "parent", "name", "attributes").iter_rows(named=True)}
    owners = {}
    for key, row in rows.items():
        gene = row["parent"] or key
        above = rows.get(gene, row)
        owners[key] = {
            "gene_id": gene,
            "gene_name": above["name"] or row["name"],
            "mane": bool(_MANE.search(row["attributes"])),
        }
    return parts.explode("transcript"), owners


def _gtf_parts(frame: pl.DataFrame) -> tuple[pl.DataFrame, dict[str, dict]]:
    named = frame.with_columns(
        _gtf("transcript_id").alias("transcript"),
        _gtf("gene_id").alias("gene_id"),
        _gtf("gene_name").alias("name"),
        _gtf("acceptor_site").alias("acceptor"),
        _gtf("donor_site").alias("donor"),
        _gtf("cds_position").cast(pl.Int64, strict=False).alias("position"),
    ).filter(pl.col("transcript").is_not_null() & (pl.col("transcript") != ""))
    owners: dict[str, dict] = {}
    for row in named.select("transcript", "gene_id", "name", "attributes").iter_rows(named=True):
        owner = owners.setdefault(
            row["transcript"], {"gene_id": row["gene_id"], "gene_name": row["name"], "mane": False}
        )
        owner["mane"] = owner["mane"] or bool(_MANE.search(row["attributes"]))
    return named.filter(pl.col("type").is_in(["exon", "CDS", "stop_codon"])), owners


def _transcript(name: str, rows: list[dict], owner: dict) -> Transcript:
    strand = -1 if rows[0]["strand"] == "-" else 1
    ordered = sorted(rows, key=lambda row: strand * row["start"])
    coding = [row for row in ordered if row["type"] in ("CDS", "stop_codon")]
    exonic = [row for row in ordered if row["type"] == "exon"]
    coding = _joined(coding, strand)
    exonic = exonic or coding
    last = len(exonic) - 1
    exons = tuple(
        Exon(row["start"], row["end"], _flag(row["acceptor"], i > 0), _flag(row["donor"], i < last))
        for i, row in enumerate(exonic)
    )
    gene = owner.get("gene_id") or name
    return Transcript(
        rows[0]["contig"], strand, name, gene, owner.get("gene_name") or gene, exons, _numbered(coding),
        owner.get("mane", False),
    )  # fmt: skip


def _joined(coding: list[dict], strand: int) -> list[dict]:
    """Coding rows with the stop codon of GTF, and pieces that touch or overlap, merged into one."""
    merged: list[dict] = []
    for row in coding:
        last = merged[-1] if merged else None
        if last and row["type"] == "stop_codon" and row["start"] <= last["end"] and last["start"] <= row["end"]:
            last["start"], last["end"] = min(last["start"], row["start"]), max(last["end"], row["end"])
        else:
            merged.append(dict(row))
    return merged


def _flag(text: str | None, default: bool) -> bool:
    return default if text is None else text == "yes"


def _numbered(coding: list[dict]) -> tuple[CodingPart, ...]:
    """Count coding numbers; where the stated phase contradicts the count, skip to the next number that fits it."""
    parts, following = [], 1
    for row in coding:
        position = row["position"]
        if position is None:
            position, phase = following, row["phase"]
            while phase is not None and -(position - 1) % 3 != phase % 3:
                position += 1
        parts.append(CodingPart(row["start"], row["end"], position))
        following = position + row["end"] - row["start"]
    return tuple(parts)


def _choose(transcripts: Iterable[Transcript]) -> list[Transcript]:
    def rank(transcript: Transcript) -> tuple:
        exonic = sum(exon.end - exon.start for exon in transcript.exons)
        return (-transcript.mane_select, -transcript.coding_length, -exonic, transcript.transcript_id)

    best: dict[tuple[str, str], Transcript] = {}
    for transcript in transcripts:
        key = (transcript.contig, transcript.gene_id)
        if key not in best or rank(transcript) < rank(best[key]):
            best[key] = transcript
    return list(best.values())
