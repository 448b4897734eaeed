"""A table's column of boxes, as Hugging Face's data sets for detection have it.

A row holds `{"bbox": [[...], ...], "category": [...]}`, or a list of `{"bbox": [...], "category": ...}`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from open_cloc.boxes import BOX_FORMATS
from open_cloc.data.annotations import Problem, RawRegion
from open_cloc.data.fields import FieldError, as_box, as_text, shown
from open_cloc.data.readers.columns import find_columns
from open_cloc.errors import UserError

SOURCE = "table"
COLUMNS = ("objects", "annotations", "regions")
BOXES = ("bbox", "bboxes", "box", "boxes")
NAMES = (
    *("category", "categories", "category_name", "label", "labels", "name", "names", "class", "classes"),
    *("class_name", "text", "phrase", "caption", "category_id"),
)


class Objects(NamedTuple):
    """Where a table's boxes stand, and what they mean.

    Attributes:
        column: The column.
        box_format: What a box's numbers are, one of `BOX_FORMATS`.
        normalized: They are shares of the picture's sides instead of pixels.
        names: What whole numbers in place of names stand for.
    """

    column: str
    box_format: str
    normalized: bool
    names: Sequence[str]

    def read(self, value: Any, where: str) -> tuple[tuple[RawRegion, ...], tuple[Problem, ...]]:
        """A row's boxes with their texts, and those that cannot be read."""
        regions, problems = [], []
        try:
            for number, (box, name) in enumerate(_pairs(value)):
                try:
                    text = self._text(name)
                    regions.append(RawRegion(as_box(box, "bbox"), text, f"object {number}", source=SOURCE))
                except FieldError as error:
                    problems.append(Problem(error.cause, f"object {number}: {error} ({where})"))
        except FieldError as error:
            problems.append(Problem(error.cause, f"column {self.column!r}: {error} ({where})"))
        return tuple(regions), tuple(problems)

    def _text(self, name: Any) -> str:
        if isinstance(name, int) and not isinstance(name, bool):
            if not self.names:
                raise FieldError(
                    f"category {name} is a number: give names=FILE, one a line", "unnamed category"
                )
            if not 0 <= name < len(self.names):
                raise FieldError(
                    f"category {name} is none of the {len(self.names)} names", "unknown category"
                )
            return self.names[name]
        return as_text(name, "category")


def objects_of(
    columns: Sequence[str],
    column: str | None,
    box_format: str,
    normalized: bool,
    names: Sequence[str],
    where: str,
) -> Objects | None:
    """The column of boxes that a table's options ask for; None where none does.

    Raises:
        UserError: If there is no such column, or the boxes' format is not told, or unknown.
    """
    if not box_format:
        if column:
            raise UserError(
                f"objects={column} needs box_format={'|'.join(BOX_FORMATS)}, which nothing else says"
            )
        return None
    if box_format not in BOX_FORMATS:
        raise UserError(f"box_format must be one of {', '.join(BOX_FORMATS)}; got {box_format!r}")
    found = next(iter(find_columns(columns, COLUMNS)), "") if column is None else column
    if found not in columns:
        raise UserError(
            f"no column of boxes; give it as objects=COLUMN, one of {', '.join(columns)} ({where})"
        )
    return Objects(found, box_format, normalized, names)


def _pairs(value: Any) -> Iterator[tuple[Any, Any]]:
    """Each box with its name."""
    if value is None:
        return
    if isinstance(value, Mapping):
        boxes, names = (_listed(value, known) for known in (BOXES, NAMES))
        if len(boxes) != len(names):
            raise FieldError(f"there are {len(boxes)} boxes and {len(names)} names", "broken objects")
        yield from zip(boxes, names)
        return
    if not isinstance(value, list):
        raise FieldError(f"must be an object or a list of objects; got {shown(value)}", "broken objects")
    for entry in value:
        if not isinstance(entry, Mapping):
            raise FieldError(f"must be a list of objects; got one of {shown(entry)}", "broken objects")
        yield entry[_field(entry, BOXES)], entry[_field(entry, NAMES)]


def _listed(value: Mapping[str, Any], known: Sequence[str]) -> list[Any]:
    name = _field(value, known)
    if not isinstance(value[name], list):
        raise FieldError(f"{name} must be a list; got {shown(value[name])}", "broken objects")
    return value[name]


def _field(value: Mapping[str, Any], known: Sequence[str]) -> str:
    found = find_columns(value, known)
    if not found:
        raise FieldError(f"holds none of {', '.join(known[:4])}, ...: {', '.join(value)}", "broken objects")
    return found[0]
