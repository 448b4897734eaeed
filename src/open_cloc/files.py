"""Files that are written whole or not at all, JSON with the file named in errors, versions of libraries."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
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

    Others may read it as the umask says: some libraries write for their user alone.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{PART}{os.getpid()}-{path.name}")
    try:
        part.touch()
        mode = stat.S_IMODE(part.stat().st_mode)
        yield part
        if stat.S_IMODE(part.stat().st_mode) != mode:
            part.chmod(mode)
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


def read_json(path: Path, without: str = "") -> Any:
    """Parse a JSON file; a byte order mark, as some editors write it, does no harm.

    Args:
        path: The file.
        without: A key whose values are left out, wherever it stands, so that they take no memory.

    Raises:
        MissingFileError: If it is not there.
        UserError: If it is not JSON, or cannot be read; names the file.
    """
    return parse_json(read_bytes(path), str(path), without)


def parse_json(content: bytes, where: str, without: str = "") -> Any:
    """Parse JSON that comes from elsewhere.

    Args:
        content: UTF-8, with or without a byte order mark.
        where: Where it comes from, for messages.
        without: A key whose values are left out, wherever it stands.

    Raises:
        UserError: If it is no JSON, is nested without end, or an object names a key twice: which of the two
            is meant, nobody can say.
    """
    try:
        return json.loads(content.decode("utf-8-sig"), object_pairs_hook=partial(_as_table, without))
    except RecursionError:
        raise UserError(f"{where} is not valid JSON: nested too deeply") from None
    except ValueError as error:  # also text that is not UTF-8, and numbers of thousands of digits
        raise UserError(f"{where} is not valid JSON: {error}") from error


def _as_table(without: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"key {repeated!r} comes twice in one object")
    table.pop(without, None)
    return table


def read_bytes(path: Path) -> bytes:
    """The content of a regular file; a device or a pipe may never end.

    Raises:
        MissingFileError: If it is not there.
        UserError: If it is no regular file, or may not be read.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UserError(f"expected a file; got {_kind_of_file(path)} {path}")
        return path.read_bytes()
    except FileNotFoundError:
        raise MissingFileError(f"no such file: {path}") from None
    except (OSError, ValueError) as error:  # `ValueError`: a name with a NUL in it
        if isinstance(error, UserError):
            raise
        raise UserError(f"cannot be read: {getattr(error, 'strerror', None) or error} ({path})") from error


def read_text(path: Path) -> str:
    """The UTF-8 text of a regular file, without its byte order mark.

    Raises:
        MissingFileError: If it is not there.
        UserError: If it is no regular file, may not be read, or is not UTF-8.
    """
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"text is not UTF-8: {error} ({path})") from error


def _kind_of_file(path: Path) -> str:
    return "the folder" if path.is_dir() else "the device or pipe"


def version_of(distribution: str) -> str:
    """An installed distribution's version, or `not installed`."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"


def versions(*distributions: str) -> dict[str, str]:
    """Versions by distribution, for results and labels that must say what made them."""
    return {name: version_of(name) for name in distributions}
