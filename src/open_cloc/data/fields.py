"""The values of files from elsewhere, read by what they must be: the one place that judges their types.

Nothing is guessed: null, a list, a number or a truth value is no text, a text is no number. Every function
raises a `FieldError` without saying where: readers know the file and the entry, and add them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from open_cloc.errors import SampleError
from open_cloc.masks import BROKEN, Mask, mask_of_polygons

LARGEST = 1e9  # pixels: beyond that a number is no coordinate


class FieldError(SampleError):
    """A value is not what its field must hold."""

    def __init__(self, message: str, cause: str = "broken entry") -> None:
        super().__init__(message, cause)


def field_of(entry: Mapping[str, Any], name: str) -> Any:
    """The value of a field that must be there."""
    if name not in entry:
        raise FieldError(f"{name!r} is missing; got {sorted(entry)}")
    return entry[name]


def as_text(value: Any, name: str) -> str:
    """A text that is not blank."""
    if not isinstance(value, str):
        raise FieldError(f"{name} must be text; got {shown(value)}")
    if not value.strip():
        raise FieldError(f"{name} must not be blank")
    return value


def as_number(value: Any, name: str) -> float:
    """A finite number."""
    if type(value) not in (int, float) or not abs(value) < math.inf:  # a long integer is no float
        raise FieldError(f"{name} must be a number; got {shown(value)}")
    return value


def as_whole(value: Any, name: str, least: int = 0, most: float = math.inf) -> int:
    """A whole number; 64.0, as tables write it, is 64."""
    number = as_number(value, name)
    if number != int(number) or not least <= number <= most:
        limit = "" if most == math.inf else f" and at most {most:g}"
        raise FieldError(f"{name} must be a whole number of at least {least}{limit}; got {shown(value)}")
    return int(number)


def as_side(value: Any, name: str) -> int:
    """A side of a picture in pixels."""
    return as_whole(value, name, 1, LARGEST)


def as_flag(value: Any, name: str) -> bool:
    """Yes or no: true, false, 1 or 0."""
    if type(value) not in (bool, int, float) or value not in (0, 1):
        raise FieldError(f"{name} must be 0, 1, true or false; got {shown(value)}")
    return bool(value)


def as_id(value: Any, name: str) -> str:
    """An id by which entries name each other, as text.

    An id is a whole number of any length, or a text. A text is the same id as a number where it is exactly
    that number's digits: "7" is 7, "007" is neither.
    """
    if type(value) is int:
        return str(value)
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, str) and value:
        return value
    raise FieldError(f"{name} must be a whole number or text; got {shown(value)}")


def as_box(value: Any, name: str) -> tuple[float, float, float, float]:
    """Four numbers; whether they make sense as a box is judged later, with the picture's size."""
    if not isinstance(value, (list, tuple)) or len(value) != 4:
        raise FieldError(f"{name} must be 4 numbers; got {shown(value)}")
    if not all(type(number) in (int, float) and not LARGEST < abs(number) < math.inf for number in value):
        raise FieldError(f"{name} must be 4 numbers that are coordinates; got {shown(value)}")
    a, b, c, d = (float(number) for number in value)
    return (a, b, c, d)


def as_mask(value: Any, size_hw: Sequence[int], name: str) -> Mask:
    """COCO's outline of a thing: polygons, or run lengths, compressed or not.

    Args:
        value: As in the file.
        size_hw: (height, width) of the picture.
        name: Of the field.
    """
    height, width = size_hw
    try:
        if isinstance(value, dict):
            return _as_runs(value, (height, width), name)
        if not isinstance(value, list) or not all(isinstance(polygon, list) for polygon in value):
            raise FieldError(f"{name} must be polygons or run lengths; got {shown(value)}", BROKEN)
        numbers = [[_as_place(number, name) for number in polygon] for polygon in value]
        return mask_of_polygons(numbers, (height, width))
    except SampleError as error:
        raise FieldError(str(error), BROKEN) from error


def _as_place(value: Any, name: str) -> float:
    number = as_number(value, name)
    if abs(number) > LARGEST:
        raise FieldError(f"{name} must be of coordinates; got {shown(value)}", BROKEN)
    return number


def _as_runs(value: Mapping[str, Any], size_hw: tuple[int, int], name: str) -> Mask:
    counts, size = field_of(value, "counts"), field_of(value, "size")
    if size != list(size_hw):
        raise FieldError(f"{name} is of a picture of {shown(size)}, not of {list(size_hw)}")
    if isinstance(counts, list):
        return Mask.of_runs(size_hw, [as_whole(number, "counts") for number in counts])
    mask = Mask(size_hw, as_text(counts, "counts"))
    mask.runs()  # a broken one is found here
    return mask


def shown(value: Any) -> str:
    """A value in a message, in JSON's words and not too long."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    try:
        is_nested = isinstance(value, (list, tuple, dict))
        text = json.dumps(value, ensure_ascii=False, default=repr) if is_nested else repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits, lists in lists without end
        return f"a {type(value).__name__} that is too long to show"
    return text if len(text) <= 80 else f"{text[:77]}..."
