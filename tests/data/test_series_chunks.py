import numpy as np
import polars as pl
import pytest

from seqkit.data.covariates import Encoded
from seqkit.data.series import load_panel
from seqkit.data.series_chunks import ChunkReader, ChunkSampler, EvaluationChunks, TrainingChunks
from seqkit.data.series_windows import ScaledPanel, SeriesWindows, WindowIndex
from seqkit.tokenizers.numeric import SeriesScaler

L, H = 5, 3


def panel_of(*lengths):
    frames = [pl.DataFrame({"unique_id": f"s{s}", "ds": np.arange(n), "y": 1000.0 * s + np.arange(n)})
              for s, n in enumerate(lengths)]  # fmt: skip
    return load_panel(pl.concat(frames))


def reader_of(panel, chunk=8, scaler="none"):
    data = ScaledPanel(panel, SeriesScaler(scaler), Encoded(None, None, None, None))
    return ChunkReader(data, lookback=L, horizon=H, chunk=chunk)


def bounds_of(panel):
    return np.stack([panel.offsets[:-1], panel.offsets[1:]], axis=1)


@pytest.mark.parametrize("lengths", [(100,), (30, 7, 61), (9, 9, 9, 9, 9)])
@pytest.mark.parametrize("lanes", [1, 2, 4])
def test_an_epoch_reads_every_row_once_in_order(lengths, lanes):
    panel = panel_of(*lengths)
    chunks = TrainingChunks(reader_of(panel), bounds_of(panel), lanes=lanes, cutoffs=4)
    seen, last = [], {}
    for item in range(len(chunks)):
        batch = chunks[item]
        for lane in range(len(batch["y"])):
            rows = batch["y"][lane, 0, L : L + int(batch["read"][lane])].numpy()
            if len(rows) and not batch["fresh"][lane]:
                assert rows[0] == last[lane] + 1
            last[lane] = rows[-1] if len(rows) else None
            seen += rows.tolist()
    assert sorted(seen) == panel.y.tolist()


def test_cutoffs_have_targets_and_their_lookback():
    panel = panel_of(100)
    chunks = TrainingChunks(reader_of(panel), np.array([[0, 60]]), lanes=2, cutoffs=100)
    for item in range(len(chunks)):
        batch = chunks[item]
        for lane, at in zip(*np.nonzero(batch["at"].numpy()), strict=True):
            at = int(batch["at"][lane, at])
            window = batch["y"][lane, 0, at : at + L + H].numpy()
            known = window[~np.isnan(window)]
            assert (np.diff(known) == 1).all()
            assert not np.isnan(window[L])
            assert known.max() < 60


def test_cutoffs_depend_on_seed_and_epoch_alone():
    panel = panel_of(100)
    one, same, other = (
        TrainingChunks(reader_of(panel, 32), bounds_of(panel), lanes=2, cutoffs=5, seed=seed) for seed in (0, 0, 1)
    )
    second_epoch = one[len(one)]["at"]
    assert (one[0]["at"] == same[0]["at"]).all()
    assert (one[0]["at"] != other[0]["at"]).any()
    assert (one[0]["at"] != second_epoch).any()
    sampler = ChunkSampler(len(one))
    sampler.set_epoch(3)
    assert list(sampler) == list(range(3 * len(one), 4 * len(one)))


@pytest.mark.parametrize("scaler", ["none", "series", "running"])
def test_evaluation_finds_the_windows_of_the_index(scaler):
    panel = panel_of(40, 23, 31)
    index = WindowIndex(panel.offsets, panel.offsets[:-1] + 1, panel.offsets[1:] - H, stride=2)
    reader = reader_of(panel, 7, scaler)
    windows = SeriesWindows(reader.data, index, lookback=L, horizon=H)
    chunks = EvaluationChunks(reader, index, lanes=2)
    found = {}
    for item in range(len(chunks)):
        batch = chunks[item]
        for lane, place in zip(*np.nonzero(batch["at"].numpy()), strict=True):
            at = int(batch["at"][lane, place])
            loc, scale = batch["loc"][lane, 0, L + at - 1], batch["scale"][lane, 0, L + at - 1]
            found[int(batch["index"][lane, place])] = ((batch["y"][lane, 0, at : at + L + H] - loc) / scale).numpy()
    assert sorted(found) == list(range(len(index)))
    for number, values in found.items():
        window = windows[number]
        expected = np.concatenate([window["z"][0].numpy(), window["target"][0].numpy()])
        np.testing.assert_allclose(values, expected, atol=1e-5)


def test_what_lies_outside_a_series_is_missing():
    panel = panel_of(10, 10)
    chunks = TrainingChunks(reader_of(panel), bounds_of(panel), lanes=2, cutoffs=3)
    batch = chunks[0]
    assert np.isnan(batch["y"][:, 0, :L].numpy()).all()
    batch = chunks[1]
    assert batch["read"].tolist() == [2, 2]
    assert np.isnan(batch["y"][:, 0, L + 2 :].numpy()).all()
