"""From the settings of a pretraining run to its genome, its parts and its windows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from seqkit.data import bundled
from seqkit.data.encoded import EncodedGenome, open_genome
from seqkit.data.genome_windows import GenomeWindows
from seqkit.data.held_out import GenomeSplit, Span, split_genome
from seqkit.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class GenomeDataConfig:
    """A genome, what of it is held out, and its windows.

    Attributes:
        fasta: FASTA (plain, bgzip or gzip) or an encoded genome (``*.skgenome``); by default the bundled piece of
            human chromosome 17.
        held_out: Regions that no training window touches: ``chr20:53025521-63025520`` (1-based, several separated by
            spaces), a BED file, or a share such as 0.1 (the end of every contig). Left out: a contig of 2 to 10 % of
            all bases, every twentieth of many small contigs, or the last 5 % of every contig.
        exclude: Regions or a BED file that are used for neither.
        max_n: Largest share of unknown bases in a training window.
        reverse_complement: Whether half of the training windows are read on the other strand.
    """

    fasta: str | None = None
    held_out: str | None = None
    exclude: str | None = None
    max_n: float = 0.1
    reverse_complement: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.max_n <= 1:
            raise ConfigError("data.max_n", expected="a share from 0 to 1", got=str(self.max_n))

    def resolved(self) -> GenomeDataConfig:
        """The same with the bundled genome filled in."""
        return self if self.fasta else replace(self, fasta=str(bundled.chr17().fasta))


class GenomeData(NamedTuple):
    """An opened genome with its parts.

    Attributes:
        config: The settings, the bundled genome filled in.
        genome: The encoded genome.
        split: Its parts.
    """

    config: GenomeDataConfig
    genome: EncodedGenome
    split: GenomeSplit

    def windows(self, length: int, seed: int) -> GenomeWindows:
        """Training windows of one length."""
        return GenomeWindows(
            self.genome, self.split.train, length, seed=seed,
            max_n=self.config.max_n, reverse_complement=self.config.reverse_complement,
        )  # fmt: skip


def load_genome(config: GenomeDataConfig) -> GenomeData:
    """Open and divide the genome of a run.

    Raises:
        InputError: The file cannot be read.
        ConfigError: A region lies elsewhere, or a part is empty.
    """
    config = config.resolved()
    genome = open_genome(config.fasta)
    return GenomeData(config, genome, split_genome(genome, config.held_out, config.exclude))


def whole_genome(config: GenomeDataConfig) -> GenomeData:
    """Open a genome of which everything is measured and nothing learnt."""
    genome = open_genome(config.fasta)
    spans = tuple(Span(one.offset, one.offset + one.length) for one in genome.stretches)
    return GenomeData(config, genome, GenomeSplit((), spans, f"all of {genome.source}"))
