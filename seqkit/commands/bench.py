"""``seqkit bench``: every number of the README has its command here."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from seqkit.errors import ConfigError

SUITES = {
    "kernels": "seqkit.kernels.bench",
    "genome": "seqkit.bench.genome",
    "models": "seqkit.bench.models",
    "stream": "seqkit.bench.stream",
    "delayed-copy": "seqkit.bench.delayed_copy",
    "claims": "seqkit.bench.claims",
    "series": "seqkit.bench.series.command",
    "variants": "seqkit.bench.variant_io",
}


def run(argv: Sequence[str]) -> int:
    """Run the suite that the first argument names, with the remaining arguments."""
    if argv and argv[0] in SUITES:
        return importlib.import_module(SUITES[argv[0]]).main(list(argv[1:])) or 0
    if argv and argv[0] in ("-h", "--help"):
        print("usage: seqkit bench SUITE [options]\nsuites: " + ", ".join(SUITES))
        return 0
    raise ConfigError("bench", expected=f"one of {', '.join(SUITES)}", got=argv[0] if argv else "none")
