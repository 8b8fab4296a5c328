import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seqkit.backbones import BackboneConfig
from seqkit.inference.likelihood import carried_nats, windowed_nats
from seqkit.tasks.language_model import LanguageModel


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return LanguageModel(BackboneConfig(d_model=16, layout="mamba2", d_state=4, headdim=8, vocab_size=24))


def bases(length):
    return np.random.default_rng(length).integers(7, 11, length).astype(np.uint8)


def direct(model, ids):
    with torch.no_grad():
        logits = model(torch.from_numpy(ids[:-1])[None])
    return torch.nn.functional.cross_entropy(logits[0], torch.from_numpy(ids[1:]).long(), reduction="none").numpy()


@pytest.mark.parametrize("length", [0, 1, 2, 3, 64, 101])
def test_both_ways_are_one_pass_where_one_window_holds_all(model, length):
    ids = bases(length)
    expected = np.concatenate([[np.nan] * min(1, length), direct(model, ids) if length > 1 else []])
    for found in (
        carried_nats(model.backbone, model.head, ids),
        windowed_nats(model.backbone, model.head, ids, length=200, overlap=100),
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_pieces_change_nothing(model, monkeypatch):
    monkeypatch.setattr("seqkit.inference.likelihood.PIECE", 7)
    ids = bases(60)
    np.testing.assert_allclose(carried_nats(model.backbone, model.head, ids)[1:], direct(model, ids), rtol=1e-4)


@settings(max_examples=25, deadline=None)
@given(total=st.integers(2, 80), length=st.integers(1, 30), data=st.data())
def test_windows_answer_for_every_base_once_from_their_own_start(model, total, length, data):
    overlap = data.draw(st.integers(0, length - 1))
    ids, stride = bases(total), length - overlap
    found = windowed_nats(model.backbone, model.head, ids, length=length, overlap=overlap, tokens_at_once=2 * length)
    assert np.isnan(found).tolist() == [True] + [False] * (total - 1)
    place = data.draw(st.integers(1, total - 1))
    start = 0 if place <= length else -(-(place - length) // stride) * stride
    assert found[place] == pytest.approx(direct(model, ids[start : place + 1])[-1], rel=1e-3)


def test_a_model_that_knows_nothing_needs_log_v_nats():
    model = LanguageModel(BackboneConfig(d_model=16, layout="mamba2", d_state=4, headdim=8, vocab_size=24))
    torch.nn.init.zeros_(model.head.output.weight)
    np.testing.assert_allclose(carried_nats(model.backbone, model.head, bases(9))[1:], np.log(24), rtol=1e-6)
