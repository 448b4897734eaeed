"""Random access to the samples of local tar shards."""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from zlib import crc32

from webdataset.shardlists import expand_urls

from open_cloc.data.annotations import Problem, RawSample, finish
from open_cloc.data.shards.about import read_about
from open_cloc.data.shards.index import ABSENT, DamagedShardError, Place, UnreadableShardError, is_header
from open_cloc.data.shards.joined import open_index
from open_cloc.data.shards.region_json import parse_sample
from open_cloc.data.shards.tars import BLOCK, is_compressed_tar
from open_cloc.errors import MissingFileError, UserError
from open_cloc.samples import RegionSample
from open_cloc.texts import PackedTexts


class ShardDataset:
    """Random access to the samples of local tar shards.

    Each tar's headers are scanned once a host, and where its samples lie is kept in a file that processes
    share; a sample is then read by its offsets. Each read opens its tar anew, so that no file position is
    shared.

    Attributes:
        shard_sizes: (shards,) samples of each tar.
        problems: What is wrong with the tars, apart from samples that are read.
        lost: About how many samples broken tars have cost.
        left_out: What was seen and is not used, with counts.
    """

    def __init__(self, path: str) -> None:
        """Find out where samples lie.

        Args:
            path: A folder of tars, one tar, or a pattern such as `data/{00000..00009}.tar`; several are
                joined by `::`.

        Raises:
            MissingFileError: If a tar is missing.
            UserError: If there is no sample at all.
        """
        paths, left_out = find_tars(path)
        self._tars = PackedTexts(map(str, paths))
        self._index = open_index(paths)
        self.shard_sizes = self._index.counts
        self.lost = self._index.lost
        self.left_out = Counter(left_out) + Counter(self._index.left_out)
        self.problems = [*self._index.problems, *self._repeated()]
        # `class_names`, `class_groups`, `crowds` and `num_crowds`, where the source said them.
        for name, value in read_about(paths).items():
            setattr(self, name, value)
        if not len(self):
            others = f": {self.problems[0].message}" if self.problems else _told(self.left_out)
            raise UserError(f"no samples with a picture ({path}){others}")

    @property
    def paths(self) -> list[Path]:
        """The tar files."""
        return [Path(self._tars[number]) for number in range(len(self._tars))]

    def key(self, index: int) -> str:
        """The name of a sample, which is not read."""
        self._check(index)
        return self._index.place(index)[1].key

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: int) -> RegionSample:
        """A sample with its JSON validated and its boxes checked.

        Raises:
            SampleError: If the JSON is not the schema's or a box is wrong; names the shard and the key.
        """
        return finish(self.raw(index))

    def raw(self, index: int) -> RawSample:
        """A sample with its boxes as in the file.

        Raises:
            SampleError: If its JSON is none, or the tar is not what it was.
        """
        self._check(index)
        shard, place = self._index.place(index)
        tar = self._tars[shard]
        return read_sample(tar, place, tar)

    def _check(self, index: int) -> None:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")

    def _repeated(self) -> list[Problem]:
        problems = []
        for row, first in self._index.repeated.tolist():
            shard, place = self._index.place_of_row(row)
            tars = self._tars[self._index.place_of_row(first)[0]], self._tars[shard]
            message = f"key {place.key!r} occurs twice; the second is left out ({tars[0]} and {tars[1]})"
            problems.append(Problem("repeated key", message))
        return problems


def read_sample(tar: str | Path, place: Place, where: str) -> RawSample:
    """A sample by the offsets of its members.

    Args:
        tar: The shard's file.
        place: Where the sample lies.
        where: The shard as the user knows it, for messages.

    Raises:
        DamagedShardError: If the tar is not the one that was indexed, or shorter.
        UnreadableShardError: If it may not be read.
        MissingFileError: If it is not there.
        SampleError: If the JSON is not the schema's.
    """
    key, offsets, sizes, checks = place
    try:
        with io.FileIO(tar) as stream:
            image, text, document = (
                None if size == ABSENT else _read(stream, offset, size, check, key, where)
                for offset, size, check in zip(offsets, sizes, checks)
            )
    except FileNotFoundError:
        raise MissingFileError(f"no such shard: {where}") from None
    except OSError as error:
        raise UnreadableShardError(f"shard cannot be read: {error.strerror or error} ({where})") from error
    return parse_sample(key, image or b"", text, document, f"{where}, key {key!r}")


def expand_paths(path: str) -> list[Path]:
    """The tar files that a folder, a file or a brace pattern names, in order.

    Raises:
        MissingFileError: If one does not exist.
        UserError: If the folder has none.
    """
    return find_tars(path)[0]


def find_tars(path: str) -> tuple[list[Path], dict[str, int]]:
    """The tar files that are named, and what else a folder holds that may be meant as shards, with counts.

    Raises:
        MissingFileError: If one does not exist.
        UserError: If a folder has none, a tar is compressed, or the pattern is none.
    """
    if os.path.isdir(path):
        return _tars_of(Path(path))
    try:
        names = [path] if os.path.isfile(path) else expand_urls(path)
    except ValueError as error:
        raise UserError(f"pattern of shards cannot be understood: {error} ({path})") from error
    for name in names:
        if not os.path.isfile(name):
            raise MissingFileError(f"no such shard: {name}")
        if is_compressed_tar(name):
            raise UserError(_compressed([name], path))
    return [Path(name) for name in names], {}


def _tars_of(folder: Path) -> tuple[list[Path], dict[str, int]]:
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.is_file())
    tars = [name for name in names if name.endswith(".tar") and not name.startswith(".")]
    compressed = [name for name in names if is_compressed_tar(name)]
    if tars:
        hidden = sum(name.endswith(".tar") and name.startswith(".") for name in names)
        left_out = {"compressed tars": len(compressed), "hidden tars, such as ._NAME": hidden}
        return [folder / name for name in tars], {name: count for name, count in left_out.items() if count}
    if compressed:
        raise UserError(_compressed(compressed, folder))
    below = sorted({tar.parent.name for tar in folder.glob("*/*.tar")})
    hint = f"; there are some in {', '.join(below[:5])} below it: name one of these" if below else ""
    raise UserError(f"no .tar files in folder {folder}{hint}")


def _compressed(names: Sequence[str], where: object) -> str:
    return (
        f"tars are compressed, such as {os.path.basename(names[0])}: samples of these cannot be found by "
        f"place; unpack them to .tar, which pictures take no more room in ({where})"
    )


def _told(left_out: Counter[str]) -> str:
    counts = ", ".join(f"{name}: {count}" for name, count in left_out.most_common(5))
    return f"; not used: {counts}" if counts else ""


def _read(stream: io.FileIO, offset: int, size: int, check: int, key: str, where: str) -> bytes:
    """Bytes of a member, where its header stands before it."""
    stream.seek(offset - BLOCK)
    header = stream.read(BLOCK)
    content = stream.read(size)
    if len(content) < size:
        raise DamagedShardError(f"shard is cut short before byte {offset + size} ({where})")
    if crc32(header) != check and not is_header(header, check, size, key):
        raise DamagedShardError(
            f"shard is not the one that was indexed: delete its _index.npz ({where}, byte {offset - BLOCK})"
        )
    return content
