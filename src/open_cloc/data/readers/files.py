"""What readers share: finding annotation files and pictures."""

from __future__ import annotations

import codecs
import mmap
import os
import posixpath
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from open_cloc.data.annotations import Problem
from open_cloc.data.names import ANNOTATION_FOLDERS, find, is_below, is_url, printable
from open_cloc.errors import MissingFileError, UserError
from open_cloc.pictures import is_picture

LISTS = tuple(re.compile(rb'"%s"\s*:\s*\[' % name) for name in (b"images", b"annotations"))
CATEGORIES_KEY = re.compile(rb'"categories"\s*:\s*\[')
CAPTION_KEY = re.compile(rb'"caption"\s*:\s*"')
BOX_KEY = re.compile(rb'"bbox"\s*:')
SEGMENTS_KEY = re.compile(rb'"segments_info"\s*:')
LVIS_KEY = re.compile(rb'"not_exhaustive_category_ids"')
MOST_LOOKED_AT = 100  # JSONs of a folder; of more, each is one picture's
IMAGE_FOLDERS = ("images", "", "data", "JPEGImages", "img")  # beside annotations, in this order
OF_SYSTEMS = ("__macosx", ".ds_store", ".appledouble", "thumbs.db", "desktop.ini")


def looks_like_coco(file: Path) -> bool:
    """Whether a JSON holds lists of images and annotations, with categories or captions; it is not parsed."""
    if holds_panoptic(file):
        return False
    return _finds(file, (*LISTS, CATEGORIES_KEY)) or holds_captions(file)


def holds_panoptic(file: Path) -> bool:
    """Whether a JSON is COCO's panoptic form, whose boxes stand in lists of segments."""
    return _finds(file, (*LISTS, SEGMENTS_KEY))


def holds_captions(file: Path) -> bool:
    """Whether a JSON of COCO's form holds captions, and neither categories nor boxes."""
    if not _finds(file, (*LISTS, CAPTION_KEY)):
        return False
    return not any(_finds(file, (key,)) for key in (CATEGORIES_KEY, BOX_KEY))


def is_lvis(file: Path) -> bool:
    """Whether a JSON of COCO's form is LVIS's, by its name or by a key that only LVIS has."""
    return file.name.startswith("lvis") or _finds(file, (LVIS_KEY,))


def is_regular(file: Path) -> bool:
    """Whether a path is a file that ends; a pipe or a device may not."""
    try:
        return file.is_file()
    except (OSError, ValueError):  # a name that is too long, or holds a NUL
        return False


def _finds(file: Path, patterns: Iterable[re.Pattern[bytes]]) -> bool:
    if not is_regular(file):
        return False
    try:
        with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            # A form that readers refuse by its name is recognised, too.
            is_utf_16 = content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
            text = content[:].replace(b"\0", b"") if is_utf_16 else content
            return all(pattern.search(text) for pattern in patterns)
    except (OSError, ValueError):  # an empty file cannot be mapped
        return False


def coco_files(folder: Path) -> list[Path]:
    """JSONs of COCO's form in a folder or in its `annotations/`, by any name, sorted."""
    return sorted(
        file
        for place in (folder, *_annotation_folders(folder))
        for file in _jsons(place)
        if looks_like_coco(file)
    )


def _annotation_folders(folder: Path) -> list[Path]:
    return [place for place in subfolders(folder) if place.name.lower() in ANNOTATION_FOLDERS]


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, sorted; none where it is no folder, or may not be read."""
    try:
        with os.scandir(folder) as entries:
            return sorted(Path(e.path) for e in entries if e.is_dir() and not e.name.startswith("."))
    except OSError:
        return []


def _jsons(folder: Path) -> list[Path]:
    """The JSONs of a folder; none where each belongs to one picture."""
    try:
        with os.scandir(folder) as entries:
            found = [Path(e.path) for e in entries if e.name.lower().endswith(".json") and e.is_file()]
    except OSError:
        return []
    return [file for file in found if not file.name.startswith("._")] if len(found) <= MOST_LOOKED_AT else []


def holds_coco(path: Path, lvis: bool) -> bool:
    """Whether a path is a JSON of COCO's form, or a folder that holds some.

    Args:
        path: A file or a folder.
        lvis: Look for LVIS's instead of all others.
    """
    if is_regular(path):
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
    return of_split + [base / name for base in bases for name in IMAGE_FOLDERS]


def find_images(annotations: Path, images: Path | None, names: Sequence[str]) -> Path | None:
    """The first likely folder that holds any of the pictures; a few of them are tried first."""
    folders = image_folders(annotations, images)
    for some in (names[:10], names):
        for folder in folders:
            if folder.is_dir() and any(find(folder, name) for name in some):
                return folder
    return None


def unnamed_images(folder: Path, names: Sequence[str]) -> Counter[str]:
    """Pictures that lie beside those of an annotation file and that it does not name, counted by folder.

    Args:
        folder: Where names start from.
        names: Paths of the pictures that it names.
    """
    known = {posixpath.normpath(unicodedata.normalize("NFC", name.replace("\\", "/"))) for name in names}
    counts: Counter[str] = Counter()
    root = os.path.realpath(folder)
    for below in sorted({posixpath.dirname(name) for name in known}):
        try:
            if not is_below(os.path.realpath(folder / below), root):
                continue  # a stranger's names list no folders of others
            with os.scandir(folder / below) as entries:
                inside = [entry.name for entry in entries if not entry.name.startswith(".")]
        except (OSError, ValueError):  # told with the sample that names a picture there
            continue
        found = (posixpath.join(below, unicodedata.normalize("NFC", name)) for name in inside)
        own = sum(is_picture(name) and name not in known for name in found)
        if own:
            counts[f"pictures in {printable(str(folder / below))} that no image names"] = own
    return counts


def missing_images(annotations: Path, images: Path | None, names: Sequence[str]) -> MissingFileError:
    """The error for pictures that are nowhere."""
    if is_url(names[0]):
        return MissingFileError(f"pictures are URLs, which are not fetched here: {names[0]} ({annotations})")
    tried = ", ".join(map(str, image_folders(annotations, images)))
    return MissingFileError(
        f"pictures of {annotations} not found, such as {names[0]!r}; looked in {tried}; give their folder "
        "as images=FOLDER"
    )


class Listing(NamedTuple):
    """What lies below a folder.

    Attributes:
        files: Paths relative to it, sorted.
        skipped: What else lies there and was not looked at, by kind.
        problems: Folders that cannot be read, or lead out of the data set.
    """

    files: list[str]
    skipped: Counter[str]
    problems: list[Problem]


def list_files(folder: Path, outside: bool = False) -> Listing:
    """All files below a folder; no hidden ones, links followed but never in circles.

    Args:
        folder: Where to start.
        outside: Follow links to folders that do not lie below it.
    """
    found = Listing([], Counter(), [])
    found.files.extend(sorted(walk(folder, outside, found)))
    return found


def walk(folder: Path, outside: bool = False, found: Listing | None = None) -> Iterator[str]:
    """The files of `list_files`, one by one as they are found.

    Args:
        folder: Where to start.
        outside: Follow links to folders that do not lie below it.
        found: Takes what is passed over.
    """
    found = found or Listing([], Counter(), [])
    root = os.path.realpath(folder)
    stack: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]
    while stack:
        below, above = stack.pop()
        try:
            status = os.stat(folder / below)
            with os.scandir(folder / below) as entries:
                inside = list(entries)
        except OSError as error:
            reason = error.strerror or error
            message = f"folder cannot be read: {reason} ({folder / below})"
            found.problems.append(Problem("unreadable folder", message))
            continue
        identity = (status.st_dev, status.st_ino)
        if identity in above:
            found.skipped["links that lead in a circle"] += 1
            continue
        for entry in inside:
            name = f"{below}/{entry.name}" if below else entry.name
            if kind := _kind_of_skipped(entry):
                found.skipped[kind] += 1
            elif not os.path.isdir(entry.path):  # also of a link to itself, of which the entry would raise
                yield name
            elif outside or not entry.is_symlink() or is_below(os.path.realpath(entry.path), root):
                stack.append((name, above | {identity}))
            else:
                message = (
                    f"link {name!r} leads out of the data set in {folder}; give outside=true to allow it"
                )
                found.problems.append(Problem("file outside of the data set", message))


def _kind_of_skipped(entry: os.DirEntry[str]) -> str:
    """A word for what is not looked at; empty for files and folders that are."""
    if entry.name.lower() in OF_SYSTEMS or entry.name.startswith("._"):
        return "files of macOS and Windows, such as ._NAME and Thumbs.db"
    if entry.name.startswith("."):
        return "hidden files and folders"
    # A broken link is a missing picture, not none.
    if entry.is_symlink() or entry.is_dir() or entry.is_file():
        return ""
    return "pipes, sockets and devices"
