"""Tables and lines for people who look at a terminal, or at a file that its output went to."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from jaxvit.shown import terminal


def print_table(table: Table) -> None:
    """Prints a table, at most as wide as the terminal is; in a file, 200 letters wide."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 200  # a file has no edge to fit into
    console.print(table)


def print_lines(values: Mapping[str, str]) -> None:
    """Prints {name: what is said of it}, a line each, in two columns."""
    width = max(map(len, values)) + 1
    for name, value in values.items():
        print(terminal(f"{name:<{width}}{value}"))
