"""A whole training step of the DNA model: seconds, tokens a second, peak memory, bytes a token, where the time goes.

``seqkit bench models``, or ``python -m seqkit.bench.models`` where only torch and Triton are installed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from seqkit.bench import model_report
from seqkit.bench.step_parts import breakdown, floors
from seqkit.bench.training_step import Setting, TrainingStep, free_memory
from seqkit.errors import ConfigError
from seqkit.kernels.bench import ceilings, report
from seqkit.kernels.bench.measure import milliseconds, quartiles

GIB = 2**30
MIXERS = ("mamba2", "mamba1", "mamba3", "attention")
SHAPES = ("16x8192", "1x131072", "1x1048576", "1x4194304")
LONGEST_ATTENTION = 131_072  # its time grows with the square; longer ones run when they are asked for by name
ERROR_LINE = 200


def shape(text: str) -> tuple[int, int]:
    """``16x8192`` as (batch, length)."""
    batch, times, length = text.partition("x")
    if not (times and batch.isdigit() and length.isdigit() and int(batch) and int(length)):
        raise ConfigError("--shape", expected="BATCHxLENGTH, such as 16x8192", got=text)
    return int(batch), int(length)


def settings(args: argparse.Namespace) -> list[Setting]:
    """Rows to measure, in order."""
    found = []
    for mixer in args.mixer or MIXERS:
        for text in args.shape or SHAPES:
            batch, length = shape(text)
            if mixer == "attention" and length > LONGEST_ATTENTION and not (args.shape and args.mixer):
                continue
            for residual in args.residual:
                found.append(
                    Setting(
                        mixer=mixer,
                        batch=batch,
                        length=length,
                        d_model=args.d_model,
                        layers=args.layers,
                        causal=args.causal,
                        residual=residual,
                        dtype=args.dtype,
                        slab=args.slab,
                        offload=args.offload == "always",
                    )
                )
    return found


def measure(setting: Setting, device: str, repeats: int, seed: int, best: ceilings.Ceilings | None) -> dict:
    """Time, memory and parts of one setting.

    Args:
        setting: What to run.
        device: cpu or cuda.
        repeats: Timed steps, after two that are not counted.
        seed: Of weights and tokens.
        best: The card's rates; None leaves the parts out.
    """
    free_memory(device)
    step = TrainingStep(setting, device, seed)
    begun = time.perf_counter()
    step.run()
    milliseconds(step.run, device)
    row = setting.row() | {"parameters": step.parameters, "warm_up_s": round(time.perf_counter() - begun, 3)}
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    low, middle, high = quartiles([milliseconds(step.run, device) / 1e3 for _ in range(repeats)])
    row |= {"step_s": round(middle, 5), "step_quartiles_s": [round(low, 5), round(high, 5)], "repeats": repeats}
    row["tokens_per_s"] = round(setting.tokens / middle)
    if device == "cuda":
        peak = torch.cuda.max_memory_allocated()
        reserved = torch.cuda.max_memory_reserved()
        row |= {"peak_gib": round(peak / GIB, 3), "reserved_gib": round(reserved / GIB, 3)}
        row["bytes_per_token"] = round(peak / setting.tokens, 1)
        row["forward_s"] = round(milliseconds(step.evaluate, device) / 1e3, 5)
        if best is not None:
            parts, longest = breakdown(step)
            row |= {"parts_ms": parts, "floors_ms": floors(step, best), "longest_kernels_ms": longest}
    return row


def guarded(setting: Setting, offload: str, *options) -> dict:
    """A row whatever happens; out of memory is tried again with offloading if that is left to us."""
    try:
        return measure(setting, *options)
    except torch.OutOfMemoryError as error:
        failure = str(error).splitlines()[0]
    except Exception as error:  # a failure of one row is a result, and must not lose the others
        failure = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        return setting.row() | {"failed": failure[:ERROR_LINE]}
    if offload == "auto" and not setting.offload:
        return guarded(replace(setting, offload=True), offload, *options)
    return setting.row() | {"failed": failure[:ERROR_LINE]}


def said(row: dict) -> str:
    """One line on a row, for people who wait."""
    name = f"{row['mixer']} {row['batch']}x{row['length']:,} {row['residual']}{' offload' if row['offload'] else ''}"
    if "failed" in row:
        return f"{name}: failed, {row['failed']}"
    memory = f", peak {row['peak_gib']} GiB" if "peak_gib" in row else ""
    return f"{name}: {row['step_s']:.4g} s, {row['tokens_per_s'] / 1e6:.4g} million tokens/s{memory}"


def _parser() -> argparse.ArgumentParser:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(prog="seqkit bench models", description="Time whole training steps.")
    parser.add_argument("--mixer", nargs="+", choices=MIXERS, help="default: all")
    parser.add_argument("--shape", nargs="+", help=f"BATCHxLENGTH; default: {' '.join(SHAPES)}")
    parser.add_argument("--residual", nargs="+", choices=("float32", "bfloat16"), default=["float32"])
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16" if cuda else "float32")
    parser.add_argument("--d-model", type=int, default=256, help="per strand")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--causal", action="store_true", help="one direction, one strand")
    parser.add_argument("--slab", type=int, default=65_536)
    parser.add_argument("--offload", choices=("auto", "never", "always"), default="auto", help="auto: where it must")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if cuda else "cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-parts", action="store_true", help="leave the breakdown out")
    parser.add_argument("--out", type=Path, help="append JSON lines to this file, plots beside it; default: print them")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Measure the rows the command line asks for; exit code 1 if one failed other than by memory."""
    argv = sys.argv[1:] if argv is None else argv
    args = _parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    carried = report.environment(args.device, args.seed, " ".join(["seqkit bench models", *argv]))
    best = None
    if args.device == "cuda" and not args.no_parts:
        best = ceilings.measure(args.device)
        carried["ceilings"] = best.row()
        print(f"ceilings: {json.dumps(best.row())}", file=sys.stderr, flush=True)
    rows = []
    for setting in settings(args):
        row = guarded(setting, args.offload, args.device, args.repeats, args.seed, best) | carried
        print(said(row), file=sys.stderr, flush=True)
        report.write_lines([row], args.out)  # at once: what comes later may take the process down
        rows.append(row)
    model_report.print_tables(rows)
    if args.out:
        model_report.plot(rows, args.out)
    return int(any("failed" in row and "memory" not in row["failed"] for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
