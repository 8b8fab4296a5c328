"""``seqkit predict``: score every allele of a file with a finished run."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import polars as pl

import seqkit
from seqkit.commands.arguments import parse
from seqkit.commands.dispatch import task_command
from seqkit.commands.haplotype_scores import formats, require_one_output, score_sample
from seqkit.commands.trained import load_trained
from seqkit.commands.trainer import torch_device
from seqkit.commands.variant_effect import ALIASES, FLAGS, largest_step
from seqkit.commands.variant_output import STDOUT, VariantOutput, output_format, say
from seqkit.commands.variant_scores import VariantScorer
from seqkit.data.feature_sources import ColumnSource, open_sources
from seqkit.data.haplotypes import Phased, sample_number, with_neighbours
from seqkit.data.reference_check import check_reference, contig_report, mismatch_error, wrong_share
from seqkit.data.selection import Shard, read_regions
from seqkit.data.stream import Chunk, Source, left_alone, open_source
from seqkit.data.variant_effect import VariantDataConfig
from seqkit.data.variants import VariantTable
from seqkit.errors import ConfigError
from seqkit.estimate.advice import within_memory
from seqkit.files import sha256
from seqkit.inference.score import progress_bar
from seqkit.tasks.export import WEIGHTS

OTHER_TASKS = {
    "anomaly": "seqkit.commands.anomaly",
    "forecast": "seqkit.commands.forecast_predict",
    "impute": "seqkit.commands.impute",
    "series-classify": "seqkit.commands.series_label_predict",
    "series-regress": "seqkit.commands.series_label_predict",
}
CHUNK = 8192
"""Most records scored and written at once; fewer where windows are longer than 1,024 bases."""
SCANNED = 100_000
REACH = 10_000
"""Bases beyond two windows within which a sample's other alleles, deletions among them, are looked for."""
_HEAD_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """What to score, with what, and where the result goes.

    Attributes:
        ckpt: Run folder of ``seqkit fit``.
        out: Result; TSV, CSV, Parquet, VCF or BCF by suffix; ``-`` for stdout.
        task: Checked against the checkpoint's.
        info_prefix: First letters of the INFO keys.
        regions: Only records whose POS lies inside: chr17:1-1,000 (several with spaces), chr17, or a BED file.
        shard: One of n runs of records that follow each other, as i/n; joined in order they are the whole.
        sample: Also score this sample's alleles on its own phased haplotypes, into FORMAT.
        device: auto, cpu, cuda or cuda:N.
        data: Variants and reference; windows, features and strand are those of the run.
    """

    ckpt: str | None = None
    out: str | None = None
    task: str | None = None
    info_prefix: str = "SK"
    regions: str | None = None
    shard: str | None = None
    sample: str | None = None
    device: str = "auto"
    data: VariantDataConfig = field(default_factory=VariantDataConfig)


INPUT_ALIASES = ("fasta", "variants", "gff", "columns", "sources", "circular", "max-mismatch", "batch-size", "workers")
PREDICT_ALIASES = {name: ALIASES[name] for name in INPUT_ALIASES} | {"info-prefix": "info_prefix"}


def run(argv: Sequence[str]) -> int:
    """Score a file and write all of its records, or hand over to the task of the checkpoint."""
    other = task_command("predict", argv, OTHER_TASKS)
    if other is not None:
        return other(list(argv))
    config, own, _ = parse("seqkit predict", PredictConfig, argv, aliases=PREDICT_ALIASES, flags=("resume", "norm"))
    check_arguments(config, own["resume"])
    trained = load_trained(config.ckpt, config.task)
    trained.task.to(torch_device(config.device))
    settings = trained.data_for(config.data)
    settings = replace(settings, norm=settings.norm or own["norm"])
    regions = read_regions(config.regions) if config.regions is not None else None
    source = open_source(config.data.variants, columns=config.data.columns, regions=regions)
    sample = chosen_sample(config, source, settings.norm)
    source.whole = source.kind == "vcf" and output_format(config.out, source) not in ("vcf", "vcf.gz", "bcf")
    features = open_sources(settings.features, settings.sources, source.columns())
    if source.kind == "vcf":
        source.keep = tuple(s.column for s in features.values() if isinstance(s, ColumnSource))
    scorer = VariantScorer(trained, settings, sources=features)
    size = source.chunk_records(max(min(CHUNK, 64), CHUNK * 1024 // max(1024, settings.window)))
    start, stop = Shard.parse(config.shard).range(source.count()) if config.shard else (0, None)
    chunks, waiting = scan(source, scorer, size, start, stop)
    output = VariantOutput(
        config.out,
        source,
        columns=scorer.columns,
        fasta=scorer.fasta,
        notes=provenance(config, scorer),
        prefix=config.info_prefix,
        identity=identity(config, settings, scorer) if config.out != STDOUT else {},
        resume=own["resume"],
        formats=formats(config.info_prefix) if sample is not None else (),
    )
    done = output.progress.get("records", 0)
    scorer.counts.update(output.progress.get("counts", {}))
    if done:
        say(f"seqkit predict: going on after record {start + done:,}")
    step = largest_step(trained.task.net.sequence.backbone.config, settings, "32-true", training=False)
    flags = {"batch": FLAGS["batch"]}
    with within_memory(step, torch_device(config.device), "--batch-size", flags, fixed_model=True):
        if sample is not None:
            # What is carried before the first record to score matters too: the file is read from its beginning.
            chunks = chunks if waiting else source.chunks(size)
            score_haplotypes(with_neighbours(chunks, sample, 2 * settings.window + REACH), scorer, output, sample, done)
        else:
            chunks = chunks if waiting else source.chunks(size, start=start + done, stop=stop)
            score_chunks(chunks, scorer, output, done)
    share = wrong_share(scorer.counts)
    if share > settings.max_mismatch:
        output.discard()
        raise mismatch_error(scorer.counts, scorer.fasta, settings.max_mismatch)
    output.finish()
    counts = ", ".join(f"{name} {count}" for name, count in scorer.counts.items())
    say(f"{sum(scorer.counts.values())} alleles: {counts or 'none'}; written to {config.out}")
    return 0


def check_arguments(config: PredictConfig, resume: bool) -> None:
    """Refuse what cannot work before anything is opened."""
    if not config.out:
        raise ConfigError("--out", expected="a file to write, or -", got="none")
    if config.data.variants is None:
        raise ConfigError("--variants", expected="a file to score, or -", got="none")
    if resume and config.out == STDOUT:
        raise ConfigError("--resume", expected="an output file", got="--out -", remedy="Name a file.")
    if config.shard:
        Shard.parse(config.shard)
        if config.data.variants == "-":
            raise ConfigError("--shard", expected="--variants FILE, whose records can be counted", got="a pipe")


def scan(
    source: Source, scorer: VariantScorer, size: int, start: int, stop: int | None
) -> tuple[Iterator[Chunk], bool]:
    """Meet the reference before any work: contigs, lengths, and REF at the first alleles.

    A file is opened again afterwards; the chunks of a pipe are kept and given back.

    Returns:
        All chunks, and whether they are those of a pipe.

    Raises:
        ReferenceMismatchError: REF disagrees at more than ``max_mismatch`` of the alleles seen.
    """
    pipe = getattr(source, "_stream", None) is not None
    chunks, kept, alleles = source.chunks(size, start=start, stop=stop), [], 0
    limit = size if pipe else SCANNED
    for chunk in chunks:
        kept.append(chunk)
        alleles += len(chunk.table)
        if not pipe:
            kept[-1] = chunk.table
        if alleles >= limit:
            break
    tables = [chunk.table for chunk in kept] if pipe else kept
    if tables:
        table = joined(tables)
        lengths = getattr(source, "contig_lengths", {})
        check_reference(table, scorer.fasta, max_mismatch=scorer.config.max_mismatch, header_lengths=lengths)
        for line in contig_report(table, scorer.fasta, lengths):
            say(f"seqkit predict: {line}")
    return chain(kept, chunks) if pipe else iter(()), pipe


def joined(tables: Sequence[VariantTable]) -> VariantTable:
    """Alleles of several tables as one, without their records."""
    first = tables[0]
    alleles = pl.concat([table.alleles for table in tables])
    return VariantTable(alleles, first.records.clear(), first.path, first.kind, first.column_map)


def score_chunks(chunks: Iterator[Chunk], scorer: VariantScorer, output: VariantOutput, done: int) -> None:
    """Score and write chunk after chunk."""
    with progress_bar("scoring", None) as advance, left_alone():
        for chunk in chunks:
            output.write(chunk, scorer.score(chunk.table))
            done += chunk.size
            output.save(records=done, counts=dict(scorer.counts))
            advance(chunk.size)


def chosen_sample(config: PredictConfig, source: Source, norm: bool) -> int | None:
    """Number of the sample whose haplotypes are scored.

    Raises:
        ConfigError: It is not there, or input, output or other settings leave no room for it.
    """
    if config.sample is None:
        return None
    if source.kind != "vcf" or output_format(config.out, source) not in ("vcf", "vcf.gz", "bcf"):
        raise ConfigError("--sample", expected="VCF or BCF in and out, for genotypes and FORMAT", got="a table")
    if config.regions is not None or config.shard is not None:
        raise ConfigError(
            "--sample", expected="a whole file, since a haplotype's other variants count", got="--regions or --shard",
            remedy="Split the file by contig and score each.",
        )  # fmt: skip
    if norm:
        raise ConfigError(
            "--norm", expected="no --sample", got="both", remedy="Normalise first: bcftools norm -f ref.fa in.vcf.gz."
        )
    return sample_number(source.samples, config.sample)


def score_haplotypes(
    chunks: Iterator[Phased], scorer: VariantScorer, output: VariantOutput, sample: int, done: int
) -> None:
    """Score and write chunk after chunk, with the haplotypes of a sample."""
    require_one_output(scorer)
    with progress_bar("scoring", None) as advance, left_alone():
        for phased in chunks:
            if phased.chunk.first < done:
                continue
            frame, cells = score_sample(scorer, phased)
            output.write(phased.chunk, frame, cells, sample)
            done += phased.chunk.size
            output.save(records=done, counts=dict(scorer.counts))
            advance(phased.chunk.size)


def provenance(config: PredictConfig, scorer: VariantScorer) -> dict[str, str]:
    """What the header of the output says about how it was made."""
    arguments = [a for a in sys.argv[1:] if a not in ("--resume", "--debug")]
    return {
        "seqkit_version": seqkit.__version__,
        "seqkit_model": Path(config.ckpt).resolve().name,
        "seqkit_model_sha256": sha256(Path(config.ckpt) / WEIGHTS)[:16],
        "seqkit_reference": scorer.fasta.path.name,
        "seqkit_reference_digest": scorer.fasta.digest()[:40],
        "seqkit_indels": "left-normalised for scoring"
        if scorer.config.norm
        else "scored as given, not left-normalised",
        "seqkit_command": " ".join(["seqkit", *arguments]),
    }


def identity(config: PredictConfig, settings: VariantDataConfig, scorer: VariantScorer) -> dict[str, Any]:
    """Everything that decides the output's bytes, for a resume to compare."""
    names = ("features", "window", "strand", "max_n", "max_mismatch", "batch_size", "columns", "sources", "norm",
             "circular")  # fmt: skip
    return {
        "--variants": fingerprint(config.data.variants),
        "--fasta": scorer.fasta.digest(),
        "--gff": fingerprint(settings.gff) if settings.gff else None,
        "--ckpt": sha256(Path(config.ckpt) / WEIGHTS),
        "--regions": config.regions,
        "--shard": config.shard,
        "--sample": config.sample,
        "--info-prefix": config.info_prefix,
        "--device": str(scorer.trained.task.device.type),
        "settings": {name: asdict(settings)[name] for name in names},
        "seqkit": seqkit.__version__,
    }


def fingerprint(path: str) -> Mapping[str, Any]:
    """Size of a file and a checksum of its first MiB; a pipe has neither."""
    place = Path(path)
    if path == "-" or not place.is_file():
        return {"pipe": True}
    with place.open("rb") as handle:
        digest = hashlib.sha256(handle.read(_HEAD_BYTES)).hexdigest()
    return {"bytes": place.stat().st_size, "sha256_of_first_mib": digest}
