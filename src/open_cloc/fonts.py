"""Texts of any script, drawn: DejaVu Sans, which matplotlib brings, and for its gaps what this machine has.

Looked through are the packages of the extra [fonts], then the system's fonts. Where no font has a character,
that is said once for its script, and a box stands in its place.
"""

from __future__ import annotations

import importlib.util
import logging
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import matplotlib
from matplotlib.ft2font import FT2Font
from PIL import ImageDraw, ImageFont

logger = logging.getLogger(__name__)

BASE = Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"
PACKAGES = ("manimgx_fonts", "manimgx_fonts_cjk")  # of the extra [fonts]: files of Noto, and no code
SUFFIXES = (".ttf", ".otf", ".ttc", ".otc")
# In the names of fonts that are taken last: they lean, are narrow, or fat.
UNUSUAL = ("italic", "oblique", "bold", "black", "mono", "serif", "condensed", "light", "thin")
REGULAR = 400  # a variable font's weight; some begin with the thinnest

_said: set[str] = set()  # scripts without a font, of which the user knows


class Run(NamedTuple):
    """A part of a text that one font draws."""

    text: str
    font: ImageFont.FreeTypeFont


def font(size: int, text: str = "") -> ImageFont.FreeTypeFont:
    """The font that has a text's first character of its own; DejaVu Sans where that has it."""
    return _opened(_file_of(next(iter(text), " ")), size)


def runs(text: str, size: int) -> list[Run]:
    """A text on one line in parts, each with the font that has its characters."""
    files: list[Path] = []
    for character in text:
        # Spaces, accents and joiners are drawn with what they stand beside.
        follows = bool(files) and unicodedata.category(character)[0] in "MZC"
        files.append(files[-1] if follows else _file_of(character))
    parts = groupby(zip(text, files), key=lambda pair: pair[1])
    return [Run("".join(c for c, _ in part), _opened(file, size)) for file, part in parts]


def length(text: str, size: int) -> float:
    """Width of a text on one line in pixels."""
    return sum(run.font.getlength(run.text) for run in runs(text, size))


def write(
    draw: ImageDraw.ImageDraw, place: tuple[float, float], text: str, fill: str, size: int, anchor: str = "la"
) -> None:
    """Draw a text on one line.

    Args:
        draw: The picture.
        place: (x, y) of the text's left side.
        text: The text.
        fill: Its colour.
        size: Its height in pixels.
        anchor: What of the line `y` is: `la` for its top, `lm` for its middle.
    """
    parts = runs(text, size)
    if [part.font for part in parts] == [font(size)]:
        draw.text(place, text, fill, parts[0].font, anchor=anchor)
        return
    ascent, descent = font(size).getmetrics()
    x, y = place
    baseline = y + ascent - ((ascent + descent) / 2 if anchor == "lm" else 0)
    for part in parts:
        draw.text((x, baseline), part.text, fill, part.font, anchor="ls")
        x += part.font.getlength(part.text)


@lru_cache(maxsize=4096)
def _file_of(character: str) -> Path:
    """The first font's file that has a character; DejaVu's where none has."""
    if ord(character) in _characters(BASE) or unicodedata.category(character)[0] in "MZC":
        return BASE
    found = next((file for file in _others() if ord(character) in _characters(file)), None)
    if found is None:
        _say(unicodedata.name(character, "UNNAMED").split()[0].split("-")[0], character)
    return found or BASE


def _say(script: str, example: str) -> None:
    if script in _said:
        return
    _said.add(script)
    logger.warning(
        "no font for %s, such as %r: drawn as boxes; pip install 'open-cloc[fonts]' brings some",
        script,
        example,
    )


@lru_cache(maxsize=1)
def _others() -> list[Path]:
    """The files of other fonts, those of the extra first, plain ones before bold and narrow ones."""
    from matplotlib.font_manager import (
        findSystemFonts,  # looks through the system's folders as it is imported
    )

    system = [Path(name) for name in findSystemFonts()]
    return [*_of_packages(), *sorted(system, key=_rank)]


def _of_packages() -> Iterator[Path]:
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)  # data: the package itself is not imported
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            yield from sorted((path for path in Path(folder).iterdir() if path.suffix in SUFFIXES), key=_rank)


def _rank(file: Path) -> tuple[int, str]:
    name = file.stem.lower()
    return sum(word in name for word in UNUSUAL), str(file)


@lru_cache(maxsize=512)
def _characters(file: Path) -> frozenset[int]:
    """The characters that a font has; none where it is damaged, or not drawn in every size."""
    try:
        _opened(file, 12)
        return frozenset(FT2Font(str(file)).get_charmap())
    except (OSError, RuntimeError, ValueError):
        return frozenset()


@lru_cache(maxsize=128)
def _opened(file: Path, size: int) -> ImageFont.FreeTypeFont:
    opened = ImageFont.truetype(str(file), size)
    try:
        axes = opened.get_variation_axes()
    except OSError:  # most fonts do not vary
        return opened
    chosen = [REGULAR if axis["name"] in (b"Weight", "Weight") else axis["default"] for axis in axes]
    opened.set_variation_by_axes([float(value or 0) for value in chosen])
    return opened
