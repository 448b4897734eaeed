"""What a source says of its data set as a whole, in a file beside the shards that are made of it.

Samples do not tell which names a region might have had, nor whether boxes of crowds are among them; numbers
measured on shards would not be those of their source.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from open_cloc.errors import UserError
from open_cloc.files import read_json

ABOUT = "dataset.json"
# Attributes of a data set -> the kind of each.
KINDS: dict[str, type] = {"class_names": list, "class_groups": dict, "crowds": bool, "num_crowds": int}


def about_of(dataset: Any) -> dict[str, Any]:
    """What a data set says of itself, as plain JSON; only what it does say."""
    found = {name: getattr(dataset, name) for name in KINDS if hasattr(dataset, name)}
    groups = {name: list(members) for name, members in found.pop("class_groups", {}).items()}
    names = list(found.pop("class_names", ()))
    return found | ({"class_names": names} if names else {}) | ({"class_groups": groups} if groups else {})


def read_about(tars: Sequence[Path]) -> dict[str, Any]:
    """What stands beside tars, by the attribute's name; of several folders, what all of them say alike.

    Raises:
        UserError: If a file is not what conversions write.
    """
    folders = sorted({tar.parent for tar in tars})
    said = [_read(folder / ABOUT) for folder in folders]
    shared = said[0] if said else {}
    return {name: value for name, value in shared.items() if all(own.get(name) == value for own in said)}


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    document = read_json(file)
    if not isinstance(document, dict):
        raise UserError(f"{file} must be a table; got {type(document).__name__}")
    for name, kind in KINDS.items():
        if name in document and type(document[name]) is not kind:
            raise UserError(f"{name} must be a {kind.__name__}; got {document[name]!r:.60} ({file})")
    names = [*document.get("class_names", ()), *_members(document.get("class_groups", {}), file)]
    if not all(isinstance(name, str) for name in names):
        raise UserError(f"class names must be text ({file})")
    return {name: document[name] for name in KINDS if name in document}


def _members(groups: dict[str, Any], file: Path) -> list[Any]:
    for name, members in groups.items():
        if not isinstance(members, list):
            raise UserError(f"class group {name!r:.60} must be a list of names; got {members!r:.60} ({file})")
    return [name for members in groups.values() for name in members]
