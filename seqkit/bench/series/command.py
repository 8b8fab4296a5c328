"""The command line of ``seqkit bench series``: which protocols, where the files are, rows to a file and a table."""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

from seqkit.bench.series.files import FILES, missing
from seqkit.bench.series.rows import Row
from seqkit.errors import InputError

PROTOCOLS = ("ett", "m4", "taxi", "anomalies", "ecg", "seismic", "memory", "ucr")
SHOWN = (
    "mse",
    "mae",
    "owa",
    "mase",
    "pinball",
    "coverage80",
    "coverage95",
    "log_likelihood",
    "accuracy",
    "recall at 2",
    "peak_mib",
)


def protocol(name: str) -> ModuleType:
    """The module of a protocol: ``FILES``, and ``baselines(folder)``, ``models(folder, device, seeds)`` or both."""
    return importlib.import_module(f"seqkit.bench.series.{name}")


def listing(folder: Path | None) -> str:
    """Files, what reads them, where they come from, and whether they are there."""
    lines = []
    for name in PROTOCOLS:
        wanted = protocol(name).FILES
        absent = set(wanted if folder is None else missing(folder, wanted))
        lines.append(f"{name}: {(protocol(name).__doc__ or '').splitlines()[0]}")
        for file in wanted:
            state = "missing" if file in absent else "found"
            lines.append(f"  {state:<8}{file}  sha256 {FILES[file].sha256}\n          {FILES[file].origin}")
    return "\n".join(lines)


def environment(device: str) -> dict[str, str]:
    """Where the rows were measured."""
    import numpy
    import torch

    name = torch.cuda.get_device_name() if device.startswith("cuda") else platform.processor() or platform.machine()
    return {"device": name, "torch": torch.__version__, "numpy": numpy.__version__, "python": platform.python_version()}


def say(row: Row) -> None:
    """One line of a row on stderr."""
    shown = "  ".join(f"{key} {row.metrics[key]:.4g}" for key in SHOWN if key in row.metrics)
    seed = "" if row.seed is None else f" (seed {row.seed})"
    print(f"{row.protocol:<44}{row.method + seed:<28}{shown}  {row.seconds:.1f} s", file=sys.stderr, flush=True)


def run(names: list[str], folder: Path, device: str = "cpu", seeds: Sequence[int] = ()) -> Iterator[Row]:
    """Rows of the chosen protocols: simple methods first, then models, one row a seed.

    Raises:
        InputError: A file of a chosen protocol is missing.
    """
    for name in names:
        absent = missing(folder, protocol(name).FILES)
        if absent:
            raise InputError(
                absent[0], expected=f"below {folder}, plain or .gz", got="nothing", remedy="--list says where from."
            )
    for name in names:
        if hasattr(protocol(name), "baselines"):
            yield from protocol(name).baselines(folder)
        if hasattr(protocol(name), "models"):
            yield from protocol(name).models(folder, device, seeds)


def main(argv: list[str] | None = None) -> None:
    """Run the protocols and write one JSON line a row."""
    parser = argparse.ArgumentParser(prog="seqkit bench series", description=__doc__)
    parser.add_argument("--data-dir", type=Path, help="folder with the public files, at any depth, plain or .gz")
    parser.add_argument("--list", action="store_true", help="print the files with checksum and origin, and stop")
    parser.add_argument("--only", nargs="+", choices=PROTOCOLS, default=list(PROTOCOLS), help="protocols to run")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0], help="one model a seed; none for no models")
    parser.add_argument("--device", default="cpu", help="where models train")
    parser.add_argument("--out", type=Path, help="JSON lines, one a row, added to; stdout by default")
    given = parser.parse_args(argv)
    if given.list or given.data_dir is None:
        print(listing(given.data_dir))
        return
    where = environment(given.device)
    for row in run(given.only, given.data_dir, given.device, given.seeds):
        say(row)
        line = json.dumps(row.to_dict() | where)
        if given.out is None:
            print(line, flush=True)
        else:
            given.out.parent.mkdir(parents=True, exist_ok=True)
            with given.out.open("a", encoding="utf-8") as out:
                out.write(line + "\n")
