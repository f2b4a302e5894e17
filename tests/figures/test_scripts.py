"""Names in any script can be read in figures, and matplotlib warns of nothing."""

import io
import warnings

import numpy as np
import pytest
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.text import Text

from jaxvit.figures import scripts, style
from jaxvit.figures.evaluation import draw_confusion
from jaxvit.figures.predictions import caption, draw_predictions


@pytest.mark.parametrize(
    ("character", "shown"),
    [*{"고": "go", "ね": "ne", "क": "ka", "猫": "<732B>", "\u0e31": "", "\udce9": "<DCE9>", "\x1b": "<001B>"}.items()],
)
def test_what_no_font_has_is_spelt(character, shown):
    assert scripts.spelt(character) == shown


def confusion(names):
    counts = np.eye(len(names), dtype=int) * 3
    data = f"{names[0]}: test"
    return {"confusion": counts, "class_names": names, "data": data, "top1": 1.0, "count": 3 * len(names)}


@pytest.fixture
def only_matplotlibs_fonts(monkeypatch):
    own = [entry for entry in font_manager.fontManager.ttflist if "mpl-data" in entry.fname]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", own)
    scripts._fonts_for.cache_clear()
    yield
    scripts._fonts_for.cache_clear()


@pytest.mark.usefixtures("only_matplotlibs_fonts")
def test_class_names_without_a_font_are_spelt_and_an_svg_keeps_them(tmp_path, monkeypatch):
    names = ["猫", "고양이", "dog", "\x1b[1m"]
    figures = {}
    save = Figure.savefig

    def savefig(figure, file, **how):
        save(figure, file, **how)
        figures[how["format"]] = {text.get_text() for text in figure.findobj(Text)}

    monkeypatch.setattr(Figure, "savefig", savefig)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        files = draw_confusion(confusion(names), tmp_path / "confusion")
    assert {"<732B>", "goyangi", "dog", "<001B>[1m"} <= figures["png"]
    assert "<732B>: test: 100.00 % of 12 images right" in figures["png"]
    assert {"猫", "고양이", "dog"} <= figures["svg"]
    svg = next(file for file in files if file.suffix == ".svg").read_text(encoding="utf-8")
    assert svg.count(">猫<") >= 2 and "고양이" in svg and "\x1b" not in svg


@pytest.mark.usefixtures("only_matplotlibs_fonts")
def test_a_font_of_the_machine_is_found(tmp_path):
    """STIX stands for it: it has letters that the usual font lacks."""
    usual = scripts._letters(font_manager.findfont(font_manager.FontProperties()))
    [stix] = {f.fname for f in font_manager.fontManager.ttflist if f.fname.endswith("STIXGeneral.ttf")}
    rare = min(c for c in scripts._letters(stix) - usual if c.isalpha() and c > "\u3000")
    families, missing = scripts._fonts_for(frozenset(f"cat{rare}猫"))
    assert families[0].startswith(("STIX", "cm", "DejaVu")) and missing == {"猫"}
    figure = style.new_figure(3, 2)
    title = figure.suptitle(rare)
    with scripts.legible(figure), warnings.catch_warnings():
        warnings.simplefilter("error")
        assert families[0] in title.get_fontfamily() and title.get_text() == rare
        figure.savefig(io.BytesIO(), format="png")
    assert title.get_fontfamily() == ["sans-serif"]


def test_captions_stay_in_order_around_names_from_right_to_left():
    """Matplotlib's own font has Arabic letters, and turns the whole line without the marks."""
    figure = style.new_figure(3, 2)
    title = figure.suptitle("✗ عربي قط 20 %\nit is cat")
    with scripts.legible(figure):
        assert title.get_text() == "\u200e✗ عربي قط\u200e 20 %\n\u200eit is cat"
        figure.savefig(io.BytesIO(), format="png")
    assert title.get_text() == "✗ عربي قط 20 %\nit is cat"


def test_a_caption_has_a_line_for_each_thing_whatever_names_hold():
    text, _ = caption("new\nline", 0.5, False, "a\x1b[1m", "x/caf\udce9.png")
    assert text.split("\n") == ["new\\nline 50 %", "it is a\\x1b[1m", "caf\\xe9.png"]


def test_a_title_fits_whatever_path_is_in_it():
    figure = style.new_figure(4, 3)
    style.entitle(figure, f"image_folder:/home/{'long_name/' * 12}a$x_{{/b$c: 90.00 % of 10 images right")
    title = figure.get_suptitle()
    figure.draw_without_rendering()
    [box] = [text.get_window_extent() for text in figure.findobj(Text) if text.get_text() == title]
    assert title.count("\n") > 1 and box.x0 >= 0 and box.x1 <= figure.bbox.width


def test_a_damaged_font_is_passed_over(tmp_path):
    (tmp_path / "x.ttf").write_bytes(b"no font")
    assert scripts._letters(str(tmp_path / "x.ttf")) == frozenset()


def test_names_over_pictures(tmp_path, capfd):
    images = [np.zeros((4, 4, 3), np.uint8)] * 2
    draw_predictions(images, [("猫 90 %", True), ("$x 10 %\nit is 犬", False)], tmp_path / "said.png")
    assert capfd.readouterr().err == "" and (tmp_path / "said.png").stat().st_size > 1000
