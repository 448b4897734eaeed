"""Entries of COCO's JSONs and what is wrong with them; captions of pictures."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from open_cloc.data.annotations import Problem
from open_cloc.data.fields import FieldError, as_id, as_text, field_of
from open_cloc.errors import UserError
from open_cloc.files import read_json


class Captions(NamedTuple):
    """Texts of pictures, of a file of their own.

    Attributes:
        texts: By image id.
        problems: Entries that cannot be used.
    """

    texts: Mapping[str, tuple[str, ...]]
    problems: Sequence[Problem]


NO_CAPTIONS = Captions({}, ())


def read_captions(path: Path | None) -> Captions:
    """COCO's captions by image id; none without a path.

    Raises:
        MissingFileError: If the file is not there.
        UserError: If it is not COCO's captions.
    """
    if path is None:
        return NO_CAPTIONS
    document = read_json(path)
    entries = document.get("annotations") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise UserError(f"captions must be a list of objects 'annotations'; got {kind_of(entries)} ({path})")
    texts: defaultdict[str, list[str]] = defaultdict(list)
    problems = []
    for position, annotation in enumerate(entries):
        try:
            check_object(annotation)
            text = as_text(field_of(annotation, "caption"), "caption")
            texts[as_id(field_of(annotation, "image_id"), "image_id")].append(text)
        except FieldError as error:
            problems.append(entry_problem(error, path, "caption", annotation, position))
    if problems and not texts:
        raise UserError(f"no caption can be used; the first: {problems[0].message}")
    return Captions({image_id: tuple(own) for image_id, own in texts.items()}, problems)


def check_object(entry: Any) -> None:
    """Refuse what is no object.

    Raises:
        FieldError: Says what it is.
    """
    if not isinstance(entry, dict):
        raise FieldError(f"must be an object; got {kind_of(entry)}")


def entry_problem(error: Exception, where: object, kind: str, entry: Any, position: int) -> Problem:
    """What is wrong with an entry, which entry it is, and in which file."""
    name = entry_name(entry, position) if isinstance(entry, dict) else f"at position {position}"
    cause = (
        error.cause if isinstance(error, FieldError) and error.cause != "broken entry" else f"broken {kind}"
    )
    return Problem(cause, f"{kind} {name}: {error} ({where})")


def shared_names(names: Sequence[str]) -> Counter[str]:
    """What to say of categories that bear another's name: their regions have one text, and are one class."""
    return +Counter({"categories with the name of another, read as one": len(names) - len(set(names))})


def entry_name(entry: Mapping[str, Any], position: int) -> str:
    """An entry's own id, which is for messages only and may be anything."""
    own = entry.get("id")
    return str(own)[:80] if isinstance(own, (int, float, str)) and own != "" else f"at position {position}"


def kind_of(value: Any) -> str:
    """What a value is, in a message."""
    return "nothing" if value is None else type(value).__name__
