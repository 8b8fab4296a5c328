import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seqkit.backbones import Backbone, BackboneConfig, parse_layout, reverse_complement_hidden
from seqkit.tokenizers import DNATokenizer

TOKENIZER = DNATokenizer()
WORDS = st.sampled_from(["mamba1", "mamba2", "mamba3", "s4d", "attention"])
SMALL = {"d_model": 8, "headdim": 4, "d_state": 4, "attention_headdim": 4}


@st.composite
def layouts(draw, depth=2):
    """A layout string and the blocks it stands for, built side by side."""
    if depth == 0 or draw(st.booleans()):
        text = draw(WORDS)
        blocks = [text]
    else:
        items = draw(st.lists(layouts(depth=depth - 1), min_size=1, max_size=3))
        text = "(" + " ".join(item for item, _ in items) + ")"
        blocks = [block for _, inner in items for block in inner]
    count = draw(st.integers(0, 3))
    return (f"{text}*{count}", blocks * count) if count else (text, blocks)


@given(layouts())
def test_layouts_spell_out(layout):
    text, blocks = layout
    assert parse_layout(text) == tuple(blocks)


@st.composite
def cut_sequences(draw):
    lengths = draw(st.lists(st.integers(0, 9), min_size=1, max_size=4).filter(any))
    ids = draw(st.lists(st.integers(0, 22), min_size=sum(lengths), max_size=sum(lengths)))
    return torch.tensor([ids]), lengths


def causal_model(words):
    torch.manual_seed(0)
    return Backbone(BackboneConfig(**SMALL, layout=" ".join(words))).double()


@settings(max_examples=25, deadline=None)
@given(st.lists(WORDS, min_size=1, max_size=2), cut_sequences())
def test_any_chunking_equals_the_whole(words, sequence):
    model, (ids, lengths) = causal_model(words), sequence
    state, parts = None, []
    for part in ids.split(lengths, dim=1):
        if part.shape[1]:
            hidden, state = model(part, state=state)
            parts.append(hidden)
    torch.testing.assert_close(torch.cat(parts, dim=1), model(ids)[0], rtol=1e-8, atol=1e-10)


@settings(max_examples=25, deadline=None)
@given(st.lists(WORDS, min_size=1, max_size=2), cut_sequences())
def test_any_packing_equals_separate_passes(words, sequence):
    model, (ids, lengths) = causal_model(words), sequence
    bounds = torch.tensor([0, *lengths]).cumsum(0).int()
    packed, _ = model(ids, cu_seqlens=bounds)
    separate = [model(part)[0] for part in ids.split(lengths, dim=1) if part.shape[1]]
    torch.testing.assert_close(packed, torch.cat(separate, dim=1), rtol=1e-8, atol=1e-10)


@settings(max_examples=25, deadline=None)
@given(st.lists(WORDS, min_size=1, max_size=2), st.booleans(), st.lists(st.integers(0, 22), min_size=1, max_size=20))
def test_reverse_complement_reverses_and_swaps(words, bidirectional, ids):
    torch.manual_seed(0)
    config = BackboneConfig(**SMALL, layout=" ".join(words), bidirectional=bidirectional, rc_equivariant=True)
    model, ids = Backbone(config), torch.tensor([ids])
    other, _ = model(TOKENIZER.reverse_complement(ids))
    torch.testing.assert_close(other, reverse_complement_hidden(model(ids)[0]), rtol=1e-5, atol=1e-5)
