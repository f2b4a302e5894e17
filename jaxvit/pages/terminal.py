"""Tables and lines on a terminal, or in a file that stdout is redirected to."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from jaxvit.shown import terminal


def print_table(table: Table) -> None:
    """Prints a table, at most as wide as the terminal; 200 characters if stdout is a file."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 200  # a file has no width to fit into
    console.print(table)


def print_lines(values: Mapping[str, str]) -> None:
    """Prints a dict in two columns, one line for each entry."""
    width = max(map(len, values)) + 1
    for name, value in values.items():
        print(terminal(f"{name:<{width}}{value}"))
