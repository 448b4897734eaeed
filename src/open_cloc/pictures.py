"""Pictures to pixels: encoded bytes, files, PIL images, arrays. JPEG by libjpeg-turbo, the rest by Pillow."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TypeAlias

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from open_cloc.errors import MissingFileError, UserError

Picture: TypeAlias = "str | Path | bytes | Image.Image | np.ndarray"

JPEG_START = b"\xff\xd8\xff"
DIRECT = ("YCbCr", "Gray", "RGB")  # a CMYK file needs Pillow's rules for inverted inks

# What decoding raises on bytes that are no picture, and on one that is too large to be meant.
UNDECODABLE = (
    UnidentifiedImageError,
    OSError,
    SyntaxError,
    ValueError,
    Image.DecompressionBombError,
)


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


def decoding_error(error: Exception) -> str:
    """What is wrong with a picture, without the memory address that Pillow puts in: reruns say the same."""
    return str(error).partition(" <")[0] if isinstance(error, UnidentifiedImageError) else str(error)


def read_pixels(image: Picture, what: str = "picture") -> np.ndarray:
    """A picture as (H, W, 3) uint8 RGB.

    Args:
        image: A path, an encoded file's bytes, a PIL image of any mode, or an array of that form already.
        what: What the picture is, for messages.

    Raises:
        MissingFileError: If it is a path that does not exist.
        UserError: If it cannot be decoded, or is something else.
    """
    if isinstance(image, (str, Path, bytes)):
        return _read_encoded(image, what)
    if isinstance(image, Image.Image):
        return np.asarray(image.convert("RGB"))
    if not isinstance(image, np.ndarray):
        raise UserError(f"{what} must be a path, bytes, a PIL image or an array; got {type(image).__name__}")
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise UserError(f"{what} as an array must be (H, W, 3) uint8 RGB; got {image.dtype} {image.shape}")
    return image


def _read_encoded(image: str | Path | bytes, what: str) -> np.ndarray:
    """Decode a file or its bytes, errors in the user's words."""
    where = "" if isinstance(image, bytes) else f" ({image})"
    try:
        return decode_image(image if isinstance(image, bytes) else Path(image).read_bytes())
    except FileNotFoundError:
        raise MissingFileError(f"{what} not found: {image!s}") from None
    except UNDECODABLE as error:
        raise UserError(f"{what} cannot be decoded{where}: {decoding_error(error)}") from error
