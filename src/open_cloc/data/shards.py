"""Tar shards as webdataset and img2dataset lay them out, with regions in `<key>.json`."""

from __future__ import annotations

import io
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from webdataset import TarWriter
from webdataset.shardlists import expand_urls

from open_cloc.data.annotations import RawSample, finish
from open_cloc.data.region_json import encode_json, parse_sample
from open_cloc.data.samples import UNDECODABLE, RegionSample, decoding_error
from open_cloc.data.shard_index import (
    ShardIndex,
    UnreadableShardError,
    index_file,
    index_shard,
    repeated_key,
    save_index,
    scan_shard,
)
from open_cloc.data.transforms import resize

STORED_AS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}  # Pillow's format -> suffix
RESIZED_QUALITY = 90  # of JPEGs made smaller


class Storage(NamedTuple):
    """How pictures are stored.

    Attributes:
        array_format: How pixels are encoded: `png`, lossless, or `jpg`, quality 95.
        max_side: A picture with a longer side is made smaller, as JPEG of quality 90; 0 for no limit.
    """

    array_format: str = "png"
    max_side: int = 0


def write_shards(
    samples: Iterable[RegionSample],
    folder: str | Path,
    samples_per_shard: int = 1000,
    *,
    array_format: str = "png",
    max_side: int = 0,
    resume: bool = False,
    progress: Callable[[int], object] = lambda count: None,
) -> int:
    """Write samples as `00000.tar`, ... with `00000_stats.json` and `00000_index.npz`, ..., and `sizes.json`.

    Encoded JPEG, PNG and WebP pictures are stored byte for byte unless they are too large; pixels are
    encoded. Equal samples give equal bytes. Everything goes into `<folder>.incomplete`, which takes the
    folder's name when all is written.

    Args:
        samples: Any iterable; read once, one at a time.
        folder: Where the shards go; must not exist or be empty.
        samples_per_shard: All shards but the last have so many.
        array_format: As in `Storage`.
        max_side: As in `Storage`. Near the size that the model sees, loading is several times as fast.
        resume: Keep the shards that an earlier call with the same samples finished before it was stopped,
            and keep finished shards if this call fails too.
        progress: Called with 1 after each sample.

    Returns:
        The number of samples.

    Raises:
        FileExistsError: If the folder is not empty.
        ValueError: On a repeated or unusable key, no samples at all, a picture that cannot be read, or
            finished shards of other samples.
    """
    folder = Path(folder).resolve()
    if samples_per_shard < 1:
        raise ValueError(f"samples_per_shard must be at least 1; got {samples_per_shard}")
    if array_format not in ("png", "jpg"):
        raise ValueError(f"array_format must be png or jpg; got {array_format!r}")
    if max_side < 0:
        raise ValueError(f"max_side must be at least 1, or 0 for no limit; got {max_side}")
    storage = Storage(array_format, max_side)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"output folder must be new or empty; got {folder}")
    sizes: dict[str, int] = {}
    with _finished_folder(folder, resume) as unfinished:
        stream = _checked_keys(samples, progress)
        for first in stream:
            shard = chain([first], islice(stream, samples_per_shard - 1))
            tar = unfinished / f"{len(sizes):05d}.tar"
            sizes[tar.name] = write_shard(shard, tar, storage)
        if not sizes:
            raise ValueError("no samples to write; expected at least one")
        _write_json(unfinished / "sizes.json", sizes)
    return sum(sizes.values())


def encode_sample(sample: RegionSample, storage: Storage) -> dict[str, Any]:
    """A sample as webdataset members: `__key__`, the picture by its suffix, `json`, and `txt` if captioned.

    Raises:
        ValueError: If the picture cannot be read.
        FileNotFoundError: If it is a path that does not exist.
    """
    suffix, picture, size_hw = _encoded_picture(sample, storage)
    members = {"__key__": sample.key, suffix: picture, "json": encode_json(sample, size_hw)}
    # No empty text: CLIP trainers drop a picture without `txt`, but would train on an empty caption.
    return members | ({"txt": sample.captions[0].encode()} if sample.captions else {})


def write_shard(samples: Iterable[RegionSample], tar: Path, storage: Storage) -> int:
    """Write one tar, its index and its statistics, or make sure that a finished one holds the same samples.

    The tar appears under its name only when all is written. Returns its number of samples.
    """
    stats_file = tar.with_name(f"{tar.stem}_stats.json")
    if tar.exists() and stats_file.exists():
        stats = _stats(samples, storage)
        if json.loads(stats_file.read_text()) != stats:
            raise ValueError(f"finished shard {tar} holds other samples; start anew without resume")
        return stats["count"]
    part = tar.with_suffix(".tar.part")
    with part.open("wb") as stream, TarWriter(stream, encoder=False, mtime=0) as writer:
        stats = _stats(_written(samples, writer, storage), storage)
    index, problems = scan_shard(part)
    assert not problems, problems
    save_index(index_file(tar), index, part)
    _write_json(stats_file, stats)
    part.replace(tar)
    return stats["count"]


def _written(samples: Iterable[RegionSample], writer: TarWriter, storage: Storage) -> Iterator[RegionSample]:
    for sample in samples:
        writer.write(encode_sample(sample, storage))
        yield sample


def _stats(samples: Iterable[RegionSample], storage: Storage) -> dict[str, Any]:
    """img2dataset's counts, ours, and that by which a resumed call knows the shard."""
    counts: Counter[str] = Counter(count=0, regions=0, captions=0)
    keys = [""]
    for sample in samples:
        counts.update(count=1, regions=len(sample.regions), captions=len(sample.captions))
        keys = [keys[0] or sample.key, sample.key]
    return {
        **counts,
        "successes": counts["count"],
        "failed_to_download": 0,
        "failed_to_resize": 0,
        "status_dict": {"success": counts["count"]},
        "first_key": keys[0],
        "last_key": keys[-1],
        "max_side": storage.max_side,
    }


@contextmanager
def _finished_folder(folder: Path, resume: bool) -> Iterator[Path]:
    """A folder to write into that gets its name only if nothing fails."""
    unfinished = folder.with_name(folder.name + ".incomplete")
    if unfinished.exists() and not resume:
        shutil.rmtree(unfinished)
    unfinished.mkdir(parents=True, exist_ok=True)
    try:
        yield unfinished
    except BaseException:
        if not resume:
            shutil.rmtree(unfinished)
        for part in unfinished.glob("*.part"):
            part.unlink()
        raise
    if folder.is_dir():
        folder.rmdir()  # empty, as checked before
    unfinished.rename(folder)


def _checked_keys(
    samples: Iterable[RegionSample], progress: Callable[[int], object]
) -> Iterator[RegionSample]:
    """Pass samples on, refusing keys that a tar cannot hold."""
    seen: set[str] = set()
    for sample in samples:
        key = sample.key
        if not key or "." in key or key.startswith("/"):
            raise ValueError(f"key must not be empty, start with '/' or contain a '.'; got {key!r}")
        if key in seen:
            raise ValueError(f"key {key!r} occurs twice; expected every sample to have its own")
        seen.add(key)
        yield sample
        progress(1)


def _encoded_picture(sample: RegionSample, storage: Storage) -> tuple[str, bytes, tuple[int, int]]:
    """Suffix, bytes and (height, width) of a picture; formats that shards do not hold become PNG."""
    encoded = sample.image
    if isinstance(encoded, np.ndarray):
        return encode_picture(encoded, storage)
    if isinstance(encoded, Path):
        if not encoded.is_file():
            raise FileNotFoundError(f"image of sample {sample.key!r} not found: {encoded}")
        encoded = encoded.read_bytes()
    try:
        with Image.open(io.BytesIO(encoded)) as picture:
            suffix, (width, height) = STORED_AS.get(picture.format or ""), picture.size
            picture.load()  # the header of a file that was cut short is whole
    except UNDECODABLE as error:
        where = f" ({sample.image})" if isinstance(sample.image, Path) else ""
        raise ValueError(
            f"image of sample {sample.key!r} cannot be decoded{where}: {decoding_error(error)}"
        ) from error
    if suffix and not 0 < storage.max_side < max(height, width):
        return suffix, encoded, (height, width)
    return encode_picture(sample.pixels(), storage._replace(array_format="png"))


def encode_picture(pixels: np.ndarray, storage: Storage) -> tuple[str, bytes, tuple[int, int]]:
    """Encode pixels, made smaller where the limit asks for it; never made larger."""
    height, width = pixels.shape[:2]
    zoom = storage.max_side / max(height, width)
    if not 0 < zoom < 1:
        return _encode(pixels, storage.array_format, quality=95)
    size_hw = (max(1, round(height * zoom)), max(1, round(width * zoom)))
    return _encode(resize(pixels, size_hw), "jpg", RESIZED_QUALITY)


def _encode(pixels: np.ndarray, suffix: str, quality: int) -> tuple[str, bytes, tuple[int, int]]:
    buffer = io.BytesIO()
    if suffix == "jpg":
        Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    else:
        Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return suffix, buffer.getvalue(), (pixels.shape[0], pixels.shape[1])


def _write_json(path: Path, document: Any) -> None:
    path.write_text(json.dumps(document, indent=2) + "\n")


class ShardDataset:
    """Random access to the samples of local tar shards.

    Each tar's headers are scanned once and the index is kept in a file; a sample is then read by its offsets.
    In memory the index is arrays, which worker processes share, and each read opens its tar anew, so that no
    file position is shared.

    Attributes:
        paths: The tar files.
        keys: One per sample.
        shard_sizes: (shards,) samples of each tar.
        problems: What a tolerant opening has passed over.
        without_image: Number of keys that have no picture.
    """

    def __init__(self, path: str) -> None:
        """Index shards.

        Args:
            path: A folder of tars, one tar, or a pattern such as `data/{00000..00009}.tar`; several are
                joined by `::`.

        Raises:
            FileNotFoundError: If a tar is missing.
            ValueError: If a tar is broken, a key is repeated, or there is no sample.
        """
        self.paths = expand_paths(path)
        self.problems: list[str] = []
        self._join([index_shard(tar) for tar in self.paths])
        if self.problems:
            raise ValueError(self.problems[0])
        if not len(self):
            raise ValueError(f"no samples with a picture ({path})")

    @classmethod
    def tolerant(cls, path: str) -> ShardDataset:
        """Scan anew, index what can be and list the rest in `problems`; for `open-cloc data check`."""
        dataset = cls.__new__(cls)
        dataset.paths = expand_paths(path)
        scanned = [scan_shard(tar) for tar in dataset.paths]
        dataset.problems = [problem for _, problems in scanned for problem in problems]
        dataset._join([index for index, _ in scanned])
        if not len(dataset) and not dataset.problems:
            raise ValueError(f"no samples with a picture ({path})")
        return dataset

    def _join(self, indices: Sequence[ShardIndex]) -> None:
        """Put the indices of all tars together, leaving out the second of two samples with one key."""
        keys = np.concatenate([index.keys for index in indices])
        spans = np.concatenate([index.spans for index in indices])
        shards = np.repeat(np.arange(len(indices)), [len(index.keys) for index in indices])
        _, first, row_of_key = np.unique(keys, return_index=True, return_inverse=True)
        for row in np.flatnonzero(first[row_of_key] != np.arange(len(keys))):
            paths = (self.paths[shards[first[row_of_key[row]]]], self.paths[shards[row]])
            self.problems.append(repeated_key(str(keys[row]), *paths))
        kept = np.sort(first)
        self.keys = keys[kept]
        self._spans = spans[kept]
        self._shards = shards[kept]
        self.shard_sizes = np.bincount(self._shards, minlength=len(self.paths))
        self.without_image = sum(index.without_image for index in indices)

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> RegionSample:
        """A sample with its JSON validated and its boxes checked.

        Raises:
            ValueError: If the JSON is not the schema's or a box is wrong; names the shard and the key.
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
        tar: The file.
        key: The members' base name.
        spans: Offset and size of the picture, of `txt` and of `json`.
        where: The shard as the user knows it, for messages.

    Raises:
        UnreadableShardError: If the tar is shorter than its index says.
        FileNotFoundError: If it is not there.
        ValueError: If the JSON is not the schema's.
    """
    with tar.open("rb") as stream:
        image, text, document = (
            _read(stream, offset, size, where) for offset, size in zip(spans[::2], spans[1::2])
        )
    return parse_sample(key, image or b"", text, document, f"{where}, key {key!r}")


def expand_paths(path: str) -> list[Path]:
    """The tar files that a folder, a file or a brace pattern names, in order.

    Raises:
        FileNotFoundError: If one does not exist.
        ValueError: If the folder has none.
    """
    if Path(path).is_dir():
        found = sorted(Path(path).glob("*.tar"))
        if not found:
            raise ValueError(f"no .tar files in folder {path}")
        return found
    paths = [Path(name) for name in expand_urls(path)]
    for tar in paths:
        if not tar.is_file():
            raise FileNotFoundError(f"no such shard: {tar}")
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
