"""COCO's panoptic JSON (ADE20k's too): boxes and masks of things and of stuff, by their categories' names."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from open_cloc.data.annotations import Problem, RawRegion, RawSample
from open_cloc.data.fields import FieldError, as_box, as_flag, as_id, as_text, as_whole, field_of, shown
from open_cloc.data.label_maps import NO_CLASS, read_segments
from open_cloc.data.names import resolve
from open_cloc.data.readers.coco_entries import shared_names
from open_cloc.data.readers.files import holds_panoptic
from open_cloc.data.readers.packed import (
    Entry,
    PackedDataset,
    as_object,
    count_keys,
    declared_size,
    entries_of,
    json_list,
    of_image,
    picture_folders,
    problem_in,
)
from open_cloc.errors import MissingFileError, SampleError, UserError
from open_cloc.masks import Mask
from open_cloc.pictures import read_header

SOURCE, CROWDS = "panoptic", "crowd segments"
LARGEST_ID = 2**24 - 1  # of three colours of a byte each
VOID = 0  # number of the pixels that are of no segment
KEYS = {"image_id", "file_name", "segments_info"}
FOLDERS = ("val2017", "train2017", "images", "images/val2017", "images/validation", "images/training")


def recognises(text: str) -> bool:
    """Whether this is a panoptic JSON."""
    return Path(text).suffix.lower() == ".json" and holds_panoptic(Path(text))


def open_panoptic(
    path: str,
    images: Path | None = None,
    masks: Path | None = None,
    crowds: bool = False,
    outside: bool = False,
) -> PanopticDataset:
    """Open a panoptic JSON: its boxes as regions and, where their folder is given, outlines and label maps.

    Args:
        path: Such as `panoptic_val2017.json`.
        images: Folder of the pictures (not of the PNGs); beside the file unless given.
        masks: Folder of the PNGs, such as `panoptic_val2017`.
        crowds: Take the boxes of crowds as well.
        outside: Allow pictures that do not lie in the data set's folder.

    Raises:
        MissingFileError: If the file or the pictures are missing.
        UserError: If it is no such file, an image or category id comes twice, or nothing can be used.
    """
    if masks is not None and not masks.is_dir():
        raise MissingFileError(f"masks= of panoptic is the folder of its PNGs; there is none at {masks}")
    file, problems, counts = Path(path), list[Problem](), Counter[str]()
    parts = {part: json_list(file, "a panoptic", part) for part in ("images", "annotations", "categories")}
    names = _by_id(parts["categories"], "category", file, problems)
    pictures = _by_id(parts["images"], "image", file, problems)

    segments: list[_Segments] = []
    annotated: dict[str, str] = {}

    def read(given: Any) -> Entry:
        row = as_object(given)
        picture = _picture(row, pictures, annotated)
        count_keys(row, KEYS, counts, "annotations")
        entry, own = _entry(row, picture, names, crowds, file, counts)
        if masks is not None:
            segments.append(own._replace(name=as_text(field_of(row, "file_name"), "file_name, the PNG's")))
        return entry

    numbered = ((f"annotation {number}", row) for number, row in enumerate(parts["annotations"]))
    entries = list(entries_of(numbered, read, file, problems))
    problems += _without_annotation(pictures, annotated, file)
    counts["masks; masks=FOLDER reads them"] = 0 if masks else sum(len(entry.regions) for entry in entries)
    num_crowds, counts[CROWDS] = counts[CROWDS], 0 if crowds else counts[CROWDS]
    counts += shared_names([row["name"] for row in names.values()])
    return PanopticDataset(
        file,
        picture_folders(file, images, *FOLDERS),
        entries,
        masks,
        segments,
        _kinds(names.values()),
        problems=problems,
        left_out=+counts,
        outside=outside,
        class_names=[row["name"] for row in names.values()],
        crowds=crowds,
        num_crowds=num_crowds,
    )


def _kinds(categories: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Names of things and of stuff, where the file tells them apart."""
    found: dict[str, list[str]] = defaultdict(list)
    for category in categories:
        if category.get("isthing") in (0, 1):
            found["thing" if category["isthing"] else "stuff"].append(category["name"])
    return dict(found)


class _Segments(NamedTuple):
    """What the PNG of a picture holds.

    Attributes:
        name: Of the PNG.
        ids: Its segments' numbers, ascending.
        classes: The class of each.
        kept: The number of each region's segment.
    """

    name: str
    ids: np.ndarray
    classes: np.ndarray
    kept: np.ndarray


class PanopticDataset(PackedDataset):
    """Boxes of a panoptic JSON, and its label maps where the folder of its PNGs was given.

    Attributes:
        class_groups: Names of things and of stuff.
    """

    def __init__(
        self,
        where: Path,
        folders: Sequence[Path],
        entries: Sequence[Entry],
        masks: Path | None,
        segments: Sequence[_Segments],
        kinds: Mapping[str, Sequence[str]],
        **options: Any,
    ) -> None:
        """Pack entries; see `PackedDataset` for what is not told here.

        Args:
            where: The file.
            folders: Where pictures may lie.
            entries: What was read.
            masks: Folder of the PNGs.
            segments: What each of these holds.
            kinds: Names of things and of stuff.
            options: The others.
        """
        super().__init__(where, folders, entries, **options)
        self.masks, self.segments, self.class_groups = masks, segments, kinds

    @property
    def has_label_maps(self) -> bool:
        """Whether the folder of PNGs was given."""
        return self.masks is not None

    def raw(self, index: int) -> RawSample:
        """A sample with its boxes as in the file, and its outlines where their folder was given.

        Raises:
            SampleError: If the picture's name leads out of the data set, or the PNG is none.
        """
        raw = super().raw(index)
        if self.masks is None or not raw.regions:
            return raw
        found = self._read_segments(index, raw)
        regions, problems = [], [*raw.problems]
        for region, number in zip(raw.regions, self.segments[index].kept.tolist()):
            pixels = found == number
            if pixels.any():
                regions.append(replace(region, mask=Mask.of(pixels)))
            else:
                message = f"{region.where} has no pixel in {self.segments[index].name} ({self.where})"
                problems.append(Problem("segment without pixels", message))
        return replace(raw, regions=tuple(regions), problems=tuple(problems))

    def _read_segments(self, index: int, raw: RawSample) -> np.ndarray:
        """The segment of each pixel of a sample's picture: (H, W) int64.

        Raises:
            SampleError: If the PNG is none, or of another size than the picture.
        """
        assert self.masks is not None
        file = resolve(self.masks, self.segments[index].name, outside=self.outside)
        found = read_segments(file)
        height, width = raw.size_hw or read_header(raw.image, f"image of sample {raw.key!r}").size_hw
        if found.shape != (height, width):
            sizes = f"{found.shape[1]} x {found.shape[0]}, {width} x {height}"
            raise SampleError(
                f"label map and picture must be of one size; got {sizes} ({file})",
                "label map of another size",
            )
        return found

    def label_map(self, index: int) -> np.ndarray:
        """The class of each pixel: (H, W) int64, `NO_CLASS` where there is none; crowds have theirs.

        Raises:
            UserError: If no folder of PNGs was given.
            SampleError: If the PNG is none, or holds a segment that the file does not know.
        """
        if self.masks is None:
            raise UserError(f"label maps lie in PNGs: open the data as panoptic:{self.where},masks=FOLDER")
        name, ids, classes, _ = self.segments[index]
        file = resolve(self.masks, name, outside=self.outside)
        found = read_segments(file)
        places = np.searchsorted(ids, found).clip(max=max(0, len(ids) - 1))
        is_known = ids[places] == found if len(ids) else np.zeros(found.shape, bool)
        if not (is_known | (found == VOID)).all():
            unknown = int(found[~is_known & (found != VOID)][0])
            raise SampleError(f"segment {unknown} is not in segments_info ({file})", "unknown segment")
        return np.where(is_known, classes[places] if len(ids) else NO_CLASS, NO_CLASS)


def _by_id(rows: list[Any], what: str, file: Path, problems: list[Problem]) -> dict[str, Mapping[str, Any]]:
    found: dict[str, Mapping[str, Any]] = {}
    for position, given in enumerate(rows):
        try:
            row = as_object(given)
            number = as_id(field_of(row, "id"), "id")
            as_text(field_of(row, "name" if what == "category" else "file_name"), "its name")
        except FieldError as error:
            problems.append(problem_in(error, f"{what} at position {position}", file))
            continue
        if number in found:
            raise UserError(f"{what} id {number!r} occurs twice; expected once ({file})")
        found[number] = row
    return found


def _picture(
    row: Mapping[str, Any], pictures: Mapping[str, Mapping[str, Any]], annotated: dict[str, str]
) -> Mapping[str, Any]:
    """The picture of an annotation; each has one, or would count twice.

    Args:
        row: The annotation.
        pictures: By their ids.
        annotated: Grows: the id of each file that has an annotation.
    """
    image = as_id(field_of(row, "image_id"), "image_id")
    if image not in pictures:
        raise FieldError(f"unknown image_id {image!r}", "unknown image_id")
    name = pictures[image]["file_name"]
    first = annotated.get(name)
    if first is not None:
        by = "" if first == image else f", as image {first}"
        raise FieldError(f"image {image}, {name}, is annotated already{by}", "repeated picture")
    annotated[name] = image
    return pictures[image]


def _without_annotation(
    pictures: Mapping[str, Mapping[str, Any]], annotated: Mapping[str, str], file: Path
) -> list[Problem]:
    """Pictures that nothing is said of, though this form has an annotation for each, be it an empty one."""
    return [
        Problem("picture without an annotation", f"image {image}, {row['file_name']}, has none ({file})")
        for image, row in pictures.items()
        if row["file_name"] not in annotated
    ]


def _entry(
    row: Mapping[str, Any],
    picture: Mapping[str, Any],
    names: Mapping[str, Mapping[str, Any]],
    crowds: bool,
    file: Path,
    counts: Counter[str],
) -> tuple[Entry, _Segments]:
    """A picture with its boxes, and what its PNG holds."""
    image, classes = as_id(picture["id"], "id"), {category: number for number, category in enumerate(names)}
    given = field_of(row, "segments_info")
    if not isinstance(given, list):
        raise FieldError(f"segments_info must be a list; got {shown(given)}")
    regions, kept, problems = [], [], []
    numbered: list[tuple[int, int]] = []
    for position, segment in enumerate(given):
        try:
            number = as_whole(field_of(as_object(segment), "id"), "id", VOID + 1, LARGEST_ID)
            category = as_id(field_of(segment, "category_id"), "category_id")
            numbered.append((number, classes.get(category, NO_CLASS)))
            region = _region(segment, category, names, crowds, counts)
        except FieldError as error:
            problems.append(problem_in(error, f"segment {position} of image {image}", file))
            continue
        if region is not None:
            regions.append(region)
            kept.append(number)
    ids, of_ids = np.array(sorted(numbered), np.int64).reshape(-1, 2).T
    for number in ids[1:][ids[1:] == ids[:-1]][:1].tolist():
        raise FieldError(f"segment {number} occurs twice")
    entry = Entry(picture["file_name"], regions, (), declared_size(picture), of_image(image), problems)
    return entry, _Segments("", ids, of_ids, np.array(kept, np.int64))


def _region(
    segment: Mapping[str, Any],
    category: str,
    names: Mapping[str, Mapping[str, Any]],
    crowds: bool,
    counts: Counter[str],
) -> RawRegion | None:
    is_crowd = as_flag(segment.get("iscrowd", 0), "iscrowd")
    counts[CROWDS] += is_crowd
    if is_crowd and not crowds:
        return None
    if category not in names:
        raise FieldError(f"unknown category_id {category!r}", "unknown category_id")
    box = as_box(field_of(segment, "bbox"), "bbox [x, y, w, h]")
    name, where = as_text(names[category]["name"], "name"), f"segment {segment['id']}"
    return RawRegion(box, name, where, source=SOURCE, crowd=is_crowd)
