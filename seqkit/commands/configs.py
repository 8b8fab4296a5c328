"""``seqkit configs``: what ships, and what is in it."""

from __future__ import annotations

from collections.abc import Sequence

from seqkit import configs
from seqkit.errors import ConfigError

USAGE = "usage: seqkit configs [task/NAME | model/NAME]"


def run(argv: Sequence[str]) -> int:
    """List the shipped configs, or print the one named ``kind/name``."""
    if argv and argv[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    if not argv:
        for kind in configs.KINDS:
            for name in configs.names(kind):
                print(f"{kind}/{name}  {first_comment(kind, name)}")
        return 0
    kind, slash, name = argv[0].partition("/")
    if kind not in configs.KINDS or not slash or len(argv) > 1:
        raise ConfigError("configs", expected="task/NAME or model/NAME", got=" ".join(argv), remedy=USAGE)
    print(configs.path(kind, name).read_text(), end="")
    return 0


def first_comment(kind: str, name: str) -> str:
    """The first line of a config, which says what it is for."""
    return configs.path(kind, name).read_text().splitlines()[0].removeprefix("#").strip()
