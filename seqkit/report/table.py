"""Tables of results: coloured on a terminal, plain text in a file or pipe, Markdown for a report."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, TextIO

if TYPE_CHECKING:
    from seqkit.tasks.intervals import Estimate


class Table(NamedTuple):
    """Cells as text.

    Attributes:
        title: One line.
        columns: Headings.
        rows: As many cells as headings each; the first row is the one in question.
        note: Printed below.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def metric_table(
    estimates: Mapping[str, Mapping[str, Estimate]],
    columns: Mapping[str, str],
    *,
    title: str,
    note: str = "",
    verdicts: Mapping[str, str] | None = None,
) -> Table:
    """Methods as rows, metrics with their intervals as columns.

    Args:
        estimates: By method, then by metric; what a method lacks is left empty.
        columns: Heading by metric, in order.
        title: One line.
        note: Printed below, followed by the reasons of undefined values.
        verdicts: By method, such as ``"level"``; adds a last column.
    """
    headings = ["method", *columns.values()] + (["against the first"] if verdicts else [])
    rows, reasons = [], {}
    for method, values in estimates.items():
        cells = [_estimate_cell(values.get(metric)) for metric in columns]
        rows.append((method, *cells, *([verdicts.get(method, "")] if verdicts else [])))
        reasons.update({e.reason: None for e in values.values() if e.reason})
    if reasons:
        note = " ".join(filter(None, [note, f"Undefined: {'; '.join(reasons)}."]))
    return Table(title, tuple(headings), tuple(rows), note)


def cell(value: float, low: float, high: float, digits: int = 3) -> str:
    """``0.852 [0.826, 0.863]``; without bounds that are NaN, and ``undefined`` for a NaN value."""
    if math.isnan(value):
        return "undefined"
    text = f"{value:.{digits}f}"
    return text if math.isnan(low) or math.isnan(high) else f"{text} [{low:.{digits}f}, {high:.{digits}f}]"


def markdown(table: Table) -> str:
    """GitHub-flavoured Markdown with title and note."""
    lines = [f"**{table.title}**", ""] if table.title else []
    lines += [_bar(table.columns), _bar(["---"] + ["---:"] * (len(table.columns) - 1))]
    lines += [_bar(row) for row in table.rows]
    return "\n".join([*lines, *(["", table.note] if table.note else [])]) + "\n"


def plain(table: Table) -> str:
    """Aligned columns without colour or frame, for logs and pipes."""
    lines = [table.columns, *table.rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(table.columns))]
    body = ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    body.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join([*filter(None, [table.title]), *body, *filter(None, [table.note])]) + "\n"


def show(table: Table, stream: TextIO | None = None) -> None:
    """Print to ``stream`` (standard output): framed and with the first row in bold on a terminal, else plain."""
    stream = stream or sys.stdout
    if not stream.isatty():
        stream.write(plain(table))
        return
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    drawn = RichTable(
        title=table.title or None, caption=table.note or None, title_justify="left", caption_justify="left"
    )
    for i, heading in enumerate(table.columns):
        drawn.add_column(heading, justify="left" if i == 0 else "right", no_wrap=i == 0)
    for i, row in enumerate(table.rows):
        # Text, because rich would read the [ of an interval as markup.
        drawn.add_row(*(Text(text) for text in row), style="bold" if i == 0 else "")
    Console(file=stream).print(drawn)


def _estimate_cell(estimate: Estimate | None) -> str:
    return "" if estimate is None else cell(estimate.value, estimate.low, estimate.high)


def _bar(cells: Sequence[str]) -> str:
    return "| " + " | ".join(text.replace("|", "\\|") for text in cells) + " |"
