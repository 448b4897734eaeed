"""ODVG JSON lines (MM-Grounding-DINO, Open-GroundingDino): grounded captions, and detections by category.

Boxes are pixel `xyxy`. A region of a caption may have one box or a list of them, and a phrase of several
parts, which stand apart in the caption.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from open_cloc.data.annotations import Problem, RawRegion
from open_cloc.data.fields import FieldError, as_box, as_text, field_of, shown
from open_cloc.data.readers.packed import (
    Entry,
    PackedDataset,
    as_object,
    count_keys,
    declared_size,
    entries_of,
    json_lines,
    looks_like,
    picture_folders,
    problem_in,
)

FOLDERS = ("images", "train2017", "val2017", "img")
SOURCE = "odvg"
KEYS = {"filename", "height", "width", "grounding", "detection"}
PART_KEYS = {"bbox", "phrase", "tokens_positive", "label", "category"}
FORM = (
    re.compile(rb'"filename"\s*:'),
    re.compile(rb'"(grounding|detection)"\s*:\s*\{\s*"(caption|regions|instances)"'),
)


def recognises(text: str) -> bool:
    """Whether this is a file of ODVG's JSON lines."""
    return looks_like(Path(text), (".jsonl", ".json", ".odvg"), FORM)


def open_odvg(path: str, images: Path | None = None, outside: bool = False) -> PackedDataset:
    """Open grounded captions or detections.

    Args:
        path: The file.
        images: Folder of the pictures; beside the file unless given.
        outside: Allow pictures that do not lie in the data set's folder.

    Raises:
        MissingFileError: If the file or the pictures are missing.
        UserError: If no line can be used.
    """
    file = Path(path)
    problems: list[Problem] = []
    left_out: Counter[str] = Counter()

    def read(numbered: tuple[int, Any]) -> Entry:
        number, row = numbered
        return _entry(as_object(row), number, file, left_out)

    lines = ((f"line {number}", (number, row)) for number, row in json_lines(file, problems))
    entries = list(entries_of(lines, read, file, problems))
    folders = picture_folders(file, images, *FOLDERS)
    return PackedDataset(
        file,
        folders,
        entries,
        box_format="xyxy",
        problems=problems,
        left_out=left_out,
        outside=outside,
    )


def _entry(document: Mapping[str, Any], number: int, file: Path, left_out: Counter[str]) -> Entry:
    name = as_text(field_of(document, "filename"), "filename")
    count_keys(document, KEYS, left_out, "lines")
    grounding, detection = document.get("grounding"), document.get("detection")
    captions: tuple[str, ...] = ()
    found: list[RawRegion] = []
    problems: list[Problem] = []
    if isinstance(grounding, Mapping):
        captions = (as_text(field_of(grounding, "caption"), "caption").strip(),)
        parts, box, text = field_of(grounding, "regions"), "bbox", "phrase"
    elif isinstance(detection, Mapping):
        parts, box, text = field_of(detection, "instances"), "bbox", "category"
    else:
        raise FieldError("needs a table grounding or detection")
    if not isinstance(parts, list):
        raise FieldError(f"regions or instances must be a list; got {shown(parts)}")
    for row, part in enumerate(parts):
        try:
            found += _regions(part, box, text, f"line {number}, region {row}", left_out)
        except FieldError as error:
            problems.append(problem_in(error, f"line {number}, region {row}", file))
    return Entry(name, found, captions, declared_size(document), {}, problems)


def _regions(part: Any, box: str, text: str, where: str, left_out: Counter[str]) -> list[RawRegion]:
    """A region for each of a part's boxes."""
    if not isinstance(part, Mapping):
        raise FieldError(f"must be an object; got {shown(part)}")
    count_keys(part, PART_KEYS, left_out, "regions")
    value, phrase = field_of(part, box), field_of(part, text)
    boxes = value if isinstance(value, list) and value and isinstance(value[0], list) else [value]
    phrases = phrase if isinstance(phrase, list) else [phrase]
    whole = " ".join(as_text(one, text).strip() for one in phrases or [None])
    return [RawRegion(as_box(each, box), whole, where, source=SOURCE) for each in boxes]
