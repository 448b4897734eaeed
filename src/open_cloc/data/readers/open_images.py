"""Open Images: a CSV with a box a row, its four numbers as shares in an order of their own.

Its training split has 14.6 million boxes: they are kept as arrays.

Shapes: X boxes of the file.
"""

from __future__ import annotations

import csv
import re
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from open_cloc.data.annotations import Problem, RawRegion, RawSample, finish
from open_cloc.data.fields import FieldError, as_text
from open_cloc.data.names import find, make_keys, resolve
from open_cloc.data.readers.packed import looks_like, picture_folders, problem_in
from open_cloc.errors import MissingFileError, UserError
from open_cloc.files import read_text
from open_cloc.samples import RegionSample
from open_cloc.texts import PackedTexts

SOURCE, GROUPS = "open_images", "boxes of groups"
FOLDERS = ("train", "validation", "test", "images")
BOX = ("XMin", "XMax", "YMin", "YMax")
NEEDED = ("ImageID", "LabelName", *BOX)
CLASSES = "*class-descriptions*.csv"
TRIED = 100


def recognises(text: str) -> bool:
    """Whether this is a CSV of Open Images' boxes."""
    return looks_like(Path(text), (".csv",), [re.compile(rb"ImageID.*LabelName.*XMin,XMax,YMin,YMax")])


def open_open_images(
    path: str,
    images: Path | None = None,
    classes: Path | None = None,
    crowds: bool = False,
    outside: bool = False,
) -> OpenImagesDataset:
    """Open a split's boxes.

    Args:
        path: Such as `validation-annotations-bbox.csv`.
        images: Folder of the pictures `IMAGEID.jpg`; beside the file unless given.
        classes: `class-descriptions-boxable.csv`, with a name for `/m/011k07`; beside the file unless given.
        crowds: Take the boxes of groups (`IsGroupOf`) as well.
        outside: Allow pictures that do not lie in the data set's folder.

    Raises:
        MissingFileError: If a file or the pictures are missing.
        UserError: If it is no such file, or no box of it can be used.
    """
    file = Path(path)
    names = _read_classes(_classes_file(file, classes))
    rows = _Rows(file, names, crowds)
    return OpenImagesDataset(
        file, picture_folders(file, images, *FOLDERS), rows, tuple(names.values()), outside
    )


def _classes_file(file: Path, given: Path | None) -> Path:
    if given is not None:
        return given
    found = [one for folder in (file.parent, file.parent.parent) for one in sorted(folder.glob(CLASSES))]
    if not found:
        raise MissingFileError(
            f"no {CLASSES} beside {file}, which says what its labels are: give classes=FILE"
        )
    return found[0]


def _read_classes(file: Path) -> dict[str, str]:
    """Names by the labels' ids; some releases have a header."""
    rows = [row for row in csv.reader(read_text(file).splitlines()) if row]
    names = {row[0]: row[1].strip() for row in rows if len(row) == 2 and row[0] != "LabelName"}
    if not names:
        raise UserError(f"class descriptions have two columns, label and name; got none ({file})")
    return names


class _Rows:
    """The boxes of a CSV, as arrays sorted by picture.

    Attributes:
        images: Ids of the pictures, in the order of their first boxes.
        starts: (pictures + 1,) where each picture's boxes begin.
        boxes: (X, 4) float32 `xyxy` as shares.
        classes: (X,) int16.
        lines: (X,) line of the file.
        are_groups: (X,) bool.
        problems: Rows that cannot be used.
        num_groups: Rows of groups.
        with_groups: Whether they are among the boxes.
    """

    def __init__(self, file: Path, names: dict[str, str], groups: bool) -> None:
        numbers = {label: number for number, label in enumerate(names)}
        known: dict[str, int] = {}
        table, boxes = array("q"), array("f")
        self.problems: list[Problem] = []
        self.num_groups, self.with_groups = 0, groups
        for line, row in _csv_rows(file):
            is_group = row.get("IsGroupOf") == "1"
            self.num_groups += is_group
            if is_group and not groups:
                continue
            try:
                image = as_text(row["ImageID"], "ImageID")
                label = row["LabelName"]
                if label not in numbers:
                    raise FieldError(f"unknown LabelName {label!r:.60}", "unknown label")
                box = [_share(row[name], name) for name in BOX]
            except FieldError as error:
                self.problems.append(problem_in(error, f"line {line}", file))
                continue
            table.extend((known.setdefault(image, len(known)), numbers[label], line, is_group))
            boxes.extend((box[0], box[2], box[1], box[3]))
        if not known:
            first = f"; the first: {self.problems[0].message}" if self.problems else ""
            raise UserError(f"no box can be used{first} ({file})")
        rows = np.array(table, np.int64).reshape(-1, 4)
        order = rows[:, 0].argsort(kind="stable")
        self.images = list(known)
        self.starts = np.concatenate([[0], np.bincount(rows[:, 0]).cumsum()])
        self.boxes = np.array(boxes, np.float32).reshape(-1, 4)[order]
        self.classes, self.lines = rows[order, 1].astype(np.int16), rows[order, 2]
        self.are_groups = rows[order, 3].astype(bool)


def _csv_rows(file: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a CSV of boxes, each with the number of its line.

    Raises:
        MissingFileError: If it is not there.
        UserError: If it is no such CSV, or no text.
    """
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            missing = [name for name in NEEDED if name not in (reader.fieldnames or ())]
            if missing:
                raise UserError(f"Open Images' boxes need a column {missing[0]} ({file})")
            yield from enumerate(reader, 2)
    except FileNotFoundError:
        raise MissingFileError(f"no such annotation file: {file}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"Open Images' boxes are a CSV in UTF-8; this is none: {error} ({file})") from None


def _share(text: str | None, name: str) -> float:
    try:
        return float(text or "")
    except ValueError:
        raise FieldError(f"{name} must be a number; got {text!r:.40}", "broken box") from None


class OpenImagesDataset:
    """Pictures with the boxes of a CSV.

    Attributes:
        class_names: Names of all labels.
        crowds: Whether boxes of groups are among the regions.
        num_crowds: How many there are, among the regions or not.
        problems: Rows that cannot be used.
        left_out: What was seen and is not used, with counts.
    """

    def __init__(
        self, where: Path, folders: Sequence[Path], rows: _Rows, class_names: Sequence[str], outside: bool
    ) -> None:
        """Keep the rows, and see that pictures are there.

        Args:
            where: The CSV.
            folders: Where pictures may lie.
            rows: Its boxes.
            class_names: Names of all labels.
            outside: Allow pictures that do not lie in these folders.

        Raises:
            MissingFileError: If none of the first hundred pictures is there.
        """
        self.where, self.folders, self.outside = str(where), list(folders), outside
        self.class_names = tuple(dict.fromkeys(class_names))
        self._names, self._texts = PackedTexts(rows.images), tuple(class_names)
        self._keys = PackedTexts(make_keys([f"{image}.jpg" for image in rows.images]))
        self._starts, self._boxes, self._classes = rows.starts, rows.boxes, rows.classes
        self._lines, self._are_groups = rows.lines, rows.are_groups
        self.problems, self.num_crowds = rows.problems, rows.num_groups
        self.crowds = rows.with_groups
        self.left_out = Counter({GROUPS: 0 if rows.with_groups else rows.num_groups})
        self.left_out += Counter()  # without what is 0
        if not any(self._find(number) for number in range(min(TRIED, len(self)))):
            looked = ", ".join(map(str, self.folders))
            raise MissingFileError(
                f"pictures of {where} not found, such as {rows.images[0]}.jpg; looked in {looked}; give "
                "their folder as images=FOLDER"
            )

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> RegionSample:
        """A sample with its boxes checked.

        Raises:
            SampleError: On a wrong box; names it.
        """
        return finish(self.raw(index))

    def raw(self, index: int) -> RawSample:
        """A sample with its boxes as in the file.

        Raises:
            SampleError: If the picture's name leads out of the data set.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)} ({self.where})")
        rows = range(*self._starts[index : index + 2].tolist())
        folder = self._find(index) or self.folders[0]
        return RawSample(
            key=self._keys[index],
            image=resolve(folder, f"{self._names[index]}.jpg", outside=self.outside),
            size_hw=None,
            where=self.where,
            regions=tuple(map(self._region, rows)),
            metadata={"image_id": self._names[index]},
        )

    def _region(self, row: int) -> RawRegion:
        text, where = self._texts[self._classes[row]], f"line {int(self._lines[row])}"
        box, is_group = tuple(self._boxes[row].astype(float).tolist()), bool(self._are_groups[row])
        return RawRegion(box, text, where, source=SOURCE, crowd=is_group)

    def _find(self, index: int) -> Path | None:
        """The folder in which a picture lies."""
        name = f"{self._names[index]}.jpg"
        return next((folder for folder in self.folders if find(folder, name) is not None), None)
