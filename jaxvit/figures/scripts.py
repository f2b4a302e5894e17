"""Draws names in any script: with a font of this machine that has the characters, else transliterated to Latin letters.

Matplotlib's default font has no Chinese, Japanese or Korean characters; it draws boxes and warns about each.
"""

from __future__ import annotations

import contextlib
import functools
import re
import unicodedata
import warnings
from collections.abc import Iterator

from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter

# Fonts that cover many scripts; tried before all others. LastResort has every character, but as a box.
_LIKELY = re.compile(
    "CJK|Source Han|WenQuanYi|PingFang|Hiragino|Heiti|Songti|YaHei|SimHei|SimSun|JhengHei|Yu Gothic|Meiryo|MS Gothic|"
    "IPA|Takao|Malgun|Nanum|Apple SD Gothic|Arial Unicode|Noto Sans|Noto Emoji|Unifont|Symbola|FreeSans"
)
_NO_TEXT = re.compile("Last Resort|STIX(Size|NonUni)|^cm(r|ss|mi|sy|ex|b|tt)")
_LEFTWARDS = "[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]"  # Arabic, Hebrew and other scripts from right to left
_MARK = "\u200e"  # invisible; what follows is written from left to right
_SYLLABLE = re.compile(r".*(?:LETTER|SYLLABLE)(?: SMALL| CAPITAL)? ([A-Z]+)")


@contextlib.contextmanager
def legible(figure: Figure, keep: bool = False) -> Iterator[None]:
    """Context in which all text of a figure is legible; on exit, the texts are restored.

    Args:
      figure: a complete figure, about to be written.
      keep: keep characters without a font on this machine, since the viewer of the file has its own fonts (SVG).
    """
    texts: list[Text] = figure.findobj(Text)
    axes = [axis for each in figure.axes for axis in (each.xaxis, each.yaxis)]
    ticks = {axis: [label.get_text() for label in axis.get_ticklabels()] for axis in axes}
    used = frozenset("".join([*(text.get_text() for text in texts), *("".join(labels) for labels in ticks.values())]))
    families, missing = _fonts_for((used | {_MARK}) - {"\n"})
    if keep:
        missing = frozenset(c for c in missing if unicodedata.category(c) in ("Cc", "Cs"))
    undo = contextlib.ExitStack()
    for text in texts if families else ():
        undo.callback(text.set_fontfamily, text.get_fontfamily())
        text.set_fontfamily([*text.get_fontfamily(), *families])
    for text in texts:
        if missing.intersection(text.get_text()):
            undo.callback(text.set_text, text.get_text())
            text.set_text(_spell(text.get_text(), missing))
    for text in texts:
        if _MARK not in missing and re.search(_LEFTWARDS, text.get_text()):
            undo.callback(text.set_text, text.get_text())
            text.set_text(_rightwards(text.get_text()))
    for axis, labels in ticks.items():
        if missing.intersection("".join(labels)):
            of_names = axis.get_major_formatter()
            undo.callback(axis.set_major_formatter, of_names)
            axis.set_major_formatter(FuncFormatter(lambda *at, of=of_names: _spell(of(*at), missing)))
    with undo, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def _rightwards(text: str) -> str:
    """Keeps the order of a caption from left to right, although a name in it is Arabic or Hebrew."""
    text = re.sub(f"(?<={_LEFTWARDS})(?= [0-9])", _MARK, text)
    return "\n".join(_MARK + line for line in text.split("\n"))


def _spell(text: str, missing: frozenset[str]) -> str:
    return "".join(spelt(character) if character in missing else character for character in text)


def spelt(character: str) -> str:
    """A character in Latin letters, from the sound in its Unicode name; else its code point.

    Example:
      >>> spelt("고"), spelt("ね"), spelt("猫"), spelt("😺")
      ('go', 'ne', '<732B>', '(smiling cat face with open mouth)')
    """
    name = unicodedata.name(character, "")
    if sound := _SYLLABLE.fullmatch(name):
        return sound[1].lower()
    kind = unicodedata.category(character)
    if kind in ("Mn", "Me", "Cf"):  # combining marks
        return ""
    return f"({name.lower()})" if kind == "So" and name else f"<{ord(character):04X}>"


@functools.lru_cache
def _fonts_for(characters: frozenset[str]) -> tuple[tuple[str, ...], frozenset[str]]:
    """(font families of this machine for characters that the default font lacks, characters that no font has)."""
    missing = characters - _letters(font_manager.findfont(font_manager.FontProperties()))
    families = []
    if missing:
        fonts = {entry.fname: entry for entry in font_manager.fontManager.ttflist if not _NO_TEXT.search(entry.name)}
        for entry in sorted(fonts.values(), key=lambda entry: (not _LIKELY.search(entry.name), entry.name)):
            if found := missing & _letters(entry.fname):
                families.append(entry.name)
                missing -= found
            if not missing:
                break
    return tuple(dict.fromkeys(families)), missing


@functools.lru_cache
def _letters(file: str) -> frozenset[str]:
    """The characters that a font has."""
    try:
        return frozenset(map(chr, font_manager.get_font(file).get_charmap()))
    except (OSError, RuntimeError, ValueError):  # damaged, or deleted since matplotlib listed it
        return frozenset()
