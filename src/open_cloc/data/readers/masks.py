"""Pictures with label maps, a PNG each whose numbers are classes: VOC, ADE20k, COCO-Stuff, Cityscapes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

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
    wanted = None if split is None else set(read_names(split))
    pairs, without = _pairs(list_files(folder, outside).files, labels, (picture_end, label_end), wanted)
    if wanted is not None and (missing := len(wanted) - len(pairs)):
        raise MissingFileError(
            f"{missing} of the {len(wanted)} pictures of {split} are not in {folder}, or have no label "
            f"map in {labels}"
        )
    if not pairs:
        raise UserError(
            f"no picture in {folder} has a label map NAME{label_end} in {labels}; {without} have none"
        )
    left_out = {"pictures without a label map": without} if without else {}
    entries, maps = [Entry(name) for name, _ in pairs], [map_name for _, map_name in pairs]
    return MaskDataset(folder, entries, labels, maps, names, (first, ignore), left_out, outside)


def _pairs(
    files: Sequence[str], labels: Path, ends: tuple[str, str], wanted: set[str] | None
) -> tuple[list[tuple[str, str]], int]:
    """Each picture's name with that of its label map, and how many pictures have none."""
    picture_end, label_end = ends
    pairs, without = [], 0
    for name in files:
        stem = PurePosixPath(name).with_suffix("").as_posix()
        if not is_picture(name) or (wanted is not None and stem not in wanted):
            continue
        map_name = stem.removesuffix(picture_end) + label_end
        if stem.endswith(picture_end) and find(labels, map_name) is not None:
            pairs.append((name, map_name))
        else:
            without += 1
    return pairs, without


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
        """
        super().__init__(
            folder, [folder], entries, left_out=left_out, outside=outside, class_names=class_names
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
