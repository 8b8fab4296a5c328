import math

import pytest
import torch
from torch import nn

from seqkit.backbones import Mamba1
from seqkit.errors import ConfigError
from seqkit.tasks.base import OptimConfig, SequenceTask, masked_mean, warmup_cosine


@pytest.mark.parametrize(("step", "factor"), [(0, 0.25), (3, 1.0), (4, 1.0), (8, 0.5), (12, 0.0), (99, 0.0)])
def test_schedule_rises_then_falls_to_zero(step, factor):
    assert warmup_cosine(step, warmup=4, total=12) == pytest.approx(factor)


def test_masked_mean_divides_by_what_is_valid():
    loss = torch.tensor([[1.0, 2.0], [3.0, 100.0]], requires_grad=True)
    valid = torch.tensor([[True, True], [True, False]])
    assert masked_mean(loss, valid).item() == 2
    weighted = masked_mean(loss, valid, torch.tensor([[2.0, 0.0], [1.0, 1.0]]))
    assert weighted.item() == pytest.approx(5 / 3)
    weighted.backward()
    assert loss.grad[1, 1] == 0


def test_masked_mean_of_nothing_is_zero():
    assert masked_mean(torch.ones(3), torch.zeros(3, dtype=torch.bool)).item() == 0


@pytest.mark.parametrize(
    "values", [{"lr": 0.0}, {"head_lr": -1.0}, {"clip_norm": math.nan}, {"warmup": 1.5}, {"beta2": 1.0}]
)
def test_settings_out_of_range_are_named(values):
    with pytest.raises(ConfigError, match="optim." + next(iter(values))):
        OptimConfig(**values)


class TwoRates(SequenceTask):
    def head_parameters(self):
        return list(self.net["head"].parameters())


def test_groups_have_their_rate_and_decay():
    net = nn.ModuleDict({"mixer": Mamba1(d_model=8), "head": nn.Linear(8, 1)})
    task = TwoRates(net, OptimConfig(lr=1e-3, head_lr=1e-2, weight_decay=0.5), seed=0)
    task._trainer = type("Trainer", (), {"estimated_stepping_batches": 10})()
    groups = task.configure_optimizers()["optimizer"].param_groups
    rate = {id(p): (g["initial_lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert len(rate) == len(list(net.parameters()))
    assert rate[id(net["mixer"].in_proj.weight)] == (1e-3, 0.5)
    assert rate[id(net["mixer"].A_log)] == (1e-3, 0.0)
    assert rate[id(net["mixer"].dt_proj.bias)] == (1e-3, 0.0)
    assert rate[id(net["head"].weight)] == (1e-2, 0.5)
    assert rate[id(net["head"].bias)] == (1e-2, 0.0)


def test_dropout_depends_on_seed_and_step():
    def noise(seed, step):
        task = SequenceTask(nn.Linear(1, 1), OptimConfig(), seed)
        task._trainer = type("Trainer", (), {"global_step": step})()
        task._fabric = None
        torch.manual_seed(99)
        task.on_train_batch_start(None, 0)
        return torch.rand(3)

    assert torch.equal(noise(1, 5), noise(1, 5))
    assert not torch.equal(noise(1, 5), noise(1, 6))
    assert not torch.equal(noise(1, 5), noise(2, 5))
