"""Referring expressions: ReCLIP's JSON lines, and what they have in common with RefCOCO's own files.

A sample is a picture with all of its annotated boxes, the candidates. An expression is a text of the box that
it means, of the role `referring`; its source names the reference, as one expression may mean several boxes.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from open_cloc.data.annotations import Problem, RawRegion
from open_cloc.data.fields import FieldError, as_box, as_id, as_text, field_of, shown
from open_cloc.data.readers.packed import (
    Entry,
    PackedDataset,
    as_object,
    count_keys,
    json_lines,
    looks_like,
    of_image,
    picture_folders,
    problem_in,
)
from open_cloc.errors import UserError
from open_cloc.files import read_json
from open_cloc.samples import Text

REFERRING = "referring"  # role of an expression
DETECTED = "detection"  # source of a candidate that a detector gave
KEYS = {
    *("image_id", "file_name", "ann_id", "anns", "sentences"),
    *("category_id", "ref_id", "sent_ids", "split"),
}
NAMELESS = "object"  # a candidate's text where nothing names it
FOLDERS = ("train2014", "images", "images/train2014", "coco/train2014")
FORM = (re.compile(rb'"ann_id"\s*:'), re.compile(rb'"anns"\s*:'), re.compile(rb'"sentences"\s*:'))
# `..._000000581857_16.jpg` is the name of a picture of COCO with the number of a reference behind it.
NUMBERED = re.compile(r"(?<=_\d{12})_\d+(?=\.jpe?g$)", re.IGNORECASE)


class Reference(NamedTuple):
    """What expressions mean.

    Attributes:
        name: Of the reference, unlike all others.
        boxes: Ids of the boxes.
        expressions: Each counts by itself.
    """

    name: str
    boxes: Sequence[str]
    expressions: Sequence[str]


def recognises(text: str) -> bool:
    """Whether this is a file of ReCLIP's JSON lines."""
    return looks_like(Path(text), (".jsonl",), FORM)


def open_reclip(
    path: str, images: Path | None = None, detections: Path | None = None, outside: bool = False
) -> PackedDataset:
    """Open a split of RefCOCO as ReCLIP's scripts have it, such as `refcoco_val.jsonl`.

    A picture for which the detections have an empty list is one in which nothing was detected. One that a
    table does not list is a problem: ReCLIP's script ends there, too. Those of other splits are counted.

    Args:
        path: The file.
        images: Folder of COCO's train2014; beside the file unless given.
        detections: JSON of detected boxes by image id, such as `refcoco_dets_dict.json`, or a list of rows
            of `image_id` and `box`: candidates beside the annotated boxes, of the source `detection`.
        outside: Allow pictures that do not lie in the data set's folder.

    Raises:
        MissingFileError: If a file or the pictures are missing.
        UserError: If no line can be used, or the detections are no table, or of other pictures.
    """
    file, problems, left_out = Path(path), list[Problem](), Counter[str]()
    found = _detections(detections)
    pictures = _pictures(file, problems, left_out)
    if detections is not None and found is not None:
        problems += _require_detections(pictures, found, detections)
        others = found.boxes.keys() - pictures.keys()
        left_out[f"pictures of {detections.name} that no line names"] = len(others)
    entries = [
        Entry(
            own.name,
            [*with_expressions(own.boxes, own.references), *(found.boxes.get(image, ()) if found else ())],
            metadata=of_image(image),
        )
        for image, own in pictures.items()
    ]
    folders = picture_folders(file, images, *FOLDERS)
    return PackedDataset(file, folders, entries, problems=problems, left_out=+left_out, outside=outside)


class _Detections(NamedTuple):
    """A detector's boxes by image id; whether an image without any has to be listed too."""

    boxes: dict[str, list[RawRegion]]
    lists_all: bool


def _detections(path: Path | None) -> _Detections | None:
    if path is None:
        return None
    document = read_json(path)
    try:
        boxes = {
            name: [
                RawRegion(as_box(box, "a detection"), NAMELESS, f"detection {row}", source=DETECTED)
                for row, box in enumerate(boxes)
            ]
            for name, boxes in _by_image(document).items()
        }
        return _Detections(boxes, lists_all=isinstance(document, dict))
    except (FieldError, TypeError) as error:
        raise UserError(f"detections must be lists of 4 numbers by image id: {error} ({path})") from None


def _by_image(document: Any) -> Mapping[str, Any]:
    """Boxes by image id, of such a table or of rows of `image_id` and `box`: ReCLIP's script reads both.

    Raises:
        FieldError: If it is neither.
    """
    if isinstance(document, dict):
        return document
    found: dict[str, list[Any]] = {}
    for row in map(as_object, as_list(document, "detections")):
        found.setdefault(as_id(field_of(row, "image_id"), "image_id"), []).append(field_of(row, "box"))
    return found


class _Picture(NamedTuple):
    """What the lines of a picture say: its name, its boxes by their ids, and its references."""

    name: str
    boxes: dict[str, RawRegion]
    references: list[Reference]


def _pictures(file: Path, problems: list[Problem], left_out: Counter[str]) -> dict[str, _Picture]:
    """The pictures of a file by their ids, in the order of their first lines."""
    pictures: dict[str, _Picture] = {}
    names: dict[str, str] = {}
    for number, row in json_lines(file, problems):
        try:
            image, name, boxes, reference = _line(as_object(row), number)
            require_one_name(names, image, name)
            own = pictures.setdefault(image, _Picture(name, {}, []))
            moved = [each for each, region in boxes.items() if own.boxes.get(each, region).box != region.box]
            if moved:
                raise FieldError(f"annotation {moved[0]} has another box in an earlier line", "other box")
        except FieldError as error:
            problems.append(problem_in(error, f"line {number}", file))
            continue
        own.boxes.update({each: region for each, region in boxes.items() if each not in own.boxes})
        own.references.append(reference)
        count_keys(row, KEYS, left_out, "lines")
    return pictures


def require_one_name(names: dict[str, str], image: str, name: str) -> None:
    """See that a picture's id stands for one file; else boxes of one would lie on the other.

    Args:
        names: By id, as said before; grows.
        image: The id.
        name: The file that it means here.

    Raises:
        FieldError: If it meant another before.
    """
    first = names.setdefault(image, name)
    if first != name:
        raise FieldError(f"image_id {image} means {name!r} here and {first!r} before", "other picture")


def _require_detections(
    pictures: Mapping[str, _Picture], detections: _Detections, path: Path
) -> list[Problem]:
    """Pictures that a table of detections does not list: whether anything was looked for, nothing says.

    Of rows of a box each, which have no way to say that nothing was detected, none need be there.

    Raises:
        UserError: If it lists none of them.
    """
    absent = [image for image in pictures if image not in detections.boxes]
    if len(absent) == len(pictures) > 0:
        raise UserError(
            f"{path} has detections of {len(detections.boxes)} images, and of none of the {len(pictures)} "
            f"pictures, such as {absent[0]}: give those of this data set, by image_id"
        )
    if not detections.lists_all:
        return []
    return [
        Problem(
            "picture without detections",
            f"image {image} is not in {path}; list it there, with [] if nothing was detected",
        )
        for image in absent
    ]


def _line(entry: Mapping[str, Any], number: int) -> tuple[str, str, dict[str, RawRegion], Reference]:
    name = NUMBERED.sub("", as_text(field_of(entry, "file_name"), "file_name"))
    boxes = {}
    for annotation in as_list(field_of(entry, "anns"), "anns"):
        annotation = as_object(annotation)
        own = as_id(field_of(annotation, "id"), "id")
        box = as_box(field_of(annotation, "bbox"), "bbox [x, y, w, h]")
        boxes[own] = RawRegion(box, NAMELESS, f"annotation {own}", source="reclip")
    reference = reference_of(entry, f"line {number}")
    lacking = [box for box in reference.boxes if box not in boxes]
    if lacking:
        raise FieldError(f"ann_id {lacking[0]} is none of its anns")
    return as_id(field_of(entry, "image_id"), "image_id"), name, boxes, reference


def reference_of(entry: Mapping[str, Any], name: str) -> Reference:
    """A reference's boxes and expressions, of the fields that all of these formats share.

    Raises:
        FieldError: If a field is missing or of another type.
    """
    value = field_of(entry, "ann_id")
    boxes = [as_id(each, "ann_id") for each in (value if isinstance(value, list) else [value])]
    expressions = []
    for sentence in as_list(field_of(entry, "sentences"), "sentences"):
        expressions.append(as_text(field_of(as_object(sentence), "raw"), "raw").strip())
    if not expressions or not boxes:
        raise FieldError("a reference needs a box and a sentence")
    return Reference(name, boxes, expressions)


def as_list(value: Any, name: str) -> list[Any]:
    """A list.

    Raises:
        FieldError: If it is none.
    """
    if not isinstance(value, list):
        raise FieldError(f"{name} must be a list; got {shown(value)}")
    return value


def with_expressions(boxes: Mapping[str, RawRegion], references: Iterable[Reference]) -> list[RawRegion]:
    """All boxes of a picture, each with the expressions that mean it.

    Args:
        boxes: By their ids, without expressions.
        references: Of boxes that are there.
    """
    texts: dict[str, list[Text]] = {name: [] for name in boxes}
    for reference in references:
        for number, expression in enumerate(reference.expressions):
            for box in reference.boxes:
                texts[box].append(Text(expression, REFERRING, f"{reference.name}, {number}"))
    return [replace(region, texts=tuple(texts[name])) for name, region in boxes.items()]
