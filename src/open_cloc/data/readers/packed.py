"""Entries of a list-like format, packed so that worker processes share them, and its pictures found.

A reader that parses a file of its own gives `Entry` after `Entry`; this is the rest.
"""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from open_cloc.data.annotations import Problem, RawRegion, RawSample, finish
from open_cloc.data.fields import FieldError
from open_cloc.data.names import find, make_keys, resolve
from open_cloc.errors import MissingFileError, UserError
from open_cloc.samples import RegionSample, Text
from open_cloc.texts import PackedTexts

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
    """

    def __init__(
        self,
        where: Path,
        folders: Sequence[Path],
        entries: Iterable[Entry],
        *,
        box_format: str = "xywh",
        problems: Sequence[Problem] = (),
        left_out: Mapping[str, int] | None = None,
        outside: bool = False,
    ) -> None:
        """Pack entries, and see that their pictures are there.

        Args:
            where: The file, for messages.
            folders: Where pictures may lie, tried in turn.
            entries: What was read.
            box_format: Of all boxes, which are in pixels.
            problems: Entries that could not be read; looked at when all were.
            left_out: What the reader saw and does not use; likewise.
            outside: Allow pictures that do not lie in these folders.

        Raises:
            UserError: If there is no entry that can be used.
            MissingFileError: If none of the first hundred pictures is there.
        """
        self.where, self.folders, self.outside = str(where), list(folders), outside
        self.box_format = box_format
        names, keys, sizes, counts = [], [], array("q"), array("q")
        texts, extras, boxes, scores, beside = [], [], array("d"), array("d"), []
        self._own_problems: dict[int, list[Problem]] = {}
        for number, entry in enumerate(entries):
            names.append(entry.name)
            keys.append(entry.key or entry.name)
            sizes.extend(entry.size_hw or (0, 0))
            counts.append(len(entry.regions))
            beside.append(_beside(entry))
            if entry.problems:
                self._own_problems[number] = list(entry.problems)
            for region in entry.regions:
                boxes.extend(region.box)
                scores.append(region.score)
                texts.append(region.text)
                extras.append(_extra(region))
        self.problems = list(problems)
        self.left_out = Counter(left_out or {})
        if not names:
            first = f"; the first: {self.problems[0].message}" if self.problems else ""
            raise UserError(f"no entry can be used{first} ({where})")
        self._names, self._keys, self._beside = map(PackedTexts, (names, make_keys(keys), beside))
        self._sizes = np.array(sizes, np.int64).reshape(-1, 2)
        self._starts = np.cumsum([0, *counts])
        self._boxes, self._scores = np.array(boxes, np.float64).reshape(-1, 4), np.array(scores)
        self._texts, self._extras = PackedTexts(texts), PackedTexts(extras)
        self._require_pictures(names)

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
            normalized=False,
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
    document = {"where": region.where, "source": region.source, "span": region.span, "texts": texts}
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


def problem_in(error: FieldError, what: str, where: object) -> Problem:
    """A part of a file that cannot be used."""
    return Problem(error.cause, f"{what}: {error} ({where})")
