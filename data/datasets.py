"""Windows, channels, features and labels of variants as tensors. Legend: B batch, W window, C channels, F, K."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

from seqkit.data.channels import CHANNELS, window_channels
from seqkit.data.fasta import Fasta
from seqkit.data.regions import Annotation
from seqkit.data.sites import Sites
from seqkit.data.windows import build_windows
from seqkit.errors import InputError

_KEPT_BYTES = 256 << 20
_ROWS_AT_ONCE = 256


class VariantWindowDataset(Dataset):
    """Alleles as model input, by allele number; asked for several numbers it answers with one batch.

    A batch is a dict of tensors: ``ref_ids`` and ``alt_ids`` int64 (B, W); ``centre`` int64 (B,), index of the first
    changed base in both; ``stranded`` bool (B,), False where both strands should be averaged; ``index`` int64 (B,),
    allele number; with annotation ``ref_channels`` and ``alt_channels`` float32 (B, W, C); with features ``features``
    float32 (B, F), NaN where missing; with labels ``label`` float32 (B, K), NaN where unknown.

    A negative number ``-1 - i`` stands for allele i as a filler: its labels are NaN and its ``index`` is -1.

    Args:
        sites: Placed alleles. Windows are read on the strand of ``sites.strand_N``; 0 is read as plus.
        fasta: The reference.
        length: Tokens in a window, W.
        annotation: Adds the channels.
        features: float32 (N, F), one row an allele of ``sites``.
        labels: float32 (N, K), one row an allele of ``sites``.
        stranded: Boolean (N,); by default True where ``sites.strand_N`` is known.
        centre: Index of the first changed base; ``length // 2`` by default.

    Raises:
        InputError: A matrix has another number of rows than ``sites``.
    """

    channels = CHANNELS

    def __init__(
        self,
        sites: Sites,
        fasta: Fasta,
        length: int,
        *,
        annotation: Annotation | None = None,
        features: np.ndarray | None = None,
        labels: np.ndarray | None = None,
        stranded: np.ndarray | None = None,
        centre: int | None = None,
    ):
        self.sites, self.fasta, self.length, self.centre = sites, fasta, length, centre
        self.annotation = annotation
        self.features_NF = _checked("features", features, len(sites))
        self.labels_NK = _checked("label", labels, len(sites))
        self.stranded_N = sites.strand_N != 0 if stranded is None else np.asarray(stranded, dtype=bool)
        self._kept: dict[str, np.ndarray] | None = None
        self._place_N = np.cumsum(sites.scored_N) - 1

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_kept": None}

    def __len__(self) -> int:
        return len(self.sites)

    @property
    def scored(self) -> np.ndarray:
        """int64 numbers of the alleles that have a window, ascending."""
        return np.flatnonzero(self.sites.scored_N)

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        return {name: value[0] for name, value in self.__getitems__([number]).items()}

    def __getitems__(self, numbers: Sequence[int]) -> dict[str, torch.Tensor]:
        """One batch of alleles; see the class for its keys.

        Raises:
            InputError: An allele has no window.
        """
        chosen = np.asarray(numbers, dtype=np.int64)
        filler = chosen < 0
        chosen = np.where(filler, -1 - chosen, chosen)
        batch = {name: torch.from_numpy(values) for name, values in self._arrays(chosen).items()}
        batch = {name: value.float() if name.endswith("channels") else value.long() for name, value in batch.items()}
        batch["stranded"] = torch.from_numpy(self.stranded_N[chosen])
        batch["index"] = torch.from_numpy(np.where(filler, -1, chosen))
        if self.features_NF is not None:
            batch["features"] = torch.from_numpy(self.features_NF[chosen])
        if self.labels_NK is not None:
            label = self.labels_NK[chosen]
            label[filler] = np.nan
            batch["label"] = torch.from_numpy(label)
        return batch

    def _arrays(self, chosen: np.ndarray) -> dict[str, np.ndarray]:
        """Windows of the alleles, from memory where all of them fit there."""
        if self._kept is None and self._fits():
            scored = self.scored
            parts = [self._windows(scored[i : i + _ROWS_AT_ONCE]) for i in range(0, len(scored), _ROWS_AT_ONCE)]
            self._kept = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else None
        if self._kept is None or not self.sites.scored_N[chosen].all():
            return self._windows(chosen)
        return {name: values[self._place_N[chosen]] for name, values in self._kept.items()}

    def _fits(self) -> bool:
        per_token = 2 * (1 + (len(CHANNELS) if self.annotation is not None else 0))
        return len(self.scored) * self.length * per_token <= _KEPT_BYTES

    def _windows(self, chosen: np.ndarray) -> dict[str, np.ndarray]:
        windows = build_windows(self.sites, self.fasta, chosen, self.length, centre=self.centre)
        arrays = {"ref_ids": windows.ref_ids_BW, "alt_ids": windows.alt_ids_BW, "centre": windows.centre_B}
        if self.annotation is not None:
            contigs = [self.sites.contig[i] for i in chosen]
            forward_B = self.sites.strand_N[chosen] >= 0
            ref, alt = window_channels(self.annotation, contigs, windows, forward_B)
            arrays |= {"ref_channels": ref, "alt_channels": alt}
        return arrays


def _checked(name: str, matrix: np.ndarray | None, rows: int) -> np.ndarray | None:
    if matrix is None:
        return None
    if matrix.ndim != 2 or len(matrix) != rows:
        raise InputError(name, expected=f"a matrix with {rows} rows, one an allele", got=f"shape {matrix.shape}")
    return np.ascontiguousarray(matrix, dtype=np.float32)
