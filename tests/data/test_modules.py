import lightning
import numpy as np
import pytest
import torch

from seqkit.data.dataset import VariantWindowDataset
from seqkit.data.modules import EpochSampler, VariantDataModule
from seqkit.errors import ConfigError


def test_order_is_a_function_of_seed_and_epoch():
    orders = {}
    for seed in (0, 1):
        for epoch in (0, 1):
            sampler = EpochSampler(101, seed=seed)
            sampler.set_epoch(epoch)
            orders[seed, epoch] = list(sampler)
            assert list(sampler) == orders[seed, epoch]
            assert sorted(orders[seed, epoch]) == list(range(101))
    assert len({tuple(order) for order in orders.values()}) == 4
    assert list(EpochSampler(5, shuffle=False)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("rows", "ranks"), [(10, 3), (9, 3), (2, 5), (1, 1), (0, 2)])
def test_ranks_share_every_row_once(rows, ranks):
    shares = []
    for rank in range(ranks):
        sampler = EpochSampler(rows, seed=3)
        sampler.rank, sampler.num_replicas = rank, ranks
        shares.append(list(sampler))
        assert len(shares[-1]) == len(sampler)
    drawn = [row for share in shares for row in share if row >= 0]
    assert sorted(drawn) == list(range(rows))


@pytest.fixture
def parts(brca1):
    labels = brca1.labels[:, None]
    make = lambda rows: VariantWindowDataset(  # noqa: E731
        brca1.sites, brca1.fasta, length=16, indices=np.array(rows), labels_NK=labels
    )
    return {"train": make(range(0, 60)), "validation": make(range(100, 120)), "predict": make(range(200, 233))}


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_no_row_is_lost_or_doubled(parts, workers):
    module = VariantDataModule(**parts, batch_size=7, workers=workers)
    seen = torch.cat([batch["index"] for batch in module.predict_dataloader()])
    assert seen.tolist() == list(range(200, 233))
    if workers == 0:
        assert sorted(torch.cat([b["index"] for b in module.train_dataloader()]).tolist()) == list(range(60))
        assert [len(b["index"]) for b in module.val_dataloader()] == [7, 7, 6]


def test_absent_parts(parts):
    module = VariantDataModule(train=parts["train"])
    assert module.val_dataloader() == []
    with pytest.raises(ConfigError, match="test"):
        module.test_dataloader()


class Recorder(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen = {}

    def training_step(self, batch, _):
        self.seen.setdefault(self.current_epoch, []).extend(batch["index"].tolist())
        return (self.weight * batch["label"].nan_to_num().sum()).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def train(parts, epochs, folder, checkpoint=None):
    trainer = lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder, enable_checkpointing=False,
    )  # fmt: skip
    model = Recorder()
    trainer.fit(model, VariantDataModule(train=parts["train"], batch_size=8, seed=5), ckpt_path=checkpoint)
    return trainer, model.seen


def test_resumed_run_sees_the_rows_of_an_unbroken_one(parts, tmp_path):
    _, unbroken = train(parts, 4, tmp_path)
    first, before = train(parts, 2, tmp_path)
    first.save_checkpoint(tmp_path / "last.ckpt")
    _, after = train(parts, 4, tmp_path, tmp_path / "last.ckpt")
    assert {**before, **after} == unbroken
    assert sorted(after) == [2, 3]
    assert len({tuple(rows) for rows in unbroken.values()}) == 4
    assert all(sorted(rows) == list(range(60)) for rows in unbroken.values())
