"""Shards that lie elsewhere: fetched whole into a bounded folder, then read like local ones.

A location is any URL that fsspec opens (`s3://`, `hf://`, `gs://`, ...), `http(s)://`, or `pipe:COMMAND`,
whose output is the tar. All processes of a host share the folder: each shard is fetched by one of them,
appears under its name only when it is whole, and the shards used longest ago are deleted past the limit.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import shutil
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import fsspec
import numpy as np
from filelock import FileLock, Timeout
from torch.utils.data import get_worker_info
from webdataset.shardlists import expand_urls

from open_cloc.data.annotations import RawSample, finish
from open_cloc.data.shards.index import (
    ShardIndex,
    UnreadableShardError,
    cache_folder,
    index_file,
    save_index,
    scan_shard,
)
from open_cloc.data.shards.read import ShardDataset, read_sample
from open_cloc.errors import MissingFileError, UserError
from open_cloc.samples import RegionSample

logger = logging.getLogger(__name__)

ATTEMPTS = 6  # waits of 1, 2, 4, 8 and 16 s between them: a store that restarts is forgiven

REMEMBER_FAILURE = 600.0  # seconds until a shard that could not be fetched is tried again

STILL_IN_USE = 10.0  # seconds since a shard was last read

HTTP_TIMEOUT = 60.0  # seconds without a byte

COUNTING_THREADS = 8

KEPT_INDICES = 64  # of shards, in the memory of one process

GONE = (401, 403, 404, 410)  # HTTP codes that trying again does not change


def recognises(text: str) -> bool:
    """Whether this names tars, here or elsewhere, or is a folder that holds some."""
    named = Path(text).suffix == ".tar" or "{" in text or is_remote(text)
    return named or any(Path(text).glob("*.tar"))


def open_shards(path: str, cache: Path | None = None, cache_gb: float = 100.0) -> ShardDataset | RemoteShards:
    """Open tar shards, local or remote.

    Args:
        path: As for `ShardDataset`, or URLs: a folder with our `sizes.json`, or a pattern such as
            `s3://bucket/{00000..00999}.tar` or `pipe:COMMAND {00000..00999}.tar`; several joined by `::`.
        cache: Folder for what is fetched; `shards` in the user's cache unless given.
        cache_gb: Gigabytes that fetched shards may take there.

    Raises:
        MissingFileError: If a shard is missing.
        UserError: If a local shard is broken, a URL cannot be read, or local and remote shards are joined.
    """
    remote = [is_remote(part) for part in path.split("::")]
    if not any(remote):
        return ShardDataset(path)
    if not all(remote):
        raise UserError(f"local and remote shards cannot be joined in one name; got {path!r}")
    return RemoteShards(path, ShardCache(cache or cache_folder() / "shards", cache_gb * 1e9))


def is_remote(location: str) -> bool:
    """Whether a shard's name is a URL or a command instead of a path."""
    return location.startswith("pipe:") or "://" in location


class RemoteShards:
    """The samples of remote tar shards, by number.

    Only the number of samples of each shard is known in advance: from the `sizes.json` beside the shards, or
    by fetching each shard once. Reading a sample fetches its shard; see `prefetch` and the loader's
    `shuffle_shards`.

    Attributes:
        urls: Of the tars.
        shard_sizes: (shards,) samples of each.
        remote: Tells the loader not to jump about.
    """

    remote = True

    def __init__(self, path: str, cache: ShardCache) -> None:
        """Count samples.

        Args:
            path: As for `open_shards`.
            cache: Where shards are kept.

        Raises:
            MissingFileError: If a `sizes.json` does not name a shard, or there is no shard.
            UserError: If there is no sample, or a shard of unknown size cannot be fetched.
        """
        self.cache = cache
        self.urls, sizes = list_shards(path)
        if unknown := [url for url in self.urls if url not in sizes]:
            logger.warning("no sizes.json tells the size of %d shards: each is fetched once", len(unknown))
            with ThreadPoolExecutor(COUNTING_THREADS) as pool:
                indices = pool.map(cache.fetch_index, unknown)
                sizes |= {url: len(index.keys) for url, index in zip(unknown, indices)}
        self.shard_sizes = np.array([sizes[url] for url in self.urls], np.int64)
        self._ends = np.cumsum(self.shard_sizes)
        self._indices: OrderedDict[str, ShardIndex] = OrderedDict()
        if not len(self):
            raise UserError(f"no samples with a picture ({path})")

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> RegionSample:
        """A sample with its JSON validated and its boxes checked; fetches its shard where needed.

        Raises:
            UnreadableShardError: If the shard cannot be fetched or is broken.
            UserError: If the JSON is not the schema's or a box is wrong; names the shard and the key.
        """
        return finish(self.raw(index))

    def raw(self, index: int) -> RawSample:
        """A sample with its boxes as in the file."""
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        shard = int(np.searchsorted(self._ends, index, side="right"))
        row = index - int(self._ends[shard] - self.shard_sizes[shard])
        url = self.urls[shard]
        for _ in range(3):
            tar = self.cache.fetch(url)
            with suppress(FileNotFoundError):  # another process has just deleted it to make room
                return self._read(url, tar, row)
        raise UnreadableShardError(
            f"shard was deleted from {self.cache.folder} again and again before it was read: give a larger "
            f"cache_gb= ({shown(url)})"
        )

    def _read(self, url: str, tar: Path, row: int) -> RawSample:
        if url not in self._indices:
            self._indices[url] = self.cache.fetch_index(url)
            if len(self._indices) > KEPT_INDICES:
                self._indices.popitem(last=False)
        index = self._indices[url]
        if row >= len(index.keys):
            raise UnreadableShardError(
                f"shard holds {len(index.keys)} samples with a picture, fewer than its sizes.json says "
                f"({shown(url)})"
            )
        return read_sample(tar, str(index.keys[row]), index.spans[row].tolist(), shown(url))

    def prefetch(self, shards: Sequence[int]) -> None:
        """Fetch shards in the background, in this order; each worker process takes its share.

        Args:
            shards: Numbers, as in `urls`.
        """
        worker = get_worker_info()
        own = shards if worker is None else shards[worker.id :: worker.num_workers]
        urls = [self.urls[shard] for shard in own]
        threading.Thread(target=_fetch_all, args=(self.cache, urls), daemon=True).start()


def _fetch_all(cache: ShardCache, urls: Sequence[str]) -> None:
    for url in urls:
        # Another process fetches it, or it cannot be fetched, which whoever needs the shard is told.
        with suppress(Timeout, UnreadableShardError):
            cache.fetch(url, wait=False)


@dataclass
class ShardCache:
    """A folder of fetched shards that processes share.

    Attributes:
        folder: Made when first used.
        max_bytes: Past it, the shards used longest ago are deleted.
        opened_at: Failures before that were another run's, and whatever caused them may be mended.
        warned: Whether it has said that the limit is too small.
    """

    folder: Path
    max_bytes: float
    opened_at: float = field(default_factory=time.time)
    warned: bool = False

    def fetch(self, url: str, wait: bool = True) -> Path:
        """The local copy of a shard, fetched if it is not there.

        Args:
            url: Of a tar.
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
        return self.folder / f"{hashlib.sha256(shown(url).encode()).hexdigest()[:32]}.tar"

    def _fetch_anew(self, url: str, tar: Path) -> None:
        """Download, index and check a shard, trying again with growing pauses."""
        part = tar.with_suffix(".tar.part")
        for attempt in range(1, ATTEMPTS + 1):
            try:
                part.unlink(
                    missing_ok=True
                )  # a killed process may have left a command that still writes to it
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
                if attempt == ATTEMPTS or _is_final(error):
                    message = (
                        f"shard cannot be fetched after {attempt} attempts: {_text(error)} ({shown(url)})"
                    )
                    with suppress(OSError):  # a full disk
                        tar.with_suffix(".failed").write_text(f"{time.time()} {message}")
                    raise UnreadableShardError(message) from error
                logger.warning("attempt %d to fetch %s failed: %s", attempt, shown(url), _text(error))
                time.sleep(2 ** (attempt - 1) * random.uniform(0.5, 1))  # not all hosts at once

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


def list_shards(path: str) -> tuple[list[str], dict[str, int]]:
    """The tars that URLs name, and the number of samples of those that a `sizes.json` beside them tells.

    Args:
        path: As for `open_shards`.

    Raises:
        MissingFileError: If a folder has neither a `sizes.json` nor tars that can be listed.
        UserError: If a `sizes.json` is not one.
    """
    urls: list[str] = []
    sizes: dict[str, int] = {}
    asked: set[str] = set()
    for location in expand_urls(path):
        if location.startswith("pipe:"):
            urls.append(location)
            continue
        place, mark, query = location.partition("?")
        is_tar = place.endswith(".tar")
        folder = place.rpartition("/")[0] if is_tar else place.rstrip("/")
        found = {} if folder in asked else _read_sizes(folder, mark + query)
        asked.add(folder)
        sizes |= found
        urls += [location] if is_tar else list(found) or _list_folder(folder)
    return urls, sizes


def _read_sizes(folder: str, query: str) -> dict[str, int]:
    """Samples by shard's URL from a folder's `sizes.json`; empty where there is none."""
    try:
        with open_url(f"{folder}/sizes.json{query}") as stream:
            content = stream.read()
    except (OSError, ValueError, ImportError) as error:  # also an unknown protocol, a missing s3fs, ...
        if isinstance(error, OSError) and _is_final(error):
            return {}
        raise UserError(f"cannot be read: {_text(error)} ({folder}/sizes.json)") from error
    try:
        document = json.loads(content)
    except ValueError as error:
        raise UserError(f"not JSON: {error} ({folder}/sizes.json)") from error
    if not isinstance(document, dict) or not all(type(count) is int for count in document.values()):
        raise UserError(f"expected numbers of samples by the tar's name ({folder}/sizes.json)")
    return {f"{folder}/{name}{query}": count for name, count in document.items()}


def _list_folder(folder: str) -> list[str]:
    """The tars of a remote folder, where its store can list them."""
    if not folder.startswith(("http://", "https://")):
        system, inner = fsspec.core.url_to_fs(folder)
        found = [system.unstrip_protocol(name) for name in sorted(system.glob(f"{inner}/*.tar"))]
        if found:
            return found
    raise MissingFileError(
        f"no sizes.json and no list of .tar files in {folder}: name the shards, such as "
        f"{folder}/{{00000..00009}}.tar"
    )


def download(url: str, stream: IO[bytes]) -> None:
    """Copy what is behind a URL, or what a command prints, into an open file."""
    if not url.startswith("pipe:"):
        with open_url(url) as source:
            shutil.copyfileobj(source, stream, 1 << 20)
        return
    done = subprocess.run(url.removeprefix("pipe:"), shell=True, stdout=stream, stderr=subprocess.PIPE)
    if done.returncode:
        last_line = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise OSError(f"command ended with code {done.returncode}: {last_line}")


@contextmanager
def open_url(url: str) -> Iterator[IO[bytes]]:
    """Open a URL for reading: HTTP by the standard library, anything else by fsspec."""
    if url.startswith(("http://", "https://")):
        with urllib.request.urlopen(url, timeout=HTTP_TIMEOUT) as response:
            yield response
    else:
        with fsspec.open(url, "rb") as stream:
            yield stream


def shown(url: str) -> str:
    """A URL without its query, which may hold a signature."""
    return url if url.startswith("pipe:") else url.partition("?")[0]


def _is_final(error: Exception) -> bool:
    """Whether trying again is of no use."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code in GONE
    return isinstance(error, (FileNotFoundError, PermissionError, ImportError))


def _text(error: Exception) -> str:
    """An error in one line."""
    return " ".join(str(error).split()) or type(error).__name__
