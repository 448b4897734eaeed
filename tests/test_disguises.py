"""Files that are not what their names say are called what they are."""

from __future__ import annotations

import gzip
import io
from pathlib import Path

import pytest
from PIL import Image

from open_cloc.cli.data import main
from open_cloc.disguises import what_it_is
from open_cloc.errors import SampleError, UserError
from open_cloc.files import parse_json, read_text
from open_cloc.pictures import OPENED, read_pixels

PAGE = b"\n<!DOCTYPE html><html><head><title>404</title></head></html>"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 12\n"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it is empty"),
        (PAGE, "it is a web page: the download has failed"),
        (POINTER, "it is a pointer of git LFS: fetch it with `git lfs pull`"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "it is HEIC, which is not read"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0", "it is a video"),
        (b'<?xml version="1.0"?><svg width="9"/>', "it is an SVG drawing"),
        (b"%PDF-1.7", "it is a PDF"),
        (b"no picture", "cannot identify image file"),
    ],
)
def test_what_is_no_picture_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(SampleError) as caught:
        read_pixels(tmp_path / "a.jpg")
    assert str(caught.value).endswith(f": {said}") or said in str(caught.value)
    assert caught.value.cause == "undecodable picture"


def test_pictures_are_no_disguises() -> None:
    for name in OPENED:
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8)).save(buffer, name)
        assert what_it_is(buffer.getvalue()) == ""


def test_json_and_texts_say_what_they_are(tmp_path: Path) -> None:
    for content, said in (
        (b"", "empty"),
        (gzip.compress(b"{}"), "compressed by gzip: unpack it first"),
        ("{}".encode("utf-16"), "text in UTF-16: save it as UTF-8"),
        (PAGE, "a web page"),
        (POINTER, "a pointer of git LFS"),
    ):
        with pytest.raises(UserError, match=f"x is not valid JSON: {said}"):
            parse_json(content, "x")
    (tmp_path / "a.txt").write_bytes("a mug".encode("utf-16"))
    with pytest.raises(UserError, match="text is not UTF-8: text in UTF-16"):
        read_text(tmp_path / "a.txt")


def test_a_page_in_place_of_a_table_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.csv").write_bytes(PAGE)
    with pytest.raises(UserError, match="table is a web page"):
        main(["check", f"table:{tmp_path / 'a.csv'}"])
