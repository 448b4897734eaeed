"""Decoding and resizing: the fast paths give Pillow's pixels, and Pillow's complaints."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from open_cloc import pictures as decode
from open_cloc.canvas import INTERPOLATIONS, Geometry, resize
from open_cloc.pictures import decode_image
from open_cloc.samples import RegionSample


def picture(height: int = 61, width: int = 83) -> np.ndarray:
    """Smooth colour gradients with some noise and a hard edge: what JPEG and resampling find hard."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    smooth = np.stack([255 * x / width, 255 * y / height, 127 + 100 * np.sin(x / 7)], axis=-1)
    smooth[height // 3 :, width // 2] = 255
    return np.clip(smooth + rng.normal(0, 8, smooth.shape), 0, 255).astype(np.uint8)


def encoded(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pillow(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as opened:
        return np.asarray(opened.convert("RGB"))


def rotated_by_exif() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(Image.fromarray(picture()), exif=exif)


RGB = Image.fromarray(picture())
PICTURES = {
    "4:4:4": (encoded(RGB, quality=95, subsampling=0), True),
    "4:2:0": (encoded(RGB, quality=75, subsampling=2), True),
    "4:2:2": (encoded(RGB, quality=90, subsampling=1), True),
    "progressive": (encoded(RGB, progressive=True), True),
    "grey": (encoded(RGB.convert("L")), True),
    "stored as RGB": (encoded(RGB, keep_rgb=True, subsampling=0), True),
    "EXIF rotation": (rotated_by_exif(), True),
    "one pixel": (encoded(RGB.resize((1, 1))), True),
    "bytes behind the end": (encoded(RGB) + b"trailing", True),
    "CMYK": (encoded(RGB.convert("CMYK")), False),
    "PNG": (encoded(RGB, "PNG"), False),
    "palette PNG": (encoded(RGB.convert("P"), "PNG"), False),
    "PNG with alpha": (encoded(RGB.convert("RGBA"), "PNG"), False),
    "WebP": (encoded(RGB, "WEBP"), False),
    "GIF": (encoded(RGB, "GIF"), False),
}


@pytest.mark.parametrize("name", PICTURES)
def test_pixels_are_pillows_and_ordinary_jpegs_take_the_fast_path(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, fast = PICTURES[name]
    expected = pillow(data)
    with monkeypatch.context() as patch:
        if fast:
            patch.delattr(decode.Image, "open")
        decoded = decode_image(data)
    assert decoded.dtype == np.uint8
    assert decoded.flags.writeable
    np.testing.assert_array_equal(decoded, expected)


@pytest.mark.parametrize(
    "data", [encoded(RGB)[:-300], encoded(RGB)[:40], b"\xff\xd8\xff", b"text", encoded(RGB, "PNG")[:99]]
)
def test_broken_pictures_get_pillows_message_with_the_sample(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(Exception) as theirs:
        pillow(data)
    with pytest.raises(ValueError, match="image of sample 'k' cannot be decoded") as ours:
        RegionSample("k", data).pixels()
    assert str(theirs.value).partition(" <")[0] in str(ours.value)
    (tmp_path / "x.jpg").write_bytes(data)
    with pytest.raises(ValueError, match=r"cannot be decoded \(.*x\.jpg\)"):
        RegionSample("k", tmp_path / "x.jpg").pixels()


def test_a_huge_jpeg_is_left_to_pillows_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(Image.DecompressionBombError):
        decode_image(encoded(RGB))  # 61 x 83 is more than twice the limit


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size_hw", [(20, 28), (61, 40), (7, 83), (150, 200), (60, 82)])
def test_resizing_is_pillows_within_one_of_255(interpolation: str, size_hw: tuple[int, int]) -> None:
    ours = resize(picture(), size_hw, interpolation)
    theirs = np.asarray(Image.fromarray(picture()).resize(size_hw[::-1], INTERPOLATIONS[interpolation]))
    difference = np.abs(ours.astype(int) - theirs)
    assert difference.max() <= 1
    assert difference.mean() < 0.02


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_any_memory_layout_resizes_alike(interpolation: str) -> None:
    pixels = picture()
    read_only = pixels.copy()
    read_only.flags.writeable = False
    mirrored = np.ascontiguousarray(pixels[:, ::-1])[:, ::-1]  # negative strides
    for same in (read_only, mirrored):
        np.testing.assert_array_equal(
            resize(same, (30, 20), interpolation), resize(pixels, (30, 20), interpolation)
        )
    canvas = Geometry.fit((61, 83), (30, 40)).crop((0.2, 0.3, 0.9, 0.8)).draw(read_only)
    assert canvas.shape == (30, 40, 3)
