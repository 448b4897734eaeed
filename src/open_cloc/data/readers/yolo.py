"""YOLO's text files as Ultralytics and Roboflow lay them out: one a picture, and a `data.yaml` for all.

A line is `class x y w h`, normalised with the box's centre first; `class x y w h score`, as detectors write
their guesses; or `class x1 y1 x2 y2 x3 y3 ...`, an outline whose bounding box is taken.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from open_cloc.data.annotations import RawRegion, RawSample, finish
from open_cloc.data.names import make_keys, printable
from open_cloc.data.readers.files import walk
from open_cloc.errors import MissingFileError, UserError
from open_cloc.pictures import is_picture
from open_cloc.samples import RegionSample
from open_cloc.texts import PackedTexts

CONFIG = "data.yaml"
SPLITS = ("train", "val", "test")


def recognises(text: str) -> bool:
    """Whether this is a YAML file, or a folder with a `data.yaml`."""
    path = Path(text)
    return (path / CONFIG).is_file() or (path.suffix in (".yaml", ".yml") and path.is_file())


def open_yolo(path: str, split: str = "train") -> YoloDataset:
    """Open one split of a YOLO data set.

    Args:
        path: The YAML file, or a folder with a `data.yaml`.
        split: Which of the file's lists of pictures: `train`, `val` or `test`.

    Raises:
        MissingFileError: If the file or the split's pictures are not there.
        UserError: If the file is no such YAML, lacks names or the split, or two pictures share a key.
    """
    file = Path(path) / CONFIG if Path(path).is_dir() else Path(path)
    config = _read_config(file)
    if not config.get(split):
        there = ", ".join(name for name in SPLITS if config.get(name)) or "none"
        raise UserError(f"no split {split!r}; expected one of {there} ({file})")
    root = file.parent / str(config.get("path") or "")
    # Where the file has moved since, `path` names a folder of another machine.
    root = root if root.is_dir() else file.parent
    places = config[split] if isinstance(config[split], list) else [config[split]]
    pictures = [picture for place in places for picture in _pictures(root, str(place), file)]
    if not pictures:
        raise MissingFileError(f"no pictures of split {split!r} ({file})")
    return YoloDataset(pictures, root, class_names(config, file), "kpt_shape" in config)


class YoloDataset:
    """Pictures with the boxes of the text files beside them; a picture without one shows nothing.

    Attributes:
        file_names: Paths of the pictures, below `root` where they lie there.
        keys: One for each picture.
        class_names: Names of the classes, by number.
    """

    def __init__(
        self, pictures: Sequence[Path], root: Path, class_names: Sequence[str], has_keypoints: bool = False
    ) -> None:
        """List pictures; their text files are read when asked for.

        Args:
            pictures: Files.
            root: Folder that keys start from.
            class_names: Names of the classes, by number.
            has_keypoints: Whether a line's box is followed by points of a pose, which are passed over.

        Raises:
            UserError: If two pictures would share a key.
        """
        names = [os.path.relpath(picture, root) for picture in pictures]
        self.root, self.class_names, self.has_keypoints = root, tuple(class_names), has_keypoints
        self.file_names = PackedTexts(names)
        self.keys = PackedTexts(make_keys(names))

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> RegionSample:
        """A sample with its boxes checked; its picture is not decoded.

        Raises:
            UserError: On a line that is wrong; names the file and the line.
        """
        return finish(self.raw(index))

    def raw(self, index: int) -> RawSample:
        """A sample with its boxes as in the file (normalised `cxcywh`)."""
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)} ({self.root})")
        name = self.file_names[index]
        labels = label_file(self.root / name)
        return RawSample(
            key=self.keys[index],
            image=self.root / name,
            size_hw=None,
            where=str(labels),
            regions=self._regions(labels),
            box_format="cxcywh",
            metadata={"file_name": printable(name)},
        )

    def _regions(self, labels: Path) -> tuple[RawRegion, ...]:
        try:
            lines = labels.read_text(encoding="utf-8-sig").splitlines()
        except FileNotFoundError:
            return ()
        except UnicodeDecodeError as error:
            raise UserError(f"labels are not UTF-8: {error} ({labels})") from error
        numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
        return tuple(self._region(line, f"line {number}", labels) for number, line in numbered)

    def _region(self, line: str, where: str, labels: Path) -> RawRegion:
        try:
            numbers = [float(word) for word in line.split()]
        except ValueError:
            raise UserError(f"a line must be numbers; got {line.strip()!r} ({labels}, {where})") from None
        box, score = _box_and_score(numbers[1:], self.has_keypoints)
        if not box:
            raise UserError(
                f"a line must be a class, then x y w h, these with a score, or an outline; got "
                f"{line.strip()!r} ({labels}, {where})"
            )
        if numbers[0] not in range(len(self.class_names)):
            raise UserError(
                f"unknown class {numbers[0]:g}; expected 0 to {len(self.class_names) - 1} ({labels}, {where})"
            )
        return RawRegion(box, self.class_names[int(numbers[0])], where, score, source="yolo")


def label_file(picture: Path) -> Path:
    """The text file of a picture: in `labels` instead of the last folder `images`, or beside it."""
    parts = list(picture.parts)
    folders = parts[:-1]
    if "images" in folders:
        parts[len(folders) - 1 - folders[::-1].index("images")] = "labels"
    return Path(*parts).with_suffix(".txt")


def class_names(config: Mapping[str, Any], where: Path) -> tuple[str, ...]:
    """The classes' names, which the YAML lists or numbers.

    Raises:
        UserError: If there are none, or their numbers have gaps.
    """
    names = config.get("names")
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not names or set(names) != set(range(len(names))):
        raise UserError(f"names must list the classes, or number them from 0; got {names!r} ({where})")
    return tuple(str(names[number]) for number in range(len(names)))


def _read_config(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise MissingFileError(f"no such data set: {file}; expected a YAML file or a folder with {CONFIG}")
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is not valid YAML: {error}") from error
    if not isinstance(config, dict):
        raise UserError(
            f"a YOLO data set is a table of names and splits; got {type(config).__name__} ({file})"
        )
    return config


def _pictures(root: Path, place: str, where: Path) -> list[Path]:
    """The pictures that a split names: all below a folder, or those of a list in a text file."""
    # Roboflow writes `../train/images` for a folder beside the file.
    candidates = [root / place, root / place.removeprefix("../")]
    found = next((path for path in candidates if path.exists()), None)
    if found is None:
        raise MissingFileError(f"no such folder of pictures: {candidates[0]} ({where})")
    if found.is_dir():
        return [found / name for name in sorted(walk(found)) if is_picture(name)]
    lines = found.read_text(encoding="utf-8-sig").splitlines()
    return [found.parent / line.strip() for line in lines if line.strip()]


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
