"""Tar shards as webdataset and img2dataset lay them out, with regions in `<key>.json`."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError
from webdataset import TarWriter
from webdataset.shardlists import expand_urls

from open_cloc.data.annotations import RawSample, finish
from open_cloc.data.region_json import encode_json, parse_sample
from open_cloc.data.samples import RegionSample

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
STORED_AS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}  # Pillow's format -> suffix
BLOCK = 512


def write_shards(
    samples: Iterable[RegionSample],
    folder: str | Path,
    samples_per_shard: int = 1000,
    *,
    array_format: str = "png",
    resume: bool = False,
    progress: Callable[[int], object] = lambda count: None,
) -> int:
    """Write samples as `00000.tar`, `00001.tar`, ... with `00000_stats.json`, ... and `sizes.json`.

    Encoded JPEG, PNG and WebP pictures are stored byte for byte, pixels are encoded. Equal samples give equal
    bytes. Everything goes into `<folder>.incomplete`, which takes the folder's name when all is written.

    Args:
        samples: Any iterable; read once, one at a time.
        folder: Where the shards go; must not exist or be empty.
        samples_per_shard: All shards but the last have so many.
        array_format: How pixels are encoded: `png`, lossless, or `jpg`, quality 95.
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
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"output folder must be new or empty; got {folder}")
    sizes: dict[str, int] = {}
    with _finished_folder(folder, resume) as unfinished:
        stream = _checked_keys(samples, progress)
        for first in stream:
            shard = chain([first], islice(stream, samples_per_shard - 1))
            tar = unfinished / f"{len(sizes):05d}.tar"
            sizes[tar.name] = _write_or_keep(shard, tar, array_format)
        if not sizes:
            raise ValueError("no samples to write; expected at least one")
        _write_json(unfinished / "sizes.json", sizes)
    return sum(sizes.values())


def encode_sample(sample: RegionSample, array_format: str = "png") -> dict[str, Any]:
    """A sample as webdataset members: `__key__`, the picture by its suffix, `json`, and `txt` if captioned.

    Raises:
        ValueError: If the picture cannot be read.
        FileNotFoundError: If it is a path that does not exist.
    """
    suffix, picture, size_hw = _encoded_picture(sample, array_format)
    members = {"__key__": sample.key, suffix: picture, "json": encode_json(sample, size_hw)}
    # No empty text: CLIP trainers drop a picture without `txt`, but would train on an empty caption.
    return members | ({"txt": sample.captions[0].encode()} if sample.captions else {})


def _write_or_keep(samples: Iterable[RegionSample], tar: Path, array_format: str) -> int:
    """Write one tar and its statistics, or make sure that a finished one holds the same samples.

    The tar appears under its name only when it is whole.
    """
    stats_file = tar.with_name(f"{tar.stem}_stats.json")
    if tar.exists() and stats_file.exists():
        stats = _stats(samples)
        if json.loads(stats_file.read_text()) != stats:
            raise ValueError(f"finished shard {tar} holds other samples; start anew without resume")
        return stats["count"]
    part = tar.with_suffix(".tar.part")
    with part.open("wb") as stream, TarWriter(stream, encoder=False, mtime=0) as writer:
        stats = _stats(_written(samples, writer, array_format))
    _write_json(stats_file, stats)
    part.replace(tar)
    return stats["count"]


def _written(samples: Iterable[RegionSample], writer: TarWriter, array_format: str) -> Iterator[RegionSample]:
    for sample in samples:
        writer.write(encode_sample(sample, array_format))
        yield sample


def _stats(samples: Iterable[RegionSample]) -> dict[str, Any]:
    """img2dataset's counts, ours, and the ends by which a resumed call knows the shard."""
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


def _encoded_picture(sample: RegionSample, array_format: str) -> tuple[str, bytes, tuple[int, int]]:
    """Suffix, bytes and (height, width) of a picture; formats that shards do not hold become PNG."""
    encoded = sample.image
    if isinstance(encoded, np.ndarray):
        return _encode(encoded, array_format)
    if isinstance(encoded, Path):
        if not encoded.is_file():
            raise FileNotFoundError(f"image of sample {sample.key!r} not found: {encoded}")
        encoded = encoded.read_bytes()
    try:
        with Image.open(io.BytesIO(encoded)) as picture:
            suffix, (width, height) = STORED_AS.get(picture.format or ""), picture.size
            picture.load()  # the header of a file that was cut short is whole
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        where = f" ({sample.image})" if isinstance(sample.image, Path) else ""
        raise ValueError(f"image of sample {sample.key!r} cannot be decoded{where}: {error}") from error
    return (suffix, encoded, (height, width)) if suffix else _encode(sample.pixels(), "png")


def _encode(pixels: np.ndarray, suffix: str) -> tuple[str, bytes, tuple[int, int]]:
    buffer = io.BytesIO()
    if suffix == "jpg":
        Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
    else:
        Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return suffix, buffer.getvalue(), (pixels.shape[0], pixels.shape[1])


def _write_json(path: Path, document: Any) -> None:
    path.write_text(json.dumps(document, indent=2) + "\n")


class Member(NamedTuple):
    """Where a member's bytes lie inside its tar."""

    suffix: str
    offset: int
    size: int


class ShardDataset:
    """Random access to the samples of tar shards.

    The tars' headers are scanned once; a sample is then read by its offsets. The index is kept in arrays,
    which worker processes share, and each read opens its tar anew, so that no file position is shared.

    Attributes:
        paths: The tar files.
        keys: One per sample.
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
        self._open(path, tolerant=False)

    @classmethod
    def tolerant(cls, path: str) -> ShardDataset:
        """Index what can be indexed and list the rest in `problems`; for `open-cloc data check`."""
        dataset = cls.__new__(cls)
        dataset._open(path, tolerant=True)
        return dataset

    def _open(self, path: str, tolerant: bool) -> None:
        self.paths = expand_paths(path)
        self.problems: list[str] = []
        self.without_image = 0
        shards: dict[str, int] = {}  # key -> number of its shard
        rows: list[tuple[int, ...]] = []
        for shard, tar in enumerate(self.paths):
            try:
                for key, members in scan_tar(tar):
                    self._add(key, members, shard, shards, rows)
            except ValueError as error:
                self.problems.append(str(error))
            if self.problems and not tolerant:
                raise ValueError(self.problems[0])
        if not rows and not self.problems:
            raise ValueError(f"no samples with a picture ({path})")
        self.keys = np.array(list(shards), dtype=np.str_)
        self._rows = np.array(rows, np.int64).reshape(-1, 7)

    def _add(
        self,
        key: str,
        members: Sequence[Member],
        shard: int,
        shards: dict[str, int],
        rows: list[tuple[int, ...]],
    ) -> None:
        """Enter one sample into the index: its shard, then offset and size of picture, `txt` and `json`."""
        parts = {member.suffix: member for member in members}
        image = next((suffix for suffix in IMAGE_SUFFIXES if suffix in parts), None)
        if image is None:
            self.without_image += 1
        elif key in shards:
            where = f"{self.paths[shards[key]]} and {self.paths[shard]}"
            self.problems.append(f"key {key!r} occurs twice; expected every sample to have its own ({where})")
        else:
            shards[key] = shard
            spans = [parts.get(suffix, Member(suffix, 0, -1)) for suffix in (image, "txt", "json")]
            rows.append((shard, *(number for span in spans for number in (span.offset, span.size))))

    def __len__(self) -> int:
        return len(self._rows)

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
        shard, *spans = self._rows[index].tolist()
        path, key = self.paths[shard], str(self.keys[index])
        with path.open("rb") as stream:
            image, text, document = (_read(stream, *span) for span in zip(spans[::2], spans[1::2]))
        return parse_sample(key, image or b"", text, document, f"{path}, key {key!r}")


def scan_tar(path: Path) -> Iterator[tuple[str, list[Member]]]:
    """Yield each sample's key and members in a tar, reading only the headers.

    Raises:
        ValueError: If the tar is broken or cut short, or a sample has two members of one suffix.
    """
    key = ""
    members: list[Member] = []
    for name, offset, size in _scan_headers(path):
        folder, slash, file = name.rpartition("/")
        base, _, suffix = file.partition(".")  # webdataset: the key ends at the first dot of the file's name
        if not base or not suffix:
            continue
        if folder + slash + base != key and members:
            yield key, members
            members = []
        key = folder + slash + base
        members.append(Member(suffix.lower(), offset, size))
        if len({member.suffix for member in members}) < len(members):
            raise ValueError(f"key {key!r} has two members .{suffix.lower()} ({path})")
    if members:
        yield key, members


def _scan_headers(path: Path) -> Iterator[tuple[str, int, int]]:
    """Name, offset of the content and size of each file in a tar."""
    try:
        with tarfile.open(path, "r:") as tar:
            for info in tar:
                if info.isfile():
                    yield info.name, info.offset_data, info.size
            # tarfile takes a damaged header, or a file that was cut between members, for the end.
            assert tar.fileobj is not None
            tar.fileobj.seek(tar.offset)
            if tar.fileobj.read(BLOCK) != bytes(BLOCK):
                raise tarfile.ReadError(f"no end mark at byte {tar.offset}: cut short or damaged")
    except tarfile.TarError as error:
        raise ValueError(f"broken tar file: {error} ({path})") from error


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


def _read(stream: io.BufferedReader, offset: int, size: int) -> bytes | None:
    """Bytes of a member; None where the sample lacks it (size -1)."""
    if size < 0:
        return None
    stream.seek(offset)
    return stream.read(size)
