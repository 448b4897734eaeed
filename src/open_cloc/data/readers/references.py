"""References of pictures and the COCO JSON of their boxes, as RefCOCO and gRefCOCO have them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from open_cloc.data.annotations import Problem, RawRegion
from open_cloc.data.fields import FieldError, as_box, as_flag, as_id, as_side, as_text, field_of, shown
from open_cloc.data.readers.packed import (
    Entry,
    PackedDataset,
    count_keys,
    of_image,
    picture_folders,
    problem_in,
)
from open_cloc.data.readers.referring import (
    FOLDERS,
    KEYS,
    NUMBERED,
    Reference,
    reference_of,
    require_one_name,
    with_expressions,
)
from open_cloc.errors import MissingFileError, UserError
from open_cloc.files import read_json

BOXES = "instances.json"
SOURCE = "refcoco"
OTHER_KEYS = {"no_target"}  # gRefCOCO's
NO_TARGET = ["-1"]  # gRefCOCO's: the expression means nothing in the picture


def dataset_of(file: Path, references: Any, split: str, images: Path | None, outside: bool) -> PackedDataset:
    """Pictures with all of their boxes, and the references that mean some of them.

    Args:
        file: Where the references stand; `instances.json` lies beside it.
        references: What it holds.
        split: One of its splits; all where empty.
        images: Folder of the pictures; beside the file unless given.
        outside: Allow pictures that do not lie in the data set's folder.

    Raises:
        MissingFileError: If a file or the pictures are missing.
        UserError: If there is no such split, or nothing can be used.
    """
    if not isinstance(references, list):
        raise UserError(f"references must be a list; got {shown(references)} ({file})")
    problems: list[Problem] = []
    left_out: Counter[str] = Counter()
    by_image = _by_image(references, split, file, problems, left_out)
    boxes = boxes_beside(file)
    entries = list(_entries(read_json(boxes, without="segmentation"), by_image, boxes, problems, left_out))
    folders = picture_folders(file, images, *FOLDERS)
    return PackedDataset(file, folders, entries, problems=problems, left_out=left_out, outside=outside)


def boxes_beside(file: Path) -> Path:
    """The COCO JSON of a file of references.

    Raises:
        MissingFileError: If it is not there.
    """
    boxes = file.with_name(BOXES)
    if not boxes.is_file():
        raise MissingFileError(f"no {BOXES} beside {file}")
    return boxes


def _by_image(
    references: list[Any], split: str, file: Path, problems: list[Problem], left_out: Counter[str]
) -> dict[str, list[Reference]]:
    """References of a split by image id.

    Raises:
        UserError: If there is no such split.
    """
    found: defaultdict[str, list[Reference]] = defaultdict(list)
    names: dict[str, str] = {}
    splits: Counter[str] = Counter()
    for position, entry in enumerate(references):
        try:
            if not isinstance(entry, dict):
                raise FieldError(f"must be a dict; got {shown(entry)}")
            own = as_text(field_of(entry, "split"), "split")
            splits[own] += 1
            if split and own != split:
                continue
            name = f"ref {as_id(field_of(entry, 'ref_id'), 'ref_id')}"
            reference = reference_of(entry, name)
            if list(reference.boxes) == NO_TARGET:
                left_out["expressions that mean nothing in their picture"] += len(reference.expressions)
                continue
            image = as_id(field_of(entry, "image_id"), "image_id")
            if isinstance(entry.get("file_name"), str):
                require_one_name(names, image, NUMBERED.sub("", entry["file_name"]))
            found[image].append(reference)
            count_keys(entry, KEYS | OTHER_KEYS, left_out, "references")
        except FieldError as error:
            problems.append(problem_in(error, f"reference at position {position}", file))
    if split and split not in splits:
        raise UserError(f"no split {split!r} in {file}; it has {', '.join(sorted(splits)) or 'none'}")
    return dict(found)


def _entries(
    document: Any,
    by_image: dict[str, list[Reference]],
    where: Path,
    problems: list[Problem],
    left_out: Counter[str],
) -> Iterator[Entry]:
    """Pictures that references speak of, with all of their boxes."""
    parts = [document.get(part) if isinstance(document, dict) else None for part in ("images", "annotations")]
    if not all(isinstance(part, list) for part in parts):
        raise UserError(f"{where} needs lists of images and annotations")
    images, annotations = parts
    names = _names(document.get("categories"))
    boxes: defaultdict[str, dict[str, RawRegion]] = defaultdict(dict)
    for position, annotation in enumerate(annotations or ()):
        try:
            image, own, region = _box(annotation, names)
            if own in boxes[image]:
                raise FieldError(f"annotation id {own!r} occurs twice")
        except FieldError as error:
            problems.append(problem_in(error, f"annotation at position {position}", where))
            continue
        boxes[image][own] = region
    for position, picture in enumerate(images or ()):
        try:
            if not isinstance(picture, dict):
                raise FieldError(f"must be an object; got {shown(picture)}")
            image = as_id(field_of(picture, "id"), "id")
            if image not in by_image:
                left_out["pictures without a reference of the split"] += 1
                continue
            size_hw = as_side(field_of(picture, "height"), "height"), as_side(picture.get("width"), "width")
            name = as_text(field_of(picture, "file_name"), "file_name")
        except FieldError as error:
            problems.append(problem_in(error, f"image at position {position}", where))
            continue
        sound = []
        for reference in by_image.pop(image):
            lacking = [box for box in reference.boxes if box not in boxes[image]]
            if lacking:
                problems.append(
                    Problem("unknown box", f"{reference.name}: no annotation {lacking[0]} ({where})")
                )
            else:
                sound.append(reference)
        yield Entry(name, with_expressions(boxes[image], sound), (), size_hw, of_image(image))
    for image in by_image:
        problems.append(Problem("unknown picture", f"references name image {image}, which is not in {where}"))


def _names(categories: Any) -> dict[str, str]:
    found = {}
    for category in categories if isinstance(categories, list) else ():
        if isinstance(category, dict) and isinstance(category.get("name"), str):
            found[str(category.get("id"))] = category["name"]
    return found


def _box(annotation: Any, names: dict[str, str]) -> tuple[str, str, RawRegion]:
    if not isinstance(annotation, dict):
        raise FieldError(f"must be an object; got {shown(annotation)}")
    as_flag(annotation.get("iscrowd", 0), "iscrowd")  # candidates all the same, as in ReCLIP
    own = as_id(field_of(annotation, "id"), "id")
    box = as_box(field_of(annotation, "bbox"), "bbox [x, y, w, h]")
    name = names.get(as_id(field_of(annotation, "category_id"), "category_id"), "object")
    image = as_id(field_of(annotation, "image_id"), "image_id")
    return image, own, RawRegion(box, name, f"annotation {own}", source=SOURCE)
