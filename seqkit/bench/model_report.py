"""Tables and the plot of whole training steps."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

COLUMNS = ("model", "batch x L", "residual", "s per step", "million tokens/s", "peak GiB", "bytes per token", "note")
FLAT_FROM = 131_072


def line(row: dict) -> list[str]:
    """Cells of one row."""
    note = "offload" if row["offload"] else ""
    cells = [name_of(row), f"{row['batch']} x {row['length']:,}", row["residual"]]
    if "failed" in row:
        return [*cells, "", "", "", "", " ".join(["failed:", row["failed"], note]).strip()]
    return [
        *cells,
        f"{row['step_s']:.4g}",
        f"{row['tokens_per_s'] / 1e6:.4g}",
        str(row.get("peak_gib", "")),
        f"{row['bytes_per_token']:,.0f}" if "bytes_per_token" in row else "",
        note,
    ]


def name_of(row: dict) -> str:
    """Mixer and whether the model reads one direction only."""
    return f"{row['mixer']}{', causal' if row['causal'] else ''}, {row['layers']} x {row['d_model']}"


def series(rows: list[dict]) -> dict[str, list[dict]]:
    """Rows that differ in length alone, by their common name; one sequence a step."""
    found: dict[str, list[dict]] = {}
    for row in rows:
        if "failed" not in row and row["batch"] == 1:
            label = f"{name_of(row)}, {row['residual']} residual"
            found.setdefault(label, []).append(row)
    return {label: sorted(part, key=lambda row: row["length"]) for label, part in found.items()}


def memory_line(rows: list[dict]) -> tuple[float, float, float]:
    """Fit peak = a + b L: (a in GiB, b in bytes per token, largest miss over the peak)."""
    lengths = np.array([row["length"] for row in rows], dtype=float)
    peaks = np.array([row["peak_gib"] for row in rows]) * 2**30
    slope, constant = np.polyfit(lengths, peaks, 1)
    miss = np.abs(slope * lengths + constant - peaks) / peaks
    return constant / 2**30, slope, float(miss.max())


def findings(rows: list[dict]) -> list[str]:
    """What a series over lengths says: how flat the rate is, how straight the memory."""
    lines = []
    for label, part in series(rows).items():
        own = [row for row in part if not row["offload"]]
        rates = [row["tokens_per_s"] for row in own if row["length"] >= FLAT_FROM]
        if len(rates) > 1:
            spread = 100 * (max(rates) / min(rates) - 1)
            lines.append(f"{label}: tokens/s differ by {spread:.1f} % from {FLAT_FROM:,} tokens on")
        peaks = [row for row in own if "peak_gib" in row]
        if len(peaks) > 2:
            constant, slope, miss = memory_line(peaks)
            lines.append(f"{label}: peak = {constant:.2f} GiB + {slope:,.0f} bytes a token, off by {100 * miss:.1f} %")
    return lines


def parts_lines(rows: list[dict]) -> list[list[str]]:
    """Milliseconds and floor of every part, one line a row."""
    lines = []
    for row in rows:
        if "parts_ms" in row:
            parts, floors = row["parts_ms"], row["floors_ms"]
            cells = [f"{spent:.1f}" + (f" / {floors[p]:.1f}" if p in floors else "") for p, spent in parts.items()]
            total = f"{sum(parts.values()):.1f} / {sum(floors.values()):.1f}"
            lines.append([name_of(row), f"{row['batch']} x {row['length']:,}", row["residual"], *cells, total])
    return lines


def print_tables(rows: list[dict]) -> None:
    """For people; the JSON lines are for programs."""
    _print(COLUMNS, [line(row) for row in rows])
    parts = parts_lines(rows)
    if parts:
        names = next(row["parts_ms"] for row in rows if "parts_ms" in row)
        print("GPU time in ms by part, after the stroke the floor:")
        _print(("model", "batch x L", "residual", *names, "sum"), parts)
    for text in findings(rows):
        print(text)


def _print(columns: tuple[str, ...], lines: list[list[str]]) -> None:
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        for cells in [list(columns), *lines]:
            print("  ".join(cells))
        return
    table = Table(*columns)
    for cells in lines:
        table.add_row(*cells)
    Console(width=None if sys.stdout.isatty() else 220).print(table)


def plot(rows: list[dict], stem: Path) -> None:
    """Tokens a second and peak memory against length, as PNG and SVG; nothing where no series has two lengths."""
    drawn = {label: part for label, part in series(rows).items() if len(part) > 1}
    if not drawn:
        return
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        print("(matplotlib is not installed: no plot)", file=sys.stderr)
        return
    panels = {"step_s": "seconds a step", "tokens_per_s": "tokens a second", "peak_gib": "peak memory, GiB"}
    figure, axes = pyplot.subplots(1, len(panels), figsize=(5 * len(panels), 4.2), layout="constrained")
    for axis, (name, title) in zip(axes, panels.items(), strict=True):
        for label, part in drawn.items():
            points = [(row["length"], row[name]) for row in part if name in row]
            if points:
                axis.plot(*zip(*points, strict=True), marker="o", label=label if name == "step_s" else None)
        axis.set(xscale="log", yscale="log", xlabel="tokens", ylabel=title)
    figure.legend(loc="outside lower center", fontsize="small", ncols=2)
    first = rows[0]
    figure.suptitle(f"{first['device']}, torch {first['torch']}, {first['date']}", fontsize="small")
    for suffix in (".png", ".svg"):
        figure.savefig(stem.with_suffix(suffix))
    pyplot.close(figure)
