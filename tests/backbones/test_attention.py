import pytest
import torch

from seqkit.backbones import Attention, attention
from seqkit.errors import ConfigError


def naive_attention(module, x):
    """Softmax over explicit scores, rotation as multiplication of complex pairs."""
    length, heads, size = x.shape[1], module.n_heads, module.headdim
    qkv = (x @ module.in_proj.weight.T).reshape(*x.shape[:2], 3, heads, size)
    frequency = module.rope_base ** -(torch.arange(size // 2, dtype=torch.float64) / (size // 2))
    turn = torch.exp(1j * torch.arange(length, dtype=torch.float64)[:, None] * frequency)[:, None]
    q, k = (torch.complex(p[..., : size // 2], p[..., size // 2 :]) * turn for p in qkv[:, :, :2].unbind(2))
    scores = torch.einsum("blhp,bmhp->bhlm", q, k.conj()).real / size**0.5
    if module.causal:
        scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf)
    y = torch.einsum("bhlm,bmhp->blhp", scores.softmax(-1), qkv[:, :, 2])
    return y.flatten(2) @ module.out_proj.weight.T


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("headdim", [2, 6, 12])
def test_equals_the_definition(causal, headdim):
    module = Attention(12, headdim=headdim, causal=causal).double()
    x = torch.randn(2, 9, 12, dtype=torch.float64)
    torch.testing.assert_close(module(x)[0], naive_attention(module, x), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("queries", [1, 3, 100])
def test_chunks_behind_a_cache_equal_the_definition(queries, monkeypatch):
    monkeypatch.setattr(attention, "QUERIES", queries)
    module = Attention(12, headdim=6).double()
    x = torch.randn(2, 17, 12, dtype=torch.float64)
    first, state = module(x[:, :5])
    second, _ = module(x[:, 5:], state)
    torch.testing.assert_close(torch.cat([first, second], 1), naive_attention(module, x), rtol=1e-9, atol=1e-11)


def test_scores_depend_on_distance_only():
    module = Attention(8, headdim=4).double()
    x = torch.randn(1, 6, 8, dtype=torch.float64)
    state = module.initial_state(1)
    far = type(state)(state.keys, state.values, state.length + 1_000_000)
    torch.testing.assert_close(module(x, far)[0], module(x)[0], rtol=1e-6, atol=1e-8)


def test_state_counts_positions():
    module = Attention(8, headdim=4)
    _, state = module(torch.randn(3, 5, 8))
    assert state.length.tolist() == [5, 5, 5]
    assert state.keys.shape == (3, 2, 5, 4)


def test_a_state_needs_causality():
    with pytest.raises(ConfigError, match="state"):
        Attention(8, headdim=4, causal=False)(torch.randn(1, 2, 8), Attention(8, headdim=4).initial_state(1))


@pytest.mark.parametrize("headdim", [3, 5])
def test_head_size_must_fit(headdim):
    with pytest.raises(ConfigError, match="even divisor"):
        Attention(12, headdim=headdim)
