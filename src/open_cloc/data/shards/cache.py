"""A bounded folder of shards that were fetched, which all processes of a host share.

Each shard is fetched by one of them and appears under its name only when it is whole. Past the limit, the
shards used longest ago are deleted.
"""

from __future__ import annotations

import hashlib
import logging
import os
import random
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from filelock import FileLock

from open_cloc.data.shards.index import (
    ShardIndex,
    UnreadableShardError,
    index_file,
    save_index,
    scan_shard,
)
from open_cloc.data.shards.urls import download, is_final, lasting, one_line, shown

logger = logging.getLogger(__name__)

ATTEMPTS = 6  # waits of 1, 2, 4, 8 and 16 s between them: a store that restarts is forgiven
REMEMBER_FAILURE = 600.0  # seconds until a shard that could not be fetched is tried again
STILL_IN_USE = 10.0  # seconds since a shard was last read


@dataclass
class ShardCache:
    """A folder of fetched shards that processes share.

    Attributes:
        folder: Where the copies lie; made when it is first used.
        max_bytes: Size past which the shards used longest ago are deleted.
        opened_at: Seconds since 1970. Failures before that were another run's, and whatever caused them may
            be mended.
        warned: Whether the user has been told that the limit is too small.
    """

    folder: Path
    max_bytes: float
    opened_at: float = field(default_factory=time.time)
    warned: bool = False

    def fetch(self, url: str, wait: bool = True) -> Path:
        """The local copy of a shard, fetched if it is not there.

        Args:
            url: Where the tar lies.
            wait: Wait while another process fetches it.

        Raises:
            UnreadableShardError: If that fails, also when tried again.
            filelock.Timeout: If another process is at it and this one does not wait.
        """
        tar = self.path(url)
        if not tar.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(tar.with_suffix(".lock"), timeout=-1 if wait else 0):
                if not tar.exists():
                    self._raise_remembered(tar)
                    self._fetch_anew(url, tar)
        with suppress(FileNotFoundError):
            os.utime(tar)  # used now
        return tar

    def fetch_index(self, url: str) -> ShardIndex:
        """The index of a shard, which outlives the shard in the folder; fetches it if need be."""
        file = index_file(self.path(url))
        for _ in range(3):
            if file.exists():
                with np.load(file, allow_pickle=False) as arrays:
                    return ShardIndex(arrays["keys"], arrays["spans"], int(arrays["without_image"]))
            self.fetch(url)
        raise UnreadableShardError(f"index of the shard vanished from {self.folder} ({shown(url)})")

    def path(self, url: str) -> Path:
        """Where a shard's copy lies, whatever signature the URL has today."""
        return self.folder / f"{hashlib.sha256(lasting(url).encode()).hexdigest()[:32]}.tar"

    def _fetch_anew(self, url: str, tar: Path) -> None:
        """Download, index and check a shard, trying again with growing pauses."""
        part = tar.with_suffix(".tar.part")
        for attempt in range(1, ATTEMPTS + 1):
            try:
                # A killed process may have left a command that still writes to it.
                part.unlink(missing_ok=True)
                with part.open("wb") as stream:
                    download(url, stream)
                index, problems = scan_shard(part)
                if problems:
                    raise UnreadableShardError(problems[0].replace(str(part), "as downloaded"))
                save_index(index_file(tar), index, part)
                self._make_room(part.stat().st_size)
                part.replace(tar)
                return
            except Exception as error:  # each store has errors of its own; all end in one sentence
                part.unlink(missing_ok=True)
                if attempt == ATTEMPTS or is_final(error):
                    message = (
                        f"shard cannot be fetched after {attempt} attempts: {one_line(error)} ({shown(url)})"
                    )
                    with suppress(OSError):  # a full disk
                        tar.with_suffix(".failed").write_text(f"{time.time()} {message}")
                    raise UnreadableShardError(message) from error
                logger.warning("attempt %d to fetch %s failed: %s", attempt, shown(url), one_line(error))
                # Pauses differ, so that not all hosts come back at once.
                time.sleep(2 ** (attempt - 1) * random.uniform(0.5, 1))

    def _raise_remembered(self, tar: Path) -> None:
        """Raise how fetching has failed just now, in any process: not once more by each, for each sample."""
        told = ""
        with suppress(FileNotFoundError):
            told = tar.with_suffix(".failed").read_text()
        failed_at, _, message = told.partition(" ")
        if message and float(failed_at) > max(self.opened_at, time.time() - REMEMBER_FAILURE):
            raise UnreadableShardError(message)

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
            if time.time() - used_ns / 1e9 < STILL_IN_USE and not self.warned:
                self.warned = True
                logger.warning("cache_gb is too small: %s loses shards that are in use", self.folder)
            tar.unlink(missing_ok=True)
            total -= size
