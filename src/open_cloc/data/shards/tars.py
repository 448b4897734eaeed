"""What lies in a tar, sample by sample, from its headers alone.

Members belong together by their name up to the first dot, as in webdataset, wherever they stand. What is
wrong with a member costs that member; a broken tar is read up to where it breaks.
"""

from __future__ import annotations

import re
import tarfile
import zlib
from array import array
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from open_cloc.data.annotations import Problem
from open_cloc.data.names import make_keys
from open_cloc.disguises import ARCHIVES, COMPRESSIONS, packed_by, what_it_is
from open_cloc.pictures import SUFFIXES

BLOCK = 512  # bytes that a tar is made of
MOST_HEADER = (
    1 << 16
)  # bytes of a long name or of pax records; a header that names more would take all memory
MOST_MEMBER = 2**32 - 2  # bytes of a picture or a text
MOST_SUFFIXES = 20  # that are counted by name
BREAKS = ("broken tar", "not a tar", "unreadable tar")  # causes of problems that cost what stands behind them

PICTURE, TEXT, DOCUMENT = range(3)  # what a sample is made of
# Suffix -> what it holds, and its place among the suffixes of the same: of two, the first is read.
KNOWN = {suffix[1:]: (PICTURE, place) for place, suffix in enumerate(SUFFIXES)} | {
    "txt": (TEXT, 0),
    "text": (TEXT, 1),
    "caption": (TEXT, 2),
    "json": (DOCUMENT, 0),
}
SECOND = ("second pictures of a key", "second captions of a key", "second JSONs of a key")
WITHOUT_PICTURE = "keys without a picture"
# What other systems leave behind in archives, beside `._NAME`: files, and a folder.
LEFTOVERS = (".DS_Store", "Thumbs.db", "desktop.ini", "__MACOSX")

USTAR = slice(257, 262)  # where a tar says what it is
COMPRESSED = tuple(
    f"{tar}{suffix}"
    for tar, suffixes in (
        (".tar", (".gz", ".bz2", ".xz", ".zst", ".lz4", ".zip")),
        (".t", ("gz", "bz2", "xz")),
    )
    for suffix in suffixes
)
_PLAIN_KEY = re.compile(r"[\w-]+(?:/[\w-]+)*", re.ASCII)  # which `make_keys` leaves as it is


@dataclass(frozen=True)
class Scan:
    """The samples of one tar, in order of their first member.

    Attributes:
        keys: Names of the samples that have a picture, no two alike.
        spans: (n, 6) int64: offset and size of picture, text and JSON; size -1 where absent.
        checks: (n, 3) uint32: CRC-32 of the header block before each of them; 0 where absent.
        left_out: What was seen and is not used, with counts.
        problems: What is wrong.
        lost: Bytes behind the place where the tar breaks.
        is_lasting: Whether another look would find the same, as it is not where the file cannot be read.
    """

    keys: list[str]
    spans: np.ndarray
    checks: np.ndarray
    left_out: dict[str, int]
    problems: list[Problem]
    lost: int = 0
    is_lasting: bool = True


def scan_tar(path: Path) -> Scan:
    """Read the headers of a tar. Never raises: what is wrong with it is among the problems."""
    found = _Members(path)
    lost, is_lasting = 0, True
    try:
        with path.open("rb") as stream:
            lost = _scan(stream, found)
    except OSError as error:
        is_lasting = False
        found.problems.append(
            Problem("unreadable tar", f"tar cannot be read: {error.strerror or error} ({path})")
        )
    return found.scan(lost, is_lasting)


def is_compressed_tar(name: str) -> bool:
    """Whether a file's name is that of a compressed tar."""
    return name.lower().endswith(COMPRESSED)


def other_kind(head: bytes) -> str:
    """What a file is instead of a tar, and what to do about it; empty where its first bytes do not say."""
    if head[USTAR] == b"ustar" or not head:  # whatever the name of its first member begins with
        return ""
    if kind := packed_by(head, COMPRESSIONS):
        return f"this is {kind}, no tar: unpack it with `{kind} -dc OLD > NEW.tar`"
    if kind := packed_by(head, ARCHIVES):
        return f"this is {kind}, no tar: unpack it and make a tar of it"
    kind, _, advice = what_it_is(head).partition(": ")
    return f"this is {kind}, no tar{advice and ': '}{advice}" if kind else ""


def _scan(stream: BinaryIO, found: _Members) -> int:
    """Look at every member; the number of bytes that could not be read."""
    total = stream.seek(0, 2)
    stream.seek(0)
    head = stream.read(BLOCK)
    kind = other_kind(head)
    if kind:
        found.problems.append(Problem("not a tar", f"{kind} ({found.path})"))
        return total
    end = 0
    headers = _Headers(stream)
    try:
        stream.seek(0)
        with tarfile.open(fileobj=headers, mode="r:") as tar:  # type: ignore[call-overload]
            while (info := tar.next()) is not None:
                tar.members.clear()  # it would keep them all
                stored = info.size if info.isreg() and info.sparse is None else 0
                if stored < 0 or tar.offset <= end or info.offset_data + stored > total:
                    raise tarfile.ReadError(f"cut short or damaged at byte {end}, member {info.name[:80]!r}")
                end = tar.offset
                found.add(info, headers.block)
        found.problems += _after_the_end(stream, end, found.path)
        return 0
    except (tarfile.TarError, ValueError, OverflowError, RecursionError) as error:
        reason = "headers without end" if isinstance(error, RecursionError) else error
        found.problems.append(Problem("broken tar", f"broken tar file: {reason} ({found.path})"))
        return max(0, total - end)


def _after_the_end(stream: BinaryIO, end: int, path: Path) -> list[Problem]:
    """What is wrong behind the last member that was found.

    Raises:
        tarfile.ReadError: If there is no end mark: tarfile takes a damaged header, or a file that was cut
            between members, for the end.
    """
    stream.seek(end)
    if stream.read(BLOCK) != bytes(BLOCK):
        raise tarfile.ReadError(f"no end mark at byte {end}: cut short or damaged")
    while part := stream.read(1 << 20):
        if part.strip(b"\0"):
            text = f"more behind the end mark at byte {end}, as where tars were joined by `cat`: not read"
            return [Problem("tar behind a tar", f"{text} ({path})")]
    return []


class _Headers:
    """A tar as `tarfile` wants to read its headers, none of which may be without end.

    Attributes:
        block: The last block that was read: the header right before a member's content.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self.stream, self.block = stream, b""

    def read(self, size: int) -> bytes:
        if not 0 <= size <= MOST_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        content = self.stream.read(size)
        if size == BLOCK:
            self.block = content
        return content

    def seek(self, offset: int) -> int:
        if offset < 0:
            raise tarfile.ReadError("a member that leads to before the file")
        return self.stream.seek(offset)

    def tell(self) -> int:
        return self.stream.tell()


@dataclass
class _Members:
    """Members put together to samples; a row a key.

    Attributes:
        path: The tar, for messages.
        rows: Key -> row.
        spans: Of each row, as in `Scan`.
        checks: Of each row, as in `Scan`.
        places: Of each row, the place of what is taken among the suffixes of the same; -1 for none.
        told: Rows of which it was told that a member comes twice.
    """

    path: Path
    rows: dict[str, int] = field(default_factory=dict)
    spans: array[int] = field(default_factory=lambda: array("q"))
    checks: array[int] = field(default_factory=lambda: array("I"))
    places: array[int] = field(default_factory=lambda: array("b"))
    left_out: Counter[str] = field(default_factory=Counter)
    problems: list[Problem] = field(default_factory=list)
    told: set[int] = field(default_factory=set)

    def add(self, info: tarfile.TarInfo, header: bytes) -> None:
        """Take in a member by its header."""
        if info.isdir():
            return
        if not info.isreg():
            self.left_out["links in tars" if info.issym() or info.islnk() else "devices in tars"] += 1
            return
        key, suffix = self._split(info.name)
        if not suffix:
            return
        row = self._row(key)
        if suffix not in KNOWN:
            self._count_suffix(suffix)
            return
        if info.sparse is not None or info.size > MOST_MEMBER:
            kind = "sparse" if info.sparse is not None else f"larger than {MOST_MEMBER} bytes"
            self.problems.append(
                Problem("unusable member", f"member {info.name[:80]!r} is {kind} ({self.path})")
            )
            return
        self._put(row, key, suffix, (info.offset_data, info.size, zlib.crc32(header)))

    def _split(self, name: str) -> tuple[str, str]:
        """Key and suffix of a member's name; no suffix where it is none of a sample, which is counted."""
        if name.startswith((".", "/")) or "/." in name or "//" in name:
            name = "/".join(part for part in name.split("/") if part not in ("", "."))
        folder, slash, file = name.rpartition("/")
        if file.startswith("._") or file in LEFTOVERS or LEFTOVERS[-1] in folder.split("/"):
            self.left_out["files that other systems leave behind, such as ._NAME"] += 1
            return "", ""
        base, _, suffix = file.partition(".")
        if not base or not suffix:
            self.left_out["members without a name" if suffix else "members without a suffix"] += 1
            return "", ""
        return folder + slash + base, suffix.lower()

    def _row(self, key: str) -> int:
        row = self.rows.setdefault(key, len(self.rows))
        if row == len(self.places) // 3:
            self.spans.extend((0, -1) * 3)
            self.checks.extend((0, 0, 0))
            self.places.extend((-1, -1, -1))
        return row

    def _count_suffix(self, suffix: str) -> None:
        name = f"members .{suffix[:20]}"
        if (
            name not in self.left_out
            and sum(own.startswith("members .") for own in self.left_out) >= MOST_SUFFIXES
        ):
            name = "members of other suffixes"
        self.left_out[name] += 1

    def _put(self, row: int, key: str, suffix: str, member: tuple[int, int, int]) -> None:
        """Keep a member, unless one that comes before it in `KNOWN` is there."""
        part, place = KNOWN[suffix]
        column = 3 * row + part
        before = self.places[column]
        if before == place:
            if row not in self.told:
                self.told.add(row)
                message = f"key {key[:80]!r} has two members .{suffix}; the first is read ({self.path})"
                self.problems.append(Problem("member twice", message))
            return
        if before >= 0:
            self.left_out[SECOND[part]] += 1
            if before < place:
                return
        self.places[column] = place
        self.spans[2 * column], self.spans[2 * column + 1], self.checks[column] = member

    def scan(self, lost: int, is_lasting: bool) -> Scan:
        """What was found; keys without a picture are counted, no more."""
        spans = np.array(self.spans, np.int64).reshape(-1, 6)
        checks = np.array(self.checks, np.uint32).reshape(-1, 3)
        has_picture = spans[:, 1] >= 0
        names = [key for key, has in zip(self.rows, has_picture.tolist()) if has]
        if not has_picture.all():
            self.left_out[WITHOUT_PICTURE] = int((~has_picture).sum())
        keys = names if all(map(_PLAIN_KEY.fullmatch, names)) else make_keys(names)
        return Scan(
            keys,
            spans[has_picture],
            checks[has_picture],
            dict(self.left_out),
            self.problems,
            lost,
            is_lasting,
        )
