import numpy as np
import pytest

from seqkit.commands.pretrain_measure import mean_bits, sample_spans
from seqkit.commands.pretrain_report import compare
from seqkit.data.held_out import Span


@pytest.mark.parametrize(
    ("spans", "length", "bases", "sample"),
    [
        ([Span(0, 100)], 10, 30, [(0, 10), (30, 40), (60, 70)]),
        ([Span(5, 12)], 10, 1000, [(5, 12)]),
        ([Span(0, 25), Span(50, 60)], 10, 1000, [(0, 10), (10, 20), (50, 60)]),
        ([Span(0, 1000)], 100, 1, [(0, 100)]),
    ],
)
def test_samples_lie_evenly_in_the_held_out_part(spans, length, bases, sample):
    assert sample_spans(spans, length, bases) == sample


def test_means_skip_what_is_not_scored():
    assert mean_bits(np.array([np.nan, 1.0, 2.0], dtype=np.float32)) == 1.5
    assert np.isnan(mean_bits(np.array([np.nan], dtype=np.float32)))


def test_differences_are_resampled_in_pairs():
    """The same bits shifted by a constant: the difference is known exactly, the mean is not."""
    bits = np.random.default_rng(0).uniform(1, 3, 50_000).astype(np.float32)
    bits[::7] = np.nan
    found = compare({"ours": bits, "theirs": bits + 0.25}, seed=0)
    difference = found["theirs"]["difference"]
    assert difference["difference"] == pytest.approx(-0.25, abs=1e-5)
    assert difference["high"] - difference["low"] < 1e-4
    assert found["ours"]["low"] < found["ours"]["value"] < found["ours"]["high"]
