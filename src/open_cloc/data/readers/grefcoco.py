"""gRefCOCO: RefCOCO's references as JSON, in which one may mean several boxes or none."""

from __future__ import annotations

import re
from pathlib import Path

from open_cloc.data.readers.packed import PackedDataset, file_in, looks_like
from open_cloc.data.readers.references import boxes_beside, dataset_of
from open_cloc.files import read_json

FORM = (re.compile(rb'"ann_id"\s*:'), re.compile(rb'"ref_id"\s*:'), re.compile(rb'"sent_id'))


def recognises(text: str) -> bool:
    """Whether this is a JSON of references."""
    return looks_like(Path(text), (".json",), FORM)


def open_grefcoco(
    path: str, split: str = "", images: Path | None = None, outside: bool = False
) -> PackedDataset:
    """Open references of several boxes. Expressions that mean nothing are left out and counted.

    Args:
        path: `grefs(unc).json`, or the folder that holds it; `instances.json` lies beside it.
        split: One of the file's splits, such as `val`, `testA` or `testB`; all unless given.
        images: Folder of COCO's train2014; beside the file unless given.
        outside: Allow pictures that do not lie in the data set's folder.

    Raises:
        MissingFileError: If a file or the pictures are missing.
        UserError: If it is none of references, or has no such split.
    """
    file = file_in(Path(path), sorted(Path(path).glob("grefs(*).json")), "grefs(...).json")
    boxes_beside(file)
    return dataset_of(file, read_json(file), split, images, outside)
