"""Where the samples of a tar lie: its headers scanned once, and the result kept in a file."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from open_cloc.errors import SampleError, UserError
from open_cloc.files import write_whole

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
BLOCK = 512  # bytes that a tar is made of


class UnreadableShardError(SampleError):
    """A shard, not only one of its samples, cannot be used."""

    def __init__(self, message: str, cause: str = "unreadable shard") -> None:
        super().__init__(message, cause)


class ShardIndex(NamedTuple):
    """The samples of one tar, in order.

    Attributes:
        keys: (n,) texts, the samples' names.
        spans: (n, 6) int64: offset and size of the picture, of `txt` and of `json`; size -1 where absent.
        without_image: Number of keys that have no picture, hence no row.
    """

    keys: np.ndarray
    spans: np.ndarray
    without_image: int


class Member(NamedTuple):
    """Where a member's bytes lie inside its tar."""

    suffix: str
    offset: int
    size: int


def cache_folder() -> Path:
    """Where indices and remote shards are kept: `$OPEN_CLOC_CACHE`, or `open_cloc` in the user's cache.

    A user without a home, as in a container, has one among the temporary files.

    Raises:
        UserError: If that is somebody else's.
    """
    if own := os.environ.get("OPEN_CLOC_CACHE"):
        return Path(own)
    user = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(user) if user else Path.home() / ".cache") / "open_cloc"
    except RuntimeError:  # neither HOME nor an entry in the list of users
        pass
    folder = Path(tempfile.gettempdir()) / f"open_cloc-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise UserError(f"{folder} is somebody else's: name a folder by OPEN_CLOC_CACHE")
    return folder


def index_shard(tar: Path) -> ShardIndex:
    """The index of a tar: from the file beside it, from the cache, or scanned and put in the cache.

    Raises:
        UnreadableShardError: If the tar is broken, or a key in it is repeated.
    """
    cached = cache_folder() / "indices" / f"{hashlib.sha256(os.fsencode(tar.resolve())).hexdigest()[:32]}.npz"
    for file in (index_file(tar), cached):
        index = load_index(file, tar)
        if index is not None:
            return index
    index, problems = scan_shard(tar)
    if problems:
        raise UnreadableShardError(problems[0])
    with contextlib.suppress(OSError):  # a full or read-only cache: the next start scans again
        save_index(cached, index, tar)
    return index


def index_file(tar: Path) -> Path:
    """Where the index of a tar is kept beside it."""
    return tar.with_name(f"{tar.stem}_index.npz")


def save_index(file: Path, index: ShardIndex, tar: Path) -> None:
    """Write an index; the file appears whole or not at all. Equal indices give equal bytes."""
    with write_whole(file) as part, part.open("wb") as stream:
        np.savez(stream, **index._asdict(), tar_size=tar.stat().st_size)


def load_index(file: Path, tar: Path) -> ShardIndex | None:
    """Read an index; None where it is missing, damaged, older than its tar, or of a tar of another size."""
    try:
        of_tar = tar.stat()
        if file.stat().st_mtime_ns < of_tar.st_mtime_ns:
            return None
        with np.load(file, allow_pickle=False) as arrays:
            if int(arrays["tar_size"]) != of_tar.st_size:
                return None
            return ShardIndex(arrays["keys"], arrays["spans"], int(arrays["without_image"]))
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        return None


def scan_shard(tar: Path) -> tuple[ShardIndex, list[str]]:
    """Index a tar by reading its headers, and say what is wrong with it."""
    rows: dict[str, list[int]] = {}
    problems: list[str] = []
    without_image = 0
    try:
        for key, members in scan_tar(tar):
            parts = {member.suffix: member for member in members}
            image = next((suffix for suffix in IMAGE_SUFFIXES if suffix in parts), None)
            if image is None:
                without_image += 1
            elif key in rows:
                problems.append(repeated_key(key, tar, tar))
            else:
                spans = [parts.get(suffix, Member(suffix, 0, -1)) for suffix in (image, "txt", "json")]
                rows[key] = [number for span in spans for number in (span.offset, span.size)]
    except UserError as error:
        problems.append(str(error))
    spans_array = np.array(list(rows.values()), np.int64).reshape(-1, 6)
    return ShardIndex(np.array(list(rows), np.str_), spans_array, without_image), problems


def repeated_key(key: str, first: object, second: object) -> str:
    """The message about a key that two shards share."""
    return f"key {key!r} occurs twice; expected every sample to have its own ({first} and {second})"


def scan_tar(path: Path) -> Iterator[tuple[str, list[Member]]]:
    """Yield each sample's key and members in a tar, reading only the headers.

    Raises:
        UserError: If the tar is broken or cut short, or a sample has two members of one suffix.
    """
    key = ""
    members: list[Member] = []
    for name, offset, size in _scan_headers(path):
        folder, slash, file = name.rpartition("/")
        # As in webdataset, the key ends at the first dot of the file's name.
        base, _, suffix = file.partition(".")
        if not base or not suffix:
            continue
        if folder + slash + base != key and members:
            yield key, members
            members = []
        key = folder + slash + base
        members.append(Member(suffix.lower(), offset, size))
        if len({member.suffix for member in members}) < len(members):
            raise UserError(f"key {key!r} has two members .{suffix.lower()} ({path})")
    if members:
        yield key, members


def _scan_headers(path: Path) -> Iterator[tuple[str, int, int]]:
    """Name, offset of the content and size of each file in a tar."""
    try:
        with tarfile.open(path, "r:") as tar:
            for info in tar:
                if info.isfile():
                    yield info.name, info.offset_data, info.size
            # tarfile takes a damaged header, or a file that was cut between members, for the end.
            assert tar.fileobj is not None
            tar.fileobj.seek(tar.offset)
            if tar.fileobj.read(BLOCK) != bytes(BLOCK):
                raise tarfile.ReadError(f"no end mark at byte {tar.offset}: cut short or damaged")
    except tarfile.TarError as error:
        raise UserError(f"broken tar file: {error} ({path})") from error
