"""XML annotation files of strangers: parsed without entities, numbers by name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from open_cloc.data.fields import FieldError, as_box, as_side
from open_cloc.errors import UserError
from open_cloc.files import read_bytes

# A document type may name entities that grow without end; these files have none.
DECLARED = re.compile(rb"<!(DOCTYPE|ENTITY)", re.IGNORECASE)


def parse_xml(file: Path) -> Any:
    """The root element of a file.

    Raises:
        FieldError: If it cannot be read, is not XML, or declares a document type.
    """
    try:
        content = read_bytes(file)
    except UserError as error:
        raise FieldError(str(error)) from None
    if DECLARED.search(content):
        raise FieldError("it declares a document type, which these files do not have")
    try:
        return ElementTree.fromstring(content)
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # the last two of odd encodings
        raise FieldError(f"is not XML: {error}") from None


def number_in(parent: Any, name: str) -> float:
    """The number that an element holds under a name.

    Raises:
        FieldError: If it holds none.
    """
    text = (parent.findtext(name) or "").strip()
    try:
        return float(text)
    except ValueError:
        raise FieldError(f"{name} must be a number; got {text!r:.40}") from None


def corners_in(box: Any) -> tuple[float, float, float, float]:
    """(x1, y1, x2, y2) of a `bndbox`, as its numbers stand.

    Raises:
        FieldError: If one is missing or no coordinate.
    """
    return as_box([number_in(box, side) for side in ("xmin", "ymin", "xmax", "ymax")], "bndbox")


def size_in(root: Any) -> tuple[int, int] | None:
    """(height, width) of the picture; None where the file has no `size`, or zeros as some tools write.

    Raises:
        FieldError: If it is no size.
    """
    size = root.find("size")
    if size is None:
        return None
    sides = number_in(size, "height"), number_in(size, "width")
    if sides == (0, 0):
        return None
    return as_side(sides[0], "height"), as_side(sides[1], "width")
