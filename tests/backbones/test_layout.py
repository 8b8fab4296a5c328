import pytest

from seqkit.backbones import parse_layout
from seqkit.errors import ConfigError


@pytest.mark.parametrize(
    ("layout", "blocks"),
    [
        ("mamba2", ["mamba2"]),
        ("mamba2*4", ["mamba2"] * 4),
        ("mamba3*2", ["mamba3"] * 2),
        ("s4d*2 mamba1", ["s4d", "s4d", "mamba1"]),
        ("mamba1*3 attention mamba1*4", ["mamba1"] * 3 + ["attention"] + ["mamba1"] * 4),
        ("(mamba2*2 attention)*2", ["mamba2", "mamba2", "attention"] * 2),
        (
            "  (mamba1 (attention*2 mamba2)*2)*1mamba1",
            ["mamba1"] + ["attention", "attention", "mamba2"] * 2 + ["mamba1"],
        ),
        ("mamba2 * 2", ["mamba2"] * 2),
    ],
)
def test_blocks(layout, blocks):
    assert parse_layout(layout) == tuple(blocks)


@pytest.mark.parametrize(
    ("layout", "position"),
    [
        ("", "the end at position 0"),
        ("mamba9", "'mamba9' at position 0"),
        ("mamba1 attn*2", "'attn' at position 7"),
        ("mamba1*", "the end at position 7"),
        ("mamba1*0", "'0' at position 7"),
        ("mamba1*x", "'x' at position 7"),
        ("(mamba1 attention", "the end at position 17"),
        ("mamba1)", "')' at position 6"),
        ("()", "')' at position 1"),
        ("mamba1, mamba2", "',' at position 6"),
        ("3*mamba1", "'3' at position 0"),
    ],
)
def test_errors_name_the_position(layout, position):
    with pytest.raises(ConfigError, match="layout") as caught:
        parse_layout(layout)
    assert position in str(caught.value)
