"""Samples to tar shards as webdataset and img2dataset lay them out, with regions in `<key>.json`."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from PIL import Image
from webdataset import TarWriter

from open_cloc.canvas import resize
from open_cloc.data.names import make_keys
from open_cloc.data.shards.about import ABOUT
from open_cloc.data.shards.index import index_file, save_index, scan_shard
from open_cloc.data.shards.region_json import encode_json
from open_cloc.data.shards.tars import LEFTOVERS
from open_cloc.errors import ExistingFileError, SampleError, UserError
from open_cloc.files import LOCK, PART, is_free, locked, read_json, speaking_of, write_json
from open_cloc.pictures import by_decoder, open_encoded, read_file
from open_cloc.samples import MEASURED, RegionSample

UNFINISHED = ".incomplete"  # ends the name of a folder that is being written
MARK = ".open-cloc"  # in it, says whose it is
PARTS = re.compile(rf"{re.escape(PART)}.*|\d{{5,}}\.tar\.part")
OURS = re.compile(rf"{PARTS.pattern}|\d{{5,}}(\.tar|_stats\.json|_index\.npz)|sizes\.json|dataset\.json")

STORED_AS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}  # Pillow's format -> suffix
RESIZED_QUALITY = 90  # of JPEGs made smaller


class Storage(NamedTuple):
    """How pictures are stored.

    Attributes:
        array_format: How pixels are encoded: `png`, lossless, or `jpg`, quality 95.
        max_side: Pixels; a picture with a longer side is made smaller, as JPEG of quality 90. 0 for no limit.
    """

    array_format: str = "png"
    max_side: int = 0


@dataclass(frozen=True)
class Encoded:
    """A sample as it is written.

    Attributes:
        key: The sample's name.
        members: What webdataset writes: `__key__`, and bytes by suffix. Empty where the sample's shard was
            finished earlier, so that it is only counted.
        num_regions: Of the sample, for the shard's statistics.
        num_captions: Of the sample, for the shard's statistics.
    """

    key: str
    members: Mapping[str, Any]
    num_regions: int
    num_captions: int

    @classmethod
    def of(cls, sample: RegionSample, storage: Storage | None) -> Encoded:
        """Encode a sample, or only count it.

        Raises:
            SampleError: If the picture cannot be read, or something cannot be written.
        """
        members = {} if storage is None else encode_sample(sample, storage)
        return cls(sample.key, members, len(sample.regions), len(sample.captions))


# What is written: encoded only when its turn comes, or before that, as in another process.
Written: TypeAlias = "RegionSample | Encoded"


def write_shards(
    samples: Iterable[Written],
    folder: str | Path,
    samples_per_shard: int = 1000,
    *,
    array_format: str = "png",
    max_side: int = 0,
    resume: bool = False,
    about: Mapping[str, Any] | None = None,
    progress: Callable[[int], object] = lambda count: None,
) -> int:
    """Write samples as `00000.tar`, ... with `00000_stats.json` and `00000_index.npz`, ..., and `sizes.json`.

    Encoded JPEG, PNG and WebP pictures are stored byte for byte unless they are too large; pixels are
    encoded. Equal samples give equal bytes. Everything goes into `<folder>.incomplete`, which takes the
    folder's name when all is written.

    Args:
        samples: Any iterable of samples; read once, one at a time.
        folder: Where the shards go; must not exist or be empty.
        samples_per_shard: Number of samples in every shard but the last.
        array_format: How pixels are encoded, as in `Storage`.
        max_side: Longest side in pixels, as in `Storage`. Near the size that the model sees, loading is
            several times as fast.
        resume: Keep the shards that an earlier call with the same samples finished before it was stopped,
            and keep finished shards if this call fails too.
        about: What the source says of the whole, as `about_of` gives it: `dataset.json`.
        progress: Called with 1 after each sample.

    Returns:
        The number of samples.

    Raises:
        ExistingFileError: If the folder is not empty.
        UserError: On a repeated or unusable key, no samples at all, a picture that cannot be read, or
            finished shards of other samples.
    """
    folder = Path(folder).resolve()
    if samples_per_shard < 1:
        raise UserError(f"samples_per_shard must be at least 1; got {samples_per_shard}")
    if array_format not in ("png", "jpg"):
        raise UserError(f"array_format must be png or jpg; got {array_format!r}")
    if max_side < 0:
        raise UserError(f"max_side must be at least 1, or 0 for no limit; got {max_side}")
    storage = Storage(array_format, max_side)
    _require_free(folder)
    sizes: dict[str, int] = {}
    with _finished_folder(folder, resume) as unfinished:
        stream = _checked_keys(samples, progress)
        for first in stream:
            shard = chain([first], islice(stream, samples_per_shard - 1))
            tar = unfinished / f"{len(sizes):05d}.tar"
            sizes[tar.name] = write_shard(shard, tar, storage)
        if not sizes:
            raise UserError("no samples to write; expected at least one")
        write_json(unfinished / "sizes.json", sizes)
        if about:
            write_json(unfinished / ABOUT, about)
    return sum(sizes.values())


def encode_sample(sample: RegionSample, storage: Storage) -> dict[str, Any]:
    """A sample as webdataset members: `__key__`, the picture by its suffix, `json`, and `txt` if captioned.

    Raises:
        UserError: If the picture cannot be read.
        MissingFileError: If it is a path that does not exist.
    """
    suffix, picture, size_hw, own_hw = _encoded_picture(sample, storage)
    if size_hw != own_hw:
        sample = replace(sample, metadata={MEASURED: list(own_hw), **sample.metadata})
    members = {"__key__": sample.key, suffix: picture, "json": encode_json(sample, size_hw)}
    # No empty text: CLIP trainers drop a picture without `txt`, but would train on an empty caption.
    return members | ({"txt": sample.captions[0].encode()} if sample.captions else {})


def write_shard(samples: Iterable[Written], tar: Path, storage: Storage) -> int:
    """Write one tar, its index and its statistics, or make sure that a finished one holds the same samples.

    The tar appears under its name only when all is written. Returns its number of samples.
    """
    stats_file = tar.with_name(f"{tar.stem}_stats.json")
    if tar.exists() and stats_file.exists():
        counted = (s if isinstance(s, Encoded) else Encoded.of(s, storage=None) for s in samples)
        stats = _stats(counted, storage)
        if read_json(stats_file) != stats:
            raise UserError(f"finished shard {tar} holds other samples; start anew without resume")
        return stats["count"]
    with _tar_in_the_making(tar) as part:
        with part.open("wb") as stream, TarWriter(stream, encoder=False, mtime=0) as writer:
            stats = _stats(_written(samples, writer, storage), storage)
        index = scan_shard(part)
        assert not index.problems, index.problems
        save_index(index_file(tar), index, part)
        write_json(stats_file, stats)
    return stats["count"]


@contextmanager
def _tar_in_the_making(tar: Path) -> Iterator[Path]:
    """As `write_whole`, under a name that does not change: a tar is large, and a kill leaves one at most."""
    part = tar.with_suffix(".tar.part")
    with speaking_of(tar, part):
        try:
            yield part
            part.replace(tar)
        except BaseException:
            part.unlink(missing_ok=True)
            raise


def _written(samples: Iterable[Written], writer: TarWriter, storage: Storage) -> Iterator[Encoded]:
    for sample in samples:
        encoded = sample if isinstance(sample, Encoded) else Encoded.of(sample, storage)
        if not encoded.members:
            raise UserError("finished shards have vanished while samples were read; start again")
        writer.write(encoded.members)
        yield encoded


def _stats(samples: Iterable[Encoded], storage: Storage) -> dict[str, Any]:
    """img2dataset's counts, ours, and that by which a resumed call knows the shard."""
    counts: Counter[str] = Counter(count=0, regions=0, captions=0)
    keys = [""]
    for sample in samples:
        counts.update(count=1, regions=sample.num_regions, captions=sample.num_captions)
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


def _require_free(folder: Path) -> None:
    if not is_free(folder):
        raise ExistingFileError(f"output folder must be new or empty; got {folder}")


@contextmanager
def _finished_folder(folder: Path, resume: bool) -> Iterator[Path]:
    """A folder to write into that gets its name only if nothing fails; one process at a time has it."""
    unfinished = folder.with_name(folder.name + UNFINISHED)
    _require_ours(unfinished)
    with locked(unfinished):
        try:
            _require_free(folder)  # another process may have finished it just now
            _require_ours(unfinished)
            (unfinished / MARK).touch()
            _remove_files(unfinished, PARTS if resume else OURS)  # of a call that was stopped
            yield unfinished
        except BaseException:
            _remove_files(unfinished, PARTS if resume else OURS)
            if not any(path.name not in (MARK, LOCK) for path in unfinished.iterdir()):
                _remove_files(unfinished, re.compile(".*"))
                unfinished.rmdir()
            raise
        (unfinished / MARK).unlink()
        if folder.is_dir():
            folder.rmdir()  # empty, as checked before
        unfinished.rename(folder)
        (folder / LOCK).unlink(missing_ok=True)


def _require_ours(unfinished: Path) -> None:
    """Refuse what an earlier call has not made: its files are removed, or taken for finished shards.

    Raises:
        ExistingFileError: If it is no folder, or holds anything that does not stem from a conversion.
    """
    if is_free(unfinished) and not unfinished.is_symlink():
        return
    names = {path.name: path for path in unfinished.iterdir()} if unfinished.is_dir() else {}
    others = [name for name, path in names.items() if path.is_symlink() or not OURS.fullmatch(name)]
    others = [name for name in others if name not in (MARK, LOCK)]
    if unfinished.is_symlink() or MARK not in names or others:
        found = f" (it holds {min(others)})" if others else ""
        raise ExistingFileError(
            f"{unfinished} is in the way, and no stopped conversion{found}: remove it, or give another folder"
        )


def _remove_files(folder: Path, names: re.Pattern[str]) -> None:
    for path in folder.iterdir():
        if names.fullmatch(path.name):
            path.unlink()


def _checked_keys(samples: Iterable[Written], progress: Callable[[int], object]) -> Iterator[Written]:
    """Pass samples on, refusing keys that a tar cannot hold."""
    check = KeyCheck()
    for sample in samples:
        check(sample.key)
        yield sample
        progress(1)


class KeyCheck:
    """Looks at keys one by one: each must be one that a tar can hold, and none may come twice."""

    def __init__(self) -> None:
        self.seen: set[str] = set()

    def __call__(self, key: str) -> None:
        """Look at the next key.

        Raises:
            SampleError: If it cannot be written.
        """
        if make_keys([key]) != [key] or set(key.split("/")) & {*LEFTOVERS}:
            raise SampleError(
                f"key must be a plain path without a '.', such as `data.names.make_keys` makes; got {key!r}",
                "unusable key",
            )
        if key in self.seen:
            raise SampleError(
                f"key {key!r} occurs twice; expected every sample to have its own", "repeated key"
            )
        self.seen.add(key)


def finished_samples(folder: str | Path, samples_per_shard: int) -> int:
    """How many samples at least the shards hold that an earlier, stopped call has finished."""
    unfinished = Path(folder).resolve().with_name(Path(folder).resolve().name + UNFINISHED)
    numbers = range(len(list(unfinished.glob("*.tar"))) if unfinished.is_dir() else 0)
    whole = [n for n in numbers if (unfinished / f"{n:05d}_stats.json").exists()]
    return samples_per_shard * len(whole) if len(whole) == len(numbers) else 0


def _encoded_picture(
    sample: RegionSample, storage: Storage
) -> tuple[str, bytes, tuple[int, int], tuple[int, int]]:
    """Suffix, bytes and (height, width) of a picture, and those that it came with.

    Formats that shards do not hold become PNG.
    """
    if isinstance(sample.image, np.ndarray):
        pixels = sample.pixels()
        return *encode_picture(pixels, storage), (pixels.shape[0], pixels.shape[1])
    what = f"image of sample {sample.key!r}"
    encoded = sample.image if isinstance(sample.image, bytes) else read_file(sample.image, what)
    suffix, size_hw = by_decoder(_loaded, encoded, sample.image, what)
    sample.check_size(size_hw)
    if suffix and not 0 < storage.max_side < max(size_hw):
        return suffix, encoded, size_hw, size_hw
    return *encode_picture(sample.pixels(), storage._replace(array_format="png")), size_hw


def _loaded(encoded: bytes) -> tuple[str, tuple[int, int]]:
    """Suffix under which a picture is stored as it is, or an empty text, and its (height, width)."""
    with open_encoded(encoded) as picture:
        picture.load()  # the header of a file that was cut short is whole
        return STORED_AS.get(picture.format or "", ""), (picture.height, picture.width)


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
