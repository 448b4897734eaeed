"""The input cut into units, one for each output shard, and each unit into batches.

What shares a batch follows from the input alone, never from scheduling: a run that is stopped and started
again, or spread over another number of machines, computes the very same numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from open_cloc.config import parse_spec
from open_cloc.data.annotations import Problem, SampleDataset
from open_cloc.data.bad_samples import problem_of, read_usable, tell_opening
from open_cloc.data.readers import READERS, guess_spec, open_reader
from open_cloc.data.shards.read import expand_paths
from open_cloc.data.shards.remote import list_shards
from open_cloc.data.shards.write import Storage, encode_picture
from open_cloc.errors import SampleError, UserError
from open_cloc.files import read_json
from open_cloc.labelling.types import Batch, Failure, Picture, Unit
from open_cloc.pictures import read_file, read_header
from open_cloc.samples import RegionSample
from open_cloc.texts import is_odd, sound_text


def plan_units(source: str, samples_per_shard: int) -> list[Unit]:
    """Cut an input into units: a tar each for shards, equal numbers of samples for anything else.

    Args:
        source: A path whose format is recognised, or FORMAT:PATH[,name=value...].
        samples_per_shard: Samples of a unit, where the input has no shards of its own.

    Raises:
        MissingFileError: If the source is not there.
        UserError: If the source is nothing that a reader knows, or holds no samples.
    """
    spec = guess_spec(source)
    name, path, options = parse_spec(spec, READERS)
    if name == "shards":
        tars = list_shards(path)[0] if "://" in path or path.startswith("pipe:") else expand_paths(path)
        tail = "".join(f",{option}={value}" for option, value in options.items())
        specs = [f"shards:{tar}{tail}" for tar in tars]
        return [Unit(f"{number:05d}", each) for number, each in enumerate(specs)]
    total = len(_opened(spec))
    if not total:
        raise UserError(f"no pictures to label ({source})")
    starts = range(0, total, samples_per_shard)
    return [
        Unit(f"{number:05d}", spec, start, min(total, start + samples_per_shard))
        for number, start in enumerate(starts)
    ]


def tell_input(units: Sequence[Unit], source: str, max_bad_fraction: float) -> None:
    """Say what the reader of an input leaves out; of shards, each worker counts what it reads.

    Args:
        units: Those of the input.
        source: What the user gave.
        max_bad_fraction: Largest share of entries that may be broken.

    Raises:
        UserError: If there are more.
    """
    if units[0].stop is not None:
        tell_opening(_opened(units[0].spec), source, max_bad_fraction, "run.max_bad_fraction leaves them out")


def samples_of(unit: Unit) -> tuple[SampleDataset, range]:
    """The dataset that holds a unit, and which of its samples are the unit's."""
    dataset = _opened(unit.spec)
    return dataset, range(unit.start, len(dataset) if unit.stop is None else unit.stop)


def known_pictures(units: Sequence[Unit]) -> int | None:
    """The number of samples in units, by bounds or by `sizes.json` beside local shards; None if unknown."""
    total = 0
    for unit in units:
        tar = _tar(unit.spec)
        count = _sizes_beside(tar.parent).get(tar.name) if unit.stop is None else unit.stop
        if count is None:
            return None
        total += count - unit.start
    return total


def read_batches(unit: Unit, batch_size: int) -> Iterator[Batch]:
    """Read a unit. Samples that cannot be read go along as failures, so that they are counted."""
    dataset, rows = samples_of(unit)
    count = -(-len(rows) // batch_size)
    for number in range(count):
        part = rows[number * batch_size : (number + 1) * batch_size]
        not_read = {} if number else _not_read(dataset, unit)
        yield Batch(unit.name, number, count, tuple(_read(dataset, i) for i in part), not_read=not_read)


def _not_read(dataset: SampleDataset, unit: Unit) -> dict[str, int]:
    """What a shard holds beside its samples, with counts; of other inputs that is told at their opening."""
    if unit.stop is not None:
        return {}
    problems: Sequence[Problem] = getattr(dataset, "problems", ())
    left_out: Mapping[str, int] = getattr(dataset, "left_out", {})
    return dict(Counter(problem.cause for problem in problems) + Counter(left_out))


def _read(dataset: SampleDataset, index: int) -> Picture:
    """One picture and its captions; labels of its own are made anew, so wrong boxes do no harm."""
    key = f"#{index}"
    try:
        sample, problems = read_usable(dataset, index)
        if sample is None:
            return Picture(index, key, failure=Failure(*problems[0]))
        key = check_key(sample.key)
        encoded = _encoded(sample)
        if sample.size_hw is not None:
            sample.check_size(read_header(encoded).size_hw)
        return Picture(index, key, encoded, sample.captions)
    except Exception as error:  # data of any shape: one picture's fault, never the run's
        return Picture(index, key, failure=failure_of(error, f"sample number {index}"))


def check_key(key: str) -> str:
    """The key itself.

    Raises:
        SampleError: If a tar cannot hold it; readers of ours make none like that.
    """
    if not isinstance(key, str) or not key or "." in key or key.startswith("/") or is_odd(key):
        raise SampleError(f"key must be a text without '.' that a tar can hold; got {key!r}", "unusable key")
    return key


def failure_of(error: Exception, where: str = "") -> Failure:
    """What an error says of the picture that it comes from.

    Args:
        error: Anything that was raised while the picture was on its way.
        where: Which picture it is, for errors that do not say it.
    """
    cause, message = problem_of(error, where)
    return Failure(cause, " ".join(sound_text(message).split()))


def _encoded(sample: RegionSample) -> bytes:
    if isinstance(sample.image, bytes):
        return sample.image
    if isinstance(sample.image, np.ndarray):
        return encode_picture(sample.image, Storage())[1]
    return read_file(sample.image, f"image of sample {sample.key!r}")


def _tar(spec: str) -> Path:
    return Path(parse_spec(spec, READERS).what)


@lru_cache(maxsize=64)
def _sizes_beside(folder: Path) -> dict[str, int]:
    try:
        sizes = read_json(folder / "sizes.json")
    except (OSError, UserError):  # only the progress bar's total depends on it
        return {}
    return sizes if isinstance(sizes, dict) else {}


@lru_cache(maxsize=2)
def _opened(spec: str) -> SampleDataset:
    """One process reads many units of one dataset."""
    return open_reader(spec)
