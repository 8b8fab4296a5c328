"""Loaders for Lightning. The order of training rows depends on (seed, epoch) alone."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import torch
import torch.distributed as dist
from lightning import LightningDataModule
from torch.utils.data import DataLoader, DistributedSampler

from seqkit.data.dataset import VariantWindowDataset
from seqkit.errors import ConfigError


class EpochSampler(DistributedSampler):
    """Rows in an order that is a pure function of (seed, epoch), shared out over the ranks.

    No row is drawn twice in an epoch. Where the ranks do not divide the rows, fillers (``-1 - row``) even out the
    shares: the dataset gives them no label, so none counts twice.

    Args:
        rows: Number of rows.
        seed: Of the order.
        shuffle: False keeps the rows in order.
        draws: Rows of an epoch, the first of its order; None for all of them.
    """

    def __init__(self, rows: int, *, seed: int = 0, shuffle: bool = True, draws: int | None = None):
        active = dist.is_available() and dist.is_initialized()
        self.rows, self.seed, self.shuffle, self.epoch = rows, seed, shuffle, 0
        self.draws = rows if draws is None else min(draws, rows)
        self.rank = dist.get_rank() if active else 0
        self.num_replicas = dist.get_world_size() if active else 1

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration; Lightning calls it, after a resume too."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.draws // self.num_replicas)

    def __iter__(self) -> Iterator[int]:
        order = np.arange(self.rows)
        if self.shuffle:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(self.rows)
        order = order[: self.draws]
        missing = len(self) * self.num_replicas - self.draws
        fillers = -1 - np.resize(order, missing) if missing else order[:0]
        return iter(np.concatenate([order, fillers])[self.rank :: self.num_replicas].tolist())


class VariantDataModule(LightningDataModule):
    """Train, validation, test and prediction loaders over variant windows.

    Args:
        train: Training rows.
        validation: Rows for early stopping and calibration.
        test: Test rows.
        predict: Rows to score.
        batch_size: Alleles in a batch.
        workers: Worker processes; 0 loads in the main process.
        seed: Of the training order.
    """

    def __init__(
        self,
        *,
        train: VariantWindowDataset | None = None,
        validation: VariantWindowDataset | None = None,
        test: VariantWindowDataset | None = None,
        predict: VariantWindowDataset | None = None,
        batch_size: int = 64,
        workers: int = 0,
        seed: int = 0,
    ):
        super().__init__()
        self.parts = {"train": train, "validation": validation, "test": test, "predict": predict}
        self.batch_size, self.workers, self.seed = batch_size, workers, seed

    def train_dataloader(self) -> DataLoader:
        """Training batches in the order of the epoch."""
        return self._loader("train", shuffle=True)

    def val_dataloader(self) -> DataLoader | list:
        """Validation batches in row order; none where there is no validation part."""
        return self._loader("validation") if self.parts["validation"] else []

    def test_dataloader(self) -> DataLoader:
        """Test batches in row order."""
        return self._loader("test")

    def predict_dataloader(self) -> DataLoader:
        """Batches to score, in row order."""
        return self._loader("predict")

    def _loader(self, part: str, *, shuffle: bool = False) -> DataLoader:
        dataset = self.parts[part]
        if dataset is None:
            raise ConfigError(part, expected="a dataset for this part", got="none")
        # fork may deadlock once polars has started its threads; both of these start from a clean process.
        context = ("forkserver" if os.name == "posix" else "spawn") if self.workers else None
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            sampler=EpochSampler(len(dataset), seed=self.seed, shuffle=shuffle),
            num_workers=self.workers,
            collate_fn=as_is,
            multiprocessing_context=context,
            persistent_workers=bool(self.workers),
            pin_memory=torch.cuda.is_available(),
        )


def as_is(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The dataset answers with whole batches already."""
    return batch
