"""LVIS JSON: COCO's form with 1,203 categories and file names hidden in `coco_url`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from open_cloc.data.fields import FieldError, as_text
from open_cloc.data.readers.coco import CocoDataset, Document
from open_cloc.data.readers.coco_entries import read_captions
from open_cloc.data.readers.files import find_annotations, find_images, holds_coco, missing_images


def recognises(text: str) -> bool:
    """Whether this is a JSON file of LVIS, by its name or its keys, or a folder that holds some."""
    return holds_coco(Path(text), lvis=True)


def open_lvis(
    path: str,
    images: Path | None = None,
    captions: Path | None = None,
    outside: bool = False,
    masks: bool = False,
) -> CocoDataset:
    """Open LVIS annotations.

    Category names become texts by `clean_name`. LVIS splits mix COCO's train2017 and val2017, so `images` may
    be one folder with all pictures or the parent of those two.

    Args:
        path: The JSON, or a folder that holds one, itself or in `annotations/`.
        images: Folder of the pictures; guessed beside the JSON unless given.
        captions: COCO captions JSON of the same images.
        outside: Allow pictures that do not lie in the data set's folder.
        masks: Read the outlines too.

    Raises:
        MissingFileError: If a file or the pictures' folder is missing.
        UserError: If the JSON is not LVIS's, or no image of it can be used.
        MissingExtraError: If there are polygons, without the extra `eval`.
    """
    annotations = find_annotations(Path(path), lvis=True)
    document = Document.load(annotations, location, masks)
    document = document._replace(categories=[_with_clean_name(entry) for entry in document.categories])
    for num_parts in (1, 2):  # 000000397133.jpg, then val2017/000000397133.jpg
        names = ["/".join(PurePosixPath(name).parts[-num_parts:]) for name in document.names]
        folder = find_images(annotations, images, names)
        # Two parts may use one name: then the shorter names say not enough.
        if folder is not None and len(set(names)) == len(names):
            document = document._replace(names=names)
            return CocoDataset(document, folder, read_captions(captions), "lvis", outside, masks=masks)
    raise missing_images(annotations, images, [PurePosixPath(name).name for name in document.names])


def clean_name(name: str) -> str:
    """A category's name as a person would write it: `bow_(weapon)` becomes `bow (weapon)`.

    The explanation in brackets stays: without it two bows would share one text.
    """
    return " ".join(name.replace("_", " ").split())


def location(image: Mapping[str, Any]) -> str:
    """The picture's path: `file_name`, or `coco_url`, of which the end is taken."""
    if not (image.get("file_name") or image.get("coco_url")):
        raise FieldError("has neither file_name nor coco_url")
    return as_text(image.get("file_name") or image["coco_url"], "file_name or coco_url")


def _with_clean_name(category: Any) -> Any:
    if isinstance(category, dict) and isinstance(category.get("name"), str):
        return category | {"name": clean_name(category["name"])}
    return category  # the reader says what is wrong with it
