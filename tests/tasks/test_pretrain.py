import lightning
import pytest
import torch

from seqkit.backbones import BackboneConfig
from seqkit.errors import ConfigError
from seqkit.tasks.base import OptimConfig
from seqkit.tasks.budget import Budget
from seqkit.tasks.language_model import LanguageModel
from seqkit.tasks.objectives import ObjectiveConfig
from seqkit.tasks.pretrain import PretrainTask

SMALL = {"d_model": 8, "layout": "mamba1", "d_state": 4}


def make(objective="causal", tokens_at_once=1000, steps=3, **model):
    torch.manual_seed(0)
    net = LanguageModel(BackboneConfig(**SMALL | model))
    return PretrainTask(
        net, objective=ObjectiveConfig(name=objective, soft_mask_weight=0.5), optim=OptimConfig(lr=0.01), seed=0,
        budget=Budget(steps), tokens_at_once=tokens_at_once,
    )  # fmt: skip


def trained(task, steps=3, accelerator="cpu", precision="32-true"):
    generator = torch.Generator().manual_seed(1)
    draw = lambda: torch.randint(6, 12, (5, 17), dtype=torch.uint8, generator=generator)  # noqa: E731
    batches = [{"ids": draw(), "soft": draw() > 9} for _ in range(steps)]
    trainer = lightning.Trainer(
        accelerator=accelerator, devices=1, precision=precision, max_steps=steps, logger=False,
        enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, deterministic="warn",
    )  # fmt: skip
    trainer.fit(task, torch.utils.data.DataLoader(batches, batch_size=None))
    return task


@pytest.mark.parametrize("tokens_at_once", [1, 16, 40])
def test_accumulated_passes_are_one_pass(tokens_at_once):
    """The denominator is the number of answers of the whole step, so unequal passes do not change the gradient."""
    whole, parts = trained(make()), trained(make(tokens_at_once=tokens_at_once))
    assert parts.last_loss.item() == pytest.approx(whole.last_loss.item(), rel=1e-5)
    for one, other in zip(parts.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_loss_is_the_weighted_sum_over_the_number_of_answers():
    task = make()
    ids = torch.tensor([[7, 8, 11, 9]], dtype=torch.uint8)
    question = task.ask(ids, torch.tensor([[False, True, False, False]]), seed=0)
    each = torch.nn.functional.cross_entropy(task.net(ids[:, :-1])[0], ids[0, 1:].long(), reduction="none")
    torch.testing.assert_close(task.nats(question), 0.5 * each[0] + each[2])
    assert (question.target_BL != -100).sum() == 2


def test_chunks_of_the_sequence_give_the_same_step():
    whole, chunked = trained(make()), trained(make(sequence_chunk=5))
    for one, other in zip(chunked.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_rate_follows_the_budget():
    factor = make(steps=10).lr_factor()
    assert [round(factor(step), 3) for step in (0, 4, 9)] == [1.0, 0.587, 0.0]


@pytest.mark.parametrize(
    ("objective", "model"), [("causal", {"bidirectional": True}), ("causal", {"rc_equivariant": True}), ("masked", {})]
)
def test_objective_and_backbone_must_fit(objective, model):
    with pytest.raises(ConfigError, match="causal"):
        make(objective, **model)


@pytest.mark.gpu
@pytest.mark.parametrize(("precision", "tolerance"), [("32-true", 1e-3), ("bf16-mixed", 0.05)])
def test_steps_on_a_gpu_are_those_on_the_cpu(precision, tolerance):
    shape = {"d_model": 32, "layout": "mamba2", "headdim": 16, "d_state": 16}
    here, there = trained(make(**shape)), trained(make(**shape), accelerator="gpu", precision=precision)
    assert there.last_loss.item() == pytest.approx(here.last_loss.item(), rel=tolerance)
    again = trained(make(**shape), accelerator="gpu", precision=precision)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), there.parameters(), strict=True))
