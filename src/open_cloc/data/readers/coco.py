"""COCO JSON: pixel `xywh` boxes with category names as texts, captions from a second file."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from open_cloc.boxes import convert_boxes, normalize_boxes
from open_cloc.data.annotations import EMPTY, RawRegion, RawSample, box_problems, finish
from open_cloc.data.readers.files import (
    annotation_files,
    find_annotations,
    find_images,
    key_of,
    missing_images,
)
from open_cloc.errors import UserError
from open_cloc.files import read_json
from open_cloc.samples import RegionSample
from open_cloc.texts import PackedTexts

PATTERN = "instances*.json"


def recognises(text: str) -> bool:
    """Whether this is a JSON file, LVIS's aside, or a folder with some named as COCO's are."""
    path = Path(text)
    is_json = path.is_file() and path.suffix == ".json" and not path.name.startswith("lvis")
    return is_json or bool(annotation_files(path, PATTERN))


def open_coco(path: str, images: Path | None = None, captions: Path | None = None) -> CocoDataset:
    """Open COCO annotations.

    Args:
        path: The instances JSON, or a folder that holds one `instances*.json` (itself or in `annotations/`).
        images: Folder of the pictures; guessed beside the JSON unless given.
        captions: COCO captions JSON of the same images.

    Raises:
        MissingFileError: If a file or the pictures' folder is missing.
        UserError: If the JSON is not COCO's, or a category or image id is unknown.
    """
    annotations = find_annotations(Path(path), PATTERN)
    document = load_document(annotations)
    names = [_field(image, "file_name", "image", annotations) for image in document["images"]]
    folder = find_images(annotations, images, names)
    if folder is None:
        raise missing_images(annotations, images, names)
    return CocoDataset(document, names, folder, str(annotations), read_captions(captions), "coco")


class CocoDataset:
    """Pictures with the boxes of a COCO document.

    Boxes and texts are kept as arrays, not as objects: worker processes share them without copying.

    Attributes:
        categories: The document's categories, as they are.
        class_names: Names of the categories, in the document's order.
        dropped: Annotations that become no region, counted by cause.
    """

    def __init__(
        self,
        document: Mapping[str, Any],
        file_names: Sequence[str],
        folder: Path,
        where: str,
        captions: Mapping[int, tuple[str, ...]],
        source: str,
    ) -> None:
        """Index a parsed document.

        Args:
            document: A parsed file with `images`, `annotations` and `categories`.
            file_names: A picture's name for each of the images, below `folder`.
            folder: Where the pictures lie.
            where: The document's file, for messages.
            captions: Texts of the images that have some, by image id.
            source: What each region says about its maker, such as `coco`.

        Raises:
            UserError: On unknown ids, entries that lack a field, repeated images, captions of other images.
        """
        self.where, self.folder, self.source = where, folder, source
        keys = [key_of(name) for name in file_names]
        self.file_names, self.keys = PackedTexts(file_names), PackedTexts(keys)
        self.categories = tuple(document["categories"])
        self.class_names = tuple(str(_field(c, "name", "category", where)) for c in self.categories)
        image_ids = [int(_field(image, "id", "image", where)) for image in document["images"]]
        self.image_ids = np.array(image_ids, np.int64)
        self.sizes = np.array([_size(image, where) for image in document["images"]], np.int64).reshape(-1, 2)
        self._check_images(image_ids, keys, captions)
        texts = [captions.get(number, ()) for number in image_ids]
        self._caption_starts = np.cumsum([0, *map(len, texts)])
        self._captions = PackedTexts([text for own in texts for text in own])
        self.dropped: Counter[str] = Counter()
        self._index_annotations(document["annotations"])
        self._count_empty()

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> RegionSample:
        """A sample with its boxes checked.

        Raises:
            UserError: On a wrong box; names the annotation.
        """
        return finish(self.raw(index))

    def raw(self, index: int) -> RawSample:
        """A sample with its boxes as in the file (pixel `xywh`)."""
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)} ({self.where})")
        rows = slice(self._starts[index], self._starts[index + 1])
        regions = tuple(
            RawRegion(tuple(box), self.class_names[category], f"annotation {number}", source=self.source)
            for box, category, number in zip(
                self._boxes[rows].tolist(), self._categories[rows].tolist(), self._ids[rows].tolist()
            )
        )
        height, width = self.sizes[index].tolist()
        captions = range(*self._caption_starts[index : index + 2].tolist())
        file_name = self.file_names[index]
        return RawSample(
            key=self.keys[index],
            image=self.folder / file_name,
            size_hw=(height, width),
            where=self.where,
            captions=tuple(self._captions[row] for row in captions),
            regions=regions,
            box_format="xywh",
            normalized=False,
            metadata={"image_id": int(self.image_ids[index]), "file_name": file_name},
        )

    def _check_images(
        self, image_ids: Sequence[int], keys: Sequence[str], captions: Mapping[int, tuple[str, ...]]
    ) -> None:
        for name, values in (("image id", image_ids), ("file name (without suffix)", keys)):
            value, count = Counter(values).most_common(1)[0]
            if count > 1:
                raise UserError(f"{name} {value!r} occurs {count} times; expected once ({self.where})")
        if captions and not any(number in captions for number in image_ids):
            raise UserError(f"captions name none of the images; expected the same image ids ({self.where})")

    def _index_annotations(self, annotations: Sequence[Mapping[str, Any]]) -> None:
        """Boxes, categories and ids as arrays sorted by image, so that each image's are one slice."""
        images = {number: row for row, number in enumerate(self.image_ids.tolist())}
        categories = {int(_field(c, "id", "category", self.where)): i for i, c in enumerate(self.categories)}
        rows = []
        for position, annotation in enumerate(annotations):
            name = f"annotation {annotation.get('id', f'at position {position}')}"
            if annotation.get("iscrowd"):
                self.dropped["crowd"] += 1
                continue
            image = _lookup(images, annotation, "image_id", name, self.where)
            category = _lookup(categories, annotation, "category_id", name, self.where)
            box = _bbox(_field(annotation, "bbox", name, self.where), name, self.where)
            rows.append((image, category, int(annotation.get("id", position)), *box))
        rows.sort(key=lambda row: row[0])
        table = np.array([row[:3] for row in rows], np.int64).reshape(-1, 3)
        self._boxes = np.array([row[3:] for row in rows], np.float64).reshape(-1, 4)
        self._images, self._categories, self._ids = table.T
        self._starts = np.searchsorted(self._images, np.arange(len(self.keys) + 1))

    def _count_empty(self) -> None:
        boxes = convert_boxes(self._boxes, "xywh")
        height, width = self.sizes[self._images].T
        empty = int((box_problems(normalize_boxes(boxes, (height, width))) == EMPTY).sum())
        if empty:
            self.dropped["without area"] = empty


def load_document(path: Path) -> dict[str, Any]:
    """Parse COCO-like JSON and check its outer form.

    Raises:
        MissingFileError: If the file is not there.
        UserError: If it is not JSON, or lacks images, annotations or categories.
    """
    document = read_json(path)
    for name in ("images", "annotations", "categories"):
        entries = document.get(name) if isinstance(document, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise UserError(f"COCO JSON needs a list of objects {name!r}; got {_kind(entries)} ({path})")
    if not document["images"]:
        raise UserError(f"COCO JSON names no images ({path})")
    return document


def read_captions(path: Path | None) -> dict[int, tuple[str, ...]]:
    """Captions by image id from a COCO captions file; none without a path.

    Raises:
        MissingFileError: If the file is not there.
        UserError: If it is not COCO's captions.
    """
    if path is None:
        return {}
    document = read_json(path)
    captions: defaultdict[int, list[str]] = defaultdict(list)
    try:
        for annotation in document["annotations"]:
            captions[int(annotation["image_id"])].append(str(annotation["caption"]))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"captions must be annotations with image_id and caption; got {error!r} ({path})"
        ) from error
    return {number: tuple(texts) for number, texts in captions.items()}


def _field(entry: Mapping[str, Any], name: str, what: str, where: object) -> Any:
    if name not in entry:
        raise UserError(f"{what} lacks {name!r}; got {sorted(entry)} ({where})")
    return entry[name]


def _lookup(known: Mapping[int, int], entry: Mapping[str, Any], name: str, what: str, where: str) -> int:
    value = _field(entry, name, what, where)
    if value not in known:
        raise UserError(
            f"unknown {name} {value!r}; expected one of the file's {len(known)} ({where}, {what})"
        )
    return known[value]


def _bbox(value: Any, what: str, where: str) -> tuple[float, float, float, float]:
    try:
        x, y, width, height = (float(number) for number in value)
    except (TypeError, ValueError):
        raise UserError(f"bbox must be 4 numbers [x, y, w, h]; got {value!r} ({where}, {what})") from None
    return (x, y, width, height)


def _size(image: Mapping[str, Any], where: str) -> tuple[int, int]:
    what = f"image {image.get('id')}"
    size = tuple(_field(image, name, what, where) for name in ("height", "width"))
    if not all(isinstance(side, int) and side > 0 for side in size):
        raise UserError(f"height and width must be whole numbers of pixels; got {size} ({where}, {what})")
    return size


def _kind(value: Any) -> str:
    return "nothing" if value is None else type(value).__name__
