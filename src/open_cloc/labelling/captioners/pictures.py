"""Pictures as captioners take them, and their answers as captions."""

from __future__ import annotations

import base64
import io

from PIL import Image, UnidentifiedImageError

from open_cloc.labelling.types import Failure
from open_cloc.pictures import decode_image, open_encoded

# Pillow's format -> media type.
SENT_AS = {"JPEG": "jpeg", "MPO": "jpeg", "PNG": "png", "WEBP": "webp"}


def decoded(image: bytes) -> Image.Image | Failure:
    """An encoded picture as RGB, or why it cannot be one."""
    try:
        return Image.fromarray(decode_image(image))
    except Exception as error:  # Pillow's decoders let through whatever they stumble over
        return unreadable(error)


def data_url(image: bytes) -> str | Failure:
    """A picture as a `data:` URL: JPEG, PNG and WebP byte for byte, what a server may not know as PNG."""
    try:
        with open_encoded(image) as picture:
            kind = SENT_AS.get(picture.format or "")
        if kind is None:
            kind, image = "png", _as_png(image)
    except Exception as error:  # Pillow's decoders let through whatever they stumble over
        return unreadable(error)
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"


def unreadable(error: Exception) -> Failure:
    """The failure of a picture that does not open."""
    if isinstance(error, UnidentifiedImageError):  # its own text names an address in memory
        return Failure("unreadable picture", "not a picture of a known format")
    return Failure("unreadable picture", f"cannot be decoded: {one_line(str(error)) or type(error).__name__}")


def one_line(text: str) -> str:
    """A text without line breaks, double spaces, and spaces around it."""
    return " ".join(text.split())


def _as_png(image: bytes) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(decode_image(image)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
