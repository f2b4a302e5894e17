"""Escapes untrusted text, such as names of files, classes and runs: one function for each output medium.

These names come with folders that others made. Printed without escaping, a name can move the terminal's cursor, fake a
second line or a link, or become a formula in a spreadsheet.
"""

from __future__ import annotations

import html
import math
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.text import Text

# Control characters (line ends too), bidirectional marks, and surrogates for bytes that are not UTF-8.
_HIDDEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb\ud800-\udfff]"
)
# Inline Markdown syntax: a bracket only before a possible link target, an underscore only at the edge of a word.
_MARKDOWN = re.compile(r"[\\`*<>|~&#!$@^]|\](?=[(\[:])|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|(?<=:)//|(?<=www)\.")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def terminal(text: object) -> str:
    r"""Returns one line of text; control characters are shown as '\n', '\x1b'.

    Example:
      >>> terminal("cat\x1b[2J\ndog")
      'cat\\x1b[2J\\ndog'
    """
    return _HIDDEN.sub(lambda found: escaped(found[0]), str(text))


def escaped(character: str) -> str:
    r"""A character as an escape sequence; a byte of a file name that is not UTF-8 as in '\xe9'.

    Example:
      >>> escaped("\n"), escaped("\udce9")
      ('\\n', '\\xe9')
    """
    if "\udc80" <= character <= "\udcff":  # how Python keeps such a byte
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")


def rich(text: object, style: str = "") -> Text:
    """For rich's tables and lines: '[red]' and ':cat:' are printed literally."""
    from rich.text import Text

    return Text(terminal(text), style)


def markdown(text: object) -> str:
    r"""For Markdown paragraphs and table cells; line ends and runs of spaces become one space.

    Example:
      >>> markdown("a|b <img> [x](y)")
      'a\\|b \\<img\\> [x\\](y)'
    """
    return _MARKDOWN.sub(lambda found: f"\\{found[0]}", terminal(" ".join(str(text).split())))


def page(text: object) -> str:
    """For HTML text and quoted attribute values."""
    return html.escape(terminal(text), quote=True)


def csv_cell(value: Any) -> Any:
    """For a CSV cell: text that a spreadsheet would read as a formula gets an apostrophe; numbers stay.

    Bytes of a file name that are not UTF-8 are escaped as in `terminal`.

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
