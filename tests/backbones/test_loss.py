"""Cross-entropy in chunks: the loss, its gradients and its memory."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from seqkit.backbones import LanguageHead, chunked_cross_entropy
from seqkit.errors import ConfigError, ShapeError

VOCABULARY = 7


def case(batch, length, width, dtype=torch.float64):
    generator = torch.Generator().manual_seed(batch * 1000 + length)
    head = LanguageHead(4, VOCABULARY, complement=(1, 0, 2, 4, 3, 6, 5)).to(dtype)
    hidden = torch.randn(batch, length, width, generator=generator, dtype=dtype).requires_grad_()
    target = torch.randint(VOCABULARY, (batch, length), generator=generator)
    target[torch.rand(batch, length, generator=generator) < 0.3] = -100
    return head, hidden, target, torch.rand(batch, length, generator=generator, dtype=dtype)


def whole(head, hidden, target, weight):
    losses = F.cross_entropy(head(hidden).flatten(0, 1), target.flatten(), reduction="none").view(target.shape)
    factor = (target != -100).to(losses.dtype) * (1 if weight is None else weight)
    return (losses * factor).sum(), factor.sum()


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 3),
    length=st.integers(0, 40),
    chunk=st.integers(1, 50),
    both_strands=st.booleans(),
    weighted=st.booleans(),
)
def test_loss_and_gradients_are_those_of_whole_logits(batch, length, chunk, both_strands, weighted):
    head, hidden, target, weight = case(batch, length, 8 if both_strands else 4)
    weight = weight if weighted else None
    loss, count = chunked_cross_entropy(hidden, head, target, weight_BL=weight, chunk=chunk)
    expected, expected_count = whole(head, hidden, target, weight)
    torch.testing.assert_close((loss, count), (expected, expected_count))
    inputs = [hidden, head.output.weight]
    torch.testing.assert_close(torch.autograd.grad(loss, inputs), torch.autograd.grad(expected, inputs))


def test_gradient_follows_the_callers_factor():
    head, hidden, target, _ = case(2, 9, 4)
    loss, count = chunked_cross_entropy(hidden, head, target, chunk=5)
    (grad,) = torch.autograd.grad(loss * 3 / count, hidden)
    expected, _ = whole(head, hidden, target, None)
    torch.testing.assert_close(grad, torch.autograd.grad(expected * 3 / count, hidden)[0])


def test_autocast_reaches_the_backward_pass_and_sums_stay_float32():
    head, hidden, target, _ = case(1, 50, 4, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = chunked_cross_entropy(hidden, head, target, chunk=8)
        expected, _ = whole(head, hidden, target, None)
    assert loss.dtype == torch.float32
    grads = [torch.autograd.grad(x, [hidden, head.output.weight]) for x in (loss, expected)]
    torch.testing.assert_close(*grads, rtol=2e-2, atol=2e-2)


def test_a_frozen_head_and_frozen_hidden_states():
    head, hidden, target, _ = case(1, 9, 4)
    head.requires_grad_(False)
    chunked_cross_entropy(hidden, head, target, chunk=4)[0].backward()
    assert hidden.grad is not None
    head.requires_grad_(True)
    chunked_cross_entropy(hidden.detach(), head, target, chunk=4)[0].backward()
    torch.testing.assert_close(
        head.output.weight.grad, torch.autograd.grad(whole(head, hidden, target, None)[0], head.output.weight)[0]
    )


def test_logits_never_exist_for_more_than_a_chunk():
    head, hidden, target, _ = case(2, 60, 4)
    seen = []
    head.register_forward_hook(lambda module, inputs, logits: seen.append(logits.shape[0] * logits.shape[1]))
    chunked_cross_entropy(hidden, head, target, chunk=16)[0].backward()
    assert max(seen) == 16
    assert sum(seen) == 2 * 120


def test_nothing_counts():
    head, hidden, target, _ = case(1, 5, 4)
    loss, count = chunked_cross_entropy(hidden, head, torch.full_like(target, -100))
    assert (loss.item(), count.item()) == (0, 0)


@pytest.mark.parametrize(
    ("options", "error", "name"),
    [
        ({"weight_BL": torch.ones(1, 4)}, ShapeError, "weight_BL"),
        ({"chunk": 0}, ConfigError, "chunk"),
    ],
)
def test_refusals_name_the_argument(options, error, name):
    head, hidden, target, _ = case(1, 5, 4)
    with pytest.raises(error, match=name):
        chunked_cross_entropy(hidden, head, target, **options)
