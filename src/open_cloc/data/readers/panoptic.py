"""COCO's panoptic JSON (ADE20k's too): boxes of things and of stuff, by the names of their categories."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from open_cloc.data.annotations import Problem, RawRegion
from open_cloc.data.fields import FieldError, as_box, as_flag, as_id, as_text, field_of, shown
from open_cloc.data.readers.files import holds_panoptic
from open_cloc.data.readers.packed import (
    Entry,
    PackedDataset,
    as_object,
    declared_size,
    entries_of,
    json_list,
    of_image,
    picture_folders,
    problem_in,
)
from open_cloc.errors import UserError

SOURCE, CROWDS = "panoptic", "crowds"
FOLDERS = ("val2017", "train2017", "images", "images/val2017", "images/validation")


def recognises(text: str) -> bool:
    """Whether this is a panoptic JSON."""
    return Path(text).suffix.lower() == ".json" and holds_panoptic(Path(text))


def open_panoptic(
    path: str, images: Path | None = None, crowds: bool = False, outside: bool = False
) -> PackedDataset:
    """Open the boxes of a panoptic JSON. Its masks, in PNGs beside it, are not read.

    Args:
        path: Such as `panoptic_val2017.json`.
        images: Folder of the pictures (not of the PNGs); beside the file unless given.
        crowds: Take the boxes of crowds as well.
        outside: Allow pictures that do not lie in the data set's folder.

    Raises:
        MissingFileError: If the file or the pictures are missing.
        UserError: If it is no such file, an image or category id comes twice, or nothing can be used.
    """
    file, problems, counts = Path(path), list[Problem](), Counter[str]()
    parts = {part: json_list(file, "a panoptic", part) for part in ("images", "annotations", "categories")}
    names = _by_id(parts["categories"], "category", file, problems)
    pictures = _by_id(parts["images"], "image", file, problems)

    def read(given: Any) -> Entry:
        return _entry(as_object(given), pictures, names, crowds, file, counts)

    numbered = ((f"annotation {number}", row) for number, row in enumerate(parts["annotations"]))
    entries = list(entries_of(numbered, read, file, problems))
    left_out = {
        "masks, which are not read": sum(len(entry.regions) for entry in entries),
        "crowd segments": 0 if crowds else counts[CROWDS],
    }
    return PackedDataset(
        file,
        picture_folders(file, images, *FOLDERS),
        entries,
        problems=problems,
        left_out={what: count for what, count in left_out.items() if count},
        outside=outside,
        class_names=[row["name"] for row in names.values()],
        crowds=crowds,
        num_crowds=counts[CROWDS],
    )


def _by_id(rows: list[Any], what: str, file: Path, problems: list[Problem]) -> dict[str, Mapping[str, Any]]:
    found: dict[str, Mapping[str, Any]] = {}
    for position, given in enumerate(rows):
        try:
            row = as_object(given)
            number = as_id(field_of(row, "id"), "id")
            as_text(field_of(row, "name" if what == "category" else "file_name"), "its name")
        except FieldError as error:
            problems.append(problem_in(error, f"{what} at position {position}", file))
            continue
        if number in found:
            raise UserError(f"{what} id {number!r} occurs twice; expected once ({file})")
        found[number] = row
    return found


def _entry(
    row: Mapping[str, Any],
    pictures: Mapping[str, Mapping[str, Any]],
    names: Mapping[str, Mapping[str, Any]],
    crowds: bool,
    file: Path,
    counts: Counter[str],
) -> Entry:
    image = as_id(field_of(row, "image_id"), "image_id")
    if image not in pictures:
        raise FieldError(f"unknown image_id {image!r}", "unknown image_id")
    picture = pictures[image]
    segments = field_of(row, "segments_info")
    if not isinstance(segments, list):
        raise FieldError(f"segments_info must be a list; got {shown(segments)}")
    regions, problems = [], []
    for position, segment in enumerate(segments):
        try:
            region = _region(as_object(segment), names, crowds, counts)
        except FieldError as error:
            problems.append(problem_in(error, f"segment {position} of image {image}", file))
            continue
        if region is not None:
            regions.append(region)
    return Entry(picture["file_name"], regions, (), declared_size(picture), of_image(image), problems)


def _region(
    segment: Mapping[str, Any], names: Mapping[str, Mapping[str, Any]], crowds: bool, counts: Counter[str]
) -> RawRegion | None:
    is_crowd = as_flag(segment.get("iscrowd", 0), "iscrowd")
    counts[CROWDS] += is_crowd
    if is_crowd and not crowds:
        return None
    category = as_id(field_of(segment, "category_id"), "category_id")
    if category not in names:
        raise FieldError(f"unknown category_id {category!r}", "unknown category_id")
    box = as_box(field_of(segment, "bbox"), "bbox [x, y, w, h]")
    number = segment.get("id", "without id")
    return RawRegion(box, as_text(names[category]["name"], "name"), f"segment {number}", source=SOURCE)
