"""The command line: which ops, sizes and providers; rows to a file, a table to the terminal."""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
from pathlib import Path

import torch

from seqkit.errors import ConfigError
from seqkit.kernels.bench import ceilings, first_call, report
from seqkit.kernels.bench.measure import Runner, graphed, host_microseconds, peak_bytes, quartiles, repeated, small
from seqkit.kernels.bench.operations import OPERATIONS, Draw, Tensors
from seqkit.kernels.bench.providers import NAMES, PROVIDERS, available, longest, version
from seqkit.kernels.bench.suites import SUITES, Case, cases

GIB = 2**30


def make(case: Case, device: str, seed: int) -> Tensors:
    """Operands of a case."""
    return OPERATIONS[case.op].operands(case.sizes, Draw(getattr(torch, case.dtype), torch.device(device), seed))


def check(runner: Runner, seed: int) -> dict:
    """Errors against float64; with ``failed`` if one is above the tolerance."""
    errors = runner.errors(seed)
    wrong = [name for name, ratio in errors.items() if not ratio <= runner.tolerance()]
    row = {"errors": {name: float(f"{value:.3g}") for name, value in errors.items()}}
    if not wrong:
        return row
    difference = f"{wrong[0]}: RMS(error) / RMS(reference) is {errors[wrong[0]]:.3g}"
    return row | {"failed": f"{difference}, tolerance {runner.tolerance():.3g}"}


def time_all(runners: list[Runner], device: str, repeats: int) -> list[dict]:
    """Times of all runners, which take turns."""
    rows: list[dict] = [{} for _ in runners]
    for name in ("forward", "both"):
        calls = [getattr(runner, name) for runner in runners]
        for row, times in zip(rows, repeated(calls, device, repeats), strict=True):
            _add(row, name, times)
    if device == "cuda":
        for row, runner in zip(rows, runners, strict=True):
            peak, results = peak_bytes(runner.both)
            beyond = max(0, peak - results)  # a result may lie in memory that was there before, as a handed-on gradient
            row |= {"peak_gib": round(peak / GIB, 3), "peak_beyond_results_gib": round(beyond / GIB, 3)}
            for name in ("forward", "both"):
                row[f"{name}_host_us"] = round(host_microseconds(getattr(runner, name)), 1)
            if small(runner.case):
                row |= _replayed(runner, repeats)
    return rows


def _replayed(runner: Runner, repeats: int) -> dict:
    row: dict = {}
    try:
        for name in ("forward", "both"):
            _add(row, f"{name}_graph", repeated([graphed(getattr(runner, name))], "cuda", repeats)[0])
    except Exception as error:  # a provider that cannot be captured keeps its eager times
        row["graph_failed"] = _first_line(error)
    return row


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"


def _add(row: dict, name: str, times: list[float]) -> None:
    low, middle, high = (round(value, 5) for value in quartiles(times))
    row |= {f"{name}_ms": middle, f"{name}_quartiles_ms": [low, high], f"{name}_repeats": len(times)}


def rows_of(case: Case, providers: list[str], device: str, seed: int, repeats: int, best: ceilings.Ceilings):
    """One row per provider; a wrong one is not timed."""
    operands = make(case, device, seed)
    rows, runners = [], []
    for provider in providers:
        row = {"op": case.op, "provider": provider, "shape": case.sizes, "dtype": case.dtype}
        row |= {"version": version(provider)} if version(provider) else {}
        rows.append(row)
        try:
            runner = Runner(case, provider, operands)
            row |= check(runner, seed)
            if "failed" in row:
                continue
            runner.prepare()
            if device == "cuda":  # one after the other: operands in several layouts may not fit together
                row |= time_all([runner], device, repeats)[0]
            else:
                runners.append((row, runner))
        except Exception as error:  # another package's failure is a result, and must not lose the others' rows
            row["failed"] = _first_line(error)
        finally:
            runner = None
            if device == "cuda":
                gc.collect()
                torch.cuda.empty_cache()
    for (row, _), times in zip(runners, time_all([runner for _, runner in runners], device, repeats), strict=True):
        row |= times
    size, tokens = getattr(torch, case.dtype).itemsize, case.sizes["B"] * case.sizes["L"]
    for row in rows:
        if "both_ms" in row:
            row["us_per_token"] = round(row["both_ms"] / tokens * 1e3, 5)
            for name, work in zip(("forward", "both"), OPERATIONS[case.op].work(case.sizes, size), strict=True):
                least, binding = best.least_ms(work)
                fastest = min(row[f"{name}_ms"], row.get(f"{name}_graph_ms", float("inf")))
                row |= {f"{name}_of_ceiling": round(least / fastest, 4), f"{name}_ceiling": binding}
    return rows


def process_peak_gib(case: Case, provider: str, threads: int, seed: int) -> float | None:
    """Peak resident memory of a fresh process that runs forward and backward once; None where it cannot be read."""
    what = json.dumps([case.op, case.sizes, case.dtype, provider])
    options = ["--peak-of", what, "--threads", str(threads), "--seed", str(seed)]
    command = [sys.executable, "-m", "seqkit.kernels.bench", *options]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _peak_here(what: str, seed: int) -> float | None:
    op, sizes, dtype, provider = json.loads(what)
    case = Case(op, sizes, dtype)
    runner = Runner(case, provider, make(case, "cpu", seed))
    outputs = runner.outputs()
    torch.autograd.grad(outputs, list(runner.leaves.values()), [torch.ones_like(y) for y in outputs])
    status = Path("/proc/self/status")  # unlike getrusage's, its peak starts at exec, not at the parent's size
    if not status.exists():
        return None
    peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return round(int(peak.split()[1]) / 2**20, 3)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="seqkit bench kernels", description="Time the ops, provider beside provider.")
    parser.add_argument("--op", nargs="+", choices=list(OPERATIONS), help="default: all of the suite")
    parser.add_argument("--provider", nargs="+", choices=NAMES, help="default: all that are installed")
    parser.add_argument("--suite", choices=list(SUITES), help="default: all on a GPU, small sizes on a CPU")
    parser.add_argument("--length", nargs="+", type=int, help="tokens, for the default sizes of each op")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=5, help="at least so many; short calls are repeated more often")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--memory", action="store_true", help="on a CPU: peak memory too, one process per row")
    parser.add_argument("--first-call", action="store_true", help="on a GPU: time the first call of each op instead")
    parser.add_argument("--out", type=Path, help="append JSON lines to this file, plots beside it; default: print them")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    parser.add_argument("--first-call-of", choices=list(OPERATIONS), help=argparse.SUPPRESS)
    return parser


def _timed_rows(args: argparse.Namespace, carried: dict) -> list[dict]:
    best = ceilings.measure(args.device)
    print(f"ceilings: {json.dumps(best.row())}", file=sys.stderr)
    carried, rows = carried | {"ceilings": best.row()}, []
    for case in cases(args.device, args.op, args.suite, args.length, args.dtype):
        wanted = [name for name in PROVIDERS[case.op] if not args.provider or name in args.provider]
        wanted = [name for name in wanted if available(case.op, name, args.device)]
        wanted = [name for name in wanted if case.sizes["L"] <= longest(name, args.device)]
        found = rows_of(case, wanted, args.device, args.seed, args.repeats, best) if wanted else []
        for row in found:
            if args.memory and args.device == "cpu" and "both_ms" in row:
                row["peak_gib"] = process_peak_gib(case, row["provider"], args.threads, args.seed)
            if "failed" in row:
                said = f"not timed, {row['failed']}"
            else:
                said = f"{row['forward_ms']:.4g}, {row['both_ms']:.4g} ms"
            print(f"{case.op} {row['provider']}: {said} at {case.sizes}", file=sys.stderr, flush=True)
        found = [row | carried for row in found]
        report.write_lines(found, args.out)  # at once: what comes later may take the process down
        rows += found
    return rows


def main(argv: list[str] | None = None) -> int:
    """Run the benchmarks the command line asks for; exit code 1 if a provider failed."""
    argv = sys.argv[1:] if argv is None else argv
    args = _parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    if args.peak_of:
        print(json.dumps(_peak_here(args.peak_of, args.seed)))
        return 0
    if args.first_call_of:
        print(json.dumps(first_call.in_this_process(args.first_call_of, args.seed)))
        return 0
    carried = report.environment(args.device, args.seed, " ".join(["seqkit bench kernels", *argv]))
    if args.first_call:
        if args.device != "cuda":
            raise ConfigError("--first-call", expected="a GPU, which compiles kernels at first use", got=args.device)
        ops = [op for op in args.op or OPERATIONS if available(op, "triton", args.device)]
        rows = [row | carried for row in first_call.rows(ops, args.seed)]
        report.write_lines(rows, args.out)
    else:
        rows = _timed_rows(args, carried)
    if not rows:
        raise ConfigError("--provider", expected="one that is installed and has the op", got=str(args.provider))
    if args.first_call:
        for row in rows:
            print(row["op"], row["first_call"], row.get("failed") or f"{row['forward_s']} s, {row['backward_s']} s")
    else:
        report.print_table(rows)
        if args.out:
            report.plot(rows, args.out)
    return int(any("failed" in row for row in rows))
