"""MDETR's JSONs: COCO's form with a picture entry for each referring expression, or for each caption.

mmdetection and Grounding DINO read the same files. Those of referring expressions name no candidates, so an
expression is the text of its boxes. In those of captions (`mixed` of MDETR's pre-training, and `flickr`) a
box has the words of the caption that its `tokens_positive` say.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from open_cloc.data.annotations import Problem, RawRegion
from open_cloc.data.fields import FieldError, as_box, as_id, as_text, as_whole, field_of, shown
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
    *("tokens_negative", "tokens_positive_eval", "sentence_id", "task_id", "data_source", "original_img_id"),
}
BOX_KEYS = {
    *("id", "image_id", "original_id", "bbox", "area", "iscrowd", "category_id"),
    *("tokens_positive", "segmentation"),
}
OF_CAPTIONS = ("mixed", "flickr")  # data sets whose boxes have words of a caption each
FORM = (
    re.compile(rb'"caption"\s*:'),
    re.compile(rb'"original_(img_)?id"\s*:'),
    re.compile(rb'"dataset_name"\s*:'),
)


def recognises(text: str) -> bool:
    """Whether this is a JSON whose pictures have captions and the ids of their originals."""
    return looks_like(Path(text), (".json",), FORM)


def open_mdetr(path: str, images: Path | None = None, outside: bool = False) -> PackedDataset:
    """Open a split, such as `finetune_refcoco_val.json`: a sample for each expression, or for each caption.

    Args:
        path: The file.
        images: Folder of COCO's train2014; beside the file unless given.
        outside: Allow pictures that do not lie in the data set's folder.

    Raises:
        MissingFileError: If the file or the pictures are missing.
        UserError: If it is no such file, or nothing can be used.
    """
    file, problems, left_out = Path(path), list[Problem](), Counter[str]()
    boxes: dict[str, list[_Box]] = defaultdict(list)
    for position, given in enumerate(json_list(file, "MDETR", "annotations")):
        try:
            row = as_object(given)
            number = as_id(field_of(row, "id"), "id")
            box = as_box(field_of(row, "bbox"), "bbox [x, y, w, h]")
            image = as_id(field_of(row, "image_id"), "image_id")
        except FieldError as error:
            problems.append(problem_in(error, f"annotation at position {position}", file))
            continue
        count_keys(row, BOX_KEYS, left_out, "annotations")
        boxes[image].append(_Box(box, f"annotation {number}", row.get("tokens_positive")))

    def read(given: Any) -> Entry:
        count_keys(as_object(given), KEYS, left_out, "images")
        return _entry(given, boxes, file)

    rows = ((f"image at position {n}", row) for n, row in enumerate(json_list(file, "MDETR", "images")))
    entries = list(entries_of(rows, read, file, problems))
    for image in boxes:
        problems.append(Problem("unknown image_id", f"boxes name image {image}, which is not there ({file})"))
    folders = picture_folders(file, images, *FOLDERS)
    return PackedDataset(file, folders, entries, problems=problems, left_out=left_out, outside=outside)


class _Box(NamedTuple):
    """A box, where it stands, and which parts of its caption its words are."""

    box: tuple[float, float, float, float]
    where: str
    parts: Any


def _entry(row: Mapping[str, Any], boxes: dict[str, list[_Box]], file: Path) -> Entry:
    number = as_id(field_of(row, "id"), "id")
    caption = as_text(field_of(row, "caption"), "caption")
    name = as_text(field_of(row, "file_name"), "file_name")
    regions, problems, captions = list[RawRegion](), list[Problem](), list[str]()
    is_caption = row.get("dataset_name") in OF_CAPTIONS
    if is_caption:
        captions.append(caption.strip())
    for box, where, parts in boxes.pop(number, []):
        try:
            text = _words(caption, parts) if is_caption else caption.strip()
            regions.append(RawRegion(box, text, where, source=SOURCE))
        except FieldError as error:
            problems.append(problem_in(error, where, file))
    key = "original_id" if "original_id" in row else "original_img_id"
    original = of_image(as_id(field_of(row, key), key))
    return Entry(name, regions, captions, declared_size(row), original, problems, key=f"{number}.jpg")


def _words(caption: str, parts: Any) -> str:
    """The words of a caption from `[[start, end], ...]`, joined where they do not follow each other."""
    if not isinstance(parts, list) or not parts:
        raise FieldError(f"tokens_positive must be a list of [start, end]; got {shown(parts)}")
    words = []
    for part in parts:
        if not isinstance(part, list) or len(part) != 2:
            raise FieldError(f"tokens_positive must be a list of [start, end]; got {shown(parts)}")
        start, end = (as_whole(number, "start and end of a part") for number in part)
        if not 0 <= start < end <= len(caption):
            raise FieldError(f"tokens_positive has {start} to {end}, the caption {len(caption)} characters")
        words.append(caption[start:end].strip())
    return as_text(" ".join(filter(None, words)), "text of tokens_positive")
