"""Random access to the samples of local tar shards."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from webdataset.shardlists import expand_urls

from open_cloc.data.annotations import Problem, RawSample, finish
from open_cloc.data.shards.index import (
    ShardIndex,
    UnreadableShardError,
    index_shard,
    repeated_key,
    scan_shard,
)
from open_cloc.data.shards.region_json import parse_sample
from open_cloc.errors import MissingFileError, UserError
from open_cloc.samples import RegionSample

BROKEN = "broken or repeated in the shards"


class ShardDataset:
    """Random access to the samples of local tar shards.

    Each tar's headers are scanned once and the index is kept in a file; a sample is then read by its offsets.
    In memory the index is arrays, which worker processes share, and each read opens its tar anew, so that no
    file position is shared.

    Attributes:
        paths: The tar files.
        keys: A name for each sample.
        shard_sizes: (shards,) samples of each tar.
        problems: What a tolerant opening has passed over.
        left_out: What was seen and is not used, with counts.
    """

    def __init__(self, path: str) -> None:
        """Index shards.

        Args:
            path: A folder of tars, one tar, or a pattern such as `data/{00000..00009}.tar`; several are
                joined by `::`.

        Raises:
            MissingFileError: If a tar is missing.
            UserError: If a tar is broken, a key is repeated, or there is no sample.
        """
        self.paths = expand_paths(path)
        self.problems: list[Problem] = []
        self._join([index_shard(tar) for tar in self.paths])
        if self.problems:
            raise UserError(self.problems[0].message)
        if not len(self):
            raise UserError(f"no samples with a picture ({path})")

    @classmethod
    def tolerant(cls, path: str) -> ShardDataset:
        """Scan anew, index what can be and list the rest in `problems`; for `open-cloc data check`."""
        dataset = cls.__new__(cls)
        dataset.paths = expand_paths(path)
        scanned = [scan_shard(tar) for tar in dataset.paths]
        dataset.problems = [Problem(BROKEN, problem) for _, problems in scanned for problem in problems]
        dataset._join([index for index, _ in scanned])
        if not len(dataset) and not dataset.problems:
            raise UserError(f"no samples with a picture ({path})")
        return dataset

    def _join(self, indices: Sequence[ShardIndex]) -> None:
        """Put the indices of all tars together, leaving out the second of two samples with one key."""
        keys = np.concatenate([index.keys for index in indices])
        spans = np.concatenate([index.spans for index in indices])
        shards = np.repeat(np.arange(len(indices)), [len(index.keys) for index in indices])
        _, first, row_of_key = np.unique(keys, return_index=True, return_inverse=True)
        for row in np.flatnonzero(first[row_of_key] != np.arange(len(keys))):
            paths = (self.paths[shards[first[row_of_key[row]]]], self.paths[shards[row]])
            self.problems.append(Problem(BROKEN, repeated_key(str(keys[row]), *paths)))
        kept = np.sort(first)
        self.keys = keys[kept]
        self._spans = spans[kept]
        self._shards = shards[kept]
        self.shard_sizes = np.bincount(self._shards, minlength=len(self.paths))
        without_image = sum(index.without_image for index in indices)
        self.left_out = {"keys without a picture": without_image} if without_image else {}

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> RegionSample:
        """A sample with its JSON validated and its boxes checked.

        Raises:
            UserError: If the JSON is not the schema's or a box is wrong; names the shard and the key.
        """
        return finish(self.raw(index))

    def raw(self, index: int) -> RawSample:
        """A sample with its boxes as in the file."""
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        tar = self.paths[self._shards[index]]
        return read_sample(tar, str(self.keys[index]), self._spans[index].tolist(), str(tar))


def read_sample(tar: Path, key: str, spans: Sequence[int], where: str) -> RawSample:
    """A sample by the offsets of its members.

    Args:
        tar: The shard's file.
        key: The sample's name, which its members share.
        spans: Offset and size of the picture, of `txt` and of `json`.
        where: The shard as the user knows it, for messages.

    Raises:
        UnreadableShardError: If the tar is shorter than its index says.
        MissingFileError: If it is not there.
        UserError: If the JSON is not the schema's.
    """
    try:
        with tar.open("rb") as stream:
            image, text, document = (
                _read(stream, offset, size, where) for offset, size in zip(spans[::2], spans[1::2])
            )
    except FileNotFoundError:
        raise MissingFileError(f"no such shard: {where}") from None
    return parse_sample(key, image or b"", text, document, f"{where}, key {key!r}")


def expand_paths(path: str) -> list[Path]:
    """The tar files that a folder, a file or a brace pattern names, in order.

    Raises:
        MissingFileError: If one does not exist.
        UserError: If the folder has none.
    """
    if Path(path).is_dir():
        found = sorted(Path(path).glob("*.tar"))
        if not found:
            raise UserError(f"no .tar files in folder {path}")
        return found
    paths = [Path(name) for name in expand_urls(path)]
    for tar in paths:
        if not tar.is_file():
            raise MissingFileError(f"no such shard: {tar}")
    return paths


def _read(stream: io.BufferedReader, offset: int, size: int, where: str) -> bytes | None:
    """Bytes of a member; None where the sample lacks it (size -1)."""
    if size < 0:
        return None
    stream.seek(offset)
    content = stream.read(size)
    if len(content) < size:
        raise UnreadableShardError(f"shard is cut short before byte {offset + size} ({where})")
    return content
