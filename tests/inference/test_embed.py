import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from seqkit.errors import ConfigError
from seqkit.inference.embed import bin_means
from seqkit.inference.stream import Streamed
from seqkit.inference.stream_state import StreamState


def pieces(hidden, lengths):
    start = 0
    for part in hidden.split([*lengths, hidden.shape[1] - sum(lengths)], dim=1):
        yield Streamed(start, part, StreamState(start + part.shape[1], None))
        start += part.shape[1]


@given(width=st.integers(1, 60), lengths=st.lists(st.integers(0, 12), max_size=4), strands=st.integers(1, 2))
def test_bins_are_means_whatever_the_pieces(width, lengths, strands):
    hidden = torch.randn(2, 50, 3 * strands)
    found = list(bin_means(pieces(hidden, lengths), width, 3))
    mean = hidden.unflatten(-1, (strands, 3)).mean(2)
    expected = torch.stack([part.mean(1) for part in mean.split(width, dim=1)], dim=1)
    torch.testing.assert_close(torch.cat([bins.means for bins in found], dim=1), expected)
    ends = [bins.start + width * bins.means.shape[1] for bins in found]
    assert [bins.start for bins in found] == [0, *ends[:-1]]
    for bins, end in zip(found, ends, strict=True):
        assert bins.state is None or bins.state.position == end


def test_a_state_comes_with_every_closed_border():
    found = list(bin_means(pieces(torch.randn(1, 30, 3), [10, 5]), 5, 3))
    assert [bins.state.position for bins in found] == [10, 15, 30]


def test_bins_of_nothing():
    assert list(bin_means([], 5, 3)) == []
    with pytest.raises(ConfigError, match="at least 1"):
        next(bin_means([], 0, 3))
