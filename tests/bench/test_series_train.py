import numpy as np
import torch

from seqkit.backbones import BackboneConfig
from seqkit.bench.series.train import Settings, WindowSet, forecast, held_out_loss, make, train
from seqkit.tasks.series_encoder import TokenConfig

SMALL = Settings(
    model=BackboneConfig(d_model=8, layout="s4d", d_state=4, expand=1, vocab_size=0, n_channels=1),
    tokens=TokenConfig(kind="patch", patch=4),
    epochs=2,
    batch=32,
)


def waves(count, steps, seed=0):
    rng = np.random.default_rng(seed)
    return [np.sin(np.arange(steps) / 3 + rng.uniform(0, 6)) + 0.1 * rng.normal(size=steps) for _ in range(count)]


def test_windows_by_hand():
    windows = WindowSet([np.arange(5.0), np.arange(10.0, 14.0)], 2, 1, loc=[0, 1], scale=[1, 2])
    batch = windows.batch(torch.arange(len(windows)))
    assert batch["z"][:, 0].tolist() == [[0, 1], [1, 2], [2, 3], [10, 11], [11, 12]]
    assert batch["target"].flatten().tolist() == [2, 3, 4, 12, 13]
    assert batch["scale"].flatten().tolist() == [1, 1, 1, 2, 2]
    last = WindowSet([np.arange(5.0), np.arange(10.0, 14.0)], 2, 1, only_last=True)
    assert last.batch(torch.arange(2))["target"].flatten().tolist() == [4, 13]


def test_stretches_follow_each_other_in_every_series():
    parts = WindowSet([np.arange(7.0), np.arange(10.0, 15.0)], 1, 1).stretches(2)
    firsts = [part.batch(torch.arange(len(part)))["z"].flatten().tolist() for part in parts]
    assert firsts == [[0, 1, 2, 10, 11], [3, 4, 5, 12, 13]]


def test_training_starts_at_the_ridge_and_never_ends_behind_it():
    training, validation = (WindowSet(waves(4, 120, seed), 16, 4) for seed in (0, 1))
    start = make(SMALL, training)
    start.start(lambda: training.batches(64), lambda: validation.batches(64))
    trained = train(SMALL, training, validation, seed=0, device="cpu")
    assert held_out_loss(trained, validation) <= held_out_loss(start, validation) + 1e-6
    mean, median, quantiles = forecast([trained], validation, [0.1, 0.9])
    assert mean.shape == median.shape == (len(validation), 4)
    truth = validation.batch(torch.arange(len(validation)))["target"][:, 0].numpy()
    inside = (quantiles[..., 0] <= truth) & (truth <= quantiles[..., 1])
    assert 0.75 < inside.mean() < 0.86  # calibrated on these windows
