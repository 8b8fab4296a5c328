"""What a block keeps between its passes, and that computing the rest again changes nothing."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves

from seqkit.backbones import Backbone, BackboneConfig, LanguageHead, chunked_cross_entropy
from seqkit.errors import ConfigError
from seqkit.estimate.live import LiveBytes

SMALL = {"d_model": 16, "headdim": 8, "d_state": 6, "attention_headdim": 8}
MIXERS = ["mamba1", "mamba2", "mamba3", "s4d", "attention"]
SIDES = [{}, {"bidirectional": True}, {"bidirectional": True, "rc_equivariant": True}]
MILLION = 1 << 20
GIB = 1 << 30


def gradients(config, weights, ids, passes=1, **options):
    model = Backbone(config).double()
    model.load_state_dict(weights)
    hidden, state = model(ids, **options)
    states = [x for x in tree_leaves(state) if isinstance(x, torch.Tensor) and x.requires_grad]
    loss = hidden.sin().sum() + sum(x.sin().sum() for x in states)
    for _ in range(passes):
        model.zero_grad()
        loss.backward(retain_graph=passes > 1)
    return [hidden, *states, *(p.grad for p in model.parameters())]


@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("settings", [{}, {"slab": 5}, {"offload": True}, {"residual_in_fp32": False}])
def test_recomputing_changes_nothing(mixer, sides, settings):
    plain = BackboneConfig(**SMALL, layout=f"{mixer}*2", slab=None, **sides)
    weights, ids = Backbone(plain).state_dict(), torch.randint(7, 11, (2, 13))
    again = BackboneConfig(**{**plain.to_dict(), "checkpoint": True, **settings})
    expected, found = (gradients(config, weights, ids) for config in (plain, again))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("mixer", MIXERS)
def test_a_second_backward_pass_and_packed_segments(mixer):
    plain = BackboneConfig(**SMALL, layout=f"{mixer}*2", bidirectional=True)
    weights, ids = Backbone(plain).state_dict(), torch.randint(7, 11, (1, 13))
    again = BackboneConfig(**{**plain.to_dict(), "checkpoint": True})
    bounds = torch.tensor([0, 4, 4, 13], dtype=torch.int32)
    expected = gradients(plain, weights, ids, cu_seqlens=bounds)
    torch.testing.assert_close(gradients(again, weights, ids, passes=2, cu_seqlens=bounds), expected, rtol=1e-9, atol=0)


def kept_and_peak(length=MILLION, blocks=8, mixer="mamba2", **settings):
    """Bytes alive behind the forward pass, and at most, of the DNA model on tensors that take no memory."""
    config = BackboneConfig(
        d_model=256, layout=f"{mixer}*{blocks}", vocab_size=8, complement=(0, 1, 2, 3, 7, 6, 5, 4),
        **{"bidirectional": True, "rc_equivariant": True, "checkpoint": True, "slab": 65_536, **settings},
    )  # fmt: skip
    torch.set_default_dtype(torch.bfloat16)
    try:
        with FakeTensorMode(), LiveBytes() as live:
            model = Backbone(config)
            head = LanguageHead(256, 8, complement=config.token_complement, tied=model.embed.tokens)
            ids = torch.zeros(1, length, dtype=torch.int64)
            hidden, _ = model(ids)
            kept = live.now
            loss, count = chunked_cross_entropy(hidden, head, ids)
            del hidden
            (loss / count).backward()
    finally:
        torch.set_default_dtype(torch.float32)
    return kept, live.peak


@pytest.mark.parametrize(("in_fp32", "bytes_per_channel"), [(True, 4), (False, 2)])
def test_a_block_keeps_one_tensor_of_the_streams_width(in_fp32, bytes_per_channel):
    few, _ = kept_and_peak(blocks=3, residual_in_fp32=in_fp32)
    more, _ = kept_and_peak(blocks=5, residual_in_fp32=in_fp32)
    one = MILLION * 2 * 256 * bytes_per_channel
    assert one <= (more - few) / 2 < 1.02 * one


@pytest.mark.parametrize("mixer", ["mamba1", "mamba2"])
@pytest.mark.parametrize(("in_fp32", "limit"), [(True, 20.5), (False, 12.0)])
def test_a_million_tokens_leave_room_for_the_slabs(mixer, in_fp32, limit):
    """22 and 14 GiB are the goal on a GPU; a slab of 65,536 tokens takes about one of them."""
    _, peak = kept_and_peak(mixer=mixer, residual_in_fp32=in_fp32)
    assert peak / GIB < limit


def test_memory_is_linear_in_length():
    (_, half), (_, whole) = kept_and_peak(MILLION // 2), kept_and_peak(MILLION)
    assert whole / half == pytest.approx(2, rel=0.02)


def test_offloading_without_recomputing_is_refused():
    with pytest.raises(ConfigError, match="offload"):
        BackboneConfig(**SMALL, layout="mamba2", offload=True)


@pytest.fixture
def fixed_order():
    """torch's attention adds gradients up in no fixed order on a GPU unless it is told to."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.gpu  # a CPU has nothing to move
@pytest.mark.usefixtures("fixed_order")
@pytest.mark.parametrize("mixer", MIXERS)
def test_offloading_frees_device_memory_and_changes_nothing(mixer):
    ids, kept, results = torch.randint(7, 11, (1, 20_000), device="cuda"), [], []
    plain = BackboneConfig(d_model=128, layout=f"{mixer}*6", bidirectional=True, checkpoint=True)
    weights = Backbone(plain).state_dict()
    for offload in (False, False, True):  # the first pass also makes the libraries' workspaces, which stay
        model = Backbone(BackboneConfig(**{**plain.to_dict(), "offload": offload})).cuda()
        model.load_state_dict(weights)
        before = torch.cuda.memory_allocated()
        hidden, _ = model(ids)
        torch.cuda.synchronize()
        kept.append(torch.cuda.memory_allocated() - before)
        hidden.square().mean().backward()
        results.append([p.grad for p in model.parameters()])
        del hidden, model
    torch.testing.assert_close(results[1], results[2], rtol=0, atol=0)
    assert kept[1] - kept[2] > 3 * 20_000 * 128 * 4
