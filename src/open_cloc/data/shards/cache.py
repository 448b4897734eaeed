"""A bounded folder of shards that were fetched, which all processes of a host share.

Each shard is fetched by one of them and appears under its name only when it is whole. Past the limit, the
shards used longest ago are deleted. Once a run the store is asked whether a shard is still the one that was
fetched.

    NAME.tar, NAME_index.npz    the shard, and where its samples lie
    NAME.json                   which version it is of, and when that was asked
    NAME.failed, NAME.lock      how fetching has failed, and who is at it
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import random
import time
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock

from open_cloc.data.shards.index import (
    ShardIndex,
    UnreadableShardError,
    index_file,
    read_index,
    save_index,
    scan_shard,
)
from open_cloc.data.shards.tars import BREAKS
from open_cloc.data.shards.urls import (
    Bounds,
    Version,
    download,
    is_final,
    is_other,
    lasting,
    one_line,
    shown,
    version_of,
)
from open_cloc.files import write_text

logger = logging.getLogger(__name__)

ATTEMPTS = 6  # waits of 1, 2, 4, 8 and 16 s between them: a store that restarts is forgiven
REMEMBER_FAILURE = 600.0  # seconds until a shard that could not be fetched is tried again
STILL_IN_USE = 10.0  # seconds since a shard was last read
LEAST_MOST = 16e9  # bytes that a shard may have however small the cache is


class Moment(NamedTuple):
    """A time that only processes of one host, since it was started, can compare.

    The folder may lie on storage that hosts share, and their clocks differ.
    """

    host: str
    seconds: float

    @classmethod
    def now(cls) -> Moment:
        """This moment on this host."""
        return cls(_host(), time.monotonic())

    def is_since(self, earlier: Moment) -> bool:
        """Whether this is surely not before another moment of the same host, nor still to come."""
        return self.host == earlier.host and earlier.seconds <= self.seconds <= time.monotonic()


@cache
def _host() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return platform.node()


@dataclass
class ShardCache:
    """A folder of fetched shards that processes share.

    Attributes:
        folder: Where the copies lie; made when it is first used.
        max_bytes: Size past which the shards used longest ago are deleted.
        opened_at: Failures before that were another run's, and whatever caused them may be mended.
        warned: What the user has been told already.
        current: Copies that are known to be of the version that lies behind their URL.
    """

    folder: Path
    max_bytes: float
    opened_at: Moment = field(default_factory=Moment.now)
    warned: set[str] = field(default_factory=set)
    current: set[Path] = field(default_factory=set)

    def fetch(self, url: str, wait: bool = True) -> Path:
        """The local copy of a shard, fetched if it is not there or of an earlier version.

        Args:
            url: Where the tar lies.
            wait: Wait while another process fetches it.

        Raises:
            UnreadableShardError: If that fails, also when tried again.
            filelock.Timeout: If another process is at it and this one does not wait.
        """
        tar = self.path(url)
        if not (tar in self.current and tar.exists()):
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(tar.with_suffix(".lock"), timeout=-1 if wait else 0):
                if not (self._is_current(url, tar) and self._is_whole(tar)):
                    self._raise_remembered(tar)
                    self._fetch_anew(url, tar)
                self.current.add(tar)
        with suppress(OSError):  # gone already, or somebody else's
            os.utime(tar)  # used now
        return tar

    def fetch_index(self, url: str) -> ShardIndex:
        """The index of a shard, which outlives the shard in the folder; fetches it if need be."""
        tar = self.path(url)
        for _ in range(3):
            if tar in self.current or self._ask(url, tar):
                index = read_index(index_file(tar))
                index = _index_again(tar) if index is None else index
                if index is not None:
                    return index
                self.drop(url)
            self.fetch(url)
        raise UnreadableShardError(f"index of the shard vanished from {self.folder} ({shown(url)})")

    def drop(self, url: str) -> None:
        """Delete a copy that is damaged."""
        tar = self.path(url)
        self.current.discard(tar)
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(tar.with_suffix(".lock")):
            for file in (tar, index_file(tar), tar.with_suffix(".json")):
                file.unlink(missing_ok=True)

    def path(self, url: str) -> Path:
        """Where a shard's copy lies, whatever signature the URL has today."""
        return self.folder / f"{hashlib.sha256(lasting(url).encode()).hexdigest()[:32]}.tar"

    def _ask(self, url: str, tar: Path) -> bool:
        """Whether what is kept of a shard is of the version that lies behind its URL."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(tar.with_suffix(".lock")):
            return self._is_current(url, tar)

    def _is_current(self, url: str, tar: Path) -> bool:
        """The same for whoever holds the lock; it is asked once a run and host."""
        note = _read_note(tar.with_suffix(".json"))
        before = note.get("version")
        if not isinstance(before, dict):  # nothing is kept, or what version 0.1 has fetched
            before = {"size": str(tar.stat().st_size)} if tar.exists() else None
        if before is None:
            return False
        if _moment(note).is_since(self.opened_at):
            return True
        try:
            now = version_of(url)
        except Exception as error:  # each store has errors of its own
            self._warn(
                "versions", f"cannot ask whether cached shards are current: {one_line(error)} ({shown(url)})"
            )
            return True
        if is_other(before, now):
            logger.warning("shard was made anew, and is fetched again: %s", shown(url))
            return False
        with suppress(OSError):  # a full disk: it is asked again
            self._write_note(tar, before | now)
        return True

    def _is_whole(self, tar: Path) -> bool:
        """Whether a copy is there with its index, and as long as it was when it was fetched."""
        with suppress(FileNotFoundError):
            size = _read_note(tar.with_suffix(".json")).get("bytes")
            return tar.stat().st_size == size and index_file(tar).exists()
        return False

    def _fetch_anew(self, url: str, tar: Path) -> None:
        """Download, index and check a shard, trying again with growing pauses."""
        part = tar.with_suffix(".tar.part")
        for attempt in range(1, ATTEMPTS + 1):
            try:
                # A killed process may have left a command that still writes to it.
                part.unlink(missing_ok=True)
                with part.open("wb") as stream:
                    version = download(url, stream, Bounds.from_now(max(self.max_bytes, LEAST_MOST)))
                index = scan_shard(part)
                self._tell(url, index, part)
                save_index(index_file(tar), index, part)
                self._make_room(part.stat().st_size)
                size = part.stat().st_size
                part.replace(tar)
                self._write_note(tar, version, size)
                return
            except Exception as error:  # each store has errors of its own; all end in one sentence
                part.unlink(missing_ok=True)
                if attempt == ATTEMPTS or is_final(error):
                    message = (
                        f"shard cannot be fetched after {attempt} attempts: {one_line(error)} ({shown(url)})"
                    )
                    with suppress(OSError):  # a full disk
                        _write_json(tar.with_suffix(".failed"), {"asked": Moment.now(), "message": message})
                    raise UnreadableShardError(message) from error
                logger.warning("attempt %d to fetch %s failed: %s", attempt, shown(url), one_line(error))
                # Pauses differ, so that not all hosts come back at once.
                time.sleep(2 ** (attempt - 1) * random.uniform(0.5, 1))

    def _tell(self, url: str, index: ShardIndex, part: Path) -> None:
        """Say what is not used of a shard, once for each kind.

        Raises:
            UnreadableShardError: If the tar breaks.
        """
        for problem in index.problems:
            message = problem.message.replace(str(part), "as downloaded")
            if problem.cause in BREAKS:
                raise UnreadableShardError(message)
            self._warn(problem.cause, f"{message} ({shown(url)})")
        for name, count in index.left_out.items():
            self._warn(name, f"not used: {name}: {count}, perhaps of other shards too ({shown(url)})")

    def _warn(self, kind: str, message: str) -> None:
        if kind not in self.warned:
            self.warned.add(kind)
            logger.warning("%s", message)

    def _write_note(self, tar: Path, version: Version, size: int | None = None) -> None:
        before = _read_note(tar.with_suffix(".json"))
        if size is None:
            size = before.get("bytes") or (tar.stat().st_size if tar.exists() else None)
        _write_json(tar.with_suffix(".json"), {"version": version, "bytes": size, "asked": Moment.now()})

    def _raise_remembered(self, tar: Path) -> None:
        """Raise how fetching has failed just now, in any process: not once more by each, for each sample."""
        note = _read_note(tar.with_suffix(".failed"))
        failed_at = _moment(note)
        if failed_at.is_since(self.opened_at) and time.monotonic() - failed_at.seconds < REMEMBER_FAILURE:
            raise UnreadableShardError(str(note.get("message")))

    def _make_room(self, needed: int) -> None:
        """Delete the shards used longest ago until so many bytes more are within the limit."""
        found = []
        for tar in self.folder.glob("*.tar"):
            with suppress(FileNotFoundError):  # another process makes room too
                found.append((tar.stat().st_mtime_ns, tar.stat().st_size, tar))
        total = needed + sum(size for _, size, _ in found)
        for used_ns, size, tar in sorted(found):
            if total <= self.max_bytes:
                return
            if time.time() - used_ns / 1e9 < STILL_IN_USE:
                self._warn("cache_gb", f"cache_gb is too small: {self.folder} loses shards that are in use")
            tar.unlink(missing_ok=True)
            total -= size


def _index_again(tar: Path) -> ShardIndex | None:
    """The index of a copy whose own was lost, or is of version 0.1; None where the copy is damaged too."""
    index = scan_shard(tar)
    if any(problem.cause in BREAKS for problem in index.problems):
        return None
    save_index(index_file(tar), index, tar)
    return index


def _read_note(file: Path) -> dict[str, Any]:
    """What a note says; nothing where it is not there, or damaged."""
    try:
        note = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return note if isinstance(note, dict) else {}


def _moment(note: dict[str, Any]) -> Moment:
    """When a note was written; never where it does not say."""
    match note.get("asked"):
        case [str(host), float(seconds)]:
            return Moment(host, seconds)
    return Moment("", 0.0)


def _write_json(file: Path, note: dict[str, Any]) -> None:
    write_text(file, json.dumps(note))
