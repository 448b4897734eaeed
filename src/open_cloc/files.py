"""Files that are written whole or not at all, JSON with the file named in errors, versions of libraries."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from open_cloc.errors import MissingFileError, UserError

PART = ".part-"  # starts the name of a file that is being written


@contextmanager
def write_whole(path: Path) -> Iterator[Path]:
    """A temporary file's path beside `path`, which takes its place when the block ends without an error.

    Folders above it are made. The temporary name keeps the suffix, by which libraries choose a format, and
    holds the process's number, so that two processes may write the same file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{PART}{os.getpid()}-{path.name}")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, whole or not at all."""
    with write_whole(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: Path, document: Any) -> None:
    """Write JSON for people to read, whole or not at all.

    Raises:
        ValueError: If the document holds a number that JSON does not know, such as nan.
    """
    write_text(path, json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Parse a JSON file; a byte order mark, as some editors write it, does no harm.

    Raises:
        MissingFileError: If it is not there.
        UserError: If it is not JSON; names the file.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise MissingFileError(f"no such file: {path}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid JSON: {error}") from error


def version_of(distribution: str) -> str:
    """An installed distribution's version, or `not installed`."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"


def versions(*distributions: str) -> dict[str, str]:
    """Versions by distribution, for results and labels that must say what made them."""
    return {name: version_of(name) for name in distributions}
