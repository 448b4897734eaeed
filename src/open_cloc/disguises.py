"""What a file is by its first bytes, whatever its name says: told where it cannot be read."""

from __future__ import annotations

import codecs

STARTS = {
    b"\x1f\x8b": "compressed by gzip: unpack it first",
    b"\x28\xb5\x2f\xfd": "compressed by zstd: unpack it first",
    b"\xfd7zXZ": "compressed by xz: unpack it first",
    b"BZh": "compressed by bzip2: unpack it first",
    b"PK\x03\x04": "a zip archive or an Excel workbook: unpack it, or save it as CSV in UTF-8",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook: save it as CSV in UTF-8",
    codecs.BOM_UTF16_LE: "text in UTF-16: save it as UTF-8",
    codecs.BOM_UTF16_BE: "text in UTF-16: save it as UTF-8",
    b"ARROW1": "an Arrow file: write it as Parquet",
    b"%PDF": "a PDF",
    b"%!PS": "PostScript, which is not read",
    b"version https://git-lfs": "a pointer of Git LFS: run `git lfs pull`",
    b"\x00\x05\x16\x07": "what macOS keeps beside a file on other disks, and no picture",
}
PAGES = (b"<!doctype html", b"<html")
LOOKED_AT = 256  # bytes at the beginning
HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")


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
        return "a page of HTML, which servers send where a file is gone"
    is_drawing = head.startswith((b"<svg", b"<?xml")) and b"<svg" in head
    return "an SVG drawing, which is not read: save it as PNG" if is_drawing else ""
