"""Shards that lie elsewhere: fetched whole into a bounded folder, then read like local ones.

A location is any URL that fsspec opens (`s3://`, `hf://`, `gs://`, ...), `http(s)://`, or `pipe:COMMAND`,
whose output is the tar.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
from filelock import Timeout
from torch.utils.data import get_worker_info
from webdataset.shardlists import expand_urls

from open_cloc.data.annotations import RawSample, finish
from open_cloc.data.shards.cache import ShardCache
from open_cloc.data.shards.index import DamagedShardError, ShardIndex, UnreadableShardError, cache_folder
from open_cloc.data.shards.joined import Place
from open_cloc.data.shards.read import ShardDataset, read_sample
from open_cloc.data.shards.tars import is_compressed_tar
from open_cloc.data.shards.urls import Bounds, is_final, one_line, read_url, shown
from open_cloc.errors import MissingFileError, UserError
from open_cloc.files import parse_json
from open_cloc.samples import RegionSample

logger = logging.getLogger(__name__)

COUNTING_THREADS = 8
KEPT_INDICES = 64  # of shards, in the memory of one process
MOST_SIZES = 256e6  # bytes of a `sizes.json`
MOST_DROPS = 2  # damaged copies of one shard that a process fetches again


def recognises(text: str) -> bool:
    """Whether this names tars, here or elsewhere, or is a folder that holds some."""
    named = text.endswith(".tar") or is_compressed_tar(text) or "{" in text or is_remote(text)
    return named or any(Path(text).glob("*.tar")) or any(map(is_compressed_tar, _names_in(text)))


def _names_in(folder: str) -> Iterator[str]:
    with suppress(OSError):
        yield from os.listdir(folder)


def open_shards(path: str, cache: Path | None = None, cache_gb: float = 100.0) -> ShardDataset | RemoteShards:
    """Open tar shards, local or remote.

    Args:
        path: Tars or a folder of them, as for `ShardDataset`, or URLs: a folder with our `sizes.json`, or a
            pattern such as `s3://bucket/{00000..00999}.tar` or `pipe:COMMAND {00000..00999}.tar`; several
            joined by `::`.
        cache: Folder for what is fetched; `shards` in the user's cache unless given.
        cache_gb: Gigabytes that fetched shards may take there.

    Raises:
        MissingFileError: If a shard is missing.
        UserError: If there is no sample, a URL cannot be read, or local and remote shards are joined.
    """
    remote = [is_remote(part) for part in path.split("::")]
    if not any(remote):
        return ShardDataset(path)
    if not all(remote):
        raise UserError(f"local and remote shards cannot be joined in one name; got {shown(path)!r}")
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
        urls: Where the tars lie.
        shard_sizes: (shards,) samples of each tar.
        remote: Always true; tells the loader not to jump about.
    """

    remote = True

    def __init__(self, path: str, cache: ShardCache) -> None:
        """Count samples.

        Args:
            path: URLs, as for `open_shards`.
            cache: Where fetched shards are kept.

        Raises:
            MissingFileError: If a `sizes.json` does not name a shard, or there is no shard.
            UserError: If there is no sample, or a shard of unknown size cannot be fetched.
        """
        self.cache = cache
        self.urls, sizes = list_shards(path)
        if unknown := [url for url in self.urls if url not in sizes]:
            logger.warning("no sizes.json tells the size of %d shards: each is fetched once", len(unknown))
            pool = ThreadPoolExecutor(COUNTING_THREADS)
            try:
                indices = pool.map(cache.fetch_index, unknown)
                sizes |= {url: len(index) for url, index in zip(unknown, indices)}
            finally:  # who stops waits for no server
                pool.shutdown(wait=False, cancel_futures=True)
        self.shard_sizes = np.array([sizes[url] for url in self.urls], np.int64)
        self._ends = np.cumsum(self.shard_sizes)
        self._indices: OrderedDict[str, ShardIndex] = OrderedDict()
        self._drops: Counter[str] = Counter()
        if not len(self):
            raise UserError(f"no samples with a picture ({shown(path)})")

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
            try:
                return read_sample(tar, self._place(url, row), shown(url))
            except FileNotFoundError:
                continue  # another process has just deleted it to make room
            except DamagedShardError:
                self._look_again(url)
        raise UnreadableShardError(
            f"shard was deleted from {self.cache.folder} again and again before it was read, or is damaged "
            f"there: give a larger cache_gb=, or another cache= ({shown(url)})"
        )

    def _place(self, url: str, row: int) -> Place:
        if url not in self._indices:
            self._indices[url] = self.cache.fetch_index(url)
            if len(self._indices) > KEPT_INDICES:
                self._indices.popitem(last=False)
        index = self._indices[url]
        if row >= len(index):
            raise UnreadableShardError(
                f"shard holds {len(index)} samples with a picture, fewer than its sizes.json says "
                f"({shown(url)})"
            )
        return index.place(row)

    def _look_again(self, url: str) -> None:
        """Forget the index of a shard that is not as it says; where it was read only now, the copy too."""
        self._indices.pop(url, None)
        self._drops[url] += 1
        if 1 < self._drops[url] <= 1 + MOST_DROPS:
            self.cache.drop(url)

    def prefetch(self, shards: Sequence[int]) -> None:
        """Fetch shards in the background, in this order; each worker process takes its share.

        Args:
            shards: Their numbers, as in `urls`.
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


def list_shards(path: str) -> tuple[list[str], dict[str, int]]:
    """The tars that URLs name, and the number of samples of those that a `sizes.json` beside them tells.

    Args:
        path: URLs, as for `open_shards`.

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
    where = f"{shown(folder)}/sizes.json"
    try:
        content = read_url(f"{folder}/sizes.json{query}", Bounds.from_now(MOST_SIZES))
    # Also an unknown protocol, a missing s3fs, an answer that is none, ...
    except (OSError, ValueError, ImportError, HTTPException) as error:
        if isinstance(error, OSError) and is_final(error):
            return {}
        raise UserError(f"cannot be read: {one_line(error)} ({where})") from error
    document = parse_json(content, where)
    if not isinstance(document, dict) or not all(map(_is_count, document, document.values())):
        raise UserError(f"expected numbers of samples by the tar's name ({where})")
    return {f"{folder}/{name}{query}": count for name, count in document.items()}


def _is_count(name: str, count: Any) -> bool:
    return name.endswith(".tar") and "/" not in name and type(count) is int and 0 <= count < 2**40


def _list_folder(folder: str) -> list[str]:
    """The tars of a remote folder, where its store can list them."""
    if not folder.startswith(("http://", "https://")):
        system, inner = fsspec.core.url_to_fs(folder)
        found = [system.unstrip_protocol(name) for name in sorted(system.glob(f"{inner}/*.tar"))]
        if found:
            return found
    raise MissingFileError(
        f"no sizes.json and no list of .tar files in {shown(folder)}: name the shards, such as "
        f"{shown(folder)}/{{00000..00009}}.tar"
    )
