"""FG-OVD as FG-CLIP's scripts read it: JSON lines, each a box with its sentence and ten that are wrong."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from open_cloc.data.annotations import Problem, RawRegion
from open_cloc.data.fields import FieldError, as_box, as_text, field_of, shown
from open_cloc.data.readers.packed import (
    Entry,
    PackedDataset,
    as_object,
    declared_size,
    json_lines,
    looks_like,
    picture_folders,
    problem_in,
)
from open_cloc.samples import Text

FOLDERS = ("coco", "images", "coco2017")
SOURCE, NEGATIVE = "fg_ovd", "negative"
FORM = (re.compile(rb'"pos_expression"\s*:'), re.compile(rb'"neg_expression"\s*:'))


def recognises(text: str) -> bool:
    """Whether this is a file of JSON lines with sentences that are right and wrong."""
    return looks_like(Path(text), (".jsonl", ".json"), FORM)


def open_fg_ovd(path: str, images: Path | None = None, outside: bool = False) -> PackedDataset:
    """Open one difficulty of FG-OVD, such as `1_attributes.jsonl`, which is its hard set.

    The boxes of a picture come as one sample, wherever its lines stand. The sentences that are wrong are
    texts of a region, of the role `negative`.

    Args:
        path: The file.
        images: Folder of the pictures: the one above `val2017`; beside the file unless given.
        outside: Allow pictures that do not lie in the data set's folder.

    Raises:
        MissingFileError: If the file or the pictures are missing.
        UserError: If no line can be used.
    """
    file = Path(path)
    problems: list[Problem] = []
    entries = list(_entries(file, problems))
    folders = picture_folders(file, images, *FOLDERS)
    return PackedDataset(file, folders, entries, problems=problems, outside=outside)


def _entries(file: Path, problems: list[Problem]) -> Iterator[Entry]:
    """The pictures in the order of their first lines."""
    pictures: dict[str, tuple[list[RawRegion], tuple[int, int] | None, dict[str, Any]]] = {}
    for number, row in json_lines(file, problems):
        try:
            name, region, size_hw, metadata = _line(as_object(row), number)
        except FieldError as error:
            problems.append(problem_in(error, f"line {number}", file))
            continue
        pictures.setdefault(name, ([], size_hw, metadata))[0].append(region)
    for name, (regions, size_hw, metadata) in pictures.items():
        yield Entry(name, regions, (), size_hw, metadata)


def _line(
    entry: Mapping[str, Any], number: int
) -> tuple[str, RawRegion, tuple[int, int] | None, dict[str, Any]]:
    right, wrong = field_of(entry, "pos_expression"), field_of(entry, "neg_expression")
    if not isinstance(right, list) or len(right) != 1:
        raise FieldError(f"pos_expression must be a list of one sentence; got {shown(right)}")
    if not isinstance(wrong, list) or not wrong:
        raise FieldError(f"neg_expression must be a list of sentences; got {shown(wrong)}")
    texts = tuple(Text(as_text(text, "neg_expression").strip(), NEGATIVE, SOURCE) for text in wrong)
    box = as_box(field_of(entry, "bbox"), "bbox [x, y, w, h]")
    text = as_text(right[0], "pos_expression").strip()
    region = RawRegion(box, text, f"line {number}", source=SOURCE, texts=texts)
    kept = {key: entry[key] for key in ("image_id", "test_type") if isinstance(entry.get(key), (int, str))}
    return as_text(field_of(entry, "img_path"), "img_path"), region, declared_size(entry), kept
