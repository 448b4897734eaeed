"""Tables with four columns of a box, and a row for each: CSV as tools for TensorFlow write it.

A row without a name and a box says that its picture has none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from open_cloc.data.annotations import Problem, RawRegion
from open_cloc.data.fields import FieldError, as_box, as_side, as_text, shown
from open_cloc.data.readers.columns import IMAGE_COLUMNS, SIDES_OF_BOX, find_boxes, find_columns
from open_cloc.data.readers.objects import COLUMNS, NAMES, SOURCE, named, require_box_format
from open_cloc.data.readers.packed import Entry, PackedDataset
from open_cloc.data.readers.rows import FIRST_ROWS, Row, Rows
from open_cloc.errors import SampleError, UserError

SIZE = ("height", "width")


def is_box_a_row(columns: Sequence[str]) -> bool:
    """Whether a table has four columns of a box, and none of a picture's boxes."""
    return len(find_boxes(columns)) == 4 and not find_columns(columns, COLUMNS)


class _Columns(NamedTuple):
    """Names of the columns: the picture's path, a box's name, its four sides, and the picture's size."""

    picture: str
    text: str
    sides: Sequence[str]
    size: Sequence[str]

    @property
    def all(self) -> set[str]:
        return {self.picture, self.text, *self.sides, *self.size}


def open_box_rows(
    rows: Rows,
    folder: Path,
    image: str | None,
    box_format: str,
    normalized: bool,
    names: Sequence[str],
    outside: bool,
) -> PackedDataset:
    """Open such a table: a sample for each picture, in the order of their first rows.

    Args:
        rows: The table's rows.
        folder: Folder that the pictures' paths are relative to.
        image: Column of the picture's path; found by its name unless given.
        box_format: What the four numbers are.
        normalized: They are shares of the picture's sides instead of pixels.
        names: What whole numbers in place of names stand for.
        outside: Allow pictures that do not lie in the folder.

    Raises:
        UserError: If the columns' names say another format, one is missing, or no row can be used.
        MissingFileError: If the pictures are missing.
    """
    columns = _columns_of(rows, image, box_format)
    problems: list[Problem] = []
    boxes: dict[str, list[RawRegion]] = {}
    sizes: dict[str, tuple[int, int] | None] = {}
    for number, row in enumerate(rows.scan(sorted(columns.all))):
        try:
            name, region, size_hw = _read(row, columns, names, f"row {number}")
            if sizes.setdefault(name, size_hw) != size_hw:
                raise FieldError(f"{name} is of {size_hw} here and {sizes[name]} before", "other picture")
            boxes.setdefault(name, []).extend([region] if region else [])
        except FieldError as error:
            problems.append(Problem(error.cause, f"row {number}: {error} ({rows.file})"))
    return PackedDataset(
        rows.file,
        [folder],
        [Entry(name, own, size_hw=sizes[name]) for name, own in boxes.items()],
        box_format=box_format,
        normalized=normalized,
        problems=problems,
        left_out=_unused(rows, columns.all),
        outside=outside,
        class_names=names,
    )


def _columns_of(rows: Rows, image: str | None, box_format: str) -> _Columns:
    require_box_format(box_format)
    sides, where = find_boxes(rows.columns), f"({rows.file})"
    said = next(form for known, form in SIDES_OF_BOX.items() if known == tuple(map(str.lower, sides)))
    if said != box_format:
        raise UserError(
            f"columns {', '.join(sides)} hold boxes of {said}; got box_format={box_format} {where}"
        )
    picture = image or next(iter(find_columns(rows.columns, IMAGE_COLUMNS)), "")
    text = next(iter(find_columns(rows.columns, NAMES)), "")
    for column, what in ((picture, "pictures; give it as image=COLUMN"), (text, "the boxes' names")):
        if column not in rows.columns:
            raise UserError(f"no column of {what}; the columns are {', '.join(rows.columns)} {where}")
    size = [name for name in find_columns(rows.columns, SIZE) if name not in sides]
    return _Columns(picture, text, sides, size)


def _read(
    row: Row | SampleError, columns: _Columns, names: Sequence[str], where: str
) -> tuple[str, RawRegion | None, tuple[int, int] | None]:
    """A row's picture, its box where it has one, and the size that it declares."""
    if isinstance(row, SampleError):
        raise FieldError(str(row), row.cause)
    name = as_text(row.get(columns.picture), f"column {columns.picture!r}")
    if all(row.get(column) in (None, "") for column in (columns.text, *columns.sides)):
        return name, None, _size(row, columns.size)
    box = as_box([_number(row.get(side), side) for side in columns.sides], "a box")
    region = RawRegion(box, named(row.get(columns.text), names), where, source=SOURCE)
    return name, region, _size(row, columns.size)


def _number(value: Any, name: str) -> Any:
    """A number, which CSV has as text."""
    if not isinstance(value, str):
        return value
    try:
        return float(value)
    except ValueError:
        raise FieldError(f"{name} must be a number; got {shown(value)}", "broken box") from None


def _size(row: Mapping[str, Any], columns: Sequence[str]) -> tuple[int, int] | None:
    """(height, width) that a row declares; None where it says nothing."""
    values = [row.get(column) for column in columns]
    if len(values) < len(SIZE) or any(value in (None, "") for value in values):
        return None
    height, width = (as_side(_number(value, column), column) for value, column in zip(values, columns))
    return height, width


def _unused(rows: Rows, used: set[str]) -> Counter[str]:
    """The columns that hold something which no sample will."""
    others = [column for column in rows.columns if column not in used]
    first = [row for row in islice(rows.scan(others), FIRST_ROWS) if not isinstance(row, SampleError)]
    holding = [name for name in others if any(row.get(name) not in (None, "", [], {}) for row in first)]
    return Counter({f"column {name!r}": len(rows) for name in holding})
