import numpy as np
import pytest
import torch

from seqkit.tasks.random_kernels import SHARPNESS, RandomKernels, best_sharpness


def kernels(channels=2, outputs=2, count=40, length=64):
    return RandomKernels(channels, outputs, count, length=length, seed=0)


def noise(*lengths, channels=2, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(length, channels)) for length in lengths]


def test_kernels_see_shape_and_the_last_features_size():
    (series,) = noise(50)
    one, other = kernels().features([series, 3 * series + 5])
    np.testing.assert_allclose(one[:80], other[:80], atol=1e-4)
    np.testing.assert_allclose(other[80:82], 3 * one[80:82] + 5)
    np.testing.assert_allclose(other[82:], one[82:] + np.log(3))


@pytest.mark.parametrize("length", [1, 7, 300])
def test_one_kernel_by_hand(length):
    drawn = kernels(channels=1, count=1)
    (series,) = noise(length, channels=1)
    z = (series[:, 0] - series.mean()) / (series.std() or 1)
    reach = int(drawn.dilation_N) * 4
    padded, taps = np.pad(z, reach), drawn.weight_NCW[0, 0].numpy()
    steps = [taps @ padded[t : t + 2 * reach + 1 : reach // 4] + float(drawn.bias_N) for t in range(length)]
    found = drawn.features([series])[0]
    np.testing.assert_allclose(found[:2], [np.mean(np.array(steps) > 0), np.max(steps)], atol=1e-5)


def test_missing_constant_and_short_series_have_finite_features():
    series = [*noise(30, 2, 1), np.full((9, 2), np.nan), np.ones((9, 2))]
    series[0][3:20] = np.nan
    assert np.isfinite(kernels().features(series)).all()


def test_some_kernels_read_one_channel_and_some_both():
    read = (kernels(count=200).weight_NCW.abs().sum(-1) > 0).sum(-1)
    assert set(read.tolist()) == {1, 2}


def test_a_training_series_is_answered_without_its_label():
    drawn = kernels(channels=1, count=200)
    features = drawn.features(noise(*[40] * 60, channels=1))
    target = np.where(np.random.default_rng(1).random(60)[:, None] < 0.5, [[1.0, -1.0]], [[-1.0, 1.0]])
    start = drawn.begin(features, target, np.ones(60), np.arange(50), classes=True, seed=0)
    right = (start.argmax(1) == target.argmax(1))[:50].mean()
    assert right < 0.75  # the labels are noise; a ridge that has seen them answers nearly all
    assert start.shape == (60, 2)


def test_two_rhythms_are_told_apart_from_a_dozen_series():
    rng = np.random.default_rng(0)
    pace = np.tile([0.5, 0.7], 30)
    series = [np.sin(p * np.arange(80) + rng.uniform(0, 6))[:, None] + 0.3 * rng.normal(size=(80, 1)) for p in pace]
    target = np.where((pace > 0.6)[:, None], [[-1.0, 1.0]], [[1.0, -1.0]])
    drawn = kernels(channels=1, count=300, length=80)
    start = drawn.begin(drawn.features(series), target, np.ones(60), np.arange(12), classes=True, seed=0)
    assert (start.argmax(1) == target.argmax(1))[12:].mean() > 0.9


def test_weights_come_back_with_a_state():
    first, second = kernels(), RandomKernels(2, 2, 40, length=1, seed=5)
    second.load_state_dict(first.state_dict())
    series = noise(30)
    np.testing.assert_array_equal(first.features(series), second.features(series))
    assert torch.equal(first.dilation_N, second.dilation_N)


def test_sharpness_by_what_the_scores_are_worth():
    right, classes, weight = np.eye(2)[[0, 1, 0, 1]], np.array([0, 1, 0, 1]), np.ones(4)
    assert best_sharpness(right, classes, weight) == SHARPNESS[-1]
    assert best_sharpness(right, 1 - classes, weight) == SHARPNESS[0]
