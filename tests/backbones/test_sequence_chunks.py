"""Training in chunks of the sequence, over all blocks: exact gradients, truncated ones, memory."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves, tree_map

from seqkit.backbones import Backbone, BackboneConfig, LanguageHead, sequence_cross_entropy
from seqkit.errors import ConfigError
from seqkit.estimate.live import LiveBytes
from seqkit.kernels.testing import error_ratio

SMALL = {"d_model": 16, "headdim": 8, "d_state": 6, "vocab_size": 8}
LAYOUTS = ["mamba1*2", "mamba2*2", "mamba3*2", "s4d*2", "mamba1 mamba3 mamba2"]


def make(layout="mamba1 mamba2", weights=None, dtype=torch.float64, **options):
    torch.manual_seed(0)
    backbone = Backbone(BackboneConfig(**SMALL, layout=layout, **options)).to(dtype)
    return backbone, LanguageHead(16, 8, tied=backbone.embed.tokens)


def tokens(length, batch=2):
    ids = torch.randint(8, (batch, length + 1), generator=torch.Generator().manual_seed(length))
    target = ids[:, 1:].clone()
    target[:, ::5] = -100
    return ids[:, :-1], target


def loss_and_gradients(ids, target, **options):
    backbone, head = make(**options)
    loss, count = sequence_cross_entropy(backbone, head, ids, target)
    (loss / count).backward()
    return [loss, count], [p.grad for p in backbone.parameters()]


@pytest.mark.parametrize("more", [{}, {"checkpoint": True, "slab": 3}, {"checkpoint": True, "residual_in_fp32": False}])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_are_those_of_the_whole_sequence(layout, more):
    ids, target = tokens(23)
    expected, wanted = loss_and_gradients(ids, target, layout=layout)
    loss, found = loss_and_gradients(ids, target, layout=layout, sequence_chunk=7, **more)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_in_float32_they_agree_to_five_digits(layout):
    ids, target = tokens(60)
    _, wanted = loss_and_gradients(ids, target, layout=layout, dtype=torch.float32)
    _, found = loss_and_gradients(ids, target, layout=layout, dtype=torch.float32, sequence_chunk=16)
    assert max(error_ratio(a, b.double()) for a, b in zip(found, wanted, strict=True)) < 1e-5


@settings(max_examples=15, deadline=None)
@given(length=st.integers(2, 30), chunk=st.integers(1, 31), packed=st.booleans())
def test_hidden_states_and_states_and_their_gradients(length, chunk, packed):
    ids, _ = tokens(length, batch=1)
    bounds = torch.tensor([0, length // 2, length // 2, length], dtype=torch.int32) if packed else None
    results = []
    for size in (None, chunk):
        backbone, _ = make(sequence_chunk=size, n_channels=2)
        channels = torch.linspace(-1, 1, 2 * length, dtype=torch.float64).view(1, length, 2).requires_grad_()
        before = tree_map(lambda x: (x + 0.1).requires_grad_(), backbone.initial_state(3 if packed else 1))
        hidden, state = backbone(ids, channels=channels, state=before, cu_seqlens=bounds)
        outputs = [hidden, *tree_leaves(state)]
        sources = [channels, *tree_leaves(before), *backbone.parameters()]
        results.append((outputs, torch.autograd.grad(sum(x.sin().sum() for x in outputs), sources)))
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("truncate", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_equals_a_loop_over_chunks_that_keeps_everything(truncate, dropout):
    """With dropout too: the backward pass draws what the forward pass drew."""
    ids, target = tokens(20)
    _, found = loss_and_gradients(ids, target, sequence_chunk=6, truncate=truncate, dropout=dropout)
    backbone, head = make(dropout=dropout)
    loss, state = 0, None
    for begin in range(0, 20, 6):
        hidden, state = backbone(ids[:, begin : begin + 6], state=state)
        state = tree_map(torch.Tensor.detach, state) if truncate else state
        loss = loss + F.cross_entropy(
            head(hidden).flatten(0, 1), target[:, begin : begin + 6].flatten(), reduction="sum"
        )
    (loss / (target != -100).sum()).backward()
    torch.testing.assert_close(found, [p.grad for p in backbone.parameters()], rtol=1e-9, atol=1e-12)


def test_truncated_gradients_are_others():
    ids, target = tokens(20)
    exact, truncated = (loss_and_gradients(ids, target, sequence_chunk=6, truncate=t)[1] for t in (False, True))
    assert max(error_ratio(a, b) for a, b in zip(truncated, exact, strict=True)) > 1e-3


def test_loss_curves_coincide():
    curves = []
    for chunk in (None, 9):
        backbone, head = make("mamba2*2", dtype=torch.float32, sequence_chunk=chunk)
        optimizer = torch.optim.AdamW(backbone.parameters(), lr=1e-2)
        curves.append([])
        for step in range(8):
            loss, count = sequence_cross_entropy(backbone, head, *tokens(40 + step))
            optimizer.zero_grad()
            (loss / count).backward()
            optimizer.step()
            curves[-1].append((loss / count).item())
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)
    assert curves[0][-1] < curves[0][0]


def bytes_kept(length, **options):
    config = BackboneConfig(d_model=256, layout="mamba2*4", vocab_size=8, checkpoint=True, slab=16_384, **options)
    with FakeTensorMode(), LiveBytes() as live:
        backbone = Backbone(config)
        head = LanguageHead(256, 8, tied=backbone.embed.tokens)
        ids = torch.zeros(1, length, dtype=torch.int64)
        before = live.now
        loss, count = sequence_cross_entropy(backbone, head, ids, ids)
        kept = live.now - before
        (loss / count).backward()
    return kept / length, (live.peak - before) / length


def test_a_million_tokens_keep_states_alone():
    """Of a token its share of the states between chunks of 65,536: 8 bytes, where a whole pass keeps 1 KiB a block."""
    kept, peak = bytes_kept(1 << 20, sequence_chunk=65_536)
    states = 4 * (8 * 64 * 64 + 3 * (512 + 128)) * 4 / 65_536
    assert kept == pytest.approx(states, rel=0.01)
    assert peak < bytes_kept(1 << 20)[1] / 8


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"layout": "mamba2 attention"}, "sequence_chunk"),
        ({"layout": "mamba2", "bidirectional": True}, "sequence_chunk"),
        ({"layout": "mamba2", "rc_equivariant": True}, "sequence_chunk"),
        ({"layout": "mamba2", "sequence_chunk": 0}, "sequence_chunk"),
        ({"layout": "mamba2", "sequence_chunk": None, "truncate": True}, "truncate"),
    ],
)
def test_refusals_name_the_setting(options, name):
    with pytest.raises(ConfigError, match=name):
        BackboneConfig(**SMALL, **{"sequence_chunk": 8, **options})
