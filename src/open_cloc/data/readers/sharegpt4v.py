"""ShareGPT4V's captions: one JSON list of conversations, of which the answer is a long caption."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from open_cloc.data.annotations import Problem
from open_cloc.data.fields import FieldError, as_text, field_of, shown
from open_cloc.data.readers.flair import rejoined
from open_cloc.data.readers.packed import (
    Entry,
    PackedDataset,
    as_object,
    count_keys,
    entries_of,
    json_list,
    looks_like,
    picture_folders,
)
from open_cloc.errors import UserError

FORM = (re.compile(rb'"conversations"\s*:'), re.compile(rb'"image"\s*:'))
FOLDERS = ("images", "data")
KEYS = {"id", "image", "conversations"}
ANSWER = 1  # the turn that holds the caption


def recognises(text: str) -> bool:
    """Whether this is ShareGPT4V's JSON."""
    return looks_like(Path(text), (".json",), FORM)


def open_sharegpt4v(
    path: str,
    images: Path | None = None,
    first: int = 0,
    captions: Literal["own", "flair"] = "own",
    outside: bool = False,
) -> PackedDataset:
    """Open captions of ShareGPT4V.

    Args:
        path: Such as `share-captioner_coco_lcs_sam_1246k_1107.json`.
        images: Folder of the pictures; beside the file unless given. Names as in the file are tried, then
            their last part alone.
        first: Take the first so many entries, as the benchmarks of 1,000 and 10,000 do; 0 takes all.
        captions: As they are, or as `flair`: cut into sentences that are joined again by `. `, as FLAIR's
            script has them.
        outside: Allow pictures that do not lie in the data set's folder.

    Raises:
        MissingFileError: If the file or the pictures are missing.
        UserError: If it is no such file, or no entry can be used.
    """
    if first < 0:
        raise UserError(f"first must be at least 0; got {first}")
    file, problems, left_out = Path(path), list[Problem](), Counter[str]()
    rows = json_list(file, "ShareGPT4V")
    folders = picture_folders(file, images, *FOLDERS)
    short = not any((folder / _name_of(row)).is_file() for folder in folders for row in rows[:100])
    numbered = ((f"entry {number}", row) for number, row in enumerate(islice(rows, first or None)))
    edit = rejoined if captions == "flair" else str
    entries = list(entries_of(numbered, lambda row: _entry(row, short, edit, left_out), file, problems))
    return PackedDataset(file, folders, entries, problems=problems, left_out=left_out, outside=outside)


def _name_of(row: Any) -> str:
    """A picture's path as the file has it; empty where the row has none that could be looked for."""
    name = row.get("image") if isinstance(row, dict) else None
    return name if isinstance(name, str) and "\0" not in name and len(name) < 1000 else ""


def _entry(row: Any, short: bool, edit: Callable[[str], str], left_out: Counter[str]) -> Entry:
    row = as_object(row)
    count_keys(row, KEYS, left_out, "entries")
    name, turns = as_text(field_of(row, "image"), "image"), field_of(row, "conversations")
    if not isinstance(turns, list) or len(turns) <= ANSWER:
        raise FieldError(f"conversations must be a question and an answer; got {shown(turns)}")
    caption = as_text(field_of(as_object(turns[ANSWER]), "value"), "value").strip()
    return Entry(PurePosixPath(name).name if short else name, captions=(edit(caption),), key=name)
