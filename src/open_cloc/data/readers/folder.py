"""A folder of pictures, with captions in text files beside them or in `metadata.jsonl`."""

from __future__ import annotations

import logging
import posixpath
from collections.abc import Mapping, Set
from pathlib import Path, PurePosixPath
from typing import Any

from open_cloc.data.names import make_keys, printable
from open_cloc.data.readers.columns import CAPTION_COLUMNS, find_columns, scalars, texts_of
from open_cloc.data.readers.files import walk
from open_cloc.data.readers.rows import JsonRows
from open_cloc.errors import MissingFileError, UserError
from open_cloc.pictures import SUFFIXES, is_picture
from open_cloc.samples import RegionSample
from open_cloc.texts import PackedTexts

logger = logging.getLogger(__name__)

METADATA = "metadata.jsonl"


def recognises(text: str) -> bool:
    """Whether there is a picture anywhere below a folder."""
    return Path(text).is_dir() and any(map(is_picture, walk(Path(text))))


def open_folder(path: str) -> FolderDataset:
    """Open all pictures below a folder, sorted by path.

    A picture's captions are those of `file_name` in the `metadata.jsonl` of its folder or one above, as in
    Hugging Face's image folders, else the text of the `.txt` beside it. Its key is its path without suffix;
    where two would share one, as with `a.jpg` and `a.png`, the suffix is added: `a_jpg` and `a_png`.

    Args:
        path: The folder.

    Raises:
        MissingFileError: If it does not exist.
        UserError: If it holds no pictures, two would still share a key, or the metadata are wrong.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise MissingFileError(f"no such folder: {folder}")
    return FolderDataset(folder)


class FolderDataset:
    """The pictures below a folder.

    Attributes:
        folder: Where the pictures lie.
        file_names: Paths of the pictures below the folder, sorted.
        keys: A name for each picture.
    """

    def __init__(self, folder: Path) -> None:
        """List the pictures and find what the metadata say of them.

        Raises:
            UserError: If there are none, two would share a key, or the metadata are wrong.
        """
        self.folder = folder
        files = sorted(walk(folder))
        names = [name for name in files if is_picture(name)]
        if not names:
            raise UserError(f"no pictures ({', '.join(SUFFIXES)}) in folder {folder}")
        self.file_names = PackedTexts(names)
        self.keys = PackedTexts(make_keys(names))
        metadata = [name for name in files if PurePosixPath(name).name == METADATA]
        metadata.sort(key=lambda name: name.count("/"))  # what a nearer folder says replaces the outer's
        self._metadata = [JsonRows(folder / name) for name in metadata]
        self._rows: dict[str, tuple[int, int]] = {}
        known = set(names)
        for number, rows in enumerate(self._metadata):
            described = described_pictures(rows, folder, known)
            self._rows |= {name: (number, index) for name, index in described.items()}

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> RegionSample:
        """A sample; its picture is not decoded.

        Raises:
            UserError: If its captions are not text; names the file.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)} ({self.folder})")
        name = self.file_names[index]
        row, where = self._row(name)
        column = next(iter(find_columns(row, CAPTION_COLUMNS)), "")
        captions = texts_of(row.get(column), f"{where}, column {column!r}")
        others = {field: value for field, value in row.items() if field != column}
        return RegionSample(
            key=self.keys[index],
            image=self.folder / name,
            captions=captions or _text_beside(self.folder / name),
            metadata=scalars(others) | {"file_name": printable(name)},
        )

    def _row(self, name: str) -> tuple[Mapping[str, Any], str]:
        """What the metadata say of a picture, and where."""
        if name not in self._rows:
            return {}, ""
        number, index = self._rows[name]
        return self._metadata[number][index], f"{self._metadata[number].file}, row {index}"


def described_pictures(rows: JsonRows, folder: Path, pictures: Set[str]) -> dict[str, int]:
    """Which row of a metadata file speaks of a picture, by its path below the folder.

    Raises:
        UserError: If a row names no picture, two name the same, or none names one that is there.
    """
    below = rows.file.parent.relative_to(folder).as_posix()
    found: dict[str, int] = {}
    absent = []
    for index, row in enumerate(rows):
        name = row.get("file_name")
        if not isinstance(name, str) or not name:
            raise UserError(f"a row must name a picture as file_name ({rows.file}, row {index})")
        place = posixpath.normpath(posixpath.join(below, name))
        if place not in pictures:
            absent.append(name)
        elif found.setdefault(place, index) != index:
            raise UserError(f"rows {found[place]} and {index} both describe {name!r} ({rows.file})")
    if absent and not found:
        raise UserError(f"no row names a picture that is there; the first is {absent[0]!r} ({rows.file})")
    if absent:
        message = "%d of %d rows name pictures that are not there, such as %r (%s)"
        logger.warning(message, len(absent), len(rows), absent[0], rows.file)
    return found


def _text_beside(picture: Path) -> tuple[str, ...]:
    """The caption in the `.txt` of a picture's name, if there is one."""
    file = picture.with_suffix(".txt")
    try:
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return ()
    except UnicodeDecodeError as error:
        raise UserError(f"caption is not UTF-8: {error} ({file})") from error
    return texts_of(text, str(file))
