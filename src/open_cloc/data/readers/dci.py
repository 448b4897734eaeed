"""DCI (Densely Captioned Images): a JSON for each picture, with a short and a very long caption."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, Literal

from open_cloc.data.annotations import Problem
from open_cloc.data.fields import FieldError, as_text, field_of
from open_cloc.data.readers.flair import rejoined
from open_cloc.data.readers.packed import (
    Entry,
    PackedDataset,
    as_object,
    count_keys,
    entries_of,
    picture_folders,
)
from open_cloc.errors import MissingFileError, UserError
from open_cloc.files import read_json
from open_cloc.samples import Text

ANNOTATIONS, SPLITS, SUFFIX = "annotations", "splits.json", "-data.json"
FOLDERS = ("photos", "images")
SHORT, SOURCE = "short", "dci"
KEYS = {"image", "short_caption", "extra_caption", "mask_data", "mask_keys"}


def recognises(text: str) -> bool:
    """Whether this is a folder whose `annotations` has a JSON for each picture, as DCI names them."""
    folder = Path(text) / ANNOTATIONS
    return folder.is_dir() and next(folder.glob(f"*{SUFFIX}"), None) is not None


def open_dci(
    path: str,
    images: Path | None = None,
    split: str = "",
    captions: Literal["extra", "flair"] = "extra",
    outside: bool = False,
) -> PackedDataset:
    """Open DCI. The caption is `extra_caption`; the short one is a text of the role `short`.

    Args:
        path: Folder of `annotations`, of which every JSON is one.
        images: Folder of the pictures; beside the annotations unless given.
        split: One of `splits.json`'s, such as `test`; all annotations unless given, as FG-CLIP's script has
            it, or all of `splits.json` for captions of FLAIR's.
        captions: `extra`, or `flair`: as FLAIR's script has them, the short and the extra one together, cut
            into sentences that are joined again by `. `.
        outside: Allow pictures that do not lie in the data set's folder.

    Raises:
        MissingFileError: If the annotations or the pictures are missing.
        UserError: If there is no such split, or no annotation can be used.
    """
    folder, problems, left_out = Path(path), list[Problem](), Counter[str]()
    if not (folder / ANNOTATIONS).is_dir():
        raise MissingFileError(f"no folder {ANNOTATIONS} in {folder}, as DCI has it")
    there = [file for file in sorted((folder / ANNOTATIONS).glob("*.json")) if _is_one(file)]
    as_flair = captions == "flair"
    files = _of_split(folder, split) if split or as_flair else there
    left_out["annotations of other splits"] = len(set(there) - set(files))
    named = [(file.name, file) for file in files]
    entries = list(
        entries_of(named, lambda file: _entry(file, as_flair, left_out), folder / ANNOTATIONS, problems)
    )
    folders = picture_folders(folder, images, *FOLDERS)
    return PackedDataset(folder, folders, entries, problems=problems, left_out=+left_out, outside=outside)


def _is_one(file: Path) -> bool:
    """Whether a JSON among the annotations is one, by any name, as FG-CLIP's script takes them."""
    return file.name != SPLITS and not file.name.startswith(".")


def _of_split(folder: Path, split: str) -> list[Path]:
    places = (folder / SPLITS, folder / ANNOTATIONS / SPLITS)
    splits = next((place for place in places if place.is_file()), None)
    if splits is None:
        raise MissingFileError(f"no {SPLITS} in {folder}")
    document = read_json(splits)
    given = document if isinstance(document, dict) else {}
    lists = [given.get(split)] if split else list(given.values()) or [None]
    names: list[Any] = [name for own in lists for name in (own if isinstance(own, list) else [None])]
    if not all(isinstance(name, str) and name for name in names):
        there = ", ".join(document) if isinstance(document, dict) else "none"
        wanted = f"no split {split!r}" if split else "a split that is no list of files"
        raise UserError(f"{wanted} in {splits}; it has {there:.200}")
    return [folder / ANNOTATIONS / Path(name).name for name in names]


def _entry(file: Path, as_flair: bool, left_out: Counter[str]) -> Entry:
    try:
        document: Any = read_json(file, without="mask_data")
    except UserError as error:
        raise FieldError(str(error)) from None
    row = as_object(document)
    count_keys(row, KEYS, left_out, "annotations")
    caption = as_text(field_of(row, "extra_caption"), "extra_caption").strip()
    short = row.get("short_caption")
    if as_flair:
        caption = rejoined(f"{as_text(field_of(row, 'short_caption'), 'short_caption')}\n{caption}")
    texts = (Text(short.strip(), SHORT, SOURCE),) if isinstance(short, str) and short.strip() else ()
    return Entry(as_text(field_of(row, "image"), "image"), captions=(caption,), texts=texts)
