"""Shared style of all figures: colours that colour-blind readers can tell apart, readable sizes, PNG and SVG files.

Figures do not use pyplot, which would set the backend of the whole process, such as a notebook's.
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from jaxvit.figures.scripts import legible
from jaxvit.files import make_folder, replaced

# The Okabe-Ito palette.
BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
)
COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK)
GREY = "#555555"
FORMATS = ("png", "svg")
_ENDINGS = (".png", ".svg", ".pdf")
# Text stays text in an SVG, and ids do not change from run to run, so that equal figures have equal bytes.
_SETTINGS: dict[str, Any] = {"font.size": 11, "svg.fonttype": "none", "svg.hashsalt": "jaxvit"}


def new_figure(width: float, height: float, **settings: Any) -> Figure:
    """Creates an empty figure, width × height in inches, with constrained layout."""
    with matplotlib.rc_context(_SETTINGS):
        figure = Figure(figsize=(width, height), **{"layout": "constrained", **settings})
        FigureCanvasAgg(figure)
    return figure


def entitle(figure: Figure, text: str, fontsize: float = 12) -> None:
    """Sets the title of the whole figure, wrapped to its width."""
    letters = int(figure.get_figwidth() * 72 / (0.64 * fontsize))
    figure.suptitle("\n".join(textwrap.wrap(text, letters)), fontsize=fontsize, parse_math=False)


def save(figure: Figure, file: Path, formats: tuple[str, ...] = FORMATS, dpi: int = 150) -> list[Path]:
    """Writes a figure in each format, replacing the suffix of `file` if it has one; returns the files.

    Each file is written atomically: a temporary file is moved into place.
    """
    make_folder(file.parent)
    written = []
    for suffix in formats:
        stem = file.name.removesuffix(file.suffix) if file.suffix.lower() in _ENDINGS else file.name
        asked_for = file.suffix.lower() == f".{suffix}"  # a.PNG keeps its name
        target = file if asked_for else file.with_name(f"{stem}.{suffix}")
        metadata = {"Date": None} if suffix == "svg" else None
        with (
            replaced(target, unique=True) as beside,
            matplotlib.rc_context(_SETTINGS),
            legible(figure, keep=suffix == "svg"),
        ):
            figure.savefig(beside, dpi=dpi, format=suffix, metadata=metadata)
        written.append(target)
    return written
