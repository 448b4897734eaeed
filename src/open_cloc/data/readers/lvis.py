"""LVIS JSON: COCO's form with 1,203 categories and file names hidden in `coco_url`."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

from open_cloc.data.readers.coco import CocoDataset, load_document, read_captions
from open_cloc.data.readers.files import annotation_files, find_annotations, find_images, missing_images
from open_cloc.errors import UserError

PATTERN = "lvis*.json"


def recognises(text: str) -> bool:
    """Whether this is a JSON file named after LVIS, or a folder with some."""
    path = Path(text)
    return bool(annotation_files(path, PATTERN)) or (path.is_file() and path.match(PATTERN))


def open_lvis(path: str, images: Path | None = None, captions: Path | None = None) -> CocoDataset:
    """Open LVIS annotations.

    Category names become texts by `clean_name`. LVIS splits mix COCO's train2017 and val2017, so `images` may
    be one folder with all pictures or the parent of those two.

    Args:
        path: The JSON, or a folder that holds one `lvis*.json` (itself or in `annotations/`).
        images: Folder of the pictures; guessed beside the JSON unless given.
        captions: COCO captions JSON of the same images.

    Raises:
        MissingFileError: If a file or the pictures' folder is missing.
        UserError: If the JSON is not LVIS's, or a category or image id is unknown.
    """
    annotations = find_annotations(Path(path), PATTERN)
    document = load_document(annotations)
    urls = [_location(image, annotations) for image in document["images"]]
    document["categories"] = [
        category | {"name": clean_name(str(category["name"]))} if "name" in category else category
        for category in document["categories"]
    ]
    for num_parts in (1, 2):  # 000000397133.jpg, then val2017/000000397133.jpg
        names = ["/".join(url.parts[-num_parts:]) for url in urls]
        folder = find_images(annotations, images, names)
        if folder is not None:
            captions_by_image = read_captions(captions)
            return CocoDataset(document, names, folder, str(annotations), captions_by_image, "lvis")
    raise missing_images(annotations, images, [url.name for url in urls])


def clean_name(name: str) -> str:
    """A category's name as a person would write it: `bow_(weapon)` becomes `bow (weapon)`.

    The explanation in brackets stays: without it two bows would share one text.
    """
    return " ".join(name.replace("_", " ").split())


def _location(image: dict[str, Any], where: Path) -> PurePosixPath:
    """The picture's path: `file_name`, or the end of `coco_url`."""
    location = image.get("file_name") or image.get("coco_url")
    if not isinstance(location, str):
        raise UserError(f"image {image.get('id')} has neither file_name nor coco_url ({where})")
    return PurePosixPath(location)
