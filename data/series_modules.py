"""Loaders of series for Lightning: windows in an order of (seed, epoch), or chunks one behind the other."""

from __future__ import annotations

import os

import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from seqkit.data.modules import EpochSampler, as_is
from seqkit.data.series_chunks import ChunkSampler, EvaluationChunks, TrainingChunks
from seqkit.data.series_windows import SeriesWindows


class SeriesDataModule(LightningDataModule):
    """Training and validation batches.

    Args:
        train: Training windows or chunks.
        validation: The same for early stopping; None for none.
        batch_size: Windows in a batch; a batch of chunks is one item.
        draws: Training windows drawn per epoch, others in the next; None for all.
        workers: Worker processes; 0 loads in the main process.
        seed: Of the training order.
    """

    def __init__(
        self, *, train: SeriesWindows | TrainingChunks, validation: SeriesWindows | EvaluationChunks | None,
        batch_size: int, draws: int | None = None, workers: int = 0, seed: int = 0,
    ):  # fmt: skip
        super().__init__()
        self.train, self.validation, self.draws = train, validation, draws
        self.batch_size, self.workers, self.seed = batch_size, workers, seed

    def train_dataloader(self) -> DataLoader:
        """Training batches in the order of the epoch."""
        if isinstance(self.train, TrainingChunks):
            return self._loader(self.train, ChunkSampler(len(self.train)), 1)
        return self._loader(self.train, EpochSampler(len(self.train), seed=self.seed, draws=self.draws))

    def val_dataloader(self) -> DataLoader | list:
        """Validation batches in row order; none where there is no validation part."""
        if not self.validation:
            return []
        size = 1 if isinstance(self.validation, EvaluationChunks) else None
        return self._loader(self.validation, EpochSampler(len(self.validation), shuffle=False), size)

    def _loader(self, windows: Dataset, sampler: EpochSampler, size: int | None = None) -> DataLoader:
        # fork may deadlock once polars has started its threads; both of these start from a clean process.
        context = ("forkserver" if os.name == "posix" else "spawn") if self.workers else None
        return DataLoader(
            windows,
            batch_size=size or self.batch_size,
            sampler=sampler,
            num_workers=self.workers,
            collate_fn=as_is,
            multiprocessing_context=context,
            persistent_workers=bool(self.workers),
            pin_memory=torch.cuda.is_available(),
        )
