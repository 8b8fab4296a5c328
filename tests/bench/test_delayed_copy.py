import itertools
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from seqkit.bench import delayed_copy
from seqkit.bench.delayed_copy import GUESSING, OTHERS, SLOTS, VALUES, Copier, best_error, draw


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_a_stream_holds_its_marks_and_cues():
    episodes = draw(3, (10, 30), generator())
    ids = episodes.tokens(0, episodes.length, generator()).long()
    assert ids.shape == (3, 34)
    marks = ids[:, :SLOTS] - OTHERS
    assert torch.equal(marks // VALUES, torch.arange(SLOTS).expand(3, -1))
    for k, lag in enumerate((10, 30)):
        slots = ids[:, lag : lag + SLOTS] - OTHERS - SLOTS * VALUES
        assert torch.equal(slots.sort(-1)[0], torch.arange(SLOTS).expand(3, -1))
        assert torch.equal(episodes.wanted[:, k], (marks % VALUES).gather(1, slots))
    between = torch.cat([ids[:, SLOTS:10], ids[:, 14:30]], dim=1)
    assert between.max() < OTHERS


@given(cuts=st.lists(st.integers(0, 34), max_size=4))
def test_parts_of_a_stream_hold_what_the_whole_holds(cuts):
    episodes = draw(2, (10, 30), generator())
    borders = sorted({0, 34, *cuts})
    parts = [episodes.tokens(a, b, generator()) for a, b in itertools.pairwise(borders)]
    ids, whole = torch.cat(parts, dim=1), episodes.tokens(0, 34, generator())
    told = whole >= OTHERS
    assert torch.equal(ids[told], whole[told])
    assert (ids[~told] < OTHERS).all()


class Oracle(torch.nn.Module):
    """Knows the answers, as far as the marks are in what it is given."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, ids, positions):
        ids = ids.long()
        seen = (ids[:, :SLOTS] >= OTHERS).all(-1)
        slots = ids[:, positions] - OTHERS - SLOTS * VALUES
        values = ((ids[:, :SLOTS] - OTHERS) % VALUES).gather(1, slots.clamp(0, SLOTS - 1))
        found = torch.nn.functional.one_hot(torch.where(seen[:, None], values, 0), VALUES).float()
        return found * self.scale


@pytest.mark.parametrize("window", [14, 34, 1000])
def test_the_best_error_is_an_oracles(window):
    errors = delayed_copy.window_errors(Oracle(), (10, 30), 500, window, generator())
    for lag, error in zip((10, 30), errors, strict=True):
        assert error == pytest.approx(best_error(lag, window), abs=0.05)
    assert best_error(30, 14) == GUESSING


def test_carried_errors_are_those_of_one_pass(monkeypatch):
    monkeypatch.setattr(delayed_copy, "PIECE", 7)
    torch.manual_seed(0)
    model = Copier("mamba2", 30)
    errors = delayed_copy.carried_errors(model, (10, 30), 20, generator())
    drawn = generator()
    episodes, parts = draw(20, (10, 30), drawn), []
    for begin in range(0, 34, 7):
        parts.append(episodes.tokens(begin, min(begin + 7, 34), drawn))
    cues = torch.tensor([*range(10, 14), *range(30, 34)])
    named = model(torch.cat(parts, dim=1), cues).argmax(-1).unflatten(1, (2, SLOTS))
    assert errors == [int((named[:, k] != episodes.wanted[:, k]).sum()) / 80 for k in range(2)]


def test_stages_climb_by_half_a_decade():
    found = delayed_copy.stages((100, 1_000, 100_000), 1 << 16)
    assert [stage.lags[-1] for stage in found] == [100, 316, 1_000, 3_162, 10_000, 31_623, 100_000]
    assert [stage.batch for stage in found] == [64, 64, 64, 20, 6, 2, 2]
    assert found[2].lags == (100, 316, 1_000)
    assert [stage.lags for stage in delayed_copy.stages((12, 20), 64)] == [(12,), (12, 20)]


def test_a_stage_ends_when_enough_answers_are_right():
    """A model that knows everything takes the warm-up; a window that sees nothing as many steps as it is told."""
    curriculum = delayed_copy.stages((12,), 12 * 64)
    model = Oracle()
    assert delayed_copy.train(model, curriculum, None, generator()) == [delayed_copy.WARM_UP]
    assert delayed_copy.train(model, curriculum, 8, generator(), [3]) == [3]


def test_a_short_lag_is_learned_from_the_stream_and_not_from_a_window(tmp_path, monkeypatch):
    monkeypatch.setattr(delayed_copy, "STEPS", (60, 20))
    out = tmp_path / "rows.jsonl"
    options = ["--lags", "12", "--reads", "carried", "8", "--seeds", "0", "--tokens", "512", "--streams", "100"]
    options += ["--layout", "mamba2"]
    assert delayed_copy.main([*options, "--device", "cpu", "--out", str(out)]) == 0
    carried, windowed = (json.loads(line) for line in out.read_text().splitlines())
    assert (carried["reads"], carried["best"], windowed["best"]) == ("carried state", 0.0, GUESSING)
    assert carried["steps"] == windowed["steps"]
    assert carried["error"] < 0.15
    assert windowed["error"] == pytest.approx(GUESSING, abs=0.1)
    assert (tmp_path / "rows.png").stat().st_size > 1000
