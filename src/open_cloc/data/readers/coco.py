"""COCO JSON: pixel `xywh` boxes with category names as texts, captions from a second file or alone.

Entries are judged one by one: a broken annotation costs its region, a broken image its sample, and both are
kept as problems until somebody reads the sample or asks for all.
"""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from open_cloc.boxes import EMPTY, box_problems, convert_boxes, normalize_boxes
from open_cloc.data.annotations import Problem, RawRegion, RawSample, finish
from open_cloc.data.fields import (
    FieldError,
    as_box,
    as_flag,
    as_id,
    as_mask,
    as_number,
    as_side,
    as_text,
    field_of,
)
from open_cloc.data.names import make_keys, resolve, root_of
from open_cloc.data.readers.coco_entries import (
    Captions,
    check_object,
    entry_name,
    entry_problem,
    kind_of,
    read_captions,
    shared_names,
)
from open_cloc.data.readers.files import (
    coco_files,
    find_annotations,
    find_images,
    holds_captions,
    holds_coco,
    missing_images,
    unnamed_images,
)
from open_cloc.errors import SampleError, UserError
from open_cloc.files import read_json
from open_cloc.masks import Mask
from open_cloc.pictures import read_header
from open_cloc.samples import RegionSample
from open_cloc.texts import PackedTexts, sound_text

PARTS = ("images", "annotations", "categories")
OUTLINE = "segmentation"  # takes most of a file, and is read only where somebody asks
OF_IMAGES = {
    *("id", "file_name", "width", "height", "license", "date_captured", "coco_url", "flickr_url"),
    *("neg_category_ids", "not_exhaustive_category_ids"),
}
KNOWN = {"id", "image_id", "category_id", "bbox", "area", "iscrowd", "score", OUTLINE}

FREQUENCIES = {"r": "rare", "c": "common", "f": "frequent"}  # LVIS's marks of categories

# What finds the picture's name in an entry of `images`.
NameOf = Callable[[Mapping[str, Any]], str]


def recognises(text: str) -> bool:
    """Whether this is a JSON file of COCO's form, or a folder that holds some; LVIS's aside."""
    return holds_coco(Path(text), lvis=False)


def open_coco(
    path: str,
    images: Path | None = None,
    captions: Path | None = None,
    outside: bool = False,
    crowds: bool = False,
    masks: bool = False,
) -> CocoDataset:
    """Open COCO annotations.

    Args:
        path: The JSON, or a folder that holds one, itself or in `annotations/`; of boxes, or of captions.
        images: Folder of the pictures; guessed beside the JSON unless given.
        captions: COCO captions JSON of the same images.
        outside: Allow pictures that do not lie in the data set's folder.
        crowds: Take the boxes of crowds (`iscrowd`) as well, each around many things.
        masks: Read the outlines too, polygons and run lengths.

    Raises:
        MissingFileError: If a file or the pictures' folder is missing.
        UserError: If the JSON is not COCO's, or no image of it can be used.
        MissingExtraError: If there are polygons, without the extra `eval`.
    """
    annotations = find_annotations(Path(path), lvis=False)
    document = Document.load(annotations, file_name, masks)
    folder = find_images(annotations, images, document.names)
    if folder is None:
        raise missing_images(annotations, images, document.names)
    if captions is None and document.is_captions:
        captions = annotations
    dataset = CocoDataset(document, folder, read_captions(captions), "coco", outside, crowds, masks)
    unused = [file for file in coco_files(Path(path)) if file not in (annotations, captions)]
    dataset.left_out.update(f"{file} of COCO's form{_advice(file)}" for file in unused)
    return dataset


def _by_frequency(categories: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for category in categories:
        if category.get("frequency") in FREQUENCIES:
            found[FREQUENCIES[category["frequency"]]].append(category["name"])
    return dict(found)


def _advice(file: Path) -> str:
    return f"; give captions={file}" if holds_captions(file) else ""


def file_name(image: Mapping[str, Any]) -> str:
    """The picture's path, as COCO names it."""
    return as_text(field_of(image, "file_name"), "file_name")


class Document(NamedTuple):
    """A parsed file, its images looked at one by one.

    Attributes:
        where: The file.
        images: The entries that can be used.
        names: A picture's name for each of them.
        ids: The id of each of them.
        annotations: As they are.
        categories: As they are.
        problems: Images that cannot be used.
        is_captions: Its annotations are texts of whole pictures, which `read_captions` reads; none is here.
    """

    where: Path
    images: list[Mapping[str, Any]]
    names: list[str]
    ids: list[str]
    annotations: list[Any]
    categories: list[Any]
    problems: list[Problem]
    is_captions: bool = False

    @classmethod
    def load(cls, path: Path, name_of: NameOf, masks: bool = False) -> Document:
        """Parse COCO-like JSON and look at its images.

        Args:
            path: The file.
            name_of: Finds the picture's name in an entry of `images`.
            masks: Keep outlines.

        Raises:
            MissingFileError: If the file is not there.
            UserError: If it is not JSON, lacks one of the lists, or an image id comes twice.
        """
        document = read_json(path, without="" if masks else OUTLINE)
        is_captions = isinstance(document, dict) and holds_captions(path)
        if is_captions:
            document |= {"annotations": [], "categories": []}
        for part in PARTS:
            entries = document.get(part) if isinstance(document, dict) else None
            if not isinstance(entries, list):
                raise UserError(
                    f"COCO JSON needs a list of objects {part!r}; got {kind_of(entries)} ({path})"
                )
        if not document["images"]:
            raise UserError(f"COCO JSON names no images ({path})")
        found = cls(path, [], [], [], document["annotations"], document["categories"], [], is_captions)
        for position, image in enumerate(document["images"]):
            try:
                check_object(image)
                row = image, name_of(image), as_id(field_of(image, "id"), "id")
            except FieldError as error:
                found.problems.append(entry_problem(error, path, "image", image, position))
                continue
            for column, value in zip((found.images, found.names, found.ids), row):
                column.append(value)  # type: ignore[attr-defined]
        if not found.images:
            raise UserError(f"no image can be used; the first: {found.problems[0].message}")
        _refuse_repeated("image id", found.ids, path)
        _refuse_repeated("file_name", found.names, path)
        return found


class CocoDataset:
    """Pictures with the boxes of a COCO document.

    Boxes and texts are kept as arrays, not as objects: worker processes share them without copying.

    Attributes:
        categories: The document's categories, those that cannot be used aside.
        class_names: Names of the categories, in the document's order.
        class_groups: Names by how frequent the document says they are, as LVIS does.
        crowds: Whether boxes of crowds are among the regions.
        num_crowds: How many there are, among the regions or not.
        problems: Entries that cannot be used and belong to no sample.
        left_out: What was seen and is not used, with counts.
    """

    def __init__(
        self,
        document: Document,
        folder: Path,
        captions: Captions,
        source: str,
        outside: bool = False,
        crowds: bool = False,
        masks: bool = False,
    ) -> None:
        """Index a document.

        Args:
            document: A parsed file.
            folder: Where the pictures lie.
            captions: Texts of the images that have some.
            source: What each region says about its maker, such as `coco`.
            outside: Allow pictures that do not lie in the data set's folder.
            crowds: Take the boxes of crowds as well.
            masks: Read the outlines.

        Raises:
            UserError: If a category id comes twice, or captions are of other images.
        """
        self.where, self.folder, self.source, self.outside = str(document.where), folder, source, outside
        self.root, self.crowds, self.num_crowds, self.masks = root_of(document.where), crowds, 0, masks
        self.file_names = PackedTexts(document.names)
        self.keys = PackedTexts(make_keys(document.names))
        self.problems = [*document.problems, *captions.problems]
        self.left_out = Counter(
            f"images' key {name!r}" for image in document.images for name in image.keys() - OF_IMAGES
        )
        self.left_out.update(unnamed_images(folder, document.names))
        self._image_ids = PackedTexts(document.ids)
        self._id_is_text = np.array([isinstance(image["id"], str) for image in document.images])
        self._own_problems: defaultdict[int, list[Problem]] = defaultdict(list)
        self.sizes = self._read_sizes(document.images)
        self._keep_captions(document.ids, captions.texts)
        categories = self._read_categories(document.categories)
        rows = {image_id: row for row, image_id in enumerate(document.ids)}
        self._index_annotations(document.annotations, rows, categories)
        self._count_empty()

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> RegionSample:
        """A sample with its boxes checked.

        Raises:
            SampleError: On a broken entry or a wrong box; names the annotation.
        """
        return finish(self.raw(index))

    def raw(self, index: int) -> RawSample:
        """A sample with its boxes as in the file (pixel `xywh`).

        Raises:
            SampleError: If the picture's name leads out of the data set.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)} ({self.where})")
        name = self.file_names[index]
        height, width = self.sizes[index].tolist()
        captions = range(*self._caption_starts[index : index + 2].tolist())
        image_id = self._image_ids[index]
        return RawSample(
            key=self.keys[index],
            image=resolve(self.folder, name, self.root, self.outside),
            size_hw=(height, width) if height else None,
            where=self.where,
            captions=tuple(self._captions[row] for row in captions),
            regions=self._regions(index),
            box_format="xywh",
            normalized=False,
            metadata={"image_id": image_id if self._id_is_text[index] else int(image_id), "file_name": name},
            problems=tuple(self._own_problems.get(index, ())),
        )

    def _regions(self, index: int) -> tuple[RawRegion, ...]:
        rows = slice(*self._starts[index : index + 2].tolist())
        ids = (self._ids[row] for row in range(rows.start, rows.stop))
        arrays = (self._boxes, self._categories, self._scores, self._are_crowds)
        columns = (array[rows].tolist() for array in arrays)
        names, source = self.class_names, self.source
        regions = tuple(
            RawRegion(tuple(box), names[category], f"annotation {own}", score, source, crowd=is_crowd)
            for own, box, category, score, is_crowd in zip(ids, *columns)
        )
        return self._with_outlines(regions, index, rows.start) if self.masks else regions

    def _with_outlines(self, regions: Sequence[RawRegion], index: int, first: int) -> tuple[RawRegion, ...]:
        height, width = self.sizes[index].tolist()
        runs = (self._outlines[row] for row in range(first, first + len(regions)))
        return tuple(
            replace(region, mask=Mask((height, width), own) if own else None)
            for region, own in zip(regions, runs)
        )

    def _read_sizes(self, images: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """(images, 2) declared height and width; zeros where nothing is declared or it is no size."""
        sizes = np.zeros((len(images), 2), np.int64)
        for row, image in enumerate(images):
            sides = [image.get(name) for name in ("height", "width")]
            if None in sides:
                continue  # the picture says it
            try:
                sizes[row] = [as_side(side, name) for side, name in zip(sides, ("height", "width"))]
            except FieldError as error:
                self._own_problems[row].append(entry_problem(error, self.where, "image", image, row))
        return sizes

    def _keep_captions(self, image_ids: Sequence[str], captions: Mapping[str, tuple[str, ...]]) -> None:
        if captions and not any(image_id in captions for image_id in image_ids):
            raise UserError(f"captions name none of the images; expected the same image ids ({self.where})")
        texts = [captions.get(image_id, ()) for image_id in image_ids]
        self._caption_starts = np.cumsum([0, *map(len, texts)])
        self._captions = PackedTexts([text for own in texts for text in own])
        others = len(captions.keys() - set(image_ids))
        if others:
            self.left_out["images that only the captions name"] = others

    def _read_categories(self, entries: Sequence[Any]) -> dict[str, int]:
        """Which class each category id stands for."""
        kept, ids = [], []
        for position, category in enumerate(entries):
            try:
                check_object(category)
                name = as_text(sound_text(as_text(field_of(category, "name"), "name")), "name")
                ids.append(as_id(field_of(category, "id"), "id"))
                kept.append(category | {"name": name})
            except FieldError as error:
                self.problems.append(entry_problem(error, self.where, "category", category, position))
        _refuse_repeated("category id", ids, self.where)
        self.categories = tuple(kept)
        self.class_groups = _by_frequency(kept)
        self.class_names = tuple(category["name"] for category in kept)
        self.left_out += shared_names(self.class_names)
        return {category_id: row for row, category_id in enumerate(ids)}

    def _index_annotations(
        self, annotations: Sequence[Any], images: Mapping[str, int], categories: Mapping[str, int]
    ) -> None:
        """Boxes, categories and ids as arrays sorted by image, so that each image's are one slice."""
        numbers, boxes, ids, unused = array("q"), array("d"), [], Counter[str]()
        outlines: list[str] = []
        for position, annotation in enumerate(annotations):
            image = None
            try:
                check_object(annotation)
                image = _lookup(images, annotation, "image_id")
                is_crowd = as_flag(annotation.get("iscrowd", 0), "iscrowd")
                if is_crowd:
                    self.num_crowds += 1
                    if not self.crowds:
                        self.left_out["crowd annotations"] += 1
                        continue
                category = _lookup(categories, annotation, "category_id")
                box = as_box(field_of(annotation, "bbox"), "bbox [x, y, w, h]")
                score = _score(annotation)
                outline = self._outline(annotation, image) if self.masks else ""
            except FieldError as error:
                own = self.problems if image is None else self._own_problems[image]
                own.append(entry_problem(error, self.where, "annotation", annotation, position))
                continue
            numbers.extend((image, category, is_crowd))
            boxes.extend((*box, score))
            ids.append(entry_name(annotation, position))
            outlines.append(outline)
            unused.update(annotation.keys() - KNOWN)
            if _is_turned(annotation):
                self.left_out["boxes turned by attributes' 'rotation', which is not applied"] += 1
        self.left_out.update({f"annotations' key {name!r}": count for name, count in unused.items()})
        if len(set(ids)) < len(ids):  # nothing depends on them
            self.left_out["annotation ids that come more than once"] = len(ids) - len(set(ids))
        table = np.array(numbers, np.int64).reshape(-1, 3)
        order = np.argsort(table[:, 0], kind="stable")
        self._images, self._categories, are_crowds = table[order].T
        self._are_crowds = are_crowds.astype(bool)
        found = np.array(boxes, np.float64).reshape(-1, 5)[order]
        self._boxes, self._scores = found[:, :4], found[:, 4]
        self._ids = PackedTexts([ids[row] for row in order.tolist()])
        self._outlines = PackedTexts([outlines[row] for row in order.tolist()])
        self._starts = np.searchsorted(self._images, np.arange(len(self.keys) + 1))

    def _outline(self, annotation: Mapping[str, Any], image: int) -> str:
        """Run lengths of an annotation's outline; empty where it has none."""
        given = annotation.get(OUTLINE)
        if not given or given == [[]]:
            self.left_out["annotations without an outline"] += 1
            return ""
        if not self.sizes[image].any():
            self.sizes[image] = self._measured(image)
        mask = as_mask(given, self.sizes[image].tolist(), OUTLINE)
        if mask.box() is None:
            self.left_out["outlines that cover no pixel"] += 1
            return ""
        return mask.counts

    def _measured(self, image: int) -> tuple[int, int]:
        """(height, width) of a picture that the file gives none of, or none that is."""
        file = resolve(self.folder, self.file_names[image], self.root, self.outside)
        try:
            return read_header(file, str(file)).size_hw
        except SampleError as error:
            raise FieldError(f"{OUTLINE} needs the picture's size: {error}") from error

    def _count_empty(self) -> None:
        with np.errstate(invalid="ignore"):  # what is not finite is found with its sample
            boxes = convert_boxes(self._boxes, "xywh")
            # A picture of unknown size is at least as large as its boxes.
            declared, reached = self.sizes[self._images], np.fmax(boxes[:, [3, 2]], 1)
        sizes = np.where(declared > 0, declared, reached)
        empty = int((box_problems(normalize_boxes(boxes, tuple(sizes.T))) == EMPTY).sum())
        if empty:
            self.left_out["boxes without area"] = empty


def _lookup(known: Mapping[str, int], annotation: Mapping[str, Any], name: str) -> int:
    value = field_of(annotation, name)
    row = known.get(as_id(value, name))
    if row is None:
        raise FieldError(
            f"unknown {name} {value!r}; expected one of the file's {len(known)}", f"unknown {name}"
        )
    return row


def _is_turned(annotation: Mapping[str, Any]) -> bool:
    """Whether CVAT says that a box is turned about its middle."""
    attributes = annotation.get("attributes")
    rotation = attributes.get("rotation") if isinstance(attributes, dict) else None
    return isinstance(rotation, (int, float)) and rotation % 360 != 0


def _score(annotation: Mapping[str, Any]) -> float:
    """The confidence that detectors write; 1 where a person drew the box."""
    score = as_number(annotation.get("score", 1.0), "score")
    if not 0 <= score <= 1:
        raise FieldError(f"score must be in [0, 1]; got {score:g}")
    return score


def _refuse_repeated(what: str, values: Sequence[str], where: object) -> None:
    for value, count in Counter(values).most_common(1):
        if count > 1:
            raise UserError(f"{what} {value!r} occurs {count} times; expected once ({where})")
