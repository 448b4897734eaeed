"""Entries of a list-like format, packed so that worker processes share them, and its pictures found.

A reader that parses a file of its own gives `Entry` after `Entry`; this is the rest.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from open_cloc.data.annotations import Problem, RawRegion, RawSample, finish
from open_cloc.data.fields import FieldError, as_side, shown
from open_cloc.data.names import find, make_keys, resolve
from open_cloc.data.readers.files import is_regular
from open_cloc.errors import MissingFileError, UserError
from open_cloc.files import parse_json, read_json, read_lines
from open_cloc.samples import RegionSample, Text
from open_cloc.texts import PackedTexts

HEAD = 2**16  # bytes of a file that are looked at
TRIED = 100  # pictures that are looked for before they count as missing


class Entry(NamedTuple):
    """A picture as a file describes it.

    Attributes:
        name: The picture's path, as the file writes it.
        regions: Boxes and texts as read.
        captions: Texts of the whole picture.
        size_hw: Declared (height, width); None where nothing says it.
        metadata: Plain JSON values that go along.
        problems: Parts that could not be read.
        texts: Further texts of the picture with roles.
        key: What tells the entry from others of the same picture; the name unless given.
    """

    name: str
    regions: Sequence[RawRegion] = ()
    captions: Sequence[str] = ()
    size_hw: tuple[int, int] | None = None
    metadata: Mapping[str, Any] = {}
    problems: Sequence[Problem] = ()
    texts: Sequence[Text] = ()
    key: str = ""


class PackedDataset:
    """The entries of a file.

    Attributes:
        problems: Entries that cannot be used and belong to no sample.
        left_out: What was seen and is not used, with counts.
        class_names: All names that a region may have; empty where the file lists none.
        crowds: Whether boxes of crowds are among the regions.
        num_crowds: How many there are, among the regions or not.
    """

    def __init__(
        self,
        where: Path,
        folders: Sequence[Path],
        entries: Iterable[Entry],
        *,
        box_format: str = "xywh",
        normalized: bool = False,
        problems: Sequence[Problem] = (),
        left_out: Mapping[str, int] | None = None,
        outside: bool = False,
        class_names: Sequence[str] = (),
        crowds: bool = False,
        num_crowds: int = 0,
    ) -> None:
        """Pack entries, and see that their pictures are there.

        Args:
            where: The file, for messages.
            folders: Where pictures may lie, tried in turn.
            entries: What was read.
            box_format: Of all boxes.
            normalized: Boxes are shares of the picture's sides instead of pixels.
            problems: Entries that could not be read; looked at when all were.
            left_out: What the reader saw and does not use; likewise.
            outside: Allow pictures that do not lie in these folders.
            class_names: All names that a region may have, where the file lists them.
            crowds: Whether boxes of crowds are among the regions.
            num_crowds: How many there are, among the regions or not.

        Raises:
            UserError: If there is no entry that can be used.
            MissingFileError: If none of the first hundred pictures is there.
        """
        self.where, self.folders, self.outside = str(where), list(folders), outside
        self.class_names, self.crowds, self.num_crowds = tuple(class_names), crowds, num_crowds
        self.box_format, self.normalized = box_format, normalized
        found = list(entries)
        names = [entry.name for entry in found]
        self.problems = list(problems)
        self.left_out = Counter(left_out or {})
        if not names:
            first = f"; the first: {self.problems[0].message}" if self.problems else ""
            raise UserError(f"no entry can be used{first} ({where})")
        self._pack(found)
        self._require_pictures(names)

    def _pack(self, entries: Sequence[Entry]) -> None:
        names, keys = [entry.name for entry in entries], [entry.key or entry.name for entry in entries]
        self._own_problems = {row: [*entry.problems] for row, entry in enumerate(entries) if entry.problems}
        self._names, self._keys = PackedTexts(names), PackedTexts(make_keys(keys))
        self._beside = PackedTexts(map(_beside, entries))
        self._sizes = np.array([entry.size_hw or (0, 0) for entry in entries], np.int64).reshape(-1, 2)
        self._starts = np.cumsum([0, *(len(entry.regions) for entry in entries)])
        regions = [region for entry in entries for region in entry.regions]
        self._boxes = np.array([region.box for region in regions], np.float64).reshape(-1, 4)
        self._scores = np.array([region.score for region in regions])
        self._texts = PackedTexts(region.text for region in regions)
        self._extras = PackedTexts(map(_extra, regions))

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> RegionSample:
        """A sample with its boxes checked.

        Raises:
            SampleError: On a broken entry or a wrong box; names it.
        """
        return finish(self.raw(index))

    def raw(self, index: int) -> RawSample:
        """A sample with its boxes as in the file.

        Raises:
            SampleError: If the picture's name leads out of the data set.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)} ({self.where})")
        height, width = self._sizes[index].tolist()
        beside = json.loads(self._beside[index])
        return RawSample(
            key=self._keys[index],
            image=self._picture(self._names[index]),
            size_hw=(height, width) if height else None,
            where=self.where,
            captions=tuple(beside["captions"]),
            regions=tuple(map(self._region, range(*self._starts[index : index + 2].tolist()))),
            box_format=self.box_format,
            normalized=self.normalized,
            metadata=beside["metadata"],
            texts=tuple(Text(*row) for row in beside["texts"]),
            problems=tuple(self._own_problems.get(index, ())),
        )

    def _region(self, row: int) -> RawRegion:
        extra = json.loads(self._extras[row])
        texts = tuple(Text(*text) for text in extra["texts"])
        box, span = tuple(self._boxes[row].tolist()), extra["span"]
        return RawRegion(
            box,
            self._texts[row],
            extra["where"],
            float(self._scores[row]),
            extra["source"],
            tuple(span) if span else None,
            texts=texts,
            crowd=extra.get("crowd", False),
        )

    def _picture(self, name: str) -> Path:
        for folder in self.folders:
            if find(folder, name) is not None:
                return resolve(folder, name, outside=self.outside)
        return resolve(self.folders[0], name, outside=self.outside)

    def _require_pictures(self, names: Sequence[str]) -> None:
        """Some picture must be where pictures may lie: of a wrong folder, all would be missing one by one."""
        tried = names[:TRIED]
        if not any(_is_there(folder, name) for name in tried for folder in self.folders):
            looked = ", ".join(map(str, self.folders))
            raise MissingFileError(
                f"pictures of {self.where} not found, such as {tried[0]!r}; looked in {looked}; give their "
                "folder as images=FOLDER"
            )


def _is_there(folder: Path, name: str) -> bool:
    try:
        return find(folder, name) is not None
    except (OSError, ValueError):  # a name that no file can have is its sample's problem
        return False


def _beside(entry: Entry) -> str:
    texts = [(text.text, text.role, text.source, text.weight) for text in entry.texts]
    document = {"captions": list(entry.captions), "metadata": dict(entry.metadata), "texts": texts}
    return json.dumps(document)


def _extra(region: RawRegion) -> str:
    texts = [(text.text, text.role, text.source, text.weight) for text in region.texts]
    document: dict[str, Any] = {
        "where": region.where,
        "source": region.source,
        "span": region.span,
        "texts": texts,
    }
    if region.crowd:
        document["crowd"] = True
    return json.dumps(document)


def picture_folders(path: Path, images: Path | None, *names: str) -> list[Path]:
    """Where the pictures of an annotation file may lie.

    Args:
        path: The annotation file, or the folder that holds it.
        images: The folder that the user gives; nothing else is tried then.
        names: Names of folders beside the file, or one above, that the data set's own layout has.
    """
    if images is not None:
        if not images.is_dir():
            raise MissingFileError(f"no such folder of pictures: {images}")
        base = [images]
    else:
        here = path if path.is_dir() else path.parent
        base = [here, here.parent]
    found = [folder / name for folder in base for name in names if (folder / name).is_dir()]
    return [*found, *base]


def file_in(path: Path, found: Sequence[Path], wanted: str) -> Path:
    """The path itself, or the only file of a data set in a folder.

    Args:
        path: A file or a folder.
        found: The folder's files of the data set.
        wanted: What they are called, for the message.

    Raises:
        MissingFileError: If nothing is there.
        UserError: If the folder holds none of them, or several.
    """
    if not path.exists():
        raise MissingFileError(f"no such annotation file or folder: {path}")
    if not path.is_dir():
        return path
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise UserError(f"{path} must hold one {wanted}; it holds {names}: give the file")
    return found[0]


def declared_size(entry: Mapping[str, Any]) -> tuple[int, int] | None:
    """(height, width) that an entry declares; None where it says nothing, and the picture does.

    Raises:
        FieldError: If it is no size.
    """
    sides = [entry.get("height"), entry.get("width")]
    return None if None in sides else (as_side(sides[0], "height"), as_side(sides[1], "width"))


def of_image(number: str) -> dict[str, int | str]:
    """Metadata of a sample whose picture has a number, as COCO's readers give it."""
    return {"image_id": int(number) if number.isdecimal() and len(number) < 19 else number}


def problem_in(error: FieldError, what: str, where: object) -> Problem:
    """A part of a file that cannot be used."""
    return Problem(error.cause, f"{what}: {error} ({where})")


def looks_like(file: Path, suffixes: Sequence[str], form: Iterable[re.Pattern[bytes]]) -> bool:
    """Whether a file has one of these suffixes, and its beginning all parts of a form."""
    if file.suffix.lower() not in suffixes or not is_regular(file):
        return False
    with file.open("rb") as stream:
        head = stream.read(HEAD)
    return all(pattern.search(head) for pattern in form)


def json_lines(file: Path, problems: list[Problem]) -> Iterator[tuple[int, Any]]:
    """The number and the value of each line of JSON; a line that is none becomes a problem."""
    for number, line in enumerate(read_lines(file), 1):
        if not line.strip():
            continue
        try:
            yield number, parse_json(line, f"{file}, line {number}")
        except UserError as error:
            problems.append(Problem("broken line", f"line {number}: {error}"))


def json_list(file: Path, what: str, key: str = "") -> list[Any]:
    """The list that a JSON file is, or holds under a key.

    Args:
        file: The file.
        what: Whose form it should have, for the message.
        key: Where the list stands; empty where it is the whole.

    Raises:
        MissingFileError: If the file is not there.
        UserError: If there is no such list.
    """
    return list_in(read_json(file), file, what, key)


def list_in(document: Any, file: Path, what: str, key: str = "") -> list[Any]:
    """The same of a file that was read; raises `UserError` as `json_list`."""
    found = document.get(key) if key and isinstance(document, dict) else document
    if not isinstance(found, list):
        where = f" {key!r}" if key else ""
        raise UserError(f"{what}'s JSON is a list{where}; got {shown(found)} ({file})")
    return found


def as_object(value: Any) -> Mapping[str, Any]:
    """An object of JSON.

    Raises:
        FieldError: If it is none.
    """
    if not isinstance(value, dict):
        raise FieldError(f"must be an object; got {shown(value)}")
    return value


def count_keys(row: Mapping[str, Any], known: Iterable[str], left_out: Counter[str], of: str) -> None:
    """Count a row's keys that are neither read nor of its format, by name.

    Args:
        row: An object of JSON.
        known: Keys of the format, those that are not read as well.
        left_out: Grows.
        of: What the row is called, in the plural.
    """
    left_out.update(f"{of}' key {name!r}" for name in row.keys() - known)


def entries_of(
    rows: Iterable[tuple[object, Any]],
    read: Callable[[Any], Entry | None],
    file: Path,
    problems: list[Problem],
) -> Iterator[Entry]:
    """Rows read one by one; one that cannot be used becomes a problem, None is left out.

    Args:
        rows: What each is called in messages, and the row.
        read: Makes an entry of it.
        file: Where rows stand.
        problems: Grows.
    """
    for name, row in rows:
        try:
            entry = read(row)
        except FieldError as error:
            problems.append(problem_in(error, str(name), file))
            continue
        if entry is not None:
            yield entry
