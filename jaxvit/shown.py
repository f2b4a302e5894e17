"""Text from outside, such as names of files, classes and runs, where it is shown: one function for each medium.

Whoever made a folder chose the names in it. A name that is printed as it is can move a terminal's cursor, forge a
second line or a link in a page, or become a formula in a spreadsheet.
"""

from __future__ import annotations

import html
import math
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.text import Text

# Control characters, line ends among them, what turns the direction of writing, and bytes that are no text.
_HIDDEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb\ud800-\udfff]"
)
# All that Markdown reads between words: a bracket only where a link could follow, an underscore at the edge of a word.
_MARKDOWN = re.compile(r"[\\`*<>|~&#!$@^]|\](?=[(\[:])|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|(?<=:)//|(?<=www)\.")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def terminal(text: object) -> str:
    r"""One line without control characters: they are shown as '\n', '\x1b'.

    Example:
      >>> terminal("cat\x1b[2J\ndog")
      'cat\\x1b[2J\\ndog'
    """
    return _HIDDEN.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), str(text))


def rich(text: object, style: str = "") -> Text:
    """For a table or line of rich: neither '[red]' nor ':cat:' means anything in it."""
    from rich.text import Text

    return Text(terminal(text), style)


def markdown(text: object) -> str:
    r"""For a paragraph or a cell of a table in Markdown; line ends and runs of spaces become one space.

    Example:
      >>> markdown("a|b <img> [x](y)")
      'a\\|b \\<img\\> [x\\](y)'
    """
    return _MARKDOWN.sub(lambda found: f"\\{found[0]}", terminal(" ".join(str(text).split())))


def page(text: object) -> str:
    """For HTML: text, and values of attributes in quotes."""
    return html.escape(terminal(text), quote=True)


def csv_cell(value: Any) -> Any:
    """For a cell of a CSV file: text that a spreadsheet would compute gets an apostrophe; numbers stay.

    Bytes of a file's name that are no text are written as `terminal` shows them.

    Example:
      >>> csv_cell("=1+1"), csv_cell("-0.5"), csv_cell(-2)
      ("'=1+1", '-0.5', -2)
    """
    if not isinstance(value, str):
        return value
    value = value.encode("utf-8", "backslashreplace").decode()
    if not value.lstrip(" ").startswith(_FORMULA):
        return value
    try:
        if math.isfinite(float(value)):
            return value
    except ValueError:
        pass
    return f"'{value}"
