"""Windows, channels, features and labels of variants as tensors. Legend: B batch, W window, C channels, F, K."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

from seqkit.data.channels import COMPLEMENT_ORDER, window_channels
from seqkit.data.fasta import Fasta
from seqkit.data.regions import Annotation
from seqkit.data.sites import Sites
from seqkit.data.windows import VariantWindows, build_windows
from seqkit.errors import InputError

_KEPT_BYTES = 256 << 20
_ROWS_AT_ONCE = 256


class VariantWindowDataset(Dataset):
    """Scored alleles as model input; asked for several rows it answers with one batch.

    A batch is a dict of tensors: ``ref_ids`` and ``alt_ids`` int64 (B, W); ``centre`` int64 (B,), index of the first
    changed base in both; ``stranded`` bool (B,), False where both strands should be averaged; ``index`` int64 (B,),
    allele number; with annotation ``ref_channels`` and ``alt_channels`` float32 (B, W, C); with features ``features``
    float32 (B, F), NaN where missing; with labels ``label`` float32 (B, K), NaN where unknown.

    A negative row number ``-1 - i`` stands for row i as a filler: its labels are NaN and its ``index`` is -1.

    Args:
        sites: Placed alleles. Windows are read on the strand of ``sites.strand_N``; 0 is read as plus.
        fasta: The reference.
        length: Tokens in a window, W.
        indices: Allele numbers of the rows; by default all scored ones.
        annotation: Adds the channels.
        features_NF: float32, one row an allele of ``sites``.
        labels_NK: float32, one row an allele of ``sites``.
        centre: Index of the first changed base; ``length // 2`` by default.
        build: From allele numbers to their windows; those on the reference by default.

    Raises:
        InputError: A chosen allele has no window, or a matrix has another number of rows than ``sites``.
    """

    def __init__(
        self,
        sites: Sites,
        fasta: Fasta,
        *,
        length: int,
        indices: np.ndarray | None = None,
        annotation: Annotation | None = None,
        features_NF: np.ndarray | None = None,
        labels_NK: np.ndarray | None = None,
        centre: int | None = None,
        build: Callable[[np.ndarray], VariantWindows] | None = None,
    ):
        self.sites, self.fasta, self.length, self.centre, self.build = sites, fasta, length, centre, build
        self.annotation = annotation
        self.indices = np.flatnonzero(sites.scored_N) if indices is None else np.asarray(indices, dtype=np.int64)
        refused = self.indices[~sites.scored_N[self.indices]]
        if len(refused):
            status = sites.status_names()[refused[0]]
            raise InputError("indices", expected="scored alleles", got=f"allele {refused[0]} with status {status}")
        self.features_NF = _checked("features", features_NF, len(sites))
        self.labels_NK = _checked("label", labels_NK, len(sites))
        self._kept: dict[str, np.ndarray] | None = None

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_kept": None}

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        return {name: value[0] for name, value in self.__getitems__([row]).items()}

    def __getitems__(self, rows: Sequence[int]) -> dict[str, torch.Tensor]:
        """One batch of rows; see the class for its keys."""
        rows = np.asarray(rows, dtype=np.int64)
        filler = rows < 0
        rows = np.where(filler, -1 - rows, rows)
        chosen = self.indices[rows]
        batch = {name: torch.from_numpy(values) for name, values in self._arrays(rows).items()}
        batch = {name: value.float() if name.endswith("channels") else value.long() for name, value in batch.items()}
        batch["stranded"] = torch.from_numpy(self.sites.strand_N[chosen] != 0)
        batch["index"] = torch.from_numpy(np.where(filler, -1, chosen))
        if self.features_NF is not None:
            batch["features"] = torch.from_numpy(self.features_NF[chosen])
        if self.labels_NK is not None:
            label = self.labels_NK[chosen]
            label[filler] = np.nan
            batch["label"] = torch.from_numpy(label)
        return batch

    def _arrays(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Windows of the rows, from memory where all of them fit there."""
        if self._kept is None and self._fits():
            blocks = [self.indices[i : i + _ROWS_AT_ONCE] for i in range(0, len(self), _ROWS_AT_ONCE)]
            parts = [self._windows(block) for block in blocks]
            self._kept = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        if self._kept is None:
            return self._windows(self.indices[rows])
        return {name: values[rows] for name, values in self._kept.items()}

    def _fits(self) -> bool:
        per_token = 2 * (1 + (len(COMPLEMENT_ORDER) if self.annotation is not None else 0))
        return len(self) * self.length * per_token <= _KEPT_BYTES

    def _windows(self, chosen: np.ndarray) -> dict[str, np.ndarray]:
        if self.build is not None:
            windows = self.build(chosen)
        else:
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
