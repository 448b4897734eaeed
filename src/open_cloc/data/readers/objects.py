"""A table's column of boxes, as Hugging Face's data sets for detection have it.

A row holds `{"bbox": [[...], ...], "category": [...]}`, a list of `{"bbox": [...], "category": ...}`, or a
list of boxes in one column and their names in another.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from open_cloc.boxes import BOX_FORMATS
from open_cloc.data.annotations import Problem, RawRegion
from open_cloc.data.fields import FieldError, as_box, as_text, shown
from open_cloc.data.readers.columns import CAPTION_COLUMNS, find_columns
from open_cloc.errors import UserError

SOURCE = "table"
COLUMNS = ("objects", "annotations", "regions")
BOXES = ("bbox", "bboxes", "box", "boxes")
NAMES = (
    *("category", "categories", "category_name", "label", "labels", "name", "names", "class", "classes"),
    *("class_name", "text", "phrase", "caption", "category_id"),
)


# Keys of boxes that say no more than others do.
BESIDE = {"id", "bbox_id", "image_id", "area", *BOXES, *NAMES}


class Objects(NamedTuple):
    """Where a table's boxes stand, and what they mean.

    Attributes:
        column: The column.
        box_format: What a box's numbers are, one of `BOX_FORMATS`.
        normalized: They are shares of the picture's sides instead of pixels.
        names: What whole numbers in place of names stand for.
        names_column: The column of their names, where boxes are lists of numbers alone; empty for none.
    """

    column: str
    box_format: str
    normalized: bool
    names: Sequence[str]
    names_column: str = ""

    @property
    def columns(self) -> tuple[str, ...]:
        """What is read."""
        return (self.column, self.names_column) if self.names_column else (self.column,)

    def read(self, row: Mapping[str, Any], where: str) -> tuple[tuple[RawRegion, ...], tuple[Problem, ...]]:
        """A row's boxes with their texts, and those that cannot be read."""
        regions, problems, value = [], [], row.get(self.column)
        try:
            are_bare = bool(self.names_column) and _is_bare(value)
            pairs = _beside(value, row.get(self.names_column)) if are_bare else _pairs(value)
            for number, (box, name) in enumerate(pairs):
                try:
                    text = named(name, self.names)
                    regions.append(RawRegion(as_box(box, "bbox"), text, f"object {number}", source=SOURCE))
                except FieldError as error:
                    problems.append(Problem(error.cause, f"object {number}: {error} ({where})"))
        except FieldError as error:
            problems.append(Problem(error.cause, f"column {self.column!r}: {error} ({where})"))
        return tuple(regions), tuple(problems)

    def unused(self, row: Mapping[str, Any]) -> set[str]:
        """The keys of a row's boxes that say something which no sample will, such as `iscrowd`."""
        value = row.get(self.column)
        entries = [value] if isinstance(value, Mapping) else value if isinstance(value, list) else []
        found: set[str] = set()
        for entry in (entry for entry in entries if isinstance(entry, Mapping)):
            used = {*find_columns(entry, BOXES)[:1], *find_columns(entry, NAMES)[:1]}
            others = ((key, own) for key, own in entry.items() if key not in used and key not in BESIDE)
            found |= {key for key, own in others if (any(own) if isinstance(own, list) else own)}
        return found


def named(name: Any, names: Sequence[str]) -> str:
    """A category's text.

    Args:
        name: As the table has it.
        names: What whole numbers stand for.

    Raises:
        FieldError: If it is no text, or a number that stands for none.
    """
    if isinstance(name, str) and names and name.strip().isdecimal():
        name = int(name)  # of CSV
    if not isinstance(name, int) or isinstance(name, bool):
        return as_text(name, "category")
    if not names:
        raise FieldError(f"category {name} is a number: give names=FILE, one a line", "unnamed category")
    if not 0 <= name < len(names):
        raise FieldError(f"category {name} is none of the {len(names)} names", "unknown category")
    return names[name]


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
    require_box_format(box_format)
    found = column_of(columns, column)
    if found not in columns:
        raise UserError(
            f"no column of boxes; give it as objects=COLUMN, one of {', '.join(columns)} ({where})"
        )
    return Objects(found, box_format, normalized, names, names_beside(columns, found))


def require_box_format(box_format: str) -> None:
    """Raise `UserError` unless boxes have such a format."""
    if box_format not in BOX_FORMATS:
        raise UserError(f"box_format must be one of {', '.join(BOX_FORMATS)}; got {box_format!r}")


def column_of(columns: Sequence[str], given: str | None) -> str:
    """The column of boxes: the given one, or the first of a usual name; empty where there is none."""
    if given is not None:
        return given
    usual = find_columns(columns, COLUMNS) or [
        name for name in find_columns(columns, BOXES) if names_beside(columns, name)
    ]
    return next(iter(usual), "")


def names_beside(columns: Sequence[str], column: str) -> str:
    """The column that names the boxes of another, if that is called `bbox` or the like; empty for none."""
    usual = [name for name in NAMES if name not in CAPTION_COLUMNS]
    return next(iter(find_columns(columns, usual)), "") if column.lower() in BOXES else ""


def names_in(features: Mapping[str, Any], columns: Sequence[str], column: str) -> tuple[str, ...]:
    """What numbers of categories stand for, as a Parquet file of the hub says it; empty where it does not.

    Args:
        features: What the file says of its columns.
        columns: All of them.
        column: That of the boxes.
    """
    try:
        beside = names_beside(columns, column)
        entry = _entry_in(features.get(column))
        if entry is None:
            return _labels_in(features.get(beside or column))
        return _labels_in(entry[_field(entry, NAMES)])
    except (FieldError, RecursionError):
        return ()


def _entry_in(feature: Any) -> Mapping[str, Any] | None:
    """The part of a feature that has the fields of a box."""
    if isinstance(feature, list):
        return next(filter(None, map(_entry_in, feature)), None)
    if not isinstance(feature, Mapping):
        return None
    return feature if find_columns(feature, BOXES) else _entry_in(list(feature.values()))


def _labels_in(feature: Any) -> tuple[str, ...]:
    """The names of the first `ClassLabel` in a feature."""
    if isinstance(feature, list):
        return next(filter(None, map(_labels_in, feature)), ())
    if not isinstance(feature, Mapping):
        return ()
    if feature.get("_type") == "ClassLabel" and isinstance(feature.get("names"), list):
        return tuple(map(str, feature["names"]))
    return _labels_in(list(feature.values()))


def _is_bare(value: Any) -> bool:
    """Whether boxes are lists of numbers, or one is, without names of their own."""
    return isinstance(value, list) and not any(isinstance(entry, Mapping) for entry in value)


def _beside(boxes: Any, names: Any) -> Iterator[tuple[Any, Any]]:
    """Each box with its name, of two columns; a row may be of one box."""
    if boxes and not isinstance(boxes[0], list):
        boxes, names = [boxes], names if isinstance(names, list) else [names]
    names = [] if names is None else names if isinstance(names, list) else [names]
    if len(boxes) != len(names):
        raise FieldError(f"there are {len(boxes)} boxes and {len(names)} names", "broken objects")
    yield from zip(boxes, names)


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
