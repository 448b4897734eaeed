"""Pictures to pixels: encoded bytes, files, PIL images, arrays. JPEG by libjpeg-turbo, the rest by Pillow.

What every picture becomes is (H, W, 3) uint8 RGB:

- 16 bit, 32 bit and floats in [0, 1] are scaled from their whole range to 0..255;
- what is transparent is laid on white;
- palettes and CMYK become the colours they stand for;
- of an animation, the first frame is taken;
- the picture stays as it is stored: an EXIF orientation is not applied, unless a reader is told to.

Only the formats of `OPENED` are opened: others, such as PostScript, would start foreign programs.
"""

from __future__ import annotations

import io
import posixpath
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeAlias, TypeVar

import numpy as np
import simplejpeg
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError, features

from open_cloc.disguises import what_it_is
from open_cloc.errors import MissingPictureError, SampleError, UserError

T = TypeVar("T")

Picture: TypeAlias = "str | Path | bytes | Image.Image | np.ndarray"

# Pillow's name of each format -> suffixes of its files.
OPENED = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "BMP": (".bmp", ".dib"),
    "DIB": (),
    "TIFF": (".tif", ".tiff"),
    "GIF": (".gif",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "JPEG2000": (".jp2", ".j2k", ".jpx"),
} | ({"AVIF": (".avif", ".avifs")} if features.check("avif") else {})
SUFFIXES = tuple(suffix for suffixes in OPENED.values() for suffix in suffixes)
_SUFFIXES = frozenset(SUFFIXES)
# Suffixes of pictures that are not read; a reader that meets them says so.
UNREAD_SUFFIXES = (".heic", ".heif", ".avif", ".jxl", ".svg", ".eps", ".psd", ".raw", ".dng", ".cr2", ".nef")

BACKGROUND = (255, 255, 255)  # what shows through a transparent picture
URL = re.compile(r"\w\w+:/\S")  # as paths write it, with one stroke; a drive has one letter
JPEG_START = b"\xff\xd8\xff"
DIRECT = ("YCbCr", "Gray", "RGB")  # a CMYK file needs Pillow's rules for inverted inks
ANOTHER_SIZE = "picture of another size"
SWAPS_SIDES = (5, 6, 7, 8)  # EXIF orientations that turn by a quarter


class PictureHeader(NamedTuple):
    """What the head of a picture says.

    Attributes:
        size_hw: (height, width) in pixels, as stored.
        orientation: EXIF's number from 1 to 8; 1 where the picture is not turned, or nothing says so.
    """

    size_hw: tuple[int, int]
    orientation: int


def is_picture(name: str) -> bool:
    """Whether a file's suffix is that of a picture that can be read; capitals do not matter."""
    return posixpath.splitext(name)[1].lower() in _SUFFIXES


def decode_image(encoded: bytes) -> np.ndarray:
    """Decode a picture to (H, W, 3) uint8 RGB; where it is plain RGB, the pixels are Pillow's, bit for bit.

    EXIF orientation is not applied: boxes are of the picture as stored.

    Raises:
        PIL.UnidentifiedImageError: If this is no picture.
        OSError: If it is cut short or damaged; Pillow may also raise `SyntaxError`, `ValueError` and others.
    """
    pixels = _decode_jpeg(encoded) if encoded.startswith(JPEG_START) else None
    if pixels is not None:
        return pixels
    with open_encoded(encoded) as picture:
        return to_rgb(picture)


def open_encoded(encoded: bytes) -> Image.Image:
    """A picture by Pillow, of the allowed formats alone."""
    return Image.open(io.BytesIO(encoded), formats=tuple(OPENED))


def to_rgb(picture: Image.Image) -> np.ndarray:
    """Pixels (H, W, 3) uint8 of a picture of any mode, as this module's head says.

    Raises:
        UserError: If it holds floats outside of [0, 1], whose range nothing declares.
    """
    if picture.mode == "RGB" and "transparency" not in picture.info:
        return np.array(picture)  # a copy that may be written to, as torch wants it
    if picture.mode.startswith("I;16"):
        return _grey(np.array(picture).astype(np.float32) / 65535)
    if picture.mode == "I":
        return _grey(_wide_integers(np.array(picture)))
    if picture.mode == "F":
        return _grey(np.array(picture))
    if "A" in picture.getbands() or "a" in picture.getbands() or "transparency" in picture.info:
        over = picture.convert("RGBA")
        under = Image.new("RGBA", over.size, (*BACKGROUND, 255))
        return np.array(Image.alpha_composite(under, over).convert("RGB"))
    return np.array(picture.convert("RGB"))


def _wide_integers(values: np.ndarray) -> np.ndarray:
    """32 bit integers in [0, 1]; Pillow opens a PNG's 16 bits so, too, hence the range by what is there."""
    return values.astype(np.float64) / (65535 if values.min() >= 0 and values.max() <= 65535 else 2**31 - 1)


def _grey(values: np.ndarray) -> np.ndarray:
    """Values (H, W) in [0, 1] as grey pixels."""
    if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
        found = np.sort(values, axis=None)  # nan comes last
        raise UserError(f"a picture of floats must be in [0, 1]; got {found[0]:g} to {found[-1]:g}")
    return np.repeat(np.rint(values * 255).astype(np.uint8)[..., None], 3, axis=-1)


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


def decoding_error(error: Exception, encoded: bytes) -> str:
    """What is wrong with a picture, without the memory address that Pillow puts in: reruns say the same."""
    if isinstance(error, Image.DecompressionBombError):
        return f"it has more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels, the most that is read"
    if isinstance(error, UnidentifiedImageError):
        what = what_it_is(encoded)
        return f"it is {what}" if what else str(error).partition(" <")[0]
    return str(error) or type(error).__name__


def read_pixels(image: Picture, what: str = "picture") -> np.ndarray:
    """A picture as (H, W, 3) uint8 RGB.

    Args:
        image: A path, an encoded file's bytes, a PIL image of any mode, or an array of that form already.
        what: What the picture is, for messages.

    Raises:
        MissingPictureError: If it is a path that does not exist.
        UserError: If it cannot be decoded, or is something else.
    """
    if isinstance(image, (str, Path, bytes)):
        encoded = image if isinstance(image, bytes) else read_file(Path(image), what)
        return by_decoder(decode_image, encoded, image, what)
    if isinstance(image, Image.Image):
        return to_rgb(image)
    if not isinstance(image, np.ndarray):
        raise UserError(f"{what} must be a path, bytes, a PIL image or an array; got {type(image).__name__}")
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise UserError(f"{what} as an array must be (H, W, 3) uint8 RGB; got {image.dtype} {image.shape}")
    return image


def read_header(image: Path | bytes | np.ndarray, what: str = "picture") -> PictureHeader:
    """Size and orientation of a picture, which is not decoded.

    Args:
        image: A path, an encoded file's bytes, or an array (H, W, 3).
        what: What the picture is, for messages.

    Raises:
        MissingPictureError: If it is a path that does not exist.
        SampleError: If it is no picture.
    """
    if isinstance(image, np.ndarray):
        return PictureHeader((image.shape[0], image.shape[1]), 1)
    encoded = image if isinstance(image, bytes) else read_file(image, what)
    return by_decoder(_header, encoded, image, what)


def mismatch(
    image: Path | bytes | np.ndarray, declared_hw: tuple[int, int], found_hw: tuple[int, int]
) -> str:
    """What is wrong with a picture whose size is not the declared one.

    Args:
        image: The picture.
        declared_hw: (height, width) that its annotations name.
        found_hw: (height, width) that it has.
    """
    declared, found = (f"{width} x {height}" for height, width in (declared_hw, found_hw))
    text = f"{ANOTHER_SIZE}: boxes were measured on {declared}, the picture is {found}"
    if declared_hw != found_hw[::-1] or declared_hw == found_hw:
        return text
    orientation = read_header(image).orientation
    if orientation not in SWAPS_SIDES:
        return f"{text}: sides are swapped"
    return f"{text}: sides are swapped: EXIF orientation {orientation}; give exif=apply to turn the picture"


def upright(image: Path | bytes | np.ndarray, what: str = "picture") -> Path | bytes | np.ndarray:
    """A picture turned as its EXIF orientation asks, as pixels; as it is where it is not turned.

    Raises:
        MissingPictureError: If it is a path that does not exist.
        SampleError: If it is no picture.
    """
    if isinstance(image, np.ndarray) or read_header(image, what).orientation == 1:
        return image
    encoded = image if isinstance(image, bytes) else read_file(image, what)
    return by_decoder(_turned, encoded, image, what)


def read_file(path: Path, what: str = "picture") -> bytes:
    """The bytes of a picture's file; nothing but a regular file is read, since a device may never end.

    Raises:
        MissingPictureError: If it is not there.
        SampleError: If it is no regular file, or may not be read.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise SampleError(f"{what} is no regular file: {path}", "unreadable picture")
        return path.read_bytes()
    except FileNotFoundError:
        hint = "; URLs are not read: fetch it first" if URL.match(str(path)) else ""
        raise MissingPictureError(f"{what} not found: {path}{hint}") from None
    except (OSError, ValueError) as error:  # `ValueError`: a name with a NUL in it
        reason = getattr(error, "strerror", None) or error
        raise SampleError(f"{what} cannot be read: {reason} ({path})", "unreadable picture") from error


def _header(encoded: bytes) -> PictureHeader:
    with open_encoded(encoded) as picture:
        orientation = _orientation(picture)
        return PictureHeader((picture.height, picture.width), orientation)


def _orientation(picture: Image.Image) -> int:
    """EXIF's number; 1 where the block is damaged, as viewers take it."""
    try:
        number = picture.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # Pillow parses it only now, with errors of all kinds
        return 1
    return number if number in range(1, 9) else 1


def _turned(encoded: bytes) -> np.ndarray:
    with open_encoded(encoded) as picture:
        return to_rgb(ImageOps.exif_transpose(picture))


def by_decoder(decode: Callable[[bytes], T], encoded: bytes, image: object, what: str) -> T:
    """What a function makes of a picture's bytes, its errors in the user's words.

    Args:
        decode: Reads or decodes an encoded picture.
        encoded: The picture.
        image: Where the bytes come from; named in messages if it is a path.
        what: What the picture is, for messages.

    Raises:
        SampleError: If it fails.
    """
    try:
        return decode(encoded)
    except Exception as error:  # Pillow's decoders let through whatever they stumble over
        where = f" ({image})" if isinstance(image, (str, Path)) else ""
        reason = decoding_error(error, encoded)
        raise SampleError(f"{what} cannot be decoded{where}: {reason}", "undecodable picture") from error
