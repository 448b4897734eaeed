"""What a file is by its first bytes, whatever its name says: told where it cannot be read."""

from __future__ import annotations

import codecs
from collections.abc import Mapping

# First bytes -> the program that has packed a single file, or many.
COMPRESSIONS = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\xfd7zXZ": "xz",
    b"BZh": "bzip2",
    b"\x04\x22\x4d\x18": "lz4",
}
ARCHIVES = {b"PK\x03\x04": "zip", b"7z\xbc\xaf\x27\x1c": "7z", b"Rar!": "rar"}
STARTS = {
    **{start: f"compressed by {program}: unpack it first" for start, program in COMPRESSIONS.items()},
    **{start: f"a {program} archive: unpack it first" for start, program in ARCHIVES.items()},
    b"PK\x03\x04": "a zip archive or an Excel workbook: unpack it, or save it as CSV in UTF-8",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook: save it as CSV in UTF-8",
    codecs.BOM_UTF16_LE: "text in UTF-16: save it as UTF-8",
    codecs.BOM_UTF16_BE: "text in UTF-16: save it as UTF-8",
    b"ARROW1": "an Arrow file: write it as Parquet",
    b"%PDF": "a PDF",
    b"%!PS": "PostScript, which is not read",
    b"version https://git-lfs": "a pointer of git LFS: fetch it with `git lfs pull`",
    b"\x00\x05\x16\x07": "what macOS keeps beside a file on other disks, and no picture",
}
PAGES = (b"<!doctype html", b"<html")
LOOKED_AT = 256  # bytes at the beginning
HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")


def packed_by(content: bytes, programs: Mapping[bytes, str]) -> str:
    """The program that has packed a file, of `COMPRESSIONS` or `ARCHIVES`; empty if it is none of them."""
    return next((program for start, program in programs.items() if content.startswith(start)), "")


def what_it_is(content: bytes) -> str:
    """What a file turns out to be, as the end of a sentence, where that is nothing that is read here.

    Args:
        content: The file, or at least its first `LOOKED_AT` bytes.

    Returns:
        Such as `compressed by gzip: unpack it first`; empty if nothing is known.
    """
    if not content:
        return "empty"
    for start, what in STARTS.items():
        if content.startswith(start):
            return what
    brand = content[8:12]
    if content[4:8] == b"ftyp" and brand in HEIF_BRANDS:
        return "HEIC, which is not read: save it as JPEG"
    if content[4:8] == b"ftyp" and brand not in (b"avif", b"avis"):
        return "a video"
    head = content[:LOOKED_AT].removeprefix(codecs.BOM_UTF8).lstrip().lower()
    if head.startswith(PAGES):
        return "a web page: the download has failed"
    is_drawing = head.startswith((b"<svg", b"<?xml")) and b"<svg" in head
    return "an SVG drawing, which is not read: save it as PNG" if is_drawing else ""
