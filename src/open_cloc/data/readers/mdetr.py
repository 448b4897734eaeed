"""MDETR's JSON of referring expressions: COCO's form with a picture entry for each expression.

mmdetection and Grounding DINO read the same files. They name no candidates, so an expression is the text of
its box: for training and for grounding.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from open_cloc.data.annotations import Problem, RawRegion
from open_cloc.data.fields import FieldError, as_box, as_id, as_text, field_of
from open_cloc.data.readers.packed import (
    Entry,
    PackedDataset,
    as_object,
    count_keys,
    declared_size,
    entries_of,
    json_list,
    looks_like,
    of_image,
    picture_folders,
    problem_in,
)
from open_cloc.data.readers.referring import FOLDERS

SOURCE = "mdetr"
KEYS = {
    *("file_name", "height", "width", "id", "original_id", "caption", "dataset_name"),
    *("tokens_negative", "tokens_positive_eval", "sentence_id", "task_id", "data_source"),
}
FORM = (re.compile(rb'"caption"\s*:'), re.compile(rb'"original_id"\s*:'), re.compile(rb'"dataset_name"\s*:'))


def recognises(text: str) -> bool:
    """Whether this is a JSON whose pictures have captions and the ids of their originals."""
    return looks_like(Path(text), (".json",), FORM)


def open_mdetr(path: str, images: Path | None = None, outside: bool = False) -> PackedDataset:
    """Open a split, such as `finetune_refcoco_val.json`: a sample for each expression.

    Args:
        path: The file.
        images: Folder of COCO's train2014; beside the file unless given.
        outside: Allow pictures that do not lie in the data set's folder.

    Raises:
        MissingFileError: If the file or the pictures are missing.
        UserError: If it is no such file, or nothing can be used.
    """
    file, problems, left_out = Path(path), list[Problem](), Counter[str]()
    boxes: dict[str, list[RawRegion]] = defaultdict(list)
    for position, given in enumerate(json_list(file, "MDETR", "annotations")):
        try:
            row = as_object(given)
            number = as_id(field_of(row, "id"), "id")
            box = as_box(field_of(row, "bbox"), "bbox [x, y, w, h]")
            image = as_id(field_of(row, "image_id"), "image_id")
        except FieldError as error:
            problems.append(problem_in(error, f"annotation at position {position}", file))
            continue
        boxes[image].append(RawRegion(box, "", f"annotation {number}", source=SOURCE))

    def read(given: Any) -> Entry:
        count_keys(as_object(given), KEYS, left_out, "images")
        return _entry(given, boxes)

    rows = ((f"image at position {n}", row) for n, row in enumerate(json_list(file, "MDETR", "images")))
    entries = list(entries_of(rows, read, file, problems))
    for image in boxes:
        problems.append(Problem("unknown image_id", f"boxes name image {image}, which is not there ({file})"))
    folders = picture_folders(file, images, *FOLDERS)
    return PackedDataset(file, folders, entries, problems=problems, left_out=left_out, outside=outside)


def _entry(row: Mapping[str, Any], boxes: dict[str, list[RawRegion]]) -> Entry:
    number = as_id(field_of(row, "id"), "id")
    caption = as_text(field_of(row, "caption"), "caption").strip()
    name = as_text(field_of(row, "file_name"), "file_name")
    own = [RawRegion(region.box, caption, region.where, source=SOURCE) for region in boxes.pop(number, [])]
    original = of_image(as_id(field_of(row, "original_id"), "original_id"))
    return Entry(name, own, (), declared_size(row), original, key=f"{number}.jpg")
