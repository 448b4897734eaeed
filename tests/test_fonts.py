"""Texts in scripts that the usual font lacks."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from PIL import Image, ImageDraw

from open_cloc import fonts
from open_cloc.draw import draw_regions, shorten
from open_cloc.samples import Region

WHITE = 255


def glyph(side: int) -> object:
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for corner in ((0, side), (side, side), (side, 0)):
        pen.lineTo(corner)
    pen.closePath()
    return pen.glyph()


def make_font(path: Path, sides: dict[str, int]) -> Path:
    """A font of squares, one for each character, of so many thousandths of the height."""
    names = {character: f"u{ord(character):04x}" for character in sides}
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", *names.values()])
    builder.setupCharacterMap({ord(character): name for character, name in names.items()})
    glyphs = {".notdef": glyph(10)} | {names[character]: glyph(side) for character, side in sides.items()}
    builder.setupGlyf(glyphs)
    builder.setupHorizontalMetrics(dict.fromkeys(glyphs, (1000, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": path.stem, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)
    return path


@pytest.fixture
def others(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    """The fonts of this machine beside the usual one: those that a test puts here."""
    found: list[Path] = []
    monkeypatch.setattr(fonts, "_others", lambda: found)
    monkeypatch.setattr(fonts, "_said", set())
    fonts._file_of.cache_clear()
    yield found
    fonts._file_of.cache_clear()


def drawn(text: str) -> np.ndarray:
    return draw_regions(np.full((60, 200, 3), WHITE, np.uint8), [Region((0.1, 0.5, 0.9, 0.9), text)])


def test_each_character_has_a_glyph_of_its_own(others: list[Path], tmp_path: Path) -> None:
    same = [bytes(fonts.font(20, character).getmask(character)) for character in "红蓝"]
    assert same[0] == same[1]  # a box each
    fonts._file_of.cache_clear()
    others.append(make_font(tmp_path / "squares.ttf", {"红": 900, "蓝": 500}))
    masks = [bytes(fonts.font(20, character).getmask(character)) for character in "红蓝"]
    assert masks[0] != masks[1]
    assert (drawn("红") != drawn("蓝")).any()


def test_a_text_of_two_scripts_is_drawn_in_parts(others: list[Path], tmp_path: Path) -> None:
    others.append(make_font(tmp_path / "squares.ttf", {"红": 900, "m": 900}))
    parts = fonts.runs("a red mug 红 红!", 20)
    assert [part.text for part in parts] == ["a red mug ", "红 红", "!"]
    assert [part.font.getname()[0] for part in parts] == ["DejaVu Sans", "squares", "DejaVu Sans"]
    assert fonts.length("mug红", 20) == fonts.length("mug", 20) + fonts.length("红", 20)
    assert fonts.runs("", 20) == []
    assert shorten("红" * 50, 20, 100).endswith("…")
    picture = Image.new("L", (100, 40), 0)
    fonts.write(ImageDraw.Draw(picture), (0, 0), "a红", "white", 20)
    columns = np.flatnonzero(np.asarray(picture).any(0))
    assert columns[0] < fonts.length("a", 20) < columns[-1] < fonts.length("a红", 20)


def test_what_no_font_has_is_said_once_a_script(others: list[Path], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        drawn("红色方块")
        drawn("蓝色雨伞")
        drawn("빨간 블록")
        drawn("a red mug, Ünïcödé, قمح")
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        "no font for CJK, such as '红'",
        "no font for HANGUL, such as '빨'",
    ]
    assert "open-cloc[fonts]" in caplog.text


def test_damaged_fonts_are_passed_over(others: list[Path], tmp_path: Path) -> None:
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    others += [tmp_path / "broken.ttf", tmp_path / "absent.ttf"]
    others.append(make_font(tmp_path / "squares.ttf", {"红": 900}))
    assert fonts.font(20, "红").getname()[0] == "squares"


def test_plain_fonts_come_before_bold_ones() -> None:
    names = ["a/NotoSans-Bold.ttf", "b/NotoSerif-Regular.ttf", "c/NotoSans-Regular.ttf", "d/A-BoldItalic.otf"]
    first, *_, last = sorted(map(Path, names), key=fonts._rank)
    assert (first.name, last.name) == ("NotoSans-Regular.ttf", "A-BoldItalic.otf")


def test_the_system_is_looked_through() -> None:
    assert all(isinstance(path, Path) for path in fonts._others())


def test_texts_of_any_kind_are_drawn_in_no_time() -> None:
    for text in ("half \ud83d", "\x1b[31mred", "word " * 100_000, "\u202eleft", "\U0001f468\u200d\U0001f469"):
        assert drawn(text).shape == (60, 200, 3)
