"""Names of files from elsewhere: to the file they mean, and to keys of samples.

Names were written on other machines: with back-slashes, a leading `./`, another form of Unicode. They come
from strangers: none may lead out of the data set.
"""

from __future__ import annotations

import os
import posixpath
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote

from open_cloc.errors import SampleError
from open_cloc.pictures import is_picture

# A JSON in a folder of such a name belongs to the data set in the folder above.
ANNOTATION_FOLDERS = ("annotations", "annotation", "anns", "ann", "labels")
# How Label Studio names a file below the folder that it was given.
_OF_LABEL_STUDIO = re.compile(r"^/?data/local-files/\?d=")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_DRIVE = re.compile(r"^[A-Za-z]:(?=/)")
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")


def root_of(annotations: Path) -> Path:
    """The folder of the data set that an annotation file belongs to."""
    folder = annotations.parent
    return folder.parent if folder.name.lower() in ANNOTATION_FOLDERS else folder


def resolve(folder: Path, name: str, root: Path | None = None, outside: bool = False) -> Path:
    """The file that a name means.

    Args:
        folder: Where names start from.
        name: A path as somebody wrote it.
        root: The data set's folder; `folder` unless given.
        outside: Allow files that do not lie in the data set.

    Returns:
        The path; of a file that is not there, the one that was looked for first.

    Raises:
        SampleError: If the name is a URL, or leads out of the data set, by `..`, as an absolute path, or over
            a link; or an absolute path at which nothing is.
    """
    if is_url(name):
        raise SampleError(f"picture is a URL, which is not fetched here: {name}", "picture is a URL")
    if not _can_be_a_file(name):
        raise SampleError(f"no file can have this name: {name!r}", "unusable name")
    path = find(folder, name) or folder / name
    if not outside:
        _check_inside(path, name, [folder, *([root] if root else [])])
    return path


def _can_be_a_file(name: str) -> bool:
    """Whether a name holds no NUL and no half character; bytes that are no text may be there."""
    try:
        return b"\0" not in os.fsencode(name)
    except UnicodeEncodeError:
        return False


def is_url(name: str) -> bool:
    """Whether a name is a URL instead of a path."""
    return _URL.match(name) is not None


def find(folder: Path, name: str) -> Path | None:
    """The file of a name: as it is written or, where nothing is there, as other systems would write it."""
    if of_label_studio := _OF_LABEL_STUDIO.match(name):
        name = unquote(name[of_label_studio.end() :])
    path = folder / name
    if os.path.exists(path):
        return path
    slashed = name.replace("\\", "/")
    forms = {slashed, *(unicodedata.normalize(form, slashed) for form in ("NFC", "NFD"))} - {name}
    return next((folder / form for form in sorted(forms) if os.path.exists(folder / form)), None)


def _check_inside(path: Path, name: str, roots: Sequence[Path]) -> None:
    if os.path.isabs(name) and not os.path.exists(path):
        raise SampleError(
            f"no such file: {name!r}, an absolute path; name pictures by their path below {roots[0]}",
            "missing picture",
        )
    real = _real_path(path)
    if not any(is_below(real, _real_folder(str(root))) for root in roots):
        raise SampleError(
            f"{name!r} leads out of the data set in {roots[-1]}; give outside=true to allow it",
            "file outside of the data set",
        )


def _real_path(path: Path) -> str:
    """A path without links; that of its folder is found once, as thousands of files share it."""
    folder, name = os.path.split(path)
    if name in ("", ".", "..") or os.path.islink(path):
        return os.path.realpath(path)
    return os.path.join(_real_folder(folder), name)


@lru_cache(maxsize=4096)
def _real_folder(folder: str) -> str:
    return os.path.realpath(folder)


def is_below(real: str, root: str) -> bool:
    """Whether a path is a folder or lies below it; both without links, as by `os.path.realpath`."""
    return real == root or real.startswith(root.rstrip(os.sep) + os.sep)


def make_keys(names: Sequence[str]) -> list[str]:
    """A key for each name of a picture, all different, each a name that a tar can hold.

    A key is the path without its suffix, dots made underscores, since a dot ends the key inside a tar. Names
    that would share one keep their suffix, as in `a_jpg` and `a_png`; what is still alike is numbered.

    Args:
        names: Paths of files, or keys from elsewhere.
    """
    plain = [_plain(name) for name in names]
    short = [_dotless(posixpath.splitext(name)[0] if is_picture(name) else name) for name in plain]
    times = Counter(short)
    wished = [key if times[key] == 1 else _dotless(name) for key, name in zip(short, plain)]
    if len(set(wished)) == len(wished):
        return wished
    unique = {key for key, count in Counter(wished).items() if count == 1}
    taken, numbers = set(unique), Counter[str]()
    return [key if key in unique else _numbered(key, taken, numbers) for key in wished]


def _plain(name: str) -> str:
    """A path below a folder: no drive, nothing that leads up, no character that only bytes can hold."""
    slashed = _DRIVE.sub("", _UNPRINTABLE.sub("_", name.replace("\\", "/")))
    parts = [part for part in slashed.split("/") if part not in ("", ".", "..")]
    return unicodedata.normalize("NFC", "/".join(parts)) or "_"


def _dotless(name: str) -> str:
    return name.replace(".", "_")


def _numbered(key: str, taken: set[str], numbers: Counter[str]) -> str:
    """The first of KEY, KEY-2, KEY-3, ... that is free; it is taken then.

    Args:
        key: As wished.
        taken: Keys that others have; grows.
        numbers: The last number that was tried of each key, so that a thousand of one are not tried again.
    """
    own = key
    while own in taken:
        numbers[key] = max(2, numbers[key] + 1)
        own = f"{key}-{numbers[key]}"
    taken.add(own)
    return own


def printable(name: str) -> str:
    """A file's name as text, also where the file system holds bytes that are none."""
    return os.fsencode(name).decode("utf-8", "replace")
