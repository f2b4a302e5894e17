"""What all figures share: colours that colour-blind readers tell apart, readable sizes, PNG and SVG files.

Figures are made without pyplot, which would choose a backend for the whole process, a notebook's too.
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from jaxvit.figures.scripts import legible
from jaxvit.files import replaced

# Okabe and Ito's colours.
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
# Text stays text in an SVG; its ids, and so its bytes, are the same every time.
_SETTINGS: dict[str, Any] = {"font.size": 11, "svg.fonttype": "none", "svg.hashsalt": "jaxvit"}


def new_figure(width: float, height: float, **settings: Any) -> Figure:
    """An empty figure of a size in inches; its parts are laid out without overlap."""
    with matplotlib.rc_context(_SETTINGS):
        figure = Figure(figsize=(width, height), **{"layout": "constrained", **settings})
        FigureCanvasAgg(figure)
    return figure


def entitle(figure: Figure, text: str, fontsize: float = 12) -> None:
    """A title over the whole figure, in as many lines as its width asks for."""
    letters = int(figure.get_figwidth() * 72 / (0.55 * fontsize))
    figure.suptitle("\n".join(textwrap.wrap(text, letters)), fontsize=fontsize)


def save(figure: Figure, file: Path, formats: tuple[str, ...] = FORMATS, dpi: int = 150) -> list[Path]:
    """Writes a figure as `file`, without an ending that it may have, in each of the formats; returns the files.

    Each is written beside and moved, so that what is there is always whole.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    written = []
    for suffix in formats:
        stem = file.name.removesuffix(file.suffix) if file.suffix.lower() in _ENDINGS else file.name
        asked_for = file.suffix.lower() == f".{suffix}"  # a.PNG stays that
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
