"""What readers share: finding annotation files and pictures."""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from open_cloc.data.names import find, is_url
from open_cloc.errors import MissingFileError, UserError

COCO_KEYS = tuple(re.compile(rb'"%s"\s*:\s*\[' % name) for name in (b"images", b"annotations", b"categories"))
LVIS_KEY = re.compile(rb'"not_exhaustive_category_ids"')
MOST_LOOKED_AT = 100  # JSONs of a folder; of more, each is one picture's


def looks_like_coco(file: Path) -> bool:
    """Whether a JSON holds lists of images, annotations and categories; it is searched, not parsed."""
    return _finds(file, COCO_KEYS)


def is_lvis(file: Path) -> bool:
    """Whether a JSON of COCO's form is LVIS's, by its name or by a key that only LVIS has."""
    return file.name.startswith("lvis") or _finds(file, (LVIS_KEY,))


def _finds(file: Path, patterns: Iterable[re.Pattern[bytes]]) -> bool:
    try:
        with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return all(pattern.search(content) for pattern in patterns)
    except (OSError, ValueError):  # an empty file cannot be mapped
        return False


def coco_files(folder: Path) -> list[Path]:
    """JSONs of COCO's form in a folder or in its `annotations/`, by any name, sorted."""
    return sorted(
        file for place in (folder, folder / "annotations") for file in _jsons(place) if looks_like_coco(file)
    )


def _jsons(folder: Path) -> list[Path]:
    """The JSONs of a folder; none where each belongs to one picture."""
    found = [file for file in folder.glob("*.json") if file.is_file()] if folder.is_dir() else []
    return found if len(found) <= MOST_LOOKED_AT else []


def holds_coco(path: Path, lvis: bool) -> bool:
    """Whether a path is a JSON of COCO's form, or a folder that holds some.

    Args:
        path: A file or a folder.
        lvis: Look for LVIS's instead of all others.
    """
    if path.is_file():
        return path.suffix.lower() == ".json" and is_lvis(path) == lvis and looks_like_coco(path)
    return any(is_lvis(file) == lvis for file in coco_files(path))


def find_annotations(path: Path, lvis: bool) -> Path:
    """The annotation file: the path itself, or the one match inside a folder.

    Args:
        path: A file, or a folder that holds it, itself or in `annotations/`.
        lvis: Look for LVIS's form instead of COCO's.

    Raises:
        MissingFileError: If nothing is there.
        UserError: If the folder holds no such file, or several, none of which is the only `instances*.json`.
    """
    if not path.exists():
        raise MissingFileError(f"no such annotation file or folder: {path}")
    if not path.is_dir():
        return path
    found = [file for file in coco_files(path) if is_lvis(file) == lvis]
    if len(found) > 1:  # COCO's own folder holds keypoints of the same form too
        found = [file for file in found if file.match("instances*.json")] or found
    if len(found) != 1:
        names = ", ".join(str(file.relative_to(path)) for file in found) or "none"
        form = "LVIS" if lvis else "COCO"
        raise UserError(
            f"expected one JSON of {form}'s form in {path} or its annotations/; got {names}; name the file"
        )
    return found[0]


def image_folders(annotations: Path, images: Path | None) -> list[Path]:
    """Where the pictures of an annotation file may lie; only the given folder, where one is given."""
    if images is not None:
        return [images]
    split = annotations.stem.rpartition("_")[2]  # instances_val2017 -> val2017
    bases = (annotations.parent, annotations.parent.parent)
    of_split = [folder for base in bases for folder in (base / "images" / split, base / split)]
    return of_split + [folder for base in bases for folder in (base / "images", base)]


def find_images(annotations: Path, images: Path | None, names: Sequence[str]) -> Path | None:
    """The first likely folder that holds any of the pictures; a few of them are tried first."""
    folders = image_folders(annotations, images)
    for some in (names[:10], names):
        for folder in folders:
            if folder.is_dir() and any(find(folder, name) for name in some):
                return folder
    return None


def missing_images(annotations: Path, images: Path | None, names: Sequence[str]) -> MissingFileError:
    """The error for pictures that are nowhere."""
    if is_url(names[0]):
        return MissingFileError(f"pictures are URLs, which are not fetched here: {names[0]} ({annotations})")
    tried = ", ".join(map(str, image_folders(annotations, images)))
    return MissingFileError(
        f"pictures of {annotations} not found, such as {names[0]!r}; looked in {tried}; give their folder "
        "as images=FOLDER"
    )


def walk(folder: Path) -> Iterator[str]:
    """Files below a folder, as paths relative to it; no hidden ones, links followed but never in circles."""
    stack: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]
    while stack:
        below, above = stack.pop()
        status = os.stat(folder / below)
        identity = (status.st_dev, status.st_ino)
        if identity in above:
            continue
        with os.scandir(folder / below) as entries:
            for entry in entries:
                name = f"{below}/{entry.name}" if below else entry.name
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    stack.append((name, above | {identity}))
                elif entry.is_file() or entry.is_symlink():  # a broken link is a missing picture, not none
                    yield name
