"""Karpathy's splits of COCO and Flickr30k: one JSON with five captions a picture."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

from open_cloc.data.annotations import Problem
from open_cloc.data.fields import FieldError, as_text, field_of, shown
from open_cloc.data.readers.packed import (
    Entry,
    PackedDataset,
    as_object,
    count_keys,
    entries_of,
    json_list,
    looks_like,
    picture_folders,
    problem_in,
)
from open_cloc.errors import UserError

FORM = (re.compile(rb'"sentences"\s*:'), re.compile(rb'"split"\s*:'), re.compile(rb'"filename"\s*:'))
KEYS = {"filepath", "filename", "sentids", "imgid", "cocoid", "split", "sentences"}
FOLDERS = ("images", "flickr30k-images", "coco")
# COCO's `restval` is trained on with `train`.
TEST = "test"


def recognises(text: str) -> bool:
    """Whether this is `dataset_coco.json`, `dataset_flickr30k.json` or the like."""
    return looks_like(Path(text), (".json",), FORM)


def open_karpathy(
    path: str, split: str = TEST, images: Path | None = None, outside: bool = False
) -> PackedDataset:
    """Open a split.

    Args:
        path: The JSON.
        split: `test`, `val`, `train` or `restval`; empty takes all.
        images: Folder of the pictures (COCO's: of `train2014` and `val2014`); beside the file unless given.
        outside: Allow pictures that do not lie in the data set's folder.

    Raises:
        MissingFileError: If the file or the pictures are missing.
        UserError: If it is no such file, or has no such split.
    """
    file, problems, splits = Path(path), list[Problem](), Counter[str]()
    left_out: Counter[str] = Counter()

    def read(given: Any) -> Entry | None:
        row = as_object(given)
        own = as_text(field_of(row, "split"), "split")
        splits[own] += 1
        if split not in ("", own):
            left_out["pictures of other splits"] += 1
            return None
        count_keys(row, KEYS, left_out, "images")
        return _entry(row, file)

    numbered = ((f"image {number}", row) for number, row in enumerate(json_list(file, "Karpathy", "images")))
    entries = list(entries_of(numbered, read, file, problems))
    if split and split not in splits:
        raise UserError(f"no split {split!r} in {file}; it has {', '.join(sorted(splits)) or 'none':.200}")
    folders = picture_folders(file, images, *FOLDERS)
    return PackedDataset(file, folders, entries, problems=problems, left_out=left_out, outside=outside)


def _entry(row: Any, file: Path) -> Entry:
    sentences = field_of(row, "sentences")
    if not isinstance(sentences, list) or not sentences:
        raise FieldError(f"sentences must be a list; got {shown(sentences)}")
    name = as_text(field_of(row, "filename"), "filename")
    captions, problems = [], []
    for number, each in enumerate(sentences):
        try:
            captions.append(as_text(field_of(as_object(each), "raw"), "raw").strip())
        except FieldError as error:
            problems.append(problem_in(error, f"sentence {number} of {name}", file))
    folder = row.get("filepath")
    whole = f"{folder}/{name}" if isinstance(folder, str) and folder else name
    return Entry(whole, captions=captions, problems=problems)
