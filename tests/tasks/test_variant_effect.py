import math

import numpy as np
import pytest
import torch

from seqkit.backbones import Backbone, BackboneConfig
from seqkit.errors import ConfigError
from seqkit.tasks.base import OptimConfig
from seqkit.tasks.variant_effect import VariantEffectTask, VariantLossConfig
from seqkit.tasks.variant_net import FeatureInputs, VariantEffectNet, VariantHeadConfig

NAN = float("nan")


def task_of(kind="binary", n_outputs=1, features=2, **loss):
    torch.manual_seed(0)
    net = VariantEffectNet(
        Backbone(BackboneConfig(d_model=16, layout="mamba1", d_state=4, bidirectional=True)),
        FeatureInputs(features, 0, []),
        n_outputs=n_outputs,
        head=VariantHeadConfig(d_hidden=8, members=2, dropout=0.0, radius=1),
    )
    return VariantEffectTask(net, kind=kind, loss=VariantLossConfig(**loss), optim=OptimConfig(), seed=0)


def test_binary_loss_by_hand():
    outputs = torch.tensor([[[0.0], [2.0]], [[0.0], [-2.0]]])
    labels = torch.tensor([[1.0], [0.0]])
    expected = (2 * math.log(2) + math.log1p(math.exp(2)) + math.log1p(math.exp(-2))) / 4
    assert task_of().loss(outputs, labels).item() == pytest.approx(expected, rel=1e-6)


def test_unknown_labels_count_for_nothing():
    task = task_of(n_outputs=2)
    outputs = torch.randn(2, 3, 2, requires_grad=True)
    labels = torch.tensor([[1.0, NAN], [NAN, NAN], [0.0, 1.0]])
    loss = task.loss(outputs, labels)
    loss.backward()
    assert torch.isfinite(outputs.grad).all()
    assert (outputs.grad[:, 1] == 0).all()
    assert (outputs.grad[:, 0, 1] == 0).all()
    changed = outputs.detach().clone()
    changed[:, 1] += 9
    assert task.loss(changed, labels).item() == pytest.approx(loss.item())


def test_multiclass_and_continuous_losses_by_hand():
    classes = task_of("multiclass", n_outputs=3)
    assert classes.loss(torch.zeros(2, 2, 3), torch.tensor([[0.0], [2.0]])).item() == pytest.approx(math.log(3))
    values = task_of("continuous")
    labels = torch.tensor([[10.0], [14.0]])
    values.fit_statistics(torch.randn(2, 2), labels)
    assert values.loss(torch.zeros(2, 2, 1), labels).item() == pytest.approx(1.0)
    assert values.pooled(torch.zeros(2, 2, 1)).flatten().tolist() == pytest.approx([12, 12])


def test_balanced_weights_weigh_and_are_taken_back_from_the_logits():
    task = task_of(class_weights="balanced")
    labels = torch.tensor([[1.0]] + [[0.0]] * 3)
    task.fit_statistics(torch.randn(4, 2), labels)
    assert task.class_weight.tolist() == pytest.approx([4 / 6, 2.0])
    # A weighted model that knows nothing answers with even odds; the prevalence comes back.
    assert task.decide(torch.zeros(2, 1, 1)).item() == pytest.approx(0.25)


def test_penalty_is_the_mean_over_members():
    task = task_of(wide_penalty=0.5, deep_penalty=0.0)
    with torch.no_grad():
        task.net.head.wide.zero_()
        task.net.head.wide[0] = 2.0
    assert task.penalty().item() == pytest.approx(0.5 * 4 * task.net.head.wide[0].numel() / 2)


def test_score_returns_both_orientations_where_the_strand_is_unknown():
    from seqkit.tokenizers import DNATokenizer

    task = task_of().eval()
    task.net.complement = torch.from_numpy(DNATokenizer().complement).long()
    task.net.channel_complement = torch.zeros(0, dtype=torch.long)
    with torch.no_grad():
        task.net.sequence.leave.weight.normal_()
    ref = torch.randint(7, 11, (3, 12))
    batch = {
        "ref_ids": ref, "alt_ids": ref.flip(1), "centre": torch.full((3,), 4), "index": torch.tensor([7, 8, 9]),
        "stranded": torch.tensor([True, False, False]), "features": torch.randn(3, 2),
    }  # fmt: skip
    found = task.score(batch)
    assert found["index"].tolist() == [7, 8, 9]
    assert found["other"].isnan().flatten().tolist() == [True, False, False]
    assert torch.equal(found["outputs"][0], found["as_given"][0])
    assert torch.allclose(found["outputs"][1:], (found["as_given"] + found["other"])[1:] / 2)
    assert torch.allclose(found["outputs"], task.pooled(task.net(batch)), atol=1e-6)


def test_settings_out_of_range_are_named():
    with pytest.raises(ConfigError, match="class_weights"):
        VariantLossConfig(class_weights="some")
    with pytest.raises(ConfigError, match="penalties"):
        VariantLossConfig(wide_penalty=-1)


def planted(rows, seed):
    """Windows in which an allele breaks the motif CACGTG at the centre, or changes a base of no motif."""
    rng = np.random.default_rng(seed)
    ref = rng.integers(7, 11, (rows, 24))
    broken = rng.random(rows) < 0.5
    motif = np.array([8, 7, 8, 9, 10, 9])
    ref[broken, 9:15] = motif
    alt = ref.copy()
    alt[:, 12] = 7 + (ref[:, 12] - 7 + rng.integers(1, 4, rows)) % 4
    nothing = torch.zeros(rows, 0)
    return {
        "ref_ids": torch.from_numpy(ref), "alt_ids": torch.from_numpy(alt), "centre": torch.full((rows,), 12),
        "index": torch.arange(rows), "stranded": torch.ones(rows, dtype=torch.bool), "features": nothing,
        "label": torch.from_numpy(broken.astype(np.float32))[:, None],
    }  # fmt: skip


def test_a_backbone_learns_which_change_breaks_a_motif():
    from seqkit.tasks.metrics import auroc

    task = task_of(features=0)
    optimizer = torch.optim.AdamW(task.net.parameters(), lr=1e-2)
    for step in range(60):
        loss = task.loss(task.net(planted(64, step)), planted(64, step)["label"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    test = planted(300, seed=10_000)
    with torch.no_grad():
        scores = task.pooled(task.net(test))[:, 0]
    assert auroc(test["label"][:, 0].numpy(), scores.numpy()) > 0.9
