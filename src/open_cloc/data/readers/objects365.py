"""Objects365: COCO's form, whose file names are of another layout than its archives unpack to."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from open_cloc.data.readers.coco import CocoDataset, Document, file_name
from open_cloc.data.readers.coco_entries import read_captions
from open_cloc.data.readers.files import find_annotations, find_images, is_regular, missing_images

# Where its archives unpack to, beside what `find_images` tries by itself.
FOLDERS = ("train", "val", "images/train", "images/val")
PATCH = re.compile(rb'"file_name":\s*"(images/v[12]/)?(patch\d+/)?objects365_v[12]_\d+\.jpg"')
HEAD = 2**20


def recognises(text: str) -> bool:
    """Whether this is a JSON whose first pictures bear the data set's names."""
    file = Path(text)
    if file.suffix.lower() != ".json" or not is_regular(file):
        return False
    with file.open("rb") as stream:
        return PATCH.search(stream.read(HEAD)) is not None


def open_objects365(
    path: str, images: Path | None = None, crowds: bool = False, outside: bool = False
) -> CocoDataset:
    """Open a split of Objects365, version 1 or 2.

    The file calls a picture `images/v2/patch16/NAME.jpg`; archives unpack to `patch16/NAME.jpg`, and people
    put all into one folder. Each of these is found.

    Args:
        path: Such as `zhiyuan_objv2_val.json`.
        images: Folder of the pictures or of their patches; beside the file unless given.
        crowds: Take the boxes of crowds (`iscrowd`) as well.
        outside: Allow pictures that do not lie in the data set's folder.

    Raises:
        MissingFileError: If a file or the pictures are missing.
        UserError: If the JSON is not COCO's, or no image of it can be used.
    """
    annotations = find_annotations(Path(path), lvis=False)
    document = Document.load(annotations, file_name)
    given = [images] if images else [None, *_beside(annotations)]
    for num_parts in (4, 2, 1):  # as written, patch16/NAME.jpg, NAME.jpg
        names = ["/".join(PurePosixPath(name).parts[-num_parts:]) for name in document.names]
        if len(set(names)) < len(names):
            continue
        for place in given:
            folder = find_images(annotations, place, names)
            if folder is not None:
                found = document._replace(names=names)
                return CocoDataset(found, folder, read_captions(None), "objects365", outside, crowds)
    raise missing_images(annotations, images, document.names)


def _beside(annotations: Path) -> list[Path]:
    bases = (annotations.parent, annotations.parent.parent)
    return [base / name for base in bases for name in FOLDERS if (base / name).is_dir()]
