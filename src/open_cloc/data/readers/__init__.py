"""Readers of annotations and of pictures: each turns one format into a dataset of `RegionSample`.

A reader is a module with two functions: `recognises(text)` says whether a bare path is of its format, and the
one that opens the dataset is listed here.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from pathlib import Path

from open_cloc.config import call_with_options, lookup, parse_spec
from open_cloc.data.annotations import SampleDataset
from open_cloc.data.readers.upright import Upright, exif_option
from open_cloc.errors import MissingFileError, UserError
from open_cloc.shown import without_secrets

__all__ = ["READERS", "SampleDataset", "guess_spec", "open_reader"]

# format -> `module:function` taking (path, **options); imported when it is used.
READERS = {
    "coco": "open_cloc.data.readers.coco:open_coco",
    "lvis": "open_cloc.data.readers.lvis:open_lvis",
    "yolo": "open_cloc.data.readers.yolo:open_yolo",
    "shards": "open_cloc.data.shards.remote:open_shards",
    "scenes": "open_cloc.data.scenes.dataset:open_scenes",
    "folder": "open_cloc.data.readers.folder:open_folder",
    "table": "open_cloc.data.readers.table:open_table",
}
LAST = "folder"  # asked when no other format is recognised: their folders hold pictures as well


def open_reader(spec: str) -> SampleDataset:
    """Open a dataset by `FORMAT:PATH[,name=value...]`.

    Args:
        spec: FORMAT is a key of `READERS`, or `package.module:Name` of a callable that takes the path and the
            options and returns a `SampleDataset`. Options become what the callable's annotations say. With
            `exif=apply`, which every format has, pictures are turned as their EXIF orientation asks, and
            nothing else is.

    Raises:
        UserError: On an unknown format or option, or files that are not of that format.
        MissingFileError: If the path does not exist.
    """
    kind, path, options = parse_spec(spec, READERS)
    turn = exif_option(options.pop("exif", "keep"), spec)
    if not path:
        formats = ", ".join(READERS)
        raise UserError(
            f"unknown data {without_secrets(spec)!r}; expected FORMAT:PATH, FORMAT one of {formats} or "
            "package.module:Name"
        )
    dataset = call_with_options(lookup(READERS, kind, "reader"), path, options=options, where=spec)
    return Upright(dataset) if turn else dataset


def guess_spec(text: str) -> str:
    """Complete a bare path to `FORMAT:PATH` by looking at what lies there; a full spec comes back as it is.

    Raises:
        MissingFileError: If the text is neither a spec nor an existing path.
        UserError: If nothing there is recognised, or several formats are.
    """
    if re.match(rf"({'|'.join(READERS)}):|[A-Za-z_][\w.]*:[A-Za-z_]\w*:", text):
        return text
    found = [name for name in READERS if name != LAST and _recogniser(name)(text)]
    if not found and _recogniser(LAST)(text):
        found = [LAST]
    if len(found) == 1:
        return f"{found[0]}:{text}"
    exists, text = Path(text).exists(), without_secrets(text)
    if found:
        raise UserError(f"{text!r} looks like {' and like '.join(found)}; give the format as FORMAT:{text}")
    formats = ", ".join(READERS)
    if not exists:
        raise MissingFileError(f"{text!r} is neither an existing path nor FORMAT:PATH (FORMAT: {formats})")
    raise UserError(f"{text!r} holds nothing known; give the format as FORMAT:{text} (FORMAT: {formats})")


def _recogniser(name: str) -> Callable[[str], bool]:
    """The function of a reader's module that knows its format when it sees it."""
    return importlib.import_module(READERS[name].partition(":")[0]).recognises
