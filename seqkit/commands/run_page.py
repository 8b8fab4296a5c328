"""What a run leaves to read: tables on stdout and in ``results.md``; ``report.html`` with plots and how it was made."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from seqkit import __version__
from seqkit.commands.run_folder import MANIFEST
from seqkit.files import write_text
from seqkit.report.page import write_page
from seqkit.report.table import Table, markdown, show

PAGE, TABLES = "report.html", "results.md"


def show_tables(folder: Path, tables: Sequence[Table], notes: Sequence[str] = ()) -> None:
    """Notes and tables at the end of a run: on stdout, the tables as Markdown in the run folder too."""
    for note in notes:
        print(f"note: {note}")
    for table in tables:
        show(table)
    write_text(folder / TABLES, "\n".join(markdown(table) for table in tables))


def write_run_page(
    folder: Path, *, title: str, lead: str, tables: Sequence[Table], figures: Mapping[Path, str],
    details: Mapping[str, str],
) -> None:  # fmt: skip
    """Write the page of a run whose plots are drawn.

    Args:
        folder: Run folder.
        title: Heading.
        lead: A sentence below it.
        tables: In order.
        figures: Plots, with or without suffix, to captions, in order; absent ones are left out.
        details: What to say of the run before what its manifest says; empty ones are left out.
    """
    write_page(
        folder / PAGE,
        title=title,
        lead=lead,
        tables=tables,
        figures=[(path.with_suffix(".png"), caption) for path, caption in figures.items()],
        details={"seqkit": __version__} | {name: value for name, value in details.items() if value} | how_made(folder),
    )


def how_made(folder: Path) -> dict[str, str]:
    """Date, command, versions and inputs by the manifest; nothing where there is none."""
    if not (folder / MANIFEST).is_file():
        return {}
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    found = {
        "date": manifest["date"],
        "command": " ".join(manifest["command"]),
        "seed": str(manifest["seed"]),
        "platform": manifest["platform"],
        "versions": ", ".join(f"{name} {number}" for name, number in manifest["versions"].items() if number),
    }
    inputs = {
        name: f"{Path(entry['path']).name}, sha256 {entry['sha256']}" for name, entry in manifest["inputs"].items()
    }
    return found | inputs
