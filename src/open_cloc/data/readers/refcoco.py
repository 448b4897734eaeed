"""RefCOCO, RefCOCO+ and RefCOCOg as they were published: a pickle of references and a COCO JSON of boxes.

The pickle is read as plain values alone (`open_cloc.data.pickled`), and only to be converted.
"""

from __future__ import annotations

from pathlib import Path

from open_cloc.data.pickled import read_plain_pickle
from open_cloc.data.readers.packed import PackedDataset, file_in
from open_cloc.data.readers.references import boxes_beside, dataset_of

REFERENCES = "refs(*).p"


def recognises(text: str) -> bool:
    """Whether this is a folder of references, beside which their boxes lie as COCO's JSON, or such a file."""
    path = Path(text)
    return path.is_file() if path.match(REFERENCES) else next(path.glob(REFERENCES), None) is not None


def open_refcoco(
    path: str, split: str = "", images: Path | None = None, outside: bool = False
) -> PackedDataset:
    """Open references for conversion.

    Args:
        path: `refs(unc).p` or the like, or the folder that holds one; `instances.json` lies beside it.
        split: One of the file's splits, such as `val`, `testA` or `testB`; all unless given.
        images: Folder of COCO's train2014; beside the file unless given.
        outside: Allow pictures that do not lie in the data set's folder.

    Raises:
        MissingFileError: If a file or the pictures are missing.
        UserError: If the pickle would run code or is none of references, or has no such split.
    """
    file = file_in(Path(path), sorted(Path(path).glob(REFERENCES)), "refs(...).p")
    boxes_beside(file)
    return dataset_of(file, read_plain_pickle(file), split, images, outside)
