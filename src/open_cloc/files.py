"""Files that are written whole or not at all, folders for one process at a time, JSON with the file named."""

from __future__ import annotations

import codecs
import errno
import json
import logging
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any
from zlib import crc32

from open_cloc.disguises import what_it_is
from open_cloc.errors import MissingFileError, UserError

PART = ".part-"  # starts the name of a file that is being written
LOCK = ".lock"  # in a folder that a process fills
OF_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EBADF, errno.EPIPE)
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # of file systems that know none

logger = logging.getLogger(__name__)


@contextmanager
def write_whole(path: Path) -> Iterator[Path]:
    """A temporary file's path beside `path`, which takes its place when the block ends without an error.

    Folders above it are made. The temporary name keeps the suffix, by which libraries choose a format, and
    holds the process's number, so that two processes may write the same file.

    Others may read it as the umask says: some libraries write for their user alone.

    Raises:
        UserError: If a folder or a device is there: nothing shall take its place.
        OSError: If it cannot be written; speaks of `path`.
    """
    if path.exists() and not path.is_file():
        raise UserError(
            f"expected a place for a file; got the {'folder' if path.is_dir() else 'device'} {path}"
        )
    part = path.with_name(f"{PART}{os.getpid()}-{crc32(os.fsencode(path.name)):08x}{path.suffix}")
    with speaking_of(path, part):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            part.touch()
            mode = stat.S_IMODE(part.stat().st_mode)
            yield part
            if stat.S_IMODE(part.stat().st_mode) != mode:
                part.chmod(mode)
            part.replace(path)
        finally:
            with suppress(OSError):  # what stopped the writing is what is told
                part.unlink()


@contextmanager
def speaking_of(path: Path, part: Path | None = None) -> Iterator[None]:
    """Let the system's errors of writing name a file: that of a full disk does not say which.

    Args:
        path: What is written.
        part: The name that it has until it is whole.
    """
    try:
        yield
    except OSError as error:
        is_nameless = error.filename is None and error.errno in OF_WRITING
        if is_nameless or error.filename in (str(part), part):
            error.filename = str(path)
        raise


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of a folder that this one fills, which is made if it is not there.

    The system ends a lock with its process, in whatever way that dies.

    Raises:
        UserError: If another process holds it.
    """
    from filelock import FileLock, Timeout  # as long to import as all the rest of the command line

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
        while not (folder / LOCK).exists():  # its last holder has just removed it
            lock.release()
            lock.acquire()
    except Timeout:
        raise UserError(
            f"another process works in {folder}: wait until it ends, or give another folder"
        ) from None
    except (NotImplementedError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in NO_LOCKS:
            raise
        logger.warning("%s cannot be locked here (%s): see that one process works in it", folder, error)
    try:
        yield
    finally:
        if lock.is_locked:
            with suppress(OSError):  # the folder may be gone, or have got another name
                (folder / LOCK).unlink()
            lock.release()


def is_free(folder: Path) -> bool:
    """Whether nothing is there, or a folder that holds nothing but perhaps our lock."""
    if not folder.is_dir():
        return not os.path.lexists(folder)
    return all(path.name == LOCK for path in folder.iterdir())


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, whole or not at all; half a character becomes its escape, which JSON reads back."""
    with write_whole(path) as part:
        part.write_text(text, encoding="utf-8", errors="backslashreplace")


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
        return json.loads(_decoded(content), object_pairs_hook=partial(_as_table, without))
    except RecursionError:
        raise UserError(f"{where} is not valid JSON: nested too deeply") from None
    except ValueError as error:  # also text that is not UTF-8, and numbers of thousands of digits
        raise UserError(f"{where} is not valid JSON: {what_it_is(content) or error}") from error


def _as_table(without: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"key {repeated!r} comes twice in one object")
    table.pop(without, None)
    return table


def _decoded(content: bytes) -> str:
    """UTF-8 as text, without the mark that some editors put before it."""
    return content.removeprefix(codecs.BOM_UTF8).decode()


def read_bytes(path: Path) -> bytes:
    """The content of a regular file; a device or a pipe may never end.

    Raises:
        MissingFileError: If it is not there.
        UserError: If it is no regular file, or may not be read.
    """
    with _readable(path):
        return path.read_bytes()


def read_lines(path: Path) -> Iterator[bytes]:
    """The lines of a regular file, one after the other: what they hold may be larger than memory.

    Raises:
        MissingFileError: If it is not there.
        UserError: If it is no regular file, or may not be read.
    """
    with _readable(path), path.open("rb") as stream:
        yield from stream


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Refuse what is no regular file, and say what cannot be read."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UserError(f"expected a file; got {_kind_of_file(path)} {path}")
        yield
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
        return _decoded(read_bytes(path))
    except UnicodeDecodeError as error:
        raise UserError(f"text is not UTF-8: {what_it_is(read_bytes(path)) or error} ({path})") from error


def read_names(path: Path) -> tuple[str, ...]:
    """The names in a file, such as classes, one a line; blank lines are left out.

    Raises:
        MissingFileError: If it is not there.
        UserError: If it is no text, or holds none.
    """
    names = tuple(filter(None, map(str.strip, read_text(path).splitlines())))
    if not names:
        raise UserError(f"file of names, one a line, is empty: {path}")
    return names


def _kind_of_file(path: Path) -> str:
    return "the folder" if path.is_dir() else "the device or pipe"


def version_of(distribution: str) -> str:
    """An installed distribution's version, or `not installed`."""
    from importlib import metadata  # long to import, too

    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"


def versions(*distributions: str) -> dict[str, str]:
    """Versions by distribution, for results and labels that must say what made them."""
    return {name: version_of(name) for name in distributions}
