"""The layout string of a stack.

Grammar: a layout is one or more items, an item is a mixer's name or a group in parentheses, and either may be followed
by ``*`` and a count, as in ``mamba1*3 attention mamba1*4`` or ``(mamba2*7 attention)*2``.
"""

from __future__ import annotations

import re

from seqkit.errors import ConfigError

MIXERS = ("mamba1", "mamba2", "mamba3", "s4d", "attention")

_TOKEN = re.compile(r"\s*(?:(?P<word>[A-Za-z]\w*)|(?P<count>\d+)|(?P<sign>[()*]))")


class _Reader:
    """Walks the tokens of one layout string and remembers where it stands."""

    def __init__(self, layout: str):
        self.layout, self.position = layout, 0

    def peek(self) -> tuple[str, str]:
        """Kind and text of the next token; kind is "end" or "other" where there is none."""
        match = _TOKEN.match(self.layout, self.position)
        if match:
            return match.lastgroup, match[match.lastgroup]
        rest = self.layout[self.position :].strip()
        return ("other", rest[0]) if rest else ("end", "the end")

    def take(self) -> str:
        match = _TOKEN.match(self.layout, self.position)
        self.position = match.end()
        return match[match.lastgroup]

    def fail(self, expected: str) -> ConfigError:
        kind, text = self.peek()
        rest = self.layout[self.position :]
        position = self.position + len(rest) - len(rest.lstrip())
        got = text if kind == "end" else repr(text)
        return ConfigError("layout", expected=expected, got=f"{got} at position {position} of {self.layout!r}")


def parse_layout(layout: str) -> tuple[str, ...]:
    """Spell a layout string out, one mixer name per block.

    Args:
        layout: For example ``mamba2*4`` or ``(mamba2*7 attention)*2``.

    Returns:
        Names from ``mamba1``, ``mamba2``, ``mamba3``, ``s4d``, ``attention``, first block first.

    Raises:
        ConfigError: The string breaks the grammar; names the 0-based position.
    """
    reader = _Reader(layout)
    blocks = _parse_items(reader)
    if reader.peek()[0] != "end":
        raise reader.fail(f"a mixer ({', '.join(MIXERS)}) or a group in parentheses")
    return tuple(blocks)


def _parse_items(reader: _Reader) -> list[str]:
    blocks = _parse_item(reader)
    while reader.peek()[0] == "word" or reader.peek()[1] == "(":
        blocks += _parse_item(reader)
    return blocks


def _parse_item(reader: _Reader) -> list[str]:
    kind, text = reader.peek()
    if text == "(":
        reader.take()
        blocks = _parse_items(reader)
        if reader.peek()[1] != ")":
            raise reader.fail("a closing parenthesis or another mixer")
        reader.take()
    elif kind == "word" and text in MIXERS:
        blocks = [reader.take()]
    else:
        raise reader.fail(f"a mixer ({', '.join(MIXERS)}) or a group in parentheses")
    return blocks * _parse_count(reader)


def _parse_count(reader: _Reader) -> int:
    if reader.peek()[1] != "*":
        return 1
    reader.take()
    kind, text = reader.peek()
    if kind != "count" or int(text) == 0:
        raise reader.fail("a count of at least 1 after '*'")
    return int(reader.take())
