"""Where the samples of one tar lie, kept in a file: beside the tars that we write, in the cache for others.

An index knows its tar by the headers of its members: it is used for no other, whatever the clock of the file
says, and survives copying.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from open_cloc.data.annotations import Problem
from open_cloc.data.shards.tars import BLOCK, WITHOUT_PICTURE, scan_tar
from open_cloc.errors import SampleError, UserError
from open_cloc.files import write_whole

LOOKED_AT = 4  # samples whose headers are compared before an index is used; each is compared when it is read
ABSENT = 2**32 - 1  # size of a member that is not there
LONGEST_NAME = 90  # bytes of a key that surely stand in a header as they are
# What comes of a file that is not there, or damaged.
UNREADABLE = (
    *(OSError, EOFError, ValueError, KeyError, TypeError, IndexError),
    *(NotImplementedError, zipfile.BadZipFile, zlib.error),
)
UNKNOWN = 0  # the check of a header that an index of version 0.1 does not have


class UnreadableShardError(SampleError):
    """A shard, not only one of its samples, cannot be used."""

    def __init__(self, message: str, cause: str = "unreadable shard") -> None:
        super().__init__(message, cause)


class DamagedShardError(UnreadableShardError):
    """A shard's file is not what its index says."""


class Place(NamedTuple):
    """Where a sample lies in its tar.

    Attributes:
        key: The sample's name.
        offsets: Where picture, text and JSON begin.
        sizes: Their bytes; `ABSENT` for what is not there.
        checks: CRC-32 of the headers before them.
    """

    key: str
    offsets: Sequence[int]
    sizes: Sequence[int]
    checks: Sequence[int]


@dataclass(frozen=True)
class ShardIndex:
    """The samples of one tar, in order.

    Attributes:
        keys: The samples' names in UTF-8, one behind the other.
        ends: (n,) int64, where each name ends.
        spans: (n, 6) int64: offset and size of picture, text and JSON; size -1 where absent.
        checks: (n, 3) uint32: CRC-32 of the header before each of them; `UNKNOWN` where nobody has looked.
        left_out: What the tar holds that is not used, with counts.
        problems: What is wrong with it.
        lost: Bytes behind the place where it breaks.
        is_lasting: Whether another look would find the same.
    """

    keys: bytes
    ends: np.ndarray
    spans: np.ndarray
    checks: np.ndarray
    left_out: dict[str, int] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()
    lost: int = 0
    is_lasting: bool = True

    def __len__(self) -> int:
        return len(self.ends)

    def key(self, row: int) -> str:
        """Name of a sample."""
        start = int(self.ends[row - 1]) if row else 0
        return self.keys[start : int(self.ends[row])].decode()

    def place(self, row: int) -> Place:
        """Where a sample lies."""
        span = self.spans[row].tolist()
        sizes = [ABSENT if size < 0 else size for size in span[1::2]]
        return Place(self.key(row), span[::2], sizes, self.checks[row].tolist())


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


def index_file(tar: Path) -> Path:
    """Where the index of a tar is kept beside it."""
    return tar.with_name(f"{tar.stem}_index.npz")


def index_shard(tar: Path) -> ShardIndex:
    """The index of a tar: from the file beside it, from the cache, or scanned and put in the cache."""
    cached = cache_folder() / "indices" / f"{hashlib.sha256(os.fsencode(tar.resolve())).hexdigest()[:32]}.npz"
    for file, is_beside in ((index_file(tar), True), (cached, False)):
        index = load_index(file, tar, is_beside)
        if index is not None:
            return index
    index = scan_shard(tar)
    if index.is_lasting:
        with suppress(OSError):  # a full or read-only cache: the next start scans again
            save_index(cached, index, tar)
    return index


def scan_shard(tar: Path) -> ShardIndex:
    """Index a tar by reading its headers. Never raises: what is wrong is among the problems."""
    scan = scan_tar(tar)
    return ShardIndex(
        *_packed(scan.keys),
        scan.spans,
        scan.checks,
        scan.left_out,
        tuple(scan.problems),
        scan.lost,
        scan.is_lasting,
    )


def save_index(file: Path, index: ShardIndex, tar: Path) -> None:
    """Write an index; the file appears whole or not at all. Equal indices give equal bytes."""
    notes = {"left_out": index.left_out, "problems": index.problems, "lost": index.lost}
    status = tar.stat()
    is_beside = file.parent == tar.parent
    arrays = {
        "keys": np.frombuffer(index.keys, np.uint8),
        "ends": index.ends,
        "spans": index.spans,
        "checks": index.checks,
        "notes": np.frombuffer(json.dumps(notes).encode(), np.uint8),
        "tar_size": np.int64(status.st_size),
        # Files that lie together are copied together, and a copy is of another time.
        "tar_time": np.int64(0 if is_beside else status.st_mtime_ns),
    }
    with write_whole(file) as part, part.open("wb") as stream:
        np.savez(stream, **arrays)  # type: ignore[arg-type]


def load_index(file: Path, tar: Path, is_beside: bool) -> ShardIndex | None:
    """Read an index; None where it is missing or damaged, or of another tar.

    Args:
        file: The index.
        tar: What it must be of.
        is_beside: Whether it lies beside the tar, as that of one that we have written: then it may be of
            version 0.1, but not of a tar with faults. Any other must know the time of the tar.
    """
    try:
        of_tar, of_file = tar.stat(), file.stat()
        with np.load(file, allow_pickle=False) as arrays:
            if int(arrays["tar_size"]) != of_tar.st_size:
                return None
            if "checks" in arrays:
                index = _loaded(arrays)
                is_usable = not index.problems if is_beside else int(arrays["tar_time"]) == of_tar.st_mtime_ns
            else:
                index = _loaded_of_0_1(arrays)
                is_usable = is_beside and of_file.st_mtime_ns >= of_tar.st_mtime_ns
        with tar.open("rb") as stream:
            return index if is_usable and _is_of(index, stream) else None
    except UNREADABLE:
        return None


def read_index(file: Path) -> ShardIndex | None:
    """An index by itself, whatever has become of its tar; None where it is missing or damaged."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return _loaded(arrays)
    except UNREADABLE:
        return None


def is_header(block: bytes, check: int, size: int, key: str) -> bool:
    """Whether the block before a member's content is the header that an index has seen there.

    Args:
        block: The block.
        check: Its CRC-32 as the index has it, or `UNKNOWN`: then size and name decide.
        size: Bytes of the content.
        key: Name of the sample.
    """
    if check != UNKNOWN:
        return zlib.crc32(block) == check
    digits, name = block[124:136].strip(b"\0 "), key.encode()
    is_named = len(name) > LONGEST_NAME or not key.isascii() or block.startswith(name + b".")
    return is_named and digits.isdigit() and int(digits, 8) == size


def _packed(keys: Sequence[str]) -> tuple[bytes, np.ndarray]:
    encoded = [key.encode() for key in keys]
    return b"".join(encoded), np.cumsum([len(key) for key in encoded], dtype=np.int64)


def _loaded(arrays: np.lib.npyio.NpzFile) -> ShardIndex:
    notes = json.loads(arrays["notes"].tobytes())
    problems = tuple(Problem(*problem) for problem in notes["problems"])
    keys = arrays["keys"].tobytes()
    columns = arrays["ends"], arrays["spans"].reshape(-1, 6), arrays["checks"].reshape(-1, 3)
    index = ShardIndex(keys, *columns, notes["left_out"], problems, notes["lost"])
    if not len(index.ends) == len(index.spans) == len(index.checks):
        raise ValueError("columns of different lengths")
    if len(index) and index.ends[-1] != len(keys):
        raise ValueError("names of another length")
    return index


def _loaded_of_0_1(arrays: np.lib.npyio.NpzFile) -> ShardIndex:
    keys, ends = _packed(arrays["keys"].tolist())
    spans = arrays["spans"].reshape(-1, 6)
    if len(spans) != len(ends):
        raise ValueError("columns of different lengths")
    without = int(arrays["without_image"])
    checks = np.full((len(ends), 3), UNKNOWN, np.uint32)
    return ShardIndex(keys, ends, spans, checks, {WITHOUT_PICTURE: without} if without else {})


def _is_of(index: ShardIndex, stream: BinaryIO) -> bool:
    """Whether the headers of some pictures, the first and the last among them, are where the index says."""
    rows = np.unique(np.linspace(0, len(index) - 1, LOOKED_AT).astype(int)) if len(index) else ()
    for row in rows:
        offset, size = index.spans[row, :2].tolist()
        stream.seek(offset - BLOCK)
        if not is_header(stream.read(BLOCK), int(index.checks[row, 0]), size, index.key(row)):
            return False
    return True
