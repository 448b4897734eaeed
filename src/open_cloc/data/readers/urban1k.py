"""Urban1k: a folder of pictures beside one of texts, a long caption each."""

from __future__ import annotations

from collections.abc import Callable
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

    A picture without its text is a problem, and so is a text without its picture: each has both.

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
    pictures = _by_stem(folder / PICTURES, is_picture, problems)
    texts = _by_stem(folder / TEXTS, lambda name: name.endswith(".txt"), problems)
    problems += [
        Problem("picture without a text", f"no {TEXTS}/{stem}.txt of {PICTURES}/{pictures[stem]} ({folder})")
        for stem in pictures
        if stem not in texts
    ]
    problems += [
        Problem("text without a picture", f"no picture {PICTURES}/{stem} of {TEXTS}/{name} ({folder})")
        for stem, name in texts.items()
        if stem not in pictures
    ]

    def read(stem: str) -> Entry:
        return Entry(pictures[stem], captions=(_caption(folder / TEXTS / texts[stem]),))

    both = [(f"picture {stem}", stem) for stem in pictures if stem in texts]
    entries = list(entries_of(both, read, folder, problems))
    return PackedDataset(folder, [folder / PICTURES], entries, problems=problems, outside=outside)


def _by_stem(folder: Path, is_one: Callable[[str], bool], problems: list[Problem]) -> dict[str, str]:
    """Names of a folder's files by what they are called without suffix; hidden ones are none."""
    found: dict[str, str] = {}
    for name in sorted(file.name for file in folder.iterdir()):
        if name.startswith(".") or not is_one(name):
            continue
        first = found.setdefault(Path(name).stem, name)
        if first != name:
            problems.append(Problem("repeated name", f"{first} and {name} share a name ({folder})"))
    return found


def _caption(file: Path) -> str:
    try:
        return as_text(read_text(file), "the text").strip()
    except FieldError:
        raise
    except UserError as error:
        raise FieldError(str(error)) from None
