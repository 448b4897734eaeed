"""Urban1k: a folder of pictures beside one of texts, a long caption each."""

from __future__ import annotations

from pathlib import Path

from open_cloc.data.annotations import Problem
from open_cloc.data.fields import FieldError, as_text
from open_cloc.data.readers.packed import Entry, PackedDataset, entries_of
from open_cloc.errors import MissingFileError, UserError
from open_cloc.files import read_text
from open_cloc.pictures import is_picture

TEXTS, PICTURES = "caption", "image"


def recognises(text: str) -> bool:
    """Whether this is a folder of `image` and `caption`."""
    return all((Path(text) / part).is_dir() for part in (TEXTS, PICTURES))


def open_urban1k(path: str, outside: bool = False) -> PackedDataset:
    """Open pictures with long captions.

    Args:
        path: Folder of `image` and `caption`.
        outside: Allow pictures that do not lie in the data set's folder.

    Raises:
        MissingFileError: If a folder is missing.
        UserError: If no picture has a text.
    """
    folder, problems = Path(path), list[Problem]()
    for part in (TEXTS, PICTURES):
        if not (folder / part).is_dir():
            raise MissingFileError(f"no folder {part} in {folder}, as Urban1k has it")
    files = [file for file in sorted((folder / PICTURES).iterdir()) if is_picture(file.name)]
    pictures = {file.stem: file.name for file in files}
    texts = {file.stem: file for file in sorted((folder / TEXTS).glob("*.txt"))}

    def read(stem: str) -> Entry:
        return Entry(pictures[stem], captions=(_caption(texts[stem]),))

    both = [(f"picture {stem}", stem) for stem in pictures if stem in texts]
    left_out = {
        "pictures without a text": len(pictures) - len(both),
        "texts without a picture": len(texts) - len(both),
    }
    return PackedDataset(
        folder,
        [folder / PICTURES],
        list(entries_of(both, read, folder, problems)),
        problems=problems,
        left_out={what: count for what, count in left_out.items() if count},
        outside=outside,
    )


def _caption(file: Path) -> str:
    try:
        return as_text(read_text(file), "the text").strip()
    except FieldError:
        raise
    except UserError as error:
        raise FieldError(str(error)) from None
