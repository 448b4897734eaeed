"""YOLO's text files as Ultralytics and Roboflow lay them out: one a picture, and a `data.yaml` for all.

A line is `class x y w h`, normalised with the box's centre first; `class x y w h score`, as detectors write
their guesses; or `class x1 y1 x2 y2 x3 y3 ...`, an outline whose bounding box is taken. A line that is wrong
costs its region.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from open_cloc.data.annotations import Problem, RawRegion, RawSample, finish
from open_cloc.data.fields import FieldError, as_text, shown
from open_cloc.data.names import is_below, is_url, make_keys, printable, resolve
from open_cloc.data.readers.coco_entries import shared_names
from open_cloc.data.readers.files import Listing, is_regular, list_files
from open_cloc.data.readers.unread import form_of
from open_cloc.data.readers.yaml_files import read_yaml
from open_cloc.errors import MissingFileError, UserError
from open_cloc.files import read_text
from open_cloc.pictures import is_picture
from open_cloc.samples import RegionSample
from open_cloc.texts import PackedTexts, sound_text

CONFIG = "data.yaml"
SPLITS = ("train", "val", "test")
LABELS = (".txt", ".TXT")  # suffixes of text files, in the order in which they are looked for
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def recognises(text: str) -> bool:
    """Whether this is a YAML file, or a folder with a `data.yaml`."""
    path = Path(text)
    return (path / CONFIG).is_file() or (path.suffix in (".yaml", ".yml") and path.is_file())


def open_yolo(path: str, split: str = "", outside: bool = False) -> YoloDataset:
    """Open one split of a YOLO data set.

    Args:
        path: The YAML file, or a folder with a `data.yaml`.
        split: Which of the file's lists of pictures: `train`, `val` or `test`; `train` unless given.
        outside: Allow pictures and text files that do not lie in the YAML file's folder.

    Raises:
        MissingFileError: If the file or the split's pictures are not there.
        UserError: If the file is no such YAML, lacks names or the split, or no picture has a text file.
    """
    file = Path(path) / CONFIG if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise MissingFileError(f"no such data set: {file}; expected a YAML file or a folder with {CONFIG}")
    config = read_yaml(file)
    if not isinstance(config, dict):
        raise UserError(
            f"a YOLO data set is a table of names and splits; got {type(config).__name__} ({file})"
        )
    there = [name for name in SPLITS if config.get(name)]
    if (split or "train") not in there:
        expected = ", ".join(there) or "none"
        raise UserError(f"no split {split or 'train'!r}; expected one of {expected} ({file})")
    names = class_names(config, file)
    pictures = Pictures.find(config, split or "train", file, outside)
    dataset = YoloDataset(pictures, names, "kpt_shape" in config, outside)
    dataset.left_out.update(
        f"file {other.name}" for other in sorted(file.parent.glob("*.y*ml")) if other.name != file.name
    )
    if type(config.get("nc")) is int and config["nc"] != len(names):
        message = f"nc says {config['nc']} classes, names has {len(names)} ({file})"
        dataset.problems.append(Problem("another number of classes", message))
    if not split:
        dataset.left_out.update(f"split {name!r}; give split={name}" for name in there if name != "train")
    return dataset


class Pictures(NamedTuple):
    """The pictures of a split.

    Attributes:
        root: The folder that names start from.
        home: The YAML file's folder; files lie in one of the two.
        names: Paths of pictures below `root`, or beside it.
        where: The YAML file and the split, for messages.
        listings: What was found below the folders that the split names.
        are_listed: Whether a text file names some of them: the folders then may hold more.
        repeated: How often a picture was named once more.
    """

    root: Path
    home: Path
    names: list[str]
    where: str
    listings: list[Listing]
    are_listed: bool
    repeated: int

    @classmethod
    def find(cls, config: Mapping[str, Any], split: str, file: Path, outside: bool) -> Pictures:
        """Find the pictures of a split.

        Raises:
            MissingFileError: If a folder or a list that it names is not there, or there is no picture.
            UserError: If it names none as text, or leads out of the data set.
        """
        root = _root(config, file, outside)
        given = config[split] if isinstance(config[split], list) else [config[split]]
        places = [_place(root, _as_path(value, split, file), file, outside) for value in given]
        folders = [place for place in places if os.path.isdir(place)]
        names, listings = [], []
        for place in places:
            if place in folders:
                listings.append(list_files(place, outside))
                inside = [name for name in listings[-1].files if is_picture(name)]
            else:
                lines = (line.strip() for line in read_text(place).splitlines())
                inside, place = [line for line in lines if line], place.parent
            names += [name if is_url(name) else os.path.relpath(place / name, root) for name in inside]
        num_named, names = len(names), list(dict.fromkeys(names))
        if not names:
            raise MissingFileError(f"no pictures of split {split!r} ({file})")
        where = f"split {split!r} of {file}"
        repeated = num_named - len(names)
        return cls(root, file.parent, names, where, listings, len(folders) < len(places), repeated)


def _as_path(value: Any, name: str, file: Path) -> str:
    try:
        return as_text(value, name)
    except FieldError as error:
        raise UserError(f"{error} ({file})") from error


def _root(config: Mapping[str, Any], file: Path, outside: bool) -> Path:
    """The folder that `path` names; where the file has moved since, it is one of another machine."""
    root = file.parent / _as_path(config.get("path") or ".", "path", file)
    if not os.path.isdir(root):
        return file.parent
    if not outside and not _is_inside(root, file.parent):
        raise UserError(
            f"path {str(root)!r} leads out of the data set in {file.parent}; give outside=true to allow it "
            f"({file})"
        )
    return root


def _place(root: Path, place: str, file: Path, outside: bool) -> Path:
    """The folder or list that a split names."""
    own = place.replace("\\", "/")
    # Roboflow writes `../train/images` for a folder beside the file.
    candidates = [root / own.removeprefix("../"), root / own]
    found = [path for path in candidates if os.path.exists(path) and (outside or _is_inside(path, root))]
    if found:
        return found[-1] if outside else found[0]
    if any(map(os.path.exists, candidates)):
        raise UserError(
            f"{place!r} leads out of the data set in {root}; give outside=true to allow it ({file})"
        )
    raise MissingFileError(f"no such folder of pictures: {root / own} ({file})")


def _is_inside(path: Path, folder: Path) -> bool:
    return is_below(os.path.realpath(path), os.path.realpath(folder))


class YoloDataset:
    """Pictures with the boxes of the text files beside them; a picture without one shows nothing.

    Attributes:
        file_names: Paths of the pictures, below `root` where they lie there.
        keys: One for each picture.
        class_names: Names of the classes, by number.
        problems: Entries that cannot be used and belong to no sample.
        left_out: What was seen and is not used, with counts.
    """

    def __init__(
        self,
        pictures: Pictures,
        class_names: Sequence[str],
        has_keypoints: bool = False,
        outside: bool = False,
    ) -> None:
        """Take note of pictures; their text files are read when asked for.

        Args:
            pictures: Those of a split.
            class_names: Names of the classes, by number.
            has_keypoints: Whether a line's box is followed by points of a pose, which are passed over.
            outside: Allow files that do not lie in the data set.

        Raises:
            UserError: If no picture has a text file.
        """
        self.root, self.home, self.outside = pictures.root, pictures.home, outside
        self.class_names, self.has_keypoints = tuple(class_names), has_keypoints
        self.file_names = PackedTexts(pictures.names)
        self.keys = PackedTexts(make_keys(pictures.names))
        self.problems = [problem for listing in pictures.listings for problem in listing.problems]
        self.left_out: Counter[str] = +Counter({"pictures that the split names again": pictures.repeated})
        self.left_out += shared_names(self.class_names)
        for listing in pictures.listings:
            self.left_out += listing.skipped
            others = (n for n in listing.files if not is_picture(n) and not n.endswith(LABELS))
            self.left_out.update(
                f"files {PurePosixPath(n).suffix.lower() or 'without a suffix'}" for n in others
            )
        self._count_labels(pictures)

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> RegionSample:
        """A sample with its boxes checked; its picture is not decoded.

        Raises:
            SampleError: On a line that is wrong; names the file and the line.
        """
        return finish(self.raw(index))

    def raw(self, index: int) -> RawSample:
        """A sample with its boxes as in the file (normalised `cxcywh`).

        Raises:
            SampleError: If the picture or its text file leads out of the data set, or the text is none.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)} ({self.root})")
        name = self.file_names[index]
        image = resolve(self.root, name, self.home, self.outside)
        labels = self._labels(name)
        regions, problems = self._read(labels) if os.path.exists(labels) else ((), ())
        return RawSample(
            key=self.keys[index],
            image=image,
            size_hw=None,
            where=str(labels),
            regions=regions,
            box_format="cxcywh",
            metadata={"file_name": printable(name)},
            problems=problems,
        )

    def _labels(self, picture: str) -> Path:
        """The text file of a picture, which may not be there."""
        stem = label_stem(picture)
        files = (resolve(self.root, f"{stem}{suffix}", self.home, self.outside) for suffix in LABELS)
        first = next(files)
        if os.path.exists(first):
            return first
        return next(filter(os.path.exists, files), first)

    def _read(self, labels: Path) -> tuple[tuple[RawRegion, ...], tuple[Problem, ...]]:
        """The regions of a text file, and the lines that cannot be read."""
        regions, problems = [], []
        for number, line in enumerate(read_text(labels).splitlines(), start=1):
            if not line.strip():
                continue
            try:
                regions.append(self._region(line, f"line {number}"))
            except FieldError as error:
                problems.append(Problem(error.cause, f"{error} ({labels}, line {number})"))
        return tuple(regions), tuple(problems)

    def _region(self, line: str, where: str) -> RawRegion:
        words = line.split()
        if not all(map(NUMBER.fullmatch, words)):
            raise FieldError(f"a line must be numbers; got {shown(line.strip())}", "broken line")
        # What a tracker adds is no corner.
        if len(words) == 7 and words[-1].isdecimal() and not self.has_keypoints:
            raise FieldError(
                "a line of 7 numbers whose last is whole may be an outline of three points, or a box with a "
                "score and the number of a track: cut it down to class x y w h score; got "
                f"{shown(line.strip())}",
                "broken line",
            )
        number, *numbers = map(float, words)
        box, score = _box_and_score(numbers, self.has_keypoints)
        if not box:
            raise FieldError(
                "a line must be a class, then x y w h, these with a score, or an outline; got "
                f"{shown(line.strip())}",
                "broken line",
            )
        if not 0 <= score <= 1:
            raise FieldError(f"score must be in [0, 1]; got {score:g}", "broken line")
        if number not in range(len(self.class_names)):
            last = len(self.class_names) - 1
            raise FieldError(f"unknown class {number:g}; expected 0 to {last}", "unknown class")
        return RawRegion(box, self.class_names[int(number)], where, score, source="yolo")

    def _count_labels(self, pictures: Pictures) -> None:
        """Count pictures without a text file; boxes without their picture are problems.

        Raises:
            UserError: If no picture has one.
        """
        expected = {os.path.normpath(label_stem(name)) for name in pictures.names}
        found: dict[str, str] = {}
        for folder in {os.path.dirname(stem) for stem in expected}:
            found |= {os.path.join(folder, stem): suffix for stem, suffix in _text_stems(self.root / folder)}
        if not expected & found.keys():
            first = self.root / f"{label_stem(pictures.names[0])}{LABELS[0]}"
            raise UserError(
                f"none of {len(pictures.names)} pictures has a text file of boxes, such as {first} "
                f"({pictures.where}); give folder:PATH for pictures alone"
            )
        self.left_out += Counter(
            {"pictures without a text file, taken to show nothing": len(expected - found.keys())}
        )
        if pictures.are_listed:  # others of the folder belong to other splits
            return
        for stem in sorted(found.keys() - expected):
            file = self.root / f"{stem}{found[stem]}"
            if form_of(file) == "YOLO" or (is_regular(file) and not file.stat().st_size):
                message = f"no picture of {printable(str(file))} ({pictures.where})"
                self.problems.append(Problem("text file without a picture", message))
            else:
                self.left_out["text files without boxes and without a picture"] += 1


def _text_stems(folder: Path) -> Iterator[tuple[str, str]]:
    """Names of the text files in a folder, and their suffixes."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if not entry.name.startswith(".")]
    except OSError:  # none is there
        return
    for name in names:
        if name.endswith(LABELS) and name not in ("classes.txt", "README.txt", "README.roboflow.txt"):
            yield name[: -len(LABELS[0])], name[-len(LABELS[0]) :]


def label_stem(picture: str) -> str:
    """The text file of a picture, without suffix: in `labels` for the last folder `images`, or beside it."""
    parts = list(PurePosixPath(picture.replace("\\", "/")).parts)
    folders = parts[:-1]
    if "images" in folders:
        parts[len(folders) - 1 - folders[::-1].index("images")] = "labels"
    return str(PurePosixPath(*parts).with_suffix(""))


def class_names(config: Mapping[str, Any], where: Path) -> tuple[str, ...]:
    """The classes' names, which the YAML lists or numbers.

    Raises:
        UserError: If there are none, their numbers have gaps, or one is no text, such as `no` or `5`.
    """
    names = config.get("names")
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not names or set(names) != set(range(len(names))):
        got = sorted(map(shown, names))[:8] if isinstance(names, dict) else type(names).__name__
        raise UserError(f"names must list the classes, or number them from 0; got {got} ({where})")
    return tuple(_class_name(names[number], number, where) for number in range(len(names)))


def _class_name(name: Any, number: int, where: Path) -> str:
    try:
        what = f"name of class {number}"
        return as_text(sound_text(as_text(name, what)), what)
    except FieldError as error:
        advice = "" if isinstance(name, str) else '; put it into quotes, as in "no"'
        raise UserError(f"{error}{advice} ({where})") from error


def _box_and_score(numbers: Sequence[float], has_keypoints: bool) -> tuple[tuple[float, ...], float]:
    """The `cxcywh` and the score of a line's numbers behind the class; an empty box if they are none."""
    if len(numbers) == 4 or (has_keypoints and len(numbers) > 4):
        return tuple(numbers[:4]), 1.0
    if len(numbers) == 5:
        return tuple(numbers[:4]), numbers[4]
    if len(numbers) < 6 or len(numbers) % 2:
        return (), 1.0
    points = np.array(numbers).reshape(-1, 2)
    low, high = points.min(0), points.max(0)
    return (*((low + high) / 2).tolist(), *(high - low).tolist()), 1.0
