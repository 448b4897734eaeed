"""FLAIR's lists of captions (DOCCI, IIW, Urban1k): rows of a picture and a caption, several a picture."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from open_cloc.data.annotations import Problem
from open_cloc.data.fields import FieldError, as_text, field_of
from open_cloc.data.readers.packed import (
    Entry,
    PackedDataset,
    as_object,
    count_keys,
    json_list,
    looks_like,
    picture_folders,
    problem_in,
)

FORM = (
    re.compile(rb'^\s*\{\s*"annotations"\s*:'),
    re.compile(rb'"image"\s*:'),
    re.compile(rb'"caption"\s*:'),
)
FOLDERS = ("images", "image")
KEYS = {"image_id", "image", "caption", "caption_id"}


SENTENCE_ENDS = re.compile(r"\n|</s>|[.]")


def rejoined(caption: str) -> str:
    """A caption cut into sentences that are joined again by `. `, as FLAIR's script reads long ones."""
    return ". ".join(filter(None, map(str.strip, SENTENCE_ENDS.split(caption))))


def recognises(text: str) -> bool:
    """Whether this is one of FLAIR's JSONs."""
    return looks_like(Path(text), (".json",), FORM)


def open_flair(path: str, images: Path | None = None, outside: bool = False) -> PackedDataset:
    """Open pictures with their captions, those of one picture together, in the order of the first.

    Args:
        path: The JSON.
        images: Folder of the pictures; beside the file unless given.
        outside: Allow pictures that do not lie in the data set's folder.

    Raises:
        MissingFileError: If the file or the pictures are missing.
        UserError: If it is no such file, or no row can be used.
    """
    file, problems, left_out = Path(path), list[Problem](), Counter[str]()
    captions: dict[str, list[str]] = {}
    for number, given in enumerate(json_list(file, "FLAIR", "annotations")):
        try:
            row = as_object(given)
            name = as_text(field_of(row, "image"), "image")
            caption = as_text(field_of(row, "caption"), "caption").strip()
            captions.setdefault(name, []).append(caption)
            count_keys(row, KEYS, left_out, "rows")
        except FieldError as error:
            problems.append(problem_in(error, f"annotation {number}", file))
    entries = [Entry(name, captions=own) for name, own in captions.items()]
    folders = picture_folders(file, images, *FOLDERS)
    return PackedDataset(file, folders, entries, problems=problems, left_out=left_out, outside=outside)
