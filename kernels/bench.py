"""Time the ops, provider beside provider: ``python -m seqkit.kernels.bench``.

A provider is reported only if its values and gradients agree with the float64 oracle at the same widths. Timings of all
providers are taken in one process, in turn; peak memory is that of a fresh process per row.

Legend: B batch, L length, D channels, N states, H heads, P head channels, W taps, M model width, R rank of dt.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from seqkit import kernels
from seqkit.errors import ConfigError
from seqkit.kernels import oracle
from seqkit.kernels.testing import TOLERANCE_TINY_DELTA, Maker, assert_close, gradients

Tensors = dict[str, Tensor]
Run = Callable[[Tensors], Tensor]
CHECK_LENGTH = 200
LONGEST = {"mambapy": 16_384}  # its scan keeps every hidden state several times over
D_MODEL, D_INNER, STATES, TAPS, RANK = 128, 256, 16, 4, 8
HEADS, HEAD_CHANNELS, SSD_STATES = 4, 64, 64


@dataclass(frozen=True)
class Entry:
    """One benchmark.

    Attributes:
        make: Operands for a length, a dtype and a device.
        exact: The oracle on those operands, in float64.
        providers: Who computes it; :func:`available` says which of them are here.
        lengths: L by default, batch 1.
    """

    make: Callable[[int, Maker], Tensors]
    exact: Run
    providers: dict[str, Run]
    lengths: tuple[int, ...]


def _selective_operands(length: int, make: Maker) -> Tensors:
    return {
        "u": make.activation(1, length, D_INNER),
        "delta": make.activation(1, length, D_INNER),
        "A_log": torch.log(torch.arange(1, STATES + 1, device=make.device, dtype=make.wide)).repeat(D_INNER, 1),
        "B": make.activation(1, length, STATES),
        "C": make.activation(1, length, STATES),
        "D": make.parameter(D_INNER),
        "z": make.activation(1, length, D_INNER),
        "delta_bias": make.uniform(-7.0, -2.0, D_INNER, wide=True),
    }


def _selective_reference(t: Tensors) -> Tensor:
    options = {name: t[name] for name in ("D", "z", "delta_bias")}
    return kernels.selective_scan(t["u"], t["delta"], -t["A_log"].exp(), t["B"], t["C"], delta_softplus=True, **options)


def _selective_exact(t: Tensors) -> Tensor:
    return oracle.selective_scan({**t, "A": -t["A_log"].exp()}, {"delta_softplus": True})[0]


def _selective_mambapy(t: Tensors) -> Tensor:
    from mambapy.pscan import pscan

    delta = torch.nn.functional.softplus(t["delta"] + t["delta_bias"]).unsqueeze(3)
    writes = delta * t["B"].unsqueeze(2) * t["u"].unsqueeze(3)
    states = pscan(torch.exp(delta * -t["A_log"].exp()), writes)
    y = (states @ t["C"].unsqueeze(3)).squeeze(3) + t["D"] * t["u"]
    return y * torch.nn.functional.silu(t["z"])


def _ssd_operands(length: int, make: Maker) -> Tensors:
    return {
        "x": make.activation(1, length, HEADS, HEAD_CHANNELS),
        "dt": make.activation(1, length, HEADS),
        "A": -make.uniform(1.0, 16.0, HEADS, wide=True),
        "B": make.activation(1, length, 1, SSD_STATES),
        "C": make.activation(1, length, 1, SSD_STATES),
        "D": make.parameter(HEADS),
        "dt_bias": make.uniform(-7.0, -2.0, HEADS, wide=True),
    }


def _ssd_reference(t: Tensors) -> Tensor:
    operands = (t[name] for name in ("x", "dt", "A", "B", "C"))
    return kernels.ssd_scan(*operands, D=t["D"], dt_bias=t["dt_bias"], dt_softplus=True)


def _conv_operands(length: int, make: Maker) -> Tensors:
    return {
        "x": make.activation(1, length, D_INNER),
        "weight": make.parameter(D_INNER, TAPS),
        "bias": make.parameter(D_INNER),
    }


def _conv_reference(t: Tensors) -> Tensor:
    return kernels.causal_conv(t["x"], t["weight"], bias=t["bias"], activation="silu")


def _inner_operands(length: int, make: Maker) -> Tensors:
    return {
        "x": make.activation(1, length, D_MODEL),
        "in_proj": make.parameter(2 * D_INNER, D_MODEL) * D_MODEL**-0.5,
        "conv": make.parameter(D_INNER, TAPS) * TAPS**-0.5,
        "conv_bias": make.parameter(D_INNER) * 0.1,
        "x_proj": make.parameter(RANK + 2 * STATES, D_INNER) * D_INNER**-0.5,
        "dt_proj": make.parameter(D_INNER, RANK) * RANK**-0.5,
        "dt_bias": make.uniform(-7.0, -2.0, D_INNER, wide=True),
        "A_log": torch.log(torch.arange(1, STATES + 1, device=make.device, dtype=make.wide)).repeat(D_INNER, 1),
        "D": torch.ones(D_INNER, device=make.device, dtype=make.wide),
        "out_proj": make.parameter(D_MODEL, D_INNER) * D_INNER**-0.5,
    }


def _inner(t: Tensors, conv: Run, scan: Run) -> Tensor:
    """A Mamba-1 block without norm and residual: projections, convolution, scan, gate."""
    linear = torch.nn.functional.linear
    u, z = linear(t["x"], t["in_proj"]).chunk(2, dim=-1)
    u = conv({"x": u, "weight": t["conv"], "bias": t["conv_bias"]})
    rank, B, C = linear(u, t["x_proj"]).split([RANK, STATES, STATES], dim=-1)
    scanned = {"u": u, "delta": linear(rank, t["dt_proj"]), "B": B, "C": C, "z": z, "delta_bias": t["dt_bias"]}
    return linear(scan({**scanned, "A_log": t["A_log"], "D": t["D"]}), t["out_proj"])


def _conv_exact(t: Tensors) -> Tensor:
    return oracle.causal_conv(t, {"activation": "silu"})[0]


def _inner_mambapy(t: Tensors) -> Tensor:
    from mambapy.mamba import MambaBlock, MambaConfig

    block = MambaBlock(MambaConfig(d_model=D_MODEL, n_layers=1, d_state=STATES, d_conv=TAPS, dt_rank=RANK))
    weights = {
        "in_proj.weight": t["in_proj"],
        "conv1d.weight": t["conv"].unsqueeze(1),
        "conv1d.bias": t["conv_bias"],
        "x_proj.weight": t["x_proj"],
        "dt_proj.weight": t["dt_proj"],
        "dt_proj.bias": t["dt_bias"],
        "A_log": t["A_log"],
        "D": t["D"],
        "out_proj.weight": t["out_proj"],
    }
    return torch.func.functional_call(block, weights, (t["x"],))


REGISTRY = {
    "selective_scan": Entry(
        _selective_operands,
        _selective_exact,
        {"reference": _selective_reference, "mambapy": _selective_mambapy},
        (1024, 4096, 16_384),
    ),
    "ssd_scan": Entry(
        _ssd_operands,
        lambda t: oracle.ssd_scan(t, {"dt_softplus": True})[0],
        {"reference": _ssd_reference},
        (1024, 4096, 16_384),
    ),
    "causal_conv": Entry(_conv_operands, _conv_exact, {"reference": _conv_reference}, (4096, 16_384)),
    "mamba1_inner": Entry(
        _inner_operands,
        lambda t: _inner(t, _conv_exact, _selective_exact),
        {"reference": lambda t: _inner(t, _conv_reference, _selective_reference), "mambapy": _inner_mambapy},
        (1024, 4096, 16_384),
    ),
}


def available(provider: str) -> bool:
    """Whether a provider can run here."""
    return provider == "reference" or importlib.util.find_spec(provider) is not None


def verify(op: str, provider: str) -> str:
    """Empty if values and gradients agree with the oracle, else what does not."""
    entry = REGISTRY[op]
    operands = entry.make(CHECK_LENGTH, Maker(torch.float32))
    ours = {name: x.requires_grad_() for name, x in operands.items()}
    exact = {name: x.detach().double().requires_grad_() for name, x in operands.items()}
    got, want = entry.providers[provider](ours), entry.exact(exact)
    tolerance = TOLERANCE_TINY_DELTA[torch.float32]
    try:
        assert_close("y", got, want, tolerance)
        got_grads, want_grads = gradients((got,), ours), gradients((want,), exact)
        for name, grad in got_grads.items():
            assert_close(f"d{name}", grad, want_grads[name], tolerance)
    except AssertionError as difference:
        return str(difference)
    return ""


def once(op: str, provider: str, operands: Tensors) -> tuple[float, float]:
    """Seconds of one forward pass, and of one forward and backward pass."""
    run = REGISTRY[op].providers[provider]
    with torch.no_grad():
        begin = time.perf_counter()
        run(operands)
        forward = time.perf_counter() - begin
    begin = time.perf_counter()
    run(operands).sum().backward()
    both = time.perf_counter() - begin
    for x in operands.values():
        x.grad = None
    return forward, both


def measure(op: str, length: int, providers: list[str], repeats: int) -> list[dict]:
    """Rows of one op at one length; providers take turns, so that a busy moment hits all of them."""
    operands = {name: x.requires_grad_() for name, x in REGISTRY[op].make(length, Maker(torch.float32)).items()}
    providers = [name for name in providers if length <= LONGEST.get(name, length)]
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in providers}
    for name in providers:
        once(op, name, operands)
    for _ in range(repeats):
        for name in providers:
            times[name].append(once(op, name, operands))
    rows = []
    for name in providers:
        forward, both = (statistics.median(column) for column in zip(*times[name], strict=True))
        fastest = min(pair[1] for pair in times[name])
        row = {"op": op, "provider": name, "B": 1, "L": length, "dtype": "float32", "forward_s": round(forward, 4)}
        row |= {"both_s": round(both, 4), "both_fastest_s": round(fastest, 4)}
        row |= {"us_per_token": round(both / length * 1e6, 2), "repeats": repeats}
        rows.append(row)
    return rows


def peak_memory_gib(op: str, provider: str, length: int, threads: int) -> float | None:
    """Peak resident memory of a fresh process that runs forward and backward once; None where it cannot be read."""
    arguments = ["--peak", op, provider, str(length), "--threads", str(threads)]
    command = [sys.executable, "-m", "seqkit.kernels.bench", *arguments]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(out)


def _peak_here(op: str, provider: str, length: int) -> float | None:
    operands = {name: x.requires_grad_() for name, x in REGISTRY[op].make(length, Maker(torch.float32)).items()}
    REGISTRY[op].providers[provider](operands).sum().backward()
    status = Path("/proc/self/status")  # unlike getrusage's, its peak starts at exec, not at the parent's size
    if not status.exists():
        return None
    peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return round(int(peak.split()[1]) / 2**20, 3)


def environment() -> dict:
    """Device, versions and date that every row carries."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "device": names[0] if names else platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


COLUMNS = ("op", "provider", "L", "forward_s", "both_s", "both_fastest_s", "us_per_token", "peak_gib")


def print_table(rows: list[dict]) -> None:
    """Columns of numbers for people; the JSON lines are for programs."""
    cells = [COLUMNS, *([str(row.get(name, "")) for name in COLUMNS] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(COLUMNS))]
    for line in cells:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m seqkit.kernels.bench", description=__doc__.splitlines()[0])
    parser.add_argument("--op", nargs="+", default=list(REGISTRY), choices=list(REGISTRY))
    parser.add_argument("--provider", nargs="+", help="reference, mambapy; default: all that are installed")
    parser.add_argument("--length", nargs="+", type=int, help="tokens; default: the op's own list")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--memory", action="store_true", help="also measure peak memory, one process per row")
    parser.add_argument("--out", type=Path, help="append JSON lines to this file; default: print them")
    parser.add_argument("--peak", nargs=3, metavar=("OP", "PROVIDER", "LENGTH"), help=argparse.SUPPRESS)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the benchmarks the command line asks for; exit code 1 if any provider failed its check."""
    args = _parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    if args.peak:
        print(json.dumps(_peak_here(args.peak[0], args.peak[1], int(args.peak[2]))))
        return 0
    rows, failed = [], False
    for op in args.op:
        entry = REGISTRY[op]
        wanted = [name for name in entry.providers if not args.provider or name in args.provider]
        good = []
        for name in filter(available, wanted):
            difference = verify(op, name)
            if difference:
                failed = True
                print(f"{op} {name}: not reported, {difference}", file=sys.stderr)
            else:
                good.append(name)
        for length in args.length or entry.lengths:
            for row in measure(op, length, good, args.repeats):
                if args.memory:
                    row["peak_gib"] = peak_memory_gib(op, row["provider"], length, args.threads)
                rows.append(row | environment())
    if not rows:
        raise ConfigError("--provider", expected="one that is installed and correct", got=str(args.provider))
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    if args.out:
        with args.out.open("a") as file:
            file.write(lines)
    else:
        print(lines, end="")
    print_table(rows)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
