"""Where the samples of many tars lie: one file, made once a host, which its processes map and do not read.

A row is found by the number of its sample; only what is looked at of the file takes memory, once for all
processes of the host. Its name follows from the tars, their sizes and times, so that it is never of others.

    rows      one a sample, of equal length, and one behind the last
    names     of all samples, in UTF-8
    repeated  pairs of rows of one name, the second of which is left out
    notes     JSON: samples by tar, what was wrong, what is not used
    ending    how long the parts are
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import shutil
import struct
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import IO, Any

import numpy as np
from filelock import FileLock

from open_cloc.data.annotations import Problem
from open_cloc.data.shards.index import ABSENT, Place, ShardIndex, cache_folder, index_file, index_shard
from open_cloc.data.shards.tars import BREAKS
from open_cloc.errors import MissingFileError
from open_cloc.files import write_whole

FEW_SAMPLES, FEW_TARS = 10_000, 16  # up to which no file is made: their indices are read at each start
IN_MEMORY = 1 << 24  # bytes of a part while it is made; more goes to a temporary file
AT_A_TIME = 1 << 26  # hashes of names that are compared at a time

ROW = np.dtype(
    [
        ("offsets", "<i8", 3),
        ("sizes", "<u4", 3),
        ("checks", "<u4", 3),
        ("shard", "<u4"),
        ("name", "<i8"),  # where it begins among all names
    ]
)
UNPACK_ROW = struct.Struct("<3q7Iq").unpack_from
UNPACK_NAME = struct.Struct("<q").unpack_from
NAME_IN_ROW = ROW.itemsize - 8
ENDING = struct.Struct("<4q16s")  # bytes of each part, and a mark
MARK = b"open_cloc index1"


class SampleIndex:
    """The samples of some tars by number.

    Attributes:
        counts: (shards,) samples of each tar, those of repeated names left out.
        left_out: What the tars hold that is not used, with counts.
        problems: What is wrong with them, repeated names aside.
        lost: About how many samples stood behind the places where tars break.
        repeated: (n, 2) rows whose name an earlier row has, and those earlier rows.
    """

    def __init__(self, content: bytes | mmap.mmap, file: Path | None = None) -> None:
        """Take the content of a file apart.

        Args:
            content: Whole, or mapped.
            file: Where it is mapped from, for processes that get this object pickled.

        Raises:
            ValueError: If it is not such a file, or damaged.
        """
        self._content, self._file = content, file
        rows, names, repeated, notes, mark = ENDING.unpack(content[-ENDING.size :])
        if mark != MARK or rows + names + repeated + notes + ENDING.size != len(content):
            raise ValueError("no index, or cut short")
        self._names = rows
        self.num_rows = rows // ROW.itemsize - 1
        start = rows + names
        self.repeated = np.frombuffer(content[start : start + repeated], "<i8").reshape(-1, 2)
        document = json.loads(content[start + repeated : start + repeated + notes])
        self.left_out: dict[str, int] = document["left_out"]
        self.problems = [Problem(*problem) for problem in document["problems"]]
        self.lost: int = document["lost"]
        self.counts = np.array(document["counts"], np.int64)
        np.subtract.at(self.counts, [self._unpack(row)[9] for row in self.repeated[:, 0].tolist()], 1)
        # Of each row that is left out, how many that are not stand before it.
        self._skips = self.repeated[:, 0] - np.arange(len(self.repeated))

    @classmethod
    def load(cls, file: Path) -> SampleIndex | None:
        """Map a file; None where it is missing or damaged."""
        try:
            with file.open("rb") as stream:
                return cls(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ), file)
        except (OSError, ValueError, KeyError, TypeError, IndexError, struct.error):
            return None

    def __reduce__(self) -> tuple[Callable[..., SampleIndex], tuple[Any, ...]]:
        return (SampleIndex, (self._content,)) if self._file is None else (_mapped_again, (self._file,))

    def __len__(self) -> int:
        return self.num_rows - len(self.repeated)

    def place(self, index: int) -> tuple[int, Place]:
        """The number of a sample's tar, and where it lies in it."""
        row = index + int(np.searchsorted(self._skips, index, side="right")) if len(self._skips) else index
        return self.place_of_row(row)

    def place_of_row(self, row: int) -> tuple[int, Place]:
        """The same by number of the row."""
        fields = self._unpack(row)
        start, end = fields[10], UNPACK_NAME(self._content, (row + 1) * ROW.itemsize + NAME_IN_ROW)[0]
        key = self._content[self._names + start : self._names + end].decode()
        return fields[9], Place(key, fields[:3], fields[3:6], fields[6:9])

    def _unpack(self, row: int) -> tuple[int, ...]:
        return UNPACK_ROW(self._content, row * ROW.itemsize)


def open_index(paths: Sequence[Path]) -> SampleIndex:
    """Where the samples of tars lie: mapped, or made by whichever process comes first while others wait.

    Args:
        paths: The tars, in order.
    """
    folder = cache_folder() / "indices"
    names, identity, sizes = _identify(paths)
    file = folder / f"{names}-{identity}.index"
    index = SampleIndex.load(file)
    if index is not None:
        return index
    with _one_at_a_time(folder, names):
        index = SampleIndex.load(file)
        return _joined(paths, sizes, file, names) if index is None else index


def _joined(paths: Sequence[Path], sizes: Sequence[int], file: Path, names: str) -> SampleIndex:
    """The indices of tars put together, in a file where they are many."""
    with (
        SpooledTemporaryFile(IN_MEMORY) as rows,
        SpooledTemporaryFile(IN_MEMORY) as keys,
        SpooledTemporaryFile(IN_MEMORY) as hashes,
    ):
        made = _Parts(rows, keys, hashes)
        for path, size in zip(paths, sizes):
            made.add(index_shard(path), size)
        if made.is_lasting and (made.num_rows > FEW_SAMPLES or len(paths) > FEW_TARS):
            with suppress(OSError):  # a full or read-only cache
                with write_whole(file) as part, part.open("wb") as stream:
                    made.write(stream)
                _remove_older(file, names)
            index = SampleIndex.load(file)
            if index is not None:
                return index
        content = BytesIO()
        made.write(content)
        return SampleIndex(content.getvalue())


def _mapped_again(file: Path) -> SampleIndex:
    index = SampleIndex.load(file)
    if index is None:
        raise MissingFileError(
            f"index of shards has vanished, as where a tar was changed: start again ({file})"
        )
    return index


def _identify(paths: Sequence[Path]) -> tuple[str, str, list[int]]:
    """What stands for the names of tars, what for their sizes and times, and their sizes."""
    names, identity = hashlib.sha256(), hashlib.sha256()
    sizes = []
    for path in paths:
        size, time = _size_and_time(path)
        names.update(os.fsencode(os.path.abspath(path)) + b"\0")
        # Whoever deletes the index beside a tar wants it scanned.
        identity.update(b"%d %d %d %d\n" % (size, time, *_size_and_time(index_file(path))))
        sizes.append(size)
    return names.hexdigest()[:24], identity.hexdigest()[:24], sizes


def _size_and_time(path: Path) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns


@contextmanager
def _one_at_a_time(folder: Path, names: str) -> Iterator[None]:
    """Let one process of the host scan; where nothing can be locked, each looks for itself."""
    lock = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f"{names[:2]}.lock")  # a few for all, so that they do not pile up
        lock.acquire()
    except (OSError, NotImplementedError):
        lock = None
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


def _remove_older(file: Path, names: str) -> None:
    for other in file.parent.glob(f"{names}-*.index"):
        if other != file:
            other.unlink(missing_ok=True)


class _Parts:
    """The parts of a file while it is made, tar by tar."""

    def __init__(self, rows: IO[bytes], names: IO[bytes], hashes: IO[bytes]) -> None:
        """Begin with empty files, which are filled one behind the other."""
        self.rows, self.names, self.hashes = rows, names, hashes
        self.counts: list[int] = []
        self.num_rows, self.num_names = 0, 0  # samples, and bytes of their names
        self.left_out: Counter[str] = Counter()
        self.problems: list[Problem] = []
        self.broken: list[tuple[int, int]] = []  # number of each broken tar, and bytes behind its break
        self.num_sound = 0  # bytes of what is not broken
        self.is_lasting = True

    def add(self, index: ShardIndex, num_bytes: int) -> None:
        """Take in the next tar."""
        ends = index.ends.tolist()
        starts = [0, *ends][: len(ends)]
        rows = np.zeros(len(index), ROW)
        sizes = index.spans[:, 1::2]
        rows["offsets"], rows["sizes"] = index.spans[:, ::2], np.where(sizes < 0, ABSENT, sizes)
        rows["checks"], rows["shard"] = index.checks, len(self.counts)
        rows["name"] = self.num_names + np.array(starts, np.int64)
        self.rows.write(rows.tobytes())
        self.names.write(index.keys)
        names = (index.keys[start:end] for start, end in zip(starts, ends))
        self.hashes.write(np.fromiter(map(hash, names), np.int64, len(index)).tobytes())
        self.num_rows += len(index)
        self.num_names += len(index.keys)
        if any(problem.cause in BREAKS for problem in index.problems):
            self.broken.append((len(self.counts), index.lost))
        self.counts.append(len(index))
        self.left_out.update(index.left_out)
        self.problems += index.problems
        self.num_sound += num_bytes - index.lost
        self.is_lasting &= index.is_lasting

    def write(self, stream: IO[bytes]) -> None:
        """Write all parts."""
        notes = {
            "counts": self.counts,
            "left_out": dict(self.left_out),
            "problems": self.problems,
            "lost": self._lost(),
        }
        behind = np.zeros(1, ROW)
        behind["name"] = self.num_names
        small = behind.tobytes(), self._repeated().tobytes(), json.dumps(notes).encode()
        _copy(self.rows, stream)
        stream.write(small[0])
        _copy(self.names, stream)
        stream.write(small[1])
        stream.write(small[2])
        sizes = (self.num_rows + 1) * ROW.itemsize, self.num_names, *map(len, small[1:])
        stream.write(ENDING.pack(*sizes, MARK))

    def _lost(self) -> int:
        """About how many samples broken tars have cost: by bytes, or as many as other tars have more."""
        if not self.broken:
            return 0
        a_sample = max(1.0, self.num_sound / max(1, self.num_rows))
        whole = np.delete(self.counts, [number for number, _ in self.broken])
        usual = int(np.median(whole)) if len(whole) else 0
        return sum(
            max(1, round(lost / a_sample), usual - self.counts[number]) for number, lost in self.broken
        )

    def _repeated(self) -> np.ndarray:
        """(n, 2) int64: rows whose name an earlier row has, and those earlier rows."""
        first: dict[bytes, int] = {}
        pairs = []
        for row in self._suspects():
            name = self._name(row)
            if name in first:
                pairs.append((row, first[name]))
            else:
                first[name] = row
        return np.array(pairs, np.int64).reshape(-1, 2)

    def _suspects(self) -> list[int]:
        """Rows that share a hash with another, in order; compared a part at a time, for the memory's sake."""
        self.hashes.seek(0)
        hashes = np.frombuffer(self.hashes.read(), np.int64)
        parts = 1 + len(hashes) // AT_A_TIME
        found = []
        for part in range(parts):
            rows = np.flatnonzero(hashes % parts == part) if parts > 1 else np.arange(len(hashes))
            order = rows[np.argsort(hashes[rows], kind="stable")]
            same = hashes[order[1:]] == hashes[order[:-1]]
            found += [order[1:][same], order[:-1][same]]
        return np.unique(np.concatenate(found)).tolist()

    def _name(self, row: int) -> bytes:
        self.rows.seek(row * ROW.itemsize)
        starts = np.frombuffer(self.rows.read(2 * ROW.itemsize), ROW)["name"].tolist()
        start, end = [*starts, self.num_names][:2]
        self.names.seek(start)
        return self.names.read(end - start)


def _copy(part: IO[bytes], stream: IO[bytes]) -> None:
    part.seek(0)
    shutil.copyfileobj(part, stream, 1 << 20)
