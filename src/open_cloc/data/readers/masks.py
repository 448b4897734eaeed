"""Pictures with label maps, a PNG each whose numbers are classes: VOC, ADE20k, COCO-Stuff, Cityscapes."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from open_cloc.data.annotations import Problem
from open_cloc.data.label_maps import NO_CLASS, as_classes, read_numbers
from open_cloc.data.names import find, resolve
from open_cloc.data.readers.files import list_files
from open_cloc.data.readers.packed import Entry, PackedDataset
from open_cloc.errors import MissingFileError, SampleError, UserError
from open_cloc.files import read_names
from open_cloc.pictures import is_picture


def recognises(text: str) -> bool:
    """Never: where labels lie, and what their numbers mean, has to be told."""
    return False


def open_masks(
    path: str,
    labels: Path,
    classes: Path,
    first: int = 0,
    ignore: int = 255,
    picture_end: str = "",
    label_end: str = ".png",
    split: Path | None = None,
    outside: bool = False,
) -> MaskDataset:
    """Open pictures with label maps.

    A picture without its label map is a problem, and so is a label map without its picture: of a split, one
    of the two is missing. Who means some of the pictures names them in `split`.

    Args:
        path: Folder of the pictures, in folders of its own or not.
        labels: Folder of the label maps, in the same folders, of the pictures' names.
        classes: File with one class a line, several names of one joined by `, `.
        first: The number of the first class; smaller ones are no class. 1 for ADE20k, and for VOC without its
            background.
        ignore: A number that is no class either.
        picture_end: What a picture's name ends with before its suffix and a label map's does not, such as
            Cityscapes' `_leftImg8bit`.
        label_end: What a label map's name ends with instead, its suffix included, such as
            `_gtFine_labelTrainIds.png`.
        split: File with the names of the pictures to take, without suffix, one a line.
        outside: Allow files that do not lie in the folders.

    Raises:
        MissingFileError: If a folder or a file is missing, or a picture or a label map of a split.
        UserError: If there is no picture with a label map, or no class.
    """
    folder = Path(path)
    for place in (folder, labels):
        if not place.is_dir():
            raise MissingFileError(f"no such folder: {place}")
    names = read_names(classes)
    found = _Pairs.of(folder, labels, (picture_end, label_end), split, outside)
    others = f"pictures whose names do not end with {picture_end}"
    return MaskDataset(
        folder,
        [Entry(name) for name in found.pairs],
        labels,
        list(found.pairs.values()),
        names,
        (first, ignore),
        {others: found.others} if found.others else {},
        outside,
        found.problems,
    )


class _Pairs(NamedTuple):
    """Pictures and label maps that belong together by their names.

    Attributes:
        pairs: The label map of each picture that has one.
        lone: The label map that each other picture should have.
        others: How many pictures are none of the data set's by their names.
        problems: What was not found, or cannot be looked at.
    """

    pairs: dict[str, str]
    lone: dict[str, str]
    others: int
    problems: list[Problem]

    @classmethod
    def of(
        cls, folder: Path, labels: Path, ends: tuple[str, str], split: Path | None, outside: bool
    ) -> _Pairs:
        """Look for the label map of each picture that is wanted; see `open_masks`.

        Raises:
            MissingFileError: If a picture of a split is missing, or its label map.
            UserError: If no picture has a label map.
        """
        pictures, maps = list_files(folder, outside), list_files(labels, outside)
        wanted = None if split is None else set(read_names(split))
        found = cls({}, {}, 0, [*pictures.problems, *maps.problems])._filled(
            pictures.files, labels, ends, wanted
        )
        if wanted is not None and (missing := len(wanted) - len(found.pairs)):
            raise MissingFileError(
                f"{missing} of the {len(wanted)} pictures of {split} are not in {folder}, or have no label "
                f"map in {labels}"
            )
        if not found.pairs:
            lone = len(found.lone)
            raise UserError(
                f"no picture in {folder} has a label map NAME{ends[1]} in {labels}; {lone} have none"
            )
        if wanted is None:
            ending = [name for name in maps.files if name.endswith(ends[1])]
            found.problems.extend(_unpaired(found, folder, labels, ending))
        return found

    def _filled(
        self, files: Sequence[str], labels: Path, ends: tuple[str, str], wanted: set[str] | None
    ) -> _Pairs:
        """The same with those of `files` that are pictures, and wanted."""
        picture_end, label_end = ends
        others = 0
        for name in files:
            stem = PurePosixPath(name).with_suffix("").as_posix()
            if not is_picture(name) or (wanted is not None and stem not in wanted):
                continue
            if not stem.endswith(picture_end):
                others += 1
                continue
            map_name = stem.removesuffix(picture_end) + label_end
            (self.lone if find(labels, map_name) is None else self.pairs)[name] = map_name
        return self._replace(others=others)


def _unpaired(found: _Pairs, folder: Path, labels: Path, maps: Sequence[str]) -> list[Problem]:
    """Pictures and label maps of which the other is missing; both may lie in one folder."""
    advice = f"; name the pictures that are meant by split=FILE ({folder})"
    used = {unicodedata.normalize("NFC", name) for name in found.pairs.values()}
    own = {os.path.realpath(labels / name) for name in maps} if found.lone else set()
    without_map = [
        Problem("picture without a label map", f"{name!r} has no label map {labels / map_name}{advice}")
        for name, map_name in found.lone.items()
        if os.path.realpath(folder / name) not in own
    ]
    pictures = {os.path.realpath(folder / name) for name in found.pairs} if maps else set()
    return without_map + [
        Problem("label map without a picture", f"{labels / name} is of no picture{advice}")
        for name in maps
        if unicodedata.normalize("NFC", name) not in used and os.path.realpath(labels / name) not in pictures
    ]


class MaskDataset(PackedDataset):
    """Pictures without boxes, each with a class for every pixel.

    Attributes:
        class_names: A class each, several names of one joined by `, `.
    """

    def __init__(
        self,
        folder: Path,
        entries: Sequence[Entry],
        labels: Path,
        maps: Sequence[str],
        class_names: Sequence[str],
        numbers: tuple[int, int],
        left_out: dict[str, int],
        outside: bool,
        problems: Sequence[Problem],
    ) -> None:
        """Pack the pictures.

        Args:
            folder: Where pictures lie.
            entries: The pictures.
            labels: Where label maps lie.
            maps: The label map of each picture.
            class_names: As above.
            numbers: Of the first class, and of what is no class.
            left_out: What the reader saw and does not use.
            outside: Allow files that do not lie in the folders.
            problems: Pictures and label maps of which the other is missing.
        """
        super().__init__(
            folder,
            [folder],
            entries,
            problems=problems,
            left_out=left_out,
            outside=outside,
            class_names=class_names,
        )
        self.labels, self.maps, self.numbers = labels, list(maps), numbers

    has_label_maps = True

    def label_map(self, index: int) -> np.ndarray:
        """The class of each pixel of a picture: (H, W) int64, `NO_CLASS` where there is none.

        Raises:
            SampleError: If the file is no label map, or holds a number that is no class.
        """
        first, ignore = self.numbers
        file = resolve(self.labels, self.maps[index], outside=self.outside)
        found = read_numbers(file)
        classes = as_classes(found, first, ignore, len(self.class_names))
        unknown = (classes == NO_CLASS) & (found >= first) & (found != ignore)
        if unknown.any():
            raise SampleError(
                f"label map holds {found[unknown].max()}, which is none of the {len(self.class_names)} "
                f"classes from {first} on, nor ignore={ignore} ({file})",
                "unknown class in a label map",
            )
        return classes
