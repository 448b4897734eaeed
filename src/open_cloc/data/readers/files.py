"""What readers share: finding annotation files and pictures, and naming samples after files."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from open_cloc.errors import MissingFileError, UserError

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")


def annotation_files(folder: Path, pattern: str) -> list[Path]:
    """Files of a pattern in a folder or in its `annotations/`, sorted."""
    return sorted([*folder.glob(pattern), *(folder / "annotations").glob(pattern)])


def find_annotations(path: Path, pattern: str) -> Path:
    """The annotation file: the path itself, or the one match inside a folder.

    Args:
        path: A file, or a folder that holds it, itself or in `annotations/`.
        pattern: What the file's name looks like, such as `instances*.json`.

    Raises:
        MissingFileError: If nothing is there.
        UserError: If the folder holds no such file, or several.
    """
    if not path.exists():
        raise MissingFileError(f"no such annotation file or folder: {path}")
    if path.is_file():
        return path
    found = annotation_files(path, pattern)
    if len(found) != 1:
        names = ", ".join(str(file.relative_to(path)) for file in found) or "none"
        raise UserError(f"expected exactly one {pattern} in {path} or its annotations/; got {names}")
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
    """The first likely folder that holds one of the first pictures."""
    for folder in image_folders(annotations, images):
        if any((folder / name).is_file() for name in names[:10]):
            return folder
    return None


def missing_images(annotations: Path, images: Path | None, names: Sequence[str]) -> MissingFileError:
    """The error for pictures that are nowhere."""
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


def is_picture(name: str) -> bool:
    """Whether a file's suffix is a picture's."""
    return PurePosixPath(name).suffix.lower() in PICTURES


def unique_keys(names: Sequence[str], where: str) -> list[str]:
    """A key for each file name: the path without suffix or, where others have that too, with it.

    Raises:
        UserError: If that does not tell two files apart.
    """
    names = [printable(name) for name in names]
    short = [key_of(name) for name in names]
    taken = Counter(short)
    keys = [key if taken[key] == 1 else name.replace(".", "_") for key, name in zip(short, names)]
    key, count = Counter(keys).most_common(1)[0]
    if count > 1:
        same = [name for name, own in zip(names, keys) if own == key][:2]
        raise UserError(f"{same[0]!r} and {same[1]!r} would share the key {key!r}; rename one ({where})")
    return keys


def key_of(file_name: str) -> str:
    """A file's name as a sample's key: no suffix, and no dot, which would end the key inside a tar."""
    return Path(file_name).with_suffix("").as_posix().lstrip("/").replace(".", "_")


def printable(name: str) -> str:
    """A file's name as text, also where the file system holds bytes that are none."""
    return os.fsencode(name).decode("utf-8", "replace")
