"""A run's tables and plots as one HTML page that needs nothing else: no script, no font, no file beside it."""

from __future__ import annotations

import base64
import html
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from seqkit.files import write_text
from seqkit.report.table import Table

_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; margin: 0 auto; padding: 1.5rem;
  max-width: 62rem; }
h1 { font-size: 1.6rem; margin: 0 0 .3rem; } h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; }
p.lead, figcaption, caption, .note { color: #555; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100%; font-size: .9rem; }
caption { text-align: left; padding-bottom: .4rem; }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } tbody tr.first { font-weight: 600; background: #f2f7fb; }
figure { margin: 0 0 1.6rem; } img { max-width: 100%; height: auto; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; font-size: .9rem; }
dt { color: #555; } dd { margin: 0; overflow-wrap: anywhere; }
@media print { body { max-width: none; } figure, table { break-inside: avoid; } }
""".strip()


def write_page(
    path: str | os.PathLike,
    *,
    title: str,
    lead: str,
    tables: Sequence[Table],
    figures: Sequence[tuple[Path, str]],
    details: Mapping[str, str],
) -> None:
    """Write the page.

    Args:
        path: HTML file.
        title: Heading.
        lead: A sentence below it.
        tables: In order.
        figures: PNG files with their captions, in order; absent ones are left out.
        details: How the run was made, name to value.
    """
    shown = [(image, caption) for image, caption in figures if image.is_file()]
    body = [
        f"<h1>{_text(title)}</h1>",
        f'<p class="lead">{_text(lead)}</p>',
        *(_table(table) for table in tables),
        *(["<h2>Plots</h2>"] if shown else []),
        *(_figure(image, caption) for image, caption in shown),
        "<h2>How it was made</h2>",
        "<dl>" + "".join(f"<dt>{_text(k)}</dt><dd>{_text(v)}</dd>" for k, v in details.items()) + "</dl>",
    ]
    write_text(
        path,
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(title)}</title>\n<style>\n{_STYLE}\n</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n",
    )


def _text(value: object) -> str:
    return html.escape(str(value))


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{_text(name)}</th>' for name in table.columns)
    rows = [
        ('<tr class="first">' if i == 0 else "<tr>") + "".join(f"<td>{_text(value)}</td>" for value in row) + "</tr>"
        for i, row in enumerate(table.rows)
    ]
    note = f'<p class="note">{_text(table.note)}</p>' if table.note else ""
    return (
        f'<div class="scroll"><table><caption>{_text(table.title)}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>{note}"
    )


def _figure(image: Path, caption: str) -> str:
    data = base64.b64encode(image.read_bytes()).decode()
    return (
        f'<figure><img alt="{_text(caption)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{_text(caption)}</figcaption></figure>"
    )
