"""Label maps: pictures whose numbers are classes or segments instead of colours.

Shapes: H W pixels.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from open_cloc.errors import SampleError
from open_cloc.pictures import by_decoder, read_file

NO_CLASS = -1
WHAT = "label map"
# Modes of Pillow in which a pixel is one number; of a palette, its place in it.
NUMBERS = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L")


def read_numbers(file: Path) -> np.ndarray:
    """The number of each pixel, as stored: (H, W) int64.

    Raises:
        MissingPictureError: If the file is not there.
        SampleError: If it is no picture of one number a pixel.
    """
    return by_decoder(_numbers, read_file(file, WHAT), file, WHAT)


def read_segments(file: Path) -> np.ndarray:
    """The segment of each pixel of a panoptic PNG, red + 256 green + 65536 blue: (H, W) int64.

    Raises:
        MissingPictureError: If the file is not there.
        SampleError: If it is no picture of three colours.
    """
    return by_decoder(_segments, read_file(file, WHAT), file, WHAT)


def as_classes(numbers: np.ndarray, first: int, ignore: int, count: int) -> np.ndarray:
    """Stored numbers (H, W) as classes 0 to `count` - 1, `NO_CLASS` where they are none of these.

    Args:
        numbers: As stored.
        first: The number of class 0.
        ignore: A number that is no class.
        count: Number of classes.
    """
    classes = numbers - first
    is_class = (classes >= 0) & (classes < count) & (numbers != ignore)
    return np.where(is_class, classes, NO_CLASS)


def _open(encoded: bytes) -> Image.Image:
    return Image.open(io.BytesIO(encoded), formats=("PNG", "TIFF", "BMP"))


def _numbers(encoded: bytes) -> np.ndarray:
    with _open(encoded) as picture:
        if picture.mode not in NUMBERS:
            raise SampleError(
                f"a label map has one number a pixel; this is a picture of mode {picture.mode}",
                "no label map",
            )
        return np.array(picture).astype(np.int64)


def _segments(encoded: bytes) -> np.ndarray:
    with _open(encoded) as picture:
        if picture.mode not in ("RGB", "RGBA"):
            raise SampleError(
                f"a panoptic label map has three colours; this is a picture of mode {picture.mode}",
                "no label map",
            )
        red, green, blue = np.moveaxis(np.array(picture)[..., :3].astype(np.int64), -1, 0)
    return red + 256 * green + 65536 * blue
