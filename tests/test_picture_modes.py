"""Pictures of every mode become RGB as a viewer shows them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from open_cloc.errors import SampleError, UserError
from open_cloc.pictures import (
    SUFFIXES,
    decode_image,
    is_picture,
    read_file,
    read_header,
    read_pixels,
    upright,
)

RAMP = np.tile(np.linspace(0, 255, 64).astype(np.uint8), (8, 1))


def encoded(picture: Image.Image, form: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_from_their_whole_range(form: str) -> None:
    wide = Image.fromarray(RAMP.astype(np.uint16) * 257)
    for pixels in (decode_image(encoded(wide, form)), read_pixels(wide)):
        np.testing.assert_array_equal(pixels, np.repeat(RAMP[..., None], 3, axis=-1))


def test_floats_are_of_the_unit_range_or_refused() -> None:
    np.testing.assert_array_equal(read_pixels(Image.fromarray(RAMP.astype(np.float32) / 255))[..., 0], RAMP)
    for wrong in (np.float32(RAMP), np.full((4, 4), np.nan, np.float32)):
        with pytest.raises(UserError, match="must be in"):
            read_pixels(Image.fromarray(wrong))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P"])
def test_what_is_transparent_is_laid_on_white(mode: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 4)).astype(np.uint8)
    pixels[..., 3] = 0
    pixels[2:6, 2:6] = (220, 30, 40, 255)
    picture = Image.fromarray(pixels)
    if mode == "P":
        picture = Image.new("P", (8, 8), 0)
        picture.putpalette([9, 9, 9, 220, 30, 40])
        picture.paste(1, (2, 2, 6, 6))
        picture.info["transparency"] = 0
    else:
        picture = picture.convert(mode)
    found = read_pixels(picture)
    assert (found[0] == 255).all()
    assert not (found[3, 3] == 255).all()


def test_cmyk_and_first_frames() -> None:
    red = Image.new("RGB", (8, 8), (220, 30, 40))
    assert np.abs(decode_image(encoded(red.convert("CMYK"), "JPEG")).astype(int) - (220, 30, 40)).max() < 12
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    moving = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (decode_image(moving)[0, 0] == (255, 0, 0)).all()


def test_orientation_is_told_and_applied_where_asked_for() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    lying = encoded(Image.fromarray(np.repeat(RAMP[..., None], 3, axis=-1)), "PNG", exif=exif)
    assert read_header(lying) == ((8, 64), 6)
    turned = upright(lying)
    assert isinstance(turned, np.ndarray)
    np.testing.assert_array_equal(turned[..., 0], np.rot90(RAMP, -1))
    plain = encoded(Image.new("RGB", (3, 2)))
    assert upright(plain) is plain


def test_only_pictures_are_opened() -> None:
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n"
    for content in (postscript, b"", b"\0" * 100):
        with pytest.raises(SampleError, match="picture cannot be decoded") as caught:
            read_pixels(content)
        assert caught.value.cause == "undecodable picture"


def test_devices_and_pipes_are_not_read(tmp_path: Path) -> None:
    with pytest.raises(SampleError, match="no regular file"):
        read_file(Path("/dev/zero"))
    with pytest.raises(SampleError, match="no regular file"):
        read_file(tmp_path)


def test_suffixes_of_pictures_by_any_case() -> None:
    assert {".jpg", ".jfif", ".jpe", ".jp2", ".tif", ".avif"} <= set(SUFFIXES)
    assert is_picture("A.JPG")
    assert not is_picture("a.txt")
