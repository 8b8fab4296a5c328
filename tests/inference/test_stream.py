import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._pytree import tree_leaves

from seqkit.backbones import Backbone, BackboneConfig, save_backbone
from seqkit.errors import CheckpointError, ConfigError, ShapeError
from seqkit.inference import sweeps
from seqkit.inference.stream import stream, stream_both_sides, stream_windows
from seqkit.inference.stream_state import StreamState, fingerprint, load_state, save_state
from seqkit.inference.sweeps import Spill

ROOT = Path(__file__).resolve().parents[2]
SMALL = {"d_model": 16, "headdim": 8, "d_state": 6, "attention_headdim": 8}
LAYOUTS = ["mamba1*2", "mamba2*3", "mamba3*2", "s4d*2"]
HYBRID = "mamba2 attention mamba1"
TWO_SIDED = [
    {"bidirectional": True},
    {"rc_equivariant": True},
    {"bidirectional": True, "rc_equivariant": True, "n_channels": 2, "channel_complement": (1, 0)},
    {"bidirectional": True, "residual_in_fp32": False},
]


def make(layout="mamba2*2", **settings):
    torch.manual_seed(0)
    return Backbone(BackboneConfig(**SMALL, layout=layout, **settings))


def tokens(length, batch=2):
    return torch.randint(7, 11, (batch, length))


def joined(results):
    return torch.cat([result.hidden for result in results], dim=1)


def cut(ids, *lengths):
    return list(ids.split([*lengths, ids.shape[1] - sum(lengths)], dim=1))


@pytest.mark.parametrize("layout", LAYOUTS)
@given(lengths=st.lists(st.integers(0, 9), max_size=5), piece=st.integers(1, 50))
@settings(max_examples=5, deadline=None)
def test_chunks_of_any_size_equal_the_full_pass(layout, lengths, piece):
    model, ids = make(layout).double(), tokens(47)
    results = list(stream(model, cut(ids, *lengths), piece=piece))
    torch.testing.assert_close(joined(results), model(ids)[0], rtol=1e-9, atol=1e-11)
    assert [r.start for r in results] == [r.state.position - r.hidden.shape[1] for r in results]
    assert results[-1].state.position == 47


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_state_does_not_grow(layout):
    sizes = [result.state.nbytes for result in stream(make(layout), tokens(60).split(20, dim=1))]
    assert sizes[0] > 0
    assert sizes == [sizes[0]] * 3


def test_attention_streams_too_but_its_state_grows():
    model, ids = make(HYBRID).double(), tokens(30)
    with pytest.warns(UserWarning, match="grows"):
        results = list(stream(model, ids.split(10, dim=1)))
    torch.testing.assert_close(joined(results), model(ids)[0], rtol=1e-9, atol=1e-11)
    steps = np.diff([result.state.nbytes for result in results])
    assert (steps == 2 * 2 * 10 * 16 * 8).all()  # keys and values of 2 rows, 10 positions, 16 channels in float64


@pytest.mark.parametrize("as_array", [False, True])
def test_a_row_of_ids_and_channels(as_array):
    model, ids, values = make(n_channels=3), tokens(20, batch=1), torch.randn(1, 20, 3)
    pair = (ids[0].to(torch.uint8).numpy(), values.numpy()) if as_array else (ids, values)
    torch.testing.assert_close(joined(stream(model, [pair])), model(ids, channels=values)[0])


def test_channels_alone():
    model, values = make(vocab_size=0, n_channels=3), torch.randn(2, 20, 3)
    torch.testing.assert_close(joined(stream(model, values.split(7, dim=1))), model(channels=values)[0])


def test_a_live_source_is_answered_at_once_and_the_mode_comes_back():
    model, seen = make(dropout=0.5).train(), []

    def source():
        for number in range(3):
            seen.append(number)
            yield tokens(5)

    for number, result in enumerate(stream(model, source())):
        assert seen == list(range(number + 1))
        assert not result.hidden.requires_grad
        assert model.training


STREAM = """
import sys, numpy as np, torch
from seqkit.backbones import load_backbone
from seqkit.inference.stream import stream
from seqkit.inference.stream_state import load_state, save_state
torch.set_num_threads(1)
folder, first = sys.argv[1], int(sys.argv[2])
model, ids = load_backbone(folder), torch.from_numpy(np.load(folder + "/ids.npy"))
state = load_state(folder + "/state", model) if first else None
for number, result in enumerate(stream(model, ids.split(16, dim=1)[first:], state=state), start=first):
    np.save(f"{folder}/part-{first}-{number}.npy", result.hidden.numpy())
    if number == 2:
        save_state(folder + "/state", result.state, model)
"""


def test_another_process_goes_on_bit_for_bit(tmp_path):
    model = make("mamba1 mamba2 attention mamba3 s4d")
    save_backbone(tmp_path, model)
    np.save(tmp_path / "ids.npy", tokens(80).numpy())
    for first in ("0", "3"):
        command = [sys.executable, "-W", "ignore", "-c", STREAM, str(tmp_path), first]
        subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=120)
    for number in (3, 4):
        unbroken, resumed = (np.load(tmp_path / f"part-{first}-{number}.npy") for first in (0, 3))
        np.testing.assert_array_equal(resumed, unbroken)
    assert load_state(tmp_path / "state", model).position == 48


def test_a_state_comes_back_as_it_was(tmp_path):
    model = make("mamba1 mamba3")
    *_, last = stream(model, [tokens(9)])
    save_state(tmp_path / "state", last.state, model)
    loaded = load_state(tmp_path / "state", model)
    assert loaded.position == 9
    torch.testing.assert_close(tree_leaves(loaded.inner), tree_leaves(last.state.inner), rtol=0, atol=0)


def test_fingerprints_tell_weights_and_mathematics_apart_and_nothing_else():
    base = fingerprint(make())
    assert fingerprint(make(slab=7, checkpoint=True, dropout=0.1)) == base
    changed = make()
    with torch.no_grad():
        changed.stack.norm.weight[3] += 1e-7
    others = [changed, make(norm_eps=1e-6), make().bfloat16(), make("mamba2*3")]
    assert len({base, *map(fingerprint, others)}) == 5


@pytest.mark.parametrize("damage", ["another model", "version", "cut off", "no header", "absent"])
def test_states_that_do_not_fit_are_refused(tmp_path, damage, monkeypatch):
    model, path = make(), tmp_path / "state"
    if damage == "version":
        monkeypatch.setattr("seqkit.inference.stream_state.VERSION", 0)
    save_state(path, StreamState(0, model.initial_state(1)), model)
    monkeypatch.undo()
    if damage == "cut off":
        path.write_bytes(path.read_bytes()[:-50])
    if damage == "no header":
        save_backbone(tmp_path, model)
        path = tmp_path / "model.safetensors"
    if damage == "absent":
        path.unlink()
    words = {"another model": "of another", "version": "version 1", "cut off": "intact", "absent": "no such file"}
    with pytest.raises(CheckpointError, match=words.get(damage, "without its header")):
        load_state(path, make(norm_eps=1e-6) if damage == "another model" else model)


@pytest.mark.parametrize("layout", [*LAYOUTS, "mamba2"])
@pytest.mark.parametrize("settings", TWO_SIDED, ids=["both", "strands", "both-strands-channels", "narrow-stream"])
@pytest.mark.parametrize("piece", [13, 64])
def test_two_sweeps_equal_the_full_pass(layout, settings, piece, tmp_path):
    model, ids = make(layout, **settings).double(), tokens(50)
    channels = torch.randn(2, 50, 2, dtype=torch.float64) if "n_channels" in settings else None
    parts = cut(ids, 7, 0, 1)
    if channels is not None:
        parts = list(zip(parts, cut(channels, 7, 0, 1), strict=True))
    results = list(stream_both_sides(model, parts, folder=tmp_path, piece=piece))
    torch.testing.assert_close(joined(results), model(ids, channels=channels)[0], rtol=1e-9, atol=1e-11)
    assert [result.start for result in results] == list(range(0, 50, piece))
    assert list(tmp_path.iterdir()) == []


def test_two_sweeps_in_half_precision_round_like_the_full_pass():
    model, ids = make(bidirectional=True).bfloat16(), tokens(40)
    swept = joined(stream_both_sides(model, [ids], piece=16))
    assert swept.dtype == torch.bfloat16
    torch.testing.assert_close(swept.float(), model(ids)[0].float(), rtol=2e-2, atol=2e-2)


def test_sweeps_call_the_model_with_pieces_only(monkeypatch):
    model, longest = make(bidirectional=True), []
    for block in model.stack.blocks:
        block.mixer.in_proj.register_forward_pre_hook(lambda module, inputs: longest.append(inputs[0].shape[1]))
    list(stream_both_sides(model, [tokens(60)], piece=16))
    assert max(longest) == 16


@pytest.mark.parametrize("settings", TWO_SIDED[:3])
def test_the_disk_holds_no_more_than_is_asked_of_it(tmp_path, settings, monkeypatch):
    """Beside the input and small states: the residual stream, and the other strand of an equivariant backbone."""
    model, most, write = make("mamba2*3", **settings | {"n_channels": 0, "channel_complement": None}), [], Spill.write

    def watched(self, row, rows):
        write(self, row, rows)
        files = {path.name: path.stat().st_size for path in self._path.parent.iterdir()}
        most.append(sum(size for name, size in files.items() if name.startswith(("residual", "other"))))
        assert sum(name.startswith("borders") for name in files) <= 2 * 2  # of two blocks, two tensors each

    monkeypatch.setattr(Spill, "write", watched)
    list(stream_both_sides(model, [tokens(64)], folder=tmp_path, piece=16))
    copies = 2 if model.config.rc_equivariant else 1
    assert max(most) <= copies * 4 * 2 * 64 * 16


@pytest.mark.parametrize("stop", ["early", "error"])
def test_nothing_is_left_on_disk(tmp_path, stop):
    model = make(bidirectional=True)
    chunks = [tokens(20), tokens(20)] if stop == "early" else [tokens(20), tokens(20, batch=3)]
    results = stream_both_sides(model, chunks, folder=tmp_path, piece=8)
    if stop == "early":
        next(results)
        assert list(tmp_path.iterdir()) != []
        results.close()
    else:
        with pytest.raises(ShapeError, match="first chunk's"):
            next(results)
    assert list(tmp_path.iterdir()) == []


def test_a_small_disk_is_met_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(sweeps.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(ConfigError, match=r"GiB of free disk for sweeps over 20 positions"):
        next(stream_both_sides(make(bidirectional=True), [tokens(20)], folder=tmp_path))


@given(lengths=st.lists(st.integers(0, 9), max_size=5), piece=st.integers(4, 40), margin=st.integers(0, 40))
@settings(max_examples=8, deadline=None)
def test_windows_see_a_margin_and_nothing_beyond(lengths, piece, margin):
    model, ids = make("mamba2 attention", bidirectional=True).double(), tokens(35)
    results = list(stream_windows(model, cut(ids, *lengths), piece=piece, margin=margin))
    assert [result.start for result in results] == list(range(0, 35, piece))
    for result in results:
        low, high = max(result.start - margin, 0), result.start + piece + margin
        window = model(ids[:, low:high])[0][:, result.start - low :][:, :piece]
        torch.testing.assert_close(result.hidden, window, rtol=1e-9, atol=1e-11)


def test_wide_windows_are_the_full_pass_of_ids_and_channels():
    model, ids, values = make(bidirectional=True, n_channels=3), tokens(30), torch.randn(2, 30, 3)
    parts = list(zip(cut(ids, 4, 11), cut(values, 4, 11), strict=True))
    swept = joined(stream_windows(model, parts, piece=8, margin=30))
    torch.testing.assert_close(swept, model(ids, channels=values)[0])


def test_windows_wait_for_their_margin_and_no_longer():
    model, read = make(bidirectional=True), []

    def source():
        for number in range(40):
            read.append(number)
            yield tokens(1)

    for result in stream_windows(model, source(), piece=4, margin=6):
        assert len(read) == min(result.start + 4 + 6, 40)


def test_nothing_in_nothing_out():
    assert list(stream_windows(make(bidirectional=True), [], margin=3)) == []
    assert list(stream(make(), [])) == []
    assert list(stream_both_sides(make(bidirectional=True), [tokens(0)])) == []


def test_a_causal_model_needs_no_second_side():
    model, ids = make(), tokens(20)
    torch.testing.assert_close(joined(stream_both_sides(model, [ids])), model(ids)[0])


@pytest.mark.parametrize(
    ("model", "call", "error", "message"),
    [
        ({"bidirectional": True}, lambda m: stream(m, [tokens(3)]), ConfigError, "stream_both_sides"),
        ({"layout": HYBRID, "bidirectional": True}, lambda m: stream_both_sides(m, [tokens(3)]), ConfigError, "window"),
        ({}, lambda m: stream_windows(m, [tokens(3)], margin=-1), ConfigError, "at least 0"),
        ({}, lambda m: stream_windows(m, [tokens(3), tokens(3, batch=1)], margin=1), ShapeError, "first chunk's"),
        ({}, lambda m: stream(m, [tokens(3)], piece=0), ConfigError, "at least 1"),
        ({}, lambda m: stream(m, [torch.zeros(2, 3, 1, 1)]), ShapeError, "expected ids"),
        ({}, lambda m: stream(m, [(tokens(3), torch.zeros(2, 4, 1))]), ShapeError, "a pair of both"),
        ({}, lambda m: stream(m, [(None, None)]), ShapeError, "got None, None"),
    ],
)  # fmt: skip
def test_what_cannot_be_streamed_is_refused(model, call, error, message):
    with pytest.raises(error, match=message):
        next(call(make(**model)))
