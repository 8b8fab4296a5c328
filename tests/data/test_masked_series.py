import numpy as np
import pytest

from seqkit.data.masked_series import MaskConfig, MaskedWindows, hide_points, hide_runs
from seqkit.errors import ConfigError, InputError
from seqkit.tokenizers.gaps import gap_channels

CUT = {"window": 20, "longest": 6, "seasons": (5,), "vary": 0.5, "seed": 3, "count": 50}


def rng():
    return np.random.default_rng(0)


def windows(z, region, visible=None, **more):
    return MaskedWindows(z, np.array(region), np.array(visible or region), **{**CUT, **more})


def test_points_hide_their_share_of_what_is_known():
    known = np.arange(100) % 2 == 0
    hidden = hide_points(known, 0.1, rng())
    assert hidden.sum() == 5
    assert not hidden[~known].any()


def test_runs_have_their_length_and_hide_nothing_unknown():
    known = np.ones(1000, bool)
    known[400:600] = False
    hidden = hide_runs(known, 0.05, 10, rng())
    assert 40 <= hidden.sum() <= 50
    assert not hidden[~known].any()
    edges = np.flatnonzero(np.diff(hidden.astype(int)))
    assert np.diff(edges)[::2].max() >= 10


@pytest.mark.parametrize("length", [1, 3, 50])
def test_a_run_longer_than_the_series_hides_all_of_it(length):
    assert hide_runs(np.ones(length, bool), 0.1, 60, rng()).all()


def test_a_window_depends_on_its_number_alone():
    z = np.sin(np.arange(200.0))
    first, again = windows(z, [[0, 200]]), windows(z, [[0, 200]])
    together, alone = first.__getitems__([4, 9]), again.__getitems__([9])
    np.testing.assert_array_equal(together["channels"][1], alone["channels"][0])
    np.testing.assert_array_equal(together["target"][1], alone["target"][0])
    assert first.__getitems__([-1 - 9])["target"].isnan().all()


def test_hidden_values_are_targets_and_nowhere_in_the_channels():
    z = np.arange(100.0) + 1000
    batch = windows(z, [[0, 100]], seasons=()).__getitems__(range(30))
    hidden = ~batch["target"].isnan()
    assert hidden.any(dim=1).all()
    assert (batch["channels"][..., 0][hidden] == 0).all()
    assert (batch["channels"][..., 1][hidden] == 1).all()
    known = batch["channels"][..., 1] == 0
    assert not (known & hidden).any()
    assert known.logical_or(hidden).all()


def test_training_windows_see_nothing_outside_their_rows():
    z = np.random.default_rng(1).normal(size=100)
    other = z.copy()
    other[60:] = 99.0
    for number in range(20):
        batches = [windows(one, [[0, 60]]).__getitems__([number]) for one in (z, other)]
        np.testing.assert_array_equal(batches[0]["channels"], batches[1]["channels"])


def test_short_series_are_padded_as_missing():
    batch = windows(np.arange(7.0), [[0, 7]]).__getitems__(range(5))
    assert batch["channels"].shape == (5, 20, gap_channels(np.zeros(1), (5,)).shape[1])
    assert (batch["channels"][:, 7:, 1] == 1).all()
    assert batch["target"][:, 7:].isnan().all()


def test_nothing_known_is_refused():
    with pytest.raises(InputError, match="known values"):
        windows(np.full(30, np.nan), [[0, 30]])


@pytest.mark.parametrize("settings", [{"window": 4}, {"share": 1.0}, {"vary": 2.0}, {"run": 0}, {"repeats": 0}])
def test_settings_out_of_range(settings):
    with pytest.raises(ConfigError, match="mask"):
        MaskConfig(**settings)
