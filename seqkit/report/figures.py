"""What all plots share: sizes, colours that colour-blind readers tell apart, and files that appear whole."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from seqkit.files import atomic

# Reference: Okabe and Ito 2008, "Color universal design"; yellow is left out, since it vanishes on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
NEGATIVE, POSITIVE, MUTED = "#0072B2", "#D55E00", "#666666"
DOTS_PER_INCH = 150
_PAGE_WIDTH = 1000
"""Pixels across a picture for a notebook, at most."""

_STYLE = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.hashsalt": "seqkit",  # the same data give the same bytes
    "svg.fonttype": "none",  # text stays text, so that a figure can be edited and searched
}


def style():
    """Context in which a figure is made and saved; settings of a surrounding notebook are left alone."""
    return matplotlib.rc_context(_STYLE)


def new_figure(width: float, height: float, **layout) -> tuple[Figure, Axes]:
    """A figure of ``width`` by ``height`` inches and its axes; ``layout`` as for matplotlib's ``subplots``."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(**layout)


def save(figure: Figure, path: str | os.PathLike) -> list[Path]:
    """Write a figure as PNG and SVG beside each other; a suffix of ``path`` is replaced.

    Returns:
        The two files.
    """
    written = []
    for suffix, metadata in ((".png", {"Software": None}), (".svg", {"Date": None})):
        target = Path(path).with_suffix(suffix)
        with atomic(target) as temporary:
            figure.savefig(temporary, format=suffix[1:], dpi=DOTS_PER_INCH, metadata=metadata)
        written.append(target)
    return written


def png(plot: Callable[..., list[Path]], *arguments, **options) -> bytes:
    """A plot as PNG bytes, such as for ``IPython.display.Image`` in a notebook; no file stays.

    It has at most 64 colours and 1,000 pixels across, which makes it a third as large and looks the same on a page.

    Args:
        plot: Any function of this package whose first argument is the path to write to.
        arguments: What follows the path.
        options: Its keyword arguments.
    """
    with tempfile.TemporaryDirectory(prefix="seqkit-plot-") as folder:
        file = plot(Path(folder) / "plot", *arguments, **options)[0]
        with Image.open(file) as picture:
            across = min(picture.width, _PAGE_WIDTH)
            resized = picture.convert("RGB").resize((across, round(picture.height * across / picture.width)))
    reduced = resized.quantize(64, dither=Image.Dither.NONE)
    whole = io.BytesIO()
    reduced.save(whole, format="png", optimize=True)
    return whole.getvalue()


def say(axes: Axes, text: str) -> None:
    """Put a sentence where nothing can be drawn."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=MUTED, wrap=True)
