"""Encoded pictures to pixels: JPEG by libjpeg-turbo directly, everything else by Pillow."""

from __future__ import annotations

import io

import numpy as np
import simplejpeg
from PIL import Image

JPEG_START = b"\xff\xd8\xff"
DIRECT = ("YCbCr", "Gray", "RGB")  # a CMYK file needs Pillow's rules for inverted inks


def decode_image(encoded: bytes) -> np.ndarray:
    """Decode a picture to (H, W, 3) uint8 RGB; the pixels are Pillow's, bit for bit.

    EXIF orientation is not applied: boxes are of the picture as stored.

    Raises:
        PIL.UnidentifiedImageError: If this is no picture.
        OSError: If it is cut short or damaged; Pillow may also raise `SyntaxError` or `ValueError`.
    """
    pixels = _decode_jpeg(encoded) if encoded.startswith(JPEG_START) else None
    if pixels is not None:
        return pixels
    with Image.open(io.BytesIO(encoded)) as picture:
        return np.array(picture.convert("RGB"))  # a copy that may be written to, as torch wants it


def _decode_jpeg(encoded: bytes) -> np.ndarray | None:
    """Pixels of an ordinary, undamaged JPEG; None for what Pillow should judge, or complain about."""
    try:
        height, width, colour, _ = simplejpeg.decode_jpeg_header(encoded)
        limit = Image.MAX_IMAGE_PIXELS  # Pillow's guard against decompression bombs
        if colour not in DIRECT or (limit is not None and height * width > limit):
            return None
        return simplejpeg.decode_jpeg(encoded, "RGB")
    except ValueError:
        return None
