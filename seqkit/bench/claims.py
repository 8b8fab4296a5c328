"""What is said about Mamba, and what is measured here: a row a claim.

``seqkit bench claims --out claims.jsonl`` measures what this machine can decide, and writes measurements and claims as
JSON lines; rows of ``seqkit bench delayed-copy`` are read with ``--delayed-copy``. ``--table claims.jsonl`` prints the
claims of a file as the README shows them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from seqkit.bench import verdicts
from seqkit.bench.scaling import Contender, measure
from seqkit.bench.stream import causal_model, measure_steps
from seqkit.bench.transformer import Transformer
from seqkit.errors import InputError
from seqkit.kernels.bench import ceilings
from seqkit.kernels.bench.command import rows_of
from seqkit.kernels.bench.measure import graphed, milliseconds
from seqkit.kernels.bench.operations import OPERATIONS
from seqkit.kernels.bench.report import environment, write_lines
from seqkit.kernels.bench.suites import Case

CLAIMS = {
    1: "Linear time: doubling the input doubles the cost; attention quadruples it",
    2: "Throughput: 4 to 8 times a transformer's at 32k, 15 to 30 times at 128k, feasible at 1M",
    3: "Memory: 3 to 4 times less at 128k",
    4: "Inference state: fixed; more history makes almost no difference to speed",
    5: "Mamba-2: up to 8 times faster to train than Mamba-1, with larger states",
    6: "Mamba-3: better state tracking and quality at equal state",
    7: "Selectivity closes the gap of earlier state-space models",
    8: "Recall is weaker than attention's",
    9: "Hybrids keep attention's precision at near-linear cost",
    10: "Attention over tokens that a Mamba layer picks is 5 to 10 times faster",
    11: "Long range: better than attention on long dependencies from 32k on",
    12: "DNA: attention handles about 10 thousand bases, Mamba millions",
    13: "Whole documents in one pass, without artefacts of chunks",
    14: "Forgetting is invisible: there is no attention map to audit",
    15: "Hardware-aware scan: the state stays in fast memory, only results are written",
}
SHOWN = (
    "what",
    "model",
    "mode",
    "op",
    "d_state",
    "L",
    "position",
    "ms",
    "us",
    "forward_ms",
    "peak_gib",
    "failed",
    "skipped",
)
ENVIRONMENT = ("device", "torch", "triton", "cuda", "python", "date", "seed", "threads", "command")
_STEPS, _ROUNDS = 50, 7


@dataclass(frozen=True)
class Scale:
    """How large the measurements are.

    Attributes:
        lengths: Tokens of a sequence, ascending.
        d_model: Width.
        blocks: Mamba blocks; half as many transformer layers.
        tokens: Least tokens of a call.
        states: State sizes of Mamba-2.
        positions: Tokens behind a step.
        cached: Tokens in an attention cache behind a step.
        dtype: Of steps and kernels.
    """

    lengths: tuple[int, ...]
    d_model: int
    blocks: int
    tokens: int
    states: tuple[int, ...]
    positions: tuple[int, ...]
    cached: tuple[int, ...]
    dtype: str


GPU = Scale(
    lengths=(1 << 10, 1 << 12, 1 << 15, 1 << 17, 1 << 20, 1 << 22, 1 << 23, 1 << 24),
    d_model=256, blocks=8, tokens=1 << 17, states=(16, 64, 128, 256), positions=(1_000, 10_000_000),
    cached=(1_000, 100_000, 1_000_000), dtype="bfloat16",
)  # fmt: skip
CPU = Scale(
    lengths=(128, 256, 1024, 2048), d_model=64, blocks=2, tokens=1024, states=(16, 32), positions=(100, 2_000),
    cached=(100, 2_000), dtype="float32",
)  # fmt: skip


def measurements(scale: Scale, device: str, seed: int) -> Iterator[dict]:
    """All rows that claims are decided from, but for delayed copying."""
    model = {"d_model": scale.d_model, "blocks": scale.blocks}
    for name, mode, longest in (
        ("mamba2", "forward", 1 << 22),
        ("mamba2", "training", scale.lengths[-1]),
        ("attention", "forward", 1 << 22),
        ("attention", "training", scale.lengths[-1]),
        ("mamba1", "training", 1 << 20),
    ):
        lengths = [length for length in scale.lengths if length <= longest]
        yield from measure(Contender(name, **model), mode, lengths, device=device, tokens=scale.tokens, seed=seed)
    for states in scale.states:
        contender = Contender("mamba2", **model, d_state=states)
        yield from measure(contender, "training", [scale.tokens], device=device, tokens=scale.tokens, seed=seed)
    yield from steps(scale, device, seed)
    yield from kernels(scale, device, seed)


def steps(scale: Scale, device: str, seed: int) -> Iterator[dict]:
    """A step of the stack behind few and many tokens, and of the transformer with its cache."""
    options = {"device": device, "dtype": getattr(torch, scale.dtype), "seed": seed}
    ours = causal_model(f"mamba2*{scale.blocks}", scale.d_model, length=max(scale.positions), **options)
    given = argparse.Namespace(positions=scale.positions, piece=65_536, device=device)
    yield from measure_steps(ours, given)
    theirs = Transformer(24, scale.d_model, scale.blocks // 2).to(device, options["dtype"]).eval()
    for position in scale.cached:
        yield cached_step(theirs, position, device)


def cached_step(model: Transformer, position: int, device: str) -> dict:
    """Latency of a step of the transformer behind a cache, by the faster of two ways; in a CUDA graph on a GPU."""
    cache = model.cache(1, position, model.norm.weight.dtype)
    ids, at = (torch.full((1,), value, device=device) for value in (7, position))
    size = sum(part.nbytes for pair in cache for part in pair)
    rows = []
    for fused in (True, False):

        def step(fused: bool = fused) -> torch.Tensor:
            return model.step(ids, at, cache, fused=fused)

        step()
        run = graphed(step) if device == "cuda" else step

        def many(run: Callable[[], object] = run) -> None:
            for _ in range(_STEPS):
                run()

        times = [milliseconds(many, device) * 1e3 / _STEPS for _ in range(_ROUNDS)][1:]
        row = {"what": "cached step", "position": position, "fused": fused, "us": round(statistics.median(times), 1)}
        rows.append(row | {"us_least": round(min(times), 1), "us_most": round(max(times), 1), "state_bytes": size})
    return min(rows, key=lambda row: row["us"])


def kernels(scale: Scale, device: str, seed: int) -> Iterator[dict]:
    """The scans against the machine's ceilings, and how long it takes to write every token's state at copying speed."""
    best = ceilings.measure(device)
    for op in ("selective_scan", "ssd_scan"):
        sizes = {**OPERATIONS[op].gpu, "L": 1 << 20} if device == "cuda" else {**OPERATIONS[op].cpu, "L": 1024}
        case = Case(op, sizes, scale.dtype)
        (row,) = rows_of(case, ["triton" if device == "cuda" else "reference"], device, seed, 3, best)
        if "failed" in row:
            raise InputError(op, expected="a kernel that agrees with float64", got=row["failed"])
        work, _ = OPERATIONS[op].work(sizes, getattr(torch, scale.dtype).itemsize)
        channels = sizes["D"] if op == "selective_scan" else sizes["H"] * sizes["P"]
        states = 4 * sizes["B"] * sizes["L"] * channels * sizes["N"] / 1e9
        yield {
            "what": "kernel", **row, "operand_gb": work.bytes / 1e9, "states_gb": states,
            "states_ms": states / best.copy_gb_s * 1e3, "ceilings": best.row(),
        }  # fmt: skip


def measured_now(given: argparse.Namespace, carried: dict) -> list[dict]:
    """Measure, telling and writing every row as it comes: what comes later may take the process down."""
    rows, begun = [], time.perf_counter()
    for row in measurements(GPU if given.device == "cuda" else CPU, given.device, given.seed):
        shown = ", ".join(f"{name} {row[name]}" for name in SHOWN if name in row)
        print(f"{time.perf_counter() - begun:.0f} s: {shown}", file=sys.stderr, flush=True)
        write_lines([row | carried], given.out)
        rows.append(row)
    return rows


def decide(rows: Sequence[dict], command: str) -> list[dict]:
    """A row for each claim."""
    decided = []
    for number, claim in CLAIMS.items():
        figure, verdict = "", verdicts.UNDECIDED
        if number in verdicts.DECISIONS:
            figure, verdict = verdicts.decide(number, rows)
        row = {"what": "claim", "number": number, "claim": claim, "figure": figure, "verdict": verdict}
        source = "seqkit bench delayed-copy" if number == 11 else command
        decided.append(row | {"command": source if figure else ""})
    return decided


def table(rows: Sequence[dict]) -> str:
    """The claims of a run as Markdown."""
    lines = ["| # | claim | measured here | verdict |", "| ---: | --- | --- | --- |"]
    claims = {row["number"]: row for row in rows if row["what"] == "claim"}
    lines += [f"| {n} | {row['claim']} | {row['figure']} | {row['verdict']} |" for n, row in sorted(claims.items())]
    return "\n".join(lines)


def read_rows(path: str | Path) -> list[dict]:
    """JSON lines.

    Raises:
        InputError: There is no such file, or it holds something else.
    """
    try:
        return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise InputError(str(path), expected="JSON lines of seqkit bench", got=str(error)) from error


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    options = argparse.ArgumentParser(prog="seqkit bench claims", description=__doc__.splitlines()[0])
    options.add_argument("--delayed-copy", nargs="*", default=[], help="files of seqkit bench delayed-copy --out")
    options.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    options.add_argument("--threads", type=int, default=torch.get_num_threads())
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--out", type=Path, help="append JSON lines to this file; default: print them")
    options.add_argument("--decide", type=Path, help="measure nothing; decide from the measurements of such a file")
    options.add_argument("--table", type=Path, help="measure nothing; print the claims of such a file")
    return options


def main(argv: list[str] | None = None) -> int:
    """Measure, decide, print the table."""
    argv = sys.argv[1:] if argv is None else argv
    given = parser().parse_args(argv)
    if given.table:
        print(table(read_rows(given.table)))
        return 0
    torch.set_num_threads(given.threads)
    command = " ".join(["seqkit bench claims", *argv])
    rows, carried = [row for path in given.delayed_copy for row in read_rows(path)], {}
    if given.decide:
        measured = [row for row in read_rows(given.decide) if row["what"] != "claim"]
        carried = {name: measured[0][name] for name in ENVIRONMENT if name in measured[0]} if measured else {}
        command, rows = carried.pop("command", command), rows + measured
    else:
        carried = environment(given.device, given.seed, command)
        rows += measured_now(given, carried)
    decided = [carried | row for row in decide(rows, command)]
    write_lines(decided, given.out)
    print(table(decided))
    return 0


if __name__ == "__main__":
    sys.exit(main())
