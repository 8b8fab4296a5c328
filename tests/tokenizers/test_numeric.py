import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from seqkit.errors import ConfigError
from seqkit.tokenizers.numeric import PatchTokens, QuantileBins, SeriesScaler, StepTokens

VALUES = st.lists(st.one_of(st.floats(-1e6, 1e6, width=32), st.just(float("nan"))), min_size=1, max_size=40)


@given(VALUES)
def test_steps_are_decoded_exactly(values):
    z = torch.tensor(values).reshape(1, -1)
    tokens = StepTokens()
    assert tokens.encode(z).shape == (1, len(values), 2)
    torch.testing.assert_close(tokens.decode(tokens.encode(z)), z, rtol=0, atol=0, equal_nan=True)


@given(VALUES, st.integers(1, 9))
def test_patches_are_decoded_exactly(values, patch):
    z = torch.tensor(values).reshape(1, -1)
    tokens = PatchTokens(patch)
    encoded = tokens.encode(z)
    assert encoded.shape == (1, -(-len(values) // patch), 2 * patch)
    assert encoded.isfinite().all()
    torch.testing.assert_close(tokens.decode(encoded, len(values)), z, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("n_bins", [3, 7, 64, 500])
def test_bins_hold_equal_shares_and_err_less_than_they_say(n_bins):
    z = torch.randn(20_000, dtype=torch.float64)
    bins = QuantileBins(n_bins).fit(z)
    ids = bins.encode(z)
    share = torch.bincount(ids, minlength=bins.vocab_size)[1:] / len(z)
    assert abs(share * n_bins - 1).max() < 0.05
    inner = (z >= bins.edges[0]) & (z < bins.edges[-1])
    assert (bins.decode(ids) - z)[inner].abs().max() <= bins.error()


def test_bins_keep_missing_values_and_take_any_number():
    bins = QuantileBins(4).fit(torch.tensor([0.0, 1, 2, 3, 4, 5, 6, 7]))
    ids = bins.encode(torch.tensor([float("nan"), -1e9, 3.4, 1e9]))
    assert ids.tolist() == [0, 1, 2, 4]
    assert bins.decode(ids).isnan().tolist() == [True, False, False, False]


def test_bins_of_few_distinct_values_are_few():
    bins = QuantileBins(50).fit(torch.tensor([1.0, 2.0, 2.0, 3.0]).repeat(20))
    assert bins.vocab_size <= 5
    z = torch.tensor([1.0, 2.0, 3.0])
    torch.testing.assert_close(bins.decode(bins.encode(z)).float(), z)


@pytest.mark.parametrize("kind", ["none", "global", "series", "running"])
def test_scalers_come_back_from_json(kind):
    y = np.array([1.0, 2, np.nan, 4, 10, 20, 30])
    offsets, ids = np.array([0, 4, 7]), ["a", "b"]
    scaler = SeriesScaler(kind).fit(y, offsets, ids)
    again = SeriesScaler.from_dict(scaler.to_dict())
    for one, other in zip(scaler.tables(y, offsets, ids), again.tables(y, offsets, ids), strict=True):
        np.testing.assert_array_equal(one, other)
        assert (len(one) == 7) == (kind == "running")


def test_known_moments():
    scaler = SeriesScaler("series").fit(np.array([1.0, 3, np.nan, 5, 5]), np.array([0, 3, 5]), ["a", "constant"])
    assert scaler.by_series == {"a": (2.0, 1.0), "constant": (5.0, 1.0)}
    loc, scale = scaler.tables(np.array([7.0, 9.0]), np.array([0, 2]), ["new"])
    assert (loc[0], scale[0]) == (8.0, 1.0)


def test_series_without_values_are_left_alone():
    loc, scale = SeriesScaler("series").tables(np.full(3, np.nan), np.array([0, 3]), ["a"])
    assert (loc[0], scale[0]) == (0.0, 1.0)


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=60), st.integers(0, 59))
def test_running_scaling_can_be_continued(values, at):
    y = np.array(values)
    scaler = SeriesScaler("running").fit(y, np.array([0, len(y)]), ["a"])
    loc, scale = scaler.tables(y, np.array([0, len(y)]), ["a"])
    at = min(at, len(y))
    before = {"a": tuple(part[-1] for part in scaler.sums(y[:at]))} if at else {}
    again = scaler.tables(y[at:], np.array([0, len(y) - at]), ["a"], before)
    np.testing.assert_allclose(again[0], loc[at:], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(again[1], scale[at:], rtol=1e-6)


@pytest.mark.parametrize(("make", "argument"), [
    (lambda: SeriesScaler("minmax"), "scaler"), (lambda: PatchTokens(0), "patch"), (lambda: QuantileBins(1), "n_bins"),
])  # fmt: skip
def test_nonsense_is_refused(make, argument):
    with pytest.raises(ConfigError, match=argument):
        make()
