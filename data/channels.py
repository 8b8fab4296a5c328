"""Annotation of every base of a window as input channels. Legend: B windows, W window length, C channels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from seqkit.data.regions import Annotation
from seqkit.data.transcripts import TranscriptGeometry, find_span
from seqkit.data.windows import VariantWindows

CHANNELS = ("codon_1", "codon_2", "codon_3", "exon", "intron", "gene_same_strand", "gene_other_strand")
"""Place in the codon (of the gene's own direction), exon, intron, and on which strand the gene lies as it is read."""

COMPLEMENT_ORDER = (0, 1, 2, 3, 4, 6, 5)
"""Order of the channels on the other strand: reverse the positions and take the channels in this order."""


def base_channels(
    annotation: Annotation, contigs: Sequence[str], source_BW: np.ndarray, forward_B: np.ndarray
) -> np.ndarray:
    """Channels of bases at given positions.

    Args:
        annotation: One transcript a gene; where genes overlap a base has the channels of both.
        contigs: Contig of each window.
        source_BW: int64 positions (0-based); any order.
        forward_B: Boolean, True where the window is read on the plus strand.

    Returns:
        uint8 of shape (B, W, C), 0 or 1, in the order of :data:`CHANNELS`.
    """
    channels_BWC = np.zeros((*source_BW.shape, len(CHANNELS)), dtype=np.uint8)
    if not source_BW.size:
        return channels_BWC
    low_B, high_B = source_BW.min(axis=1), source_BW.max(axis=1)
    names = np.array(contigs, dtype=object)
    for contig in dict.fromkeys(names.tolist()):
        members = np.flatnonzero(names == contig)
        for transcript in annotation.on(contig):
            geometry = TranscriptGeometry(transcript)
            start, end = geometry.extent
            rows = members[(low_B[members] < end) & (high_B[members] >= start)]
            if len(rows):
                _mark(channels_BWC, rows, source_BW, forward_B, geometry)
    return channels_BWC


def window_channels(
    annotation: Annotation, contigs: Sequence[str], windows: VariantWindows, forward_B: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Channels of both windows, each uint8 of shape (B, W, C).

    The alternate window carries the annotation of the reference bases it is made of: downstream of a frameshift the
    codon channels still show the reference's frame. Inserted bases have no place in a codon and are otherwise like the
    base before them.
    """
    ref_BWC = base_channels(annotation, contigs, windows.ref_source_BW, forward_B)
    changed_B = (windows.alt_source_BW != windows.ref_source_BW).any(axis=1)
    alt_BWC = ref_BWC.copy()
    rows = np.flatnonzero(changed_B)
    if len(rows):
        chosen = [contigs[row] for row in rows]
        alt_BWC[rows] = base_channels(annotation, chosen, windows.alt_source_BW[rows], forward_B[rows])
        alt_BWC[..., :3][windows.inserted_BW] = 0
    return ref_BWC, alt_BWC


def _mark(
    channels_BWC: np.ndarray,
    rows: np.ndarray,
    source_BW: np.ndarray,
    forward_B: np.ndarray,
    geometry: TranscriptGeometry,
) -> None:
    q = geometry.read(source_BW[rows]).reshape(-1)
    shape = (len(rows), source_BW.shape[1])
    number = geometry.coding_number(q)
    exon, intron = find_span(q, geometry.exons)[1], find_span(q, geometry.introns)[1]
    inside = (q >= geometry.exons[0, 0]) & (q < geometry.exons[-1, 1]) | intron
    block = np.zeros((*shape, len(CHANNELS)), dtype=np.uint8)
    for phase in range(3):
        block[..., phase] = ((number > 0) & ((number - 1) % 3 == phase)).reshape(shape)
    block[..., 3], block[..., 4] = exon.reshape(shape), intron.reshape(shape)
    same_B = forward_B[rows] == (geometry.transcript.strand > 0)
    block[..., 5] = inside.reshape(shape) & same_B[:, None]
    block[..., 6] = inside.reshape(shape) & ~same_B[:, None]
    channels_BWC[rows] |= block
