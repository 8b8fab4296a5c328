import numpy as np
import pytest
import torch

from seqkit.backbones import BackboneConfig
from seqkit.errors import ConfigError
from seqkit.tasks.base import OptimConfig
from seqkit.tasks.series_label import LabelNetConfig, SeriesLabelNet, SeriesLabelTask, balanced_weights
from seqkit.tasks.series_label_baselines import equal_lengths, simple_answers, z_normalised


def net(layout="mamba2", *, bidirectional=True, channels=2, outputs=3):
    model = BackboneConfig(
        d_model=8, layout=layout, d_state=4, headdim=8, vocab_size=0, n_channels=1, bidirectional=bidirectional
    )
    return SeriesLabelNet(model, LabelNetConfig(stem=5, kernels=0), channels, outputs).eval()


def packed(*series):
    bounds = np.cumsum([0, *(len(one) for one in series)])
    return torch.cat(series), torch.tensor(bounds, dtype=torch.int32)


@pytest.mark.parametrize("layout", ["mamba1", "mamba2", "mamba3", "s4d*2"])
@pytest.mark.parametrize("lengths", [(1, 7, 30), (13, 2, 65)])
def test_an_answer_does_not_depend_on_its_neighbours_in_the_batch(layout, lengths):
    model = net(layout)
    series = [torch.randn(length, 2) for length in lengths]
    together = model(*packed(*series))
    alone = torch.cat([model(*packed(one)) for one in series])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("bidirectional", [True, False])
def test_first_and_last_step_and_the_missing_mask_reach_the_answer(bidirectional):
    model, z = net(bidirectional=bidirectional), torch.randn(20, 2)
    base = model(*packed(z))
    for step, value in ((0, 3.0), (19, 3.0), (5, torch.nan)):
        changed = z.clone()
        changed[step, 1] = value
        answer = model(*packed(changed))
        assert answer.isfinite().all()
        assert (answer - base).abs().max() > 1e-5


def test_a_missing_value_is_not_a_zero():
    model = net()
    zero, missing = torch.randn(9, 2), None
    zero[4] = 0
    missing = zero.clone()
    missing[4] = torch.nan
    assert (model(*packed(zero)) - model(*packed(missing))).abs().max() > 1e-5


def test_losses_of_fillers_do_not_count_and_weights_do():
    task = SeriesLabelTask(net(), OptimConfig(), 0, kind="classes", weight_K=torch.tensor([1.0, 2.0, 0.0]))
    z, bounds = packed(torch.randn(4, 2), torch.randn(5, 2))
    batch = {"z": z, "cu_seqlens": bounds, "target": torch.tensor([1.0, torch.nan])}
    loss_B, valid_B, weight_B = task.losses(batch)
    assert valid_B.tolist() == [True, False]
    assert weight_B[0] == 2
    expected = -task.net(z, bounds).log_softmax(dim=1)[0, 1]
    torch.testing.assert_close(loss_B[0], expected)


def test_numbers_come_back_in_the_units_of_the_label():
    scale = {"kind": "number", "weight_K": torch.ones(1), "centre": 100.0, "spread": 10.0}
    task = SeriesLabelTask(net(outputs=1), OptimConfig(), 0, **scale)
    torch.nn.init.zeros_(task.net.output.weight)
    torch.nn.init.constant_(task.net.output.bias, 0.5)
    z, bounds = packed(torch.randn(4, 2))
    assert task.answer({"z": z, "cu_seqlens": bounds}).tolist() == [105.0]
    loss_B, *_ = task.losses({"z": z, "cu_seqlens": bounds, "target": torch.tensor([120.0])})
    torch.testing.assert_close(loss_B, torch.tensor([2.25]))  # (0.5 - 2) squared


def test_balanced_weights_by_hand():
    assert balanced_weights(torch.tensor([6, 2, 0])).tolist() == pytest.approx([8 / 12, 2, 0])


@pytest.mark.parametrize("settings", [{"stem": 4}, {"stem": 0}, {"dropout": 1.0}, {"kernels": -1}])
def test_settings_out_of_range(settings):
    with pytest.raises(ConfigError, match="net"):
        LabelNetConfig(**settings)


def test_stretching_and_normalising_by_hand():
    stretched = equal_lengths(
        [np.array([[0.0], [np.nan], [4.0]]), np.array([[1.0], [3.0]]), np.full((4, 1), np.nan)], 3
    )
    assert stretched[..., 0].tolist() == [[0, 2, 4], [1, 2, 3], [0, 0, 0]]
    np.testing.assert_allclose(z_normalised(stretched)[0, :, 0], [-1.2247, 0, 1.2247], atol=1e-4)
    assert z_normalised(stretched)[2].tolist() == [[0.0]] * 3


@pytest.mark.parametrize(("kind", "usual"), [("classes", 0.0), ("number", 0.25)])
def test_one_neighbour_sees_shape_and_not_size(kind, usual):
    up, down = np.array([[0.0], [1.0], [2.0]]), np.array([[2.0], [1.0], [0.0]])
    series = [up, up + 1, up * 2, down, 100 * down, 100 * up]
    target = np.array([0.0, 0, 0, 1, 1, 0])
    found = simple_answers(series, target, np.arange(4), np.array([4, 5]), kind)
    assert [one.name for one in found] == ["1-NN", "ridge", "majority" if kind == "classes" else "mean"]
    assert found[0].answer_E.tolist() == [1.0, 0.0]
    assert found[2].answer_E.tolist() == [usual, usual]


def test_ecg200_by_one_neighbour_and_ridge(shared_data):
    folder = shared_data / "ucr-long-series"
    parts = [np.loadtxt(folder / f"ECG200_{part}.tsv.gz") for part in ("TRAIN", "TEST")]
    table = np.concatenate(parts)
    found = simple_answers(
        list(table[:, 1:, None]), (table[:, 0] > 0).astype(float), np.arange(100), np.arange(100, 200), "classes"
    )
    truth = table[100:, 0] > 0
    assert [round(float((one.answer_E == truth).mean()), 2) for one in found] == [0.88, 0.83, 0.64]
