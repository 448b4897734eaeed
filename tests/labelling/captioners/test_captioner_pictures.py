"""Pictures as captioners take them."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from open_cloc.labelling.captioners.pictures import data_url, decoded
from open_cloc.labelling.types import Failure
from tests.labelling.made import encoded


@pytest.mark.parametrize("picture_format", ["JPEG", "PNG", "WEBP"])
def test_known_formats_are_sent_as_they_are(picture_format: str) -> None:
    image = encoded(1, picture_format)
    head, _, body = data_url(image).partition(",")
    assert head == f"data:image/{picture_format.lower()};base64"
    assert base64.b64decode(body) == image


@pytest.mark.parametrize("picture_format", ["BMP", "TIFF", "GIF"])
def test_others_are_sent_as_png(picture_format: str) -> None:
    image = encoded(1, picture_format)
    head, _, body = data_url(image).partition(",")
    assert head == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(body))) as sent:
        np.testing.assert_array_equal(np.asarray(sent), np.asarray(decoded(image)))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("image", [b"", b"no picture", encoded(1, "TIFF")[:40], encoded(1)[:30]])
def test_unreadable_pictures_have_a_cause_and_a_stable_message(image: bytes) -> None:
    for read in (data_url, decoded):
        result = read(image)
        if read is data_url and image.startswith(b"\x89PNG"):
            continue  # the server may judge a damaged PNG
        assert isinstance(result, Failure)
        assert result.cause == "unreadable picture"
        assert "0x" not in result.message


def test_a_picture_of_too_many_pixels_is_unreadable(monkeypatch: pytest.MonkeyPatch) -> None:
    image = encoded(1)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    for result in (data_url(image), decoded(image)):
        assert isinstance(result, Failure)
        assert result.cause == "unreadable picture"
