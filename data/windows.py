"""Reference and alternate windows around variants. Legend: B windows, W window length."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from seqkit.data.fasta import Fasta
from seqkit.data.genome import trim_alleles
from seqkit.data.sites import Sites, clusters
from seqkit.errors import InputError
from seqkit.tokenizers.dna import DNATokenizer

_READ_SPAN = 1 << 22
_TOKENIZER = DNATokenizer()
_N_ID = int(_TOKENIZER.encode("N")[0])


@dataclass(frozen=True)
class VariantWindows:
    """Windows of both alleles, read in the direction of each variant's strand.

    Attributes:
        ref_ids_BW: uint8 tokens of the reference.
        alt_ids_BW: uint8 tokens with the alternate allele in place.
        centre_B: int64 index of the first base that differs, in reading direction; the same in both windows.
        ref_source_BW: int64 genomic position of every reference token (0-based).
        alt_source_BW: The same for alternate tokens; inserted bases carry the position of the base before them.
        inserted_BW: bool, True at alternate tokens that have no place of their own on the reference.
    """

    ref_ids_BW: np.ndarray
    alt_ids_BW: np.ndarray
    centre_B: np.ndarray
    ref_source_BW: np.ndarray
    alt_source_BW: np.ndarray
    inserted_BW: np.ndarray


def build_windows(
    sites: Sites, fasta: Fasta, indices: np.ndarray, length: int, *, centre: int | None = None
) -> VariantWindows:
    """Build both windows of the chosen alleles.

    What both alleles share at their ends is cut first. The first base that differs, in reading direction, stands at
    index ``centre`` of both windows; everything before it is the same in both, and both are filled up with what follows
    until they hold ``length`` tokens. On the minus strand all of this happens on the reverse complement, so an
    insertion or deletion shifts what lies downstream on the strand that is read. Beyond the known
    sequence stands N; a circular contig goes on at its other end.

    Args:
        sites: Placed alleles; the chosen ones must be scored.
        fasta: The reference.
        indices: (B,) allele numbers.
        length: Tokens in a window, W.
        centre: Index of the first changed base, in [0, length); ``length // 2`` by default.

    Raises:
        InputError: ``centre`` is out of range, a chosen allele has no window, or what changes does not fit behind
            ``centre``.
    """
    centre = length // 2 if centre is None else centre
    if not 0 <= centre < length:
        raise InputError("centre", expected=f"an index in [0, {length})", got=str(centre))
    indices = np.asarray(indices, dtype=np.int64)
    refused = indices[~sites.scored_N[indices]]
    if len(refused):
        status = sites.status_names()[refused[0]]
        raise InputError("indices", expected="scored alleles", got=f"allele {refused[0]} with status {status}")
    trimmed = [trim_alleles(sites.ref[i], sites.alt[i]) for i in indices]
    left_B = np.array([left for left, _, _ in trimmed], dtype=np.int64)
    gone_B = np.array([len(ref) for _, ref, _ in trimmed], dtype=np.int64)
    new_B = np.array([len(alt) for _, _, alt in trimmed], dtype=np.int64)
    longest = int(np.maximum(gone_B, new_B).max(initial=0))
    if longest > length - centre:
        raise InputError("centre", expected=f"room for {longest} bases after it", got=f"{centre} of {length} tokens")
    forward_B = sites.strand_N[indices] >= 0
    # Position of the first changed base in reading direction; an insertion points at the base it pushes away.
    start_B = sites.start_N[indices] + left_B
    first_B = np.where(forward_B, start_B, start_B + gone_B - 1)
    step_B = np.where(forward_B, 1, -1)

    index_W = np.arange(length, dtype=np.int64)
    ref_source_BW = first_B[:, None] + step_B[:, None] * (index_W - centre)
    offset_BW = np.broadcast_to(index_W - centre, (len(indices), length))
    inserted_BW = (offset_BW >= gone_B[:, None]) & (offset_BW < new_B[:, None])
    after_BW = offset_BW >= new_B[:, None]
    shift_BW = np.where(after_BW, (gone_B - new_B)[:, None], 0)
    # Within the alternate allele the first gone bases are replaced one for one, the rest hangs on the base before.
    anchored_BW = np.where(inserted_BW, gone_B[:, None] - 1, offset_BW + shift_BW)
    alt_source_BW = first_B[:, None] + step_B[:, None] * anchored_BW

    ref_ids_BW, alt_ids_BW = _read(sites, fasta, indices, ref_source_BW, alt_source_BW)
    for row, i in enumerate(indices):
        around = fasta.circle(sites.contig[i])
        if around is not None:
            ref_source_BW[row] %= around
            alt_source_BW[row] %= around
    for row, (_, _, alt) in enumerate(trimmed):
        if alt:
            ids = _TOKENIZER.encode(alt)
            ids = ids if forward_B[row] else _TOKENIZER.reverse_complement(ids)
            alt_ids_BW[row, centre : centre + len(ids)] = ids
    centre_B = np.full(len(indices), centre, dtype=np.int64)
    return VariantWindows(ref_ids_BW, alt_ids_BW, centre_B, ref_source_BW, alt_source_BW, inserted_BW)


def _read(
    sites: Sites, fasta: Fasta, indices: np.ndarray, ref_source_BW: np.ndarray, alt_source_BW: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens at the positions of both windows, complemented where the strand is minus; one read for close windows."""
    ref_ids_BW = np.full(ref_source_BW.shape, _N_ID, dtype=np.uint8)
    alt_ids_BW = ref_ids_BW.copy()
    low_B = np.minimum(ref_source_BW.min(axis=1), alt_source_BW.min(axis=1))
    high_B = np.maximum(ref_source_BW.max(axis=1), alt_source_BW.max(axis=1)) + 1
    contigs = np.array([sites.contig[i] for i in indices], dtype=object)
    reverse_B = sites.strand_N[indices] < 0
    for name in dict.fromkeys(contigs.tolist()):
        members = np.flatnonzero(contigs == name)
        members = members[np.argsort(low_B[members], kind="stable")]
        for span in clusters(low_B[members], high_B[members], _READ_SPAN):
            rows = members[span]
            low, high = int(low_B[rows].min()), int(high_B[rows].max())
            ids = _TOKENIZER.encode(fasta.fetch_array(name, low, high))
            ref_ids_BW[rows] = ids[ref_source_BW[rows] - low]
            alt_ids_BW[rows] = ids[alt_source_BW[rows] - low]
    complement = _TOKENIZER.complement
    ref_ids_BW[reverse_B] = complement[ref_ids_BW[reverse_B]]
    alt_ids_BW[reverse_B] = complement[alt_ids_BW[reverse_B]]
    return ref_ids_BW, alt_ids_BW
