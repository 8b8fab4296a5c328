"""``seqkit embed``: mean hidden states along whole chromosomes, in memory that does not grow with them."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

import seqkit
from seqkit.backbones import Backbone
from seqkit.commands.arguments import parse
from seqkit.commands.backbone import open_backbone
from seqkit.commands.trainer import torch_device
from seqkit.commands.variant_output import say
from seqkit.data.fasta import Fasta
from seqkit.data.genome import Interval
from seqkit.data.partial import PartialParquet
from seqkit.data.selection import read_regions
from seqkit.errors import ConfigError, InputError
from seqkit.inference.embed import Bins, bin_means
from seqkit.inference.score import progress_bar
from seqkit.inference.stream import PIECE, SPILL_PREFIX, Streamed, stream, stream_both_sides
from seqkit.inference.stream_state import StreamState, fingerprint, load_state, save_state
from seqkit.tokenizers.dna import DNATokenizer, Token

SAVED_S = 10.0
"""Time between states that a causal model can resume from within a contig."""
ROWS = 4096
"""Bins written at once."""


@dataclass(frozen=True, kw_only=True)
class EmbedConfig:
    """What to embed, with what, and where the result goes.

    Attributes:
        ckpt: Run folder of ``fit --task pretrain``, or a folder with a saved backbone.
        model: Preset or YAML file of a model with random weights, in place of ckpt.
        fasta: Reference: plain, bgzip or gzip.
        out: Parquet file: contig, start, end (0-based half-open), known (share of A, C, G, T), embedding.
        regions: Only these stretches, each read on its own: chr17:1-1,000 (several with spaces), chr17, or a BED file.
        bin: Bases that are averaged; the last bin of a contig may hold fewer.
        device: auto, cpu, cuda or cuda:N.
        precision: float32 or bfloat16.
        seed: Of random weights.
    """

    ckpt: str | None = None
    model: str | None = None
    fasta: str | None = None
    out: str | None = None
    regions: str | None = None
    bin: int = 1000
    device: str = "auto"
    precision: str = "float32"
    seed: int = 0

    def __post_init__(self):
        if self.bin < 1:
            raise ConfigError("--bin", expected="at least 1 base", got=str(self.bin))
        if self.precision not in ("float32", "bfloat16"):
            raise ConfigError("--precision", expected="float32 or bfloat16", got=self.precision)


def run(argv: Sequence[str]) -> int:
    """Embed contigs or regions and write all of their bins."""
    config, own, _ = parse("seqkit embed", EmbedConfig, argv, flags=("resume",))
    for name in ("fasta", "out"):
        if not getattr(config, name):
            raise ConfigError(f"--{name}", expected="a file", got="none")
    if Path(config.out).suffix not in (".parquet", ".pq"):
        raise ConfigError("--out", expected="a name that ends in .parquet", got=config.out)
    model = open_backbone(config.ckpt, config.model, config.seed)
    model.to(device=torch_device(config.device), dtype=getattr(torch, config.precision))
    fasta = Fasta(config.fasta)
    spans = chosen_spans(fasta, config.regions)
    place = PartialParquet(Path(config.out), identity(config, model, fasta), resume=own["resume"])
    for left in place.folder.glob(f"{SPILL_PREFIX}*"):  # of a run that was killed
        shutil.rmtree(left)
    bases = sum(map(len, spans))
    with progress_bar("embedding", bases) as advance:
        embed_spans(Embedding(model, fasta, config.bin, place), spans, advance)
    place.finish({"seqkit": seqkit.__version__, "model": fingerprint(model), "fasta": fasta.path.name})
    say(f"{bases:,} bases of {len(spans)} stretches; written to {config.out}")
    return 0


def chosen_spans(fasta: Fasta, regions: str | None) -> list[Interval]:
    """Stretches to read, in file order: what the file holds of the regions, or all records.

    Raises:
        InputError: Nothing of the regions lies in the file.
    """
    records = [Interval(record.contig, record.start, record.end) for record in fasta.records if record.length]
    if regions is None:
        return records
    chosen, spans = read_regions(regions), []
    for record in records:
        for start, end in chosen.spans(record.contig):
            if start < record.end and record.start < end:
                spans.append(Interval(record.contig, max(start, record.start), min(end, record.end)))
    if not spans:
        raise InputError("--regions", expected=f"stretches of {fasta.path.name}", got=f"{regions!r}, which has none")
    return spans


@dataclass(frozen=True)
class Embedding:
    """What every stretch is embedded with.

    Attributes:
        model: Backbone on its device.
        fasta: The reference.
        width: Bases in a bin.
        place: Where rows go.
    """

    model: Backbone
    fasta: Fasta
    width: int
    place: PartialParquet

    def results(self, span: Interval, state: StreamState | None) -> Iterator[Streamed]:
        """The stretch through the model, from a state on."""
        start = span.start + (0 if state is None else state.position)
        if self.model.is_causal:
            return stream(self.model, self._chunks(span, start), state=state)
        return stream_both_sides(self.model, self._chunks(span, start), folder=self.place.folder)

    def _chunks(self, span: Interval, start: int) -> Iterator[np.ndarray]:
        # Whole bins at a time: the stream's pieces then end where bins do, and a state found there can be resumed from.
        size = max(PIECE // self.width, 1) * self.width
        for low in range(start, span.end, size):
            yield DNATokenizer().encode(self.fasta.fetch_array(span.contig, low, min(low + size, span.end)))

    def frame(self, span: Interval, bins: Bins) -> pl.DataFrame:
        """Rows of some bins."""
        values = bins.means[0].cpu().numpy()
        start = span.start + bins.start + self.width * np.arange(len(values))
        end = np.minimum(start + self.width, span.end)
        ids = DNATokenizer().encode(self.fasta.fetch_array(span.contig, int(start[0]), int(end[-1])))
        known = ((ids >= Token.A) & (ids <= Token.T)).astype(np.int64)
        known = np.add.reduceat(known, start - start[0]) / (end - start)
        return pl.DataFrame({
            "contig": pl.Series([span.contig] * len(values), dtype=pl.String), "start": start, "end": end,
            "known": known.astype(np.float32),
            "embedding": pl.Series(values, dtype=pl.Array(pl.Float32, values.shape[1])),
        })  # fmt: skip


def embed_spans(embedding: Embedding, spans: Sequence[Interval], advance) -> None:
    """Append the rows of all stretches behind those that are there already."""
    place, model = embedding.place, embedding.model
    first, saved = place.progress.get("span", 0), place.progress.get("state")
    advance(sum(map(len, spans[:first])))
    for number in range(first, len(spans)):
        state = load_state(place.folder / saved, model) if saved else None
        advance(0 if state is None else state.position)
        waiting, rows, saved_at = [], 0, time.monotonic()
        for bins in bin_means(embedding.results(spans[number], state), embedding.width, model.config.d_model):
            frame = embedding.frame(spans[number], bins)
            waiting, rows = [*waiting, frame], rows + len(frame)
            advance(int(frame["end"][-1] - frame["start"][0]))
            due = bins.state is not None and time.monotonic() - saved_at >= SAVED_S
            if due or rows >= ROWS:
                place.append(pl.concat(waiting))
                waiting, rows = [], 0
            if due:
                saved, saved_at = keep_state(place, number, bins.state, model, saved), time.monotonic()
        if waiting:
            place.append(pl.concat(waiting))
        place.save({"span": number + 1}, now=True)
        saved = forget_state(place, saved)


def keep_state(place: PartialParquet, number: int, state: StreamState, model: Backbone, before: str | None) -> str:
    """Save the state beside the rows that it belongs to; the one before goes when the progress names the new one."""
    name = f"state-{number}-{state.position}"
    save_state(place.folder / name, state, model)
    place.save({"span": number, "state": name}, now=True)
    forget_state(place, before)
    return name


def forget_state(place: PartialParquet, name: str | None) -> None:
    """Remove a saved state."""
    if name is not None:
        (place.folder / name).unlink(missing_ok=True)


def identity(config: EmbedConfig, model: Backbone, fasta: Fasta) -> dict[str, Any]:
    """Everything that decides the output, for a resume to compare."""
    return {
        "--fasta": fasta.digest(), "--ckpt": fingerprint(model), "--regions": config.regions, "--bin": config.bin,
        "--device": next(model.parameters()).device.type, "seqkit": seqkit.__version__,
    }  # fmt: skip
