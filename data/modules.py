"""Loaders for Lightning. The order of training rows depends on (seed, epoch) alone."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import torch
import torch.distributed as dist
from lightning import LightningDataModule
from torch.utils.data import DataLoader, DistributedSampler

from seqkit.data.datasets import VariantWindowDataset
from seqkit.data.splits import Split
from seqkit.errors import ConfigError


class EpochSampler(DistributedSampler):
    """Allele numbers in an order that is a pure function of (seed, epoch), shared out over the ranks.

    Every number is drawn once an epoch. Where the ranks do not divide them, fillers (``-1 - number``) even out the
    shares: the dataset gives them no label, so none counts twice.

    Args:
        numbers: The allele numbers.
        seed: Of the order.
        shuffle: False keeps the given order.
    """

    def __init__(self, numbers: np.ndarray, *, seed: int = 0, shuffle: bool = True):
        active = dist.is_available() and dist.is_initialized()
        self.numbers, self.seed, self.shuffle, self.epoch = np.asarray(numbers, dtype=np.int64), seed, shuffle, 0
        self.rank = dist.get_rank() if active else 0
        self.num_replicas = dist.get_world_size() if active else 1

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration; Lightning calls it, after a resume too."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.numbers) // self.num_replicas)

    def __iter__(self) -> Iterator[int]:
        order = self.numbers
        if self.shuffle:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(order)
        missing = len(self) * self.num_replicas - len(order)
        fillers = -1 - np.resize(order, missing) if missing else order[:0]
        return iter(np.concatenate([order, fillers])[self.rank :: self.num_replicas].tolist())


class VariantDataModule(LightningDataModule):
    """Loaders over variant windows: the parts of a split, and any alleles to score.

    Args:
        dataset: The alleles.
        split: Training, validation and test alleles; not needed to score.
        batch_size: Alleles in a batch.
        workers: Worker processes; 0 loads in the main process.
        seed: Of the training order.
    """

    def __init__(
        self,
        dataset: VariantWindowDataset,
        split: Split | None = None,
        *,
        batch_size: int = 64,
        workers: int = 0,
        seed: int = 0,
    ):
        super().__init__()
        self.dataset, self.split = dataset, split
        self.batch_size, self.workers, self.seed = batch_size, workers, seed

    def train_dataloader(self) -> DataLoader:
        """Training batches in the order of the epoch."""
        return self.loader(self._parts().train, shuffle=True)

    def val_dataloader(self) -> DataLoader | list:
        """Validation batches; none where the split has no validation part."""
        validation = self._parts().validation
        return self.loader(validation) if len(validation) else []

    def test_dataloader(self) -> DataLoader:
        """Test batches."""
        return self.loader(self._parts().test)

    def predict_dataloader(self) -> DataLoader:
        """Batches of every allele that has a window."""
        return self.loader(self.dataset.scored)

    def loader(self, numbers: np.ndarray, *, shuffle: bool = False) -> DataLoader:
        """Batches of the given alleles, in the given order unless shuffled."""
        # fork may deadlock once polars has started its threads; both of these start from a clean process.
        context = ("forkserver" if os.name == "posix" else "spawn") if self.workers else None
        return DataLoader(
            self.dataset,
            batch_size=self.batch_size,
            sampler=EpochSampler(numbers, seed=self.seed, shuffle=shuffle),
            num_workers=self.workers,
            collate_fn=as_is,
            multiprocessing_context=context,
            persistent_workers=bool(self.workers),
            pin_memory=torch.cuda.is_available(),
        )

    def _parts(self) -> Split:
        if self.split is None:
            raise ConfigError("split", expected="a split, to train, validate or test", got="none")
        return self.split


def as_is(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The dataset answers with whole batches already."""
    return batch
