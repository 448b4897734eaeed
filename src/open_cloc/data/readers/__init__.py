"""Readers of annotations and of pictures: each turns one format into a dataset of `RegionSample`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path

from open_cloc.config import import_object
from open_cloc.data.annotations import SampleDataset
from open_cloc.errors import MissingFileError, UserError

__all__ = ["READERS", "SampleDataset", "guess_spec", "open_reader"]

# format -> `module:function` taking (path, **options), all of them text. Imported only when used.
READERS = {
    "coco": "open_cloc.data.readers.coco:open_coco",
    "lvis": "open_cloc.data.readers.lvis:open_lvis",
    "shards": "open_cloc.data.shards.remote:open_shards",
    "scenes": "open_cloc.data.scenes.dataset:open_scenes",
    "folder": "open_cloc.data.readers.folder:open_folder",
    "table": "open_cloc.data.readers.table:open_table",
}
TABLES = (".parquet", ".jsonl", ".csv", ".tsv")


def open_reader(spec: str) -> SampleDataset:
    """Open a dataset by `FORMAT:PATH[,name=value...]`.

    Args:
        spec: FORMAT is a key of `READERS` or `package.module:Name` of a callable that takes the path and the
            options as text and returns a `SampleDataset`.

    Raises:
        UserError: On an unknown format or option, or files that are not of that format.
        MissingFileError: If the path does not exist.
    """
    name, rest = _split_format(spec)
    factory: Callable[..., SampleDataset] = import_object(READERS.get(name, name), "reader")
    path, *texts = re.split(r",(?=[A-Za-z_]\w*=)", rest)
    options = dict(text.split("=", 1) for text in texts)
    parameters = inspect.signature(factory).parameters.values()
    known = [p.name for p in parameters][1:]
    unknown = [option for option in options if option not in known]
    if unknown and not any(p.kind is p.VAR_KEYWORD for p in parameters):
        expected = f"one of {', '.join(known)}" if known else "none"
        raise UserError(
            f"unknown option {unknown[0]!r} of format {name!r}; expected {expected} (in {spec!r})"
        )
    return factory(path, **options)


def guess_spec(text: str) -> str:
    """Complete a bare path to `FORMAT:PATH` by looking at what lies there; a full spec comes back as it is.

    Raises:
        MissingFileError: If the text is neither a spec nor an existing path.
        UserError: If nothing there is recognised, or several formats are.
    """
    if re.match(rf"({'|'.join(READERS)}):|[A-Za-z_][\w.]*:[A-Za-z_]\w*:", text):
        return text
    path = Path(text)
    if path.suffix == ".tar" or "{" in text or "://" in text or text.startswith("pipe:"):
        return f"shards:{text}"
    if not path.exists():
        formats = ", ".join(READERS)
        raise MissingFileError(f"{text!r} is neither an existing path nor FORMAT:PATH (FORMAT: {formats})")
    if path.is_dir():
        folders = (path, path / "annotations")
        found = {
            "shards": any(path.glob("*.tar")),
            "lvis": any(any(folder.glob("lvis*.json")) for folder in folders),
            "coco": any(any(folder.glob("instances*.json")) for folder in folders),
        }
    else:
        lvis = path.suffix == ".json" and path.name.startswith("lvis")
        table = path.suffix.lower() in TABLES
        found = {"lvis": lvis, "coco": path.suffix == ".json" and not lvis, "table": table}
    names = [name for name, hit in found.items() if hit]
    if not names and path.is_dir() and _holds_pictures(path):  # COCO's folders hold pictures as well
        names = ["folder"]
    if len(names) != 1:
        seen = (
            f"looks like {' and like '.join(names)}"
            if names
            else "holds nothing known (tar shards, COCO JSON, pictures; a table is .parquet, .jsonl or .csv)"
        )
        raise UserError(f"{text!r} {seen}; give the format as FORMAT:{text}")
    return f"{names[0]}:{text}"


def _holds_pictures(folder: Path) -> bool:
    from open_cloc.data.readers.folder import is_picture, walk

    return any(is_picture(name) for name in walk(folder))


def _split_format(spec: str) -> tuple[str, str]:
    """The format and the rest of a spec; a format from outside the package is itself `module:Name`."""
    name, colon, rest = spec.partition(":")
    if name not in READERS and ":" in rest:
        attribute, colon, rest = rest.partition(":")
        name = f"{name}:{attribute}"
    if not colon or not rest or (name not in READERS and ":" not in name):
        formats = ", ".join(READERS)
        raise UserError(
            f"unknown data {spec!r}; expected FORMAT:PATH, FORMAT one of {formats} or package.module:Name"
        )
    return name, rest
