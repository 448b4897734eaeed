"""Glyphs as masks: drawn large once, then scaled and turned."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from open_cloc.data.scenes.vocabulary import GLYPHS

NUM_SIZES = 16  # different sizes of a glyph in the scenes of a config
ANGLES = (-12, -6, 0, 6, 12)  # degrees anticlockwise
FONT_PIXELS = 256
INK_GAIN = 1.4  # thickens lines thinner than a pixel, whose colour would fade into the background
MIN_INK = 0.15  # fainter pixels are left out, so that a box never ends at ink that nobody can see


@lru_cache(maxsize=len(GLYPHS) * len(ANGLES))
def _large_glyph(character: str, angle: int) -> Image.Image:
    """A glyph in 256-pixel type, turned and cropped to its ink."""
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    font = ImageFont.truetype(str(path), FONT_PIXELS, layout_engine=ImageFont.Layout.BASIC)
    canvas = Image.new("L", (2 * FONT_PIXELS, 2 * FONT_PIXELS))
    ImageDraw.Draw(canvas).text((FONT_PIXELS // 2, FONT_PIXELS // 4), character, font=font, fill=255)
    upright = canvas.crop(canvas.getbbox())
    turned = upright.rotate(angle, Image.Resampling.BICUBIC, expand=True)
    return turned.crop(turned.getbbox())


@lru_cache(maxsize=len(GLYPHS) * NUM_SIZES * len(ANGLES))
def glyph_mask(character: str, size: int, angle: int) -> np.ndarray:
    """Render a glyph with antialiasing, cropped to its ink.

    Args:
        character: One character of DejaVu Sans.
        size: Long side in pixels.
        angle: Degrees anticlockwise.

    Returns:
        (h, w, 1) float32 opacity in [0, 1], read-only; each border row and column holds visible ink.
    """
    glyph = _large_glyph(character, angle)
    scale = size / max(glyph.size)
    width, height = (max(1, round(side * scale)) for side in glyph.size)
    small = glyph.resize((width, height), Image.Resampling.BOX)
    ink = np.minimum(np.asarray(small, dtype=np.float32) * (INK_GAIN / 255), 1)  # (h, w)
    ink[ink < MIN_INK] = 0
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    mask = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1, None].copy()
    mask.setflags(write=False)
    return mask
