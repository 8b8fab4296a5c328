"""Rows as JSON lines, as a table and as a plot against L."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import platform
import sys
from pathlib import Path

import torch

from seqkit.kernels import dispatch

COLUMNS = {
    "op": "op",
    "provider": "provider",
    "shape": "shape",
    "forward_ms": "fwd ms",
    "both_ms": "fwd+bwd ms",
    "forward_host_us": "host fwd us",
    "both_host_us": "host both us",
    "forward_graph_ms": "graph fwd",
    "both_graph_ms": "graph both",
    "peak_gib": "peak GiB",
    "forward_of_ceiling": "fwd of ceiling",
    "both_of_ceiling": "both of ceiling",
    "error": "error",
}


def environment(device: str, seed: int, command: str) -> dict:
    """Device, versions and date that every row carries."""
    found = {
        "device": torch.cuda.get_device_name() if device == "cuda" else _processor(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "seed": seed,
        "command": command,
    }
    if device != "cuda":
        return found | {"threads": torch.get_num_threads()}
    triton = {"triton": importlib.metadata.version("triton")} if dispatch.triton_installed() else {}
    return found | triton | {"cuda": torch.version.cuda}


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def write_lines(rows: list[dict], out: Path | None) -> None:
    """Append to a file, or print."""
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    if out is None:
        print(lines, end="")
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("a") as file:
        file.write(lines)


def shape_of(row: dict) -> str:
    """Sizes and dtype on one line."""
    sizes = " ".join(f"{name}={value:,}" for name, value in row["shape"].items() if name != "slab" or value)
    return f"{sizes} {row['dtype']}"


def _cells(row: dict) -> list[str]:
    if "failed" in row:
        return [row["op"], row["provider"], shape_of(row) if "shape" in row else "", f"failed: {row['failed']}"]
    shown = row | {"shape": shape_of(row), "error": f"{max(row['errors'].values()):.1e}"}
    cells = []
    for name in COLUMNS:
        value = shown.get(name, "")
        if name.endswith("_of_ceiling") and name in row:
            value = f"{100 * value:.0f} % {row[name.replace('_of_ceiling', '_ceiling')]}"
        cells.append(f"{value:.4g}" if isinstance(value, float) else str(value))
    return cells


def print_table(rows: list[dict]) -> None:
    """For people; the JSON lines are for programs."""
    lines = [_cells(row) for row in rows]
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        for line in [list(COLUMNS.values()), *lines]:
            print("  ".join(line))
        print("(rich is not installed: plain table)", file=sys.stderr)
        return
    table = Table(*COLUMNS.values())
    for line in lines:
        table.add_row(*line)
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def plot(rows: list[dict], stem: Path) -> None:
    """Time and memory against L, one line per op, provider and other sizes that has at least two lengths."""
    series: dict[str, list[dict]] = {}
    for row in rows:
        if "both_ms" in row:
            sizes = {name: value for name, value in row["shape"].items() if name != "L"}
            label = f"{row['op']}, {row['provider']}, {shape_of({'shape': sizes, 'dtype': row['dtype']})}"
            series.setdefault(label, []).append(row)
    series = {label: sorted(part, key=lambda row: row["shape"]["L"]) for label, part in series.items() if len(part) > 1}
    if not series:
        return
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        print("(matplotlib is not installed: no plot)", file=sys.stderr)
        return
    shown = {"both_ms": "forward + backward, ms", "peak_gib": "peak memory, GiB"}
    shown = {name: title for name, title in shown.items() if any(row.get(name) for row in rows)}
    figure, panels = pyplot.subplots(1, len(shown), figsize=(6 * len(shown), 4.5), layout="constrained", squeeze=False)
    for panel, (name, title) in zip(panels[0], shown.items(), strict=True):
        for label, part in series.items():
            points = [(row["shape"]["L"], row[name]) for row in part if row.get(name)]
            if points:
                panel.plot(*zip(*points, strict=True), marker="o", label=label if name == "both_ms" else None)
        panel.set(xscale="log", yscale="log", xlabel="L, tokens", ylabel=title)
    figure.legend(loc="outside lower center", fontsize="small")
    first = rows[0]
    figure.suptitle(f"{first['device']}, torch {first['torch']}, {first['date']}", fontsize="small")
    for suffix in (".png", ".svg"):
        figure.savefig(stem.with_suffix(suffix))
    pyplot.close(figure)
