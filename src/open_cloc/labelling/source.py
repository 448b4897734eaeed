"""The input cut into units, one for each output shard, and each unit into batches.

What shares a batch follows from the input alone, never from scheduling: a run that is stopped and started
again, or spread over another number of machines, computes the very same numbers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from open_cloc.data.annotations import SampleDataset
from open_cloc.data.readers import guess_spec, open_reader
from open_cloc.data.remote import list_shards
from open_cloc.data.samples import RegionSample
from open_cloc.data.shards import Storage, encode_picture, expand_paths
from open_cloc.labelling.types import Caption, Detections, Failure, Phrases


@dataclass(frozen=True)
class Unit:
    """What becomes one output shard.

    Attributes:
        name: The shard's, such as `00012`.
        spec: FORMAT:PATH of the dataset that holds it.
        start: Its first sample there.
        stop: One past its last; None for the dataset's end.
    """

    name: str
    spec: str
    start: int = 0
    stop: int | None = None

    def samples(self) -> tuple[SampleDataset, range]:
        """The dataset and which of its samples these are."""
        dataset = _opened(self.spec)
        return dataset, range(self.start, len(dataset) if self.stop is None else self.stop)


@dataclass(frozen=True)
class Picture:
    """A picture on its way through the stages.

    Attributes:
        index: Of the sample in its dataset.
        key: Of the sample.
        image: Encoded; empty once it is no longer needed.
        given: The captions that came with it.
        caption: The text that phrases are taken from.
        phrases: Of the caption.
        detections: Of the phrases.
        cycle: (N,) cosine of each box's best phrase and the box that is found for it; None if nobody asked.
        failure: Why it goes no further.
    """

    index: int
    key: str
    image: bytes = b""
    given: tuple[str, ...] = ()
    caption: Caption | None = None
    phrases: Phrases | None = None
    detections: Detections | None = None
    cycle: np.ndarray | None = None
    failure: Failure | None = None

    def failed(self, failure: Failure) -> Picture:
        return replace(self, failure=failure, image=b"")


@dataclass(frozen=True)
class Batch:
    """Pictures that share a forward pass.

    Attributes:
        unit: Name of their unit.
        number: Which of the unit's batches this is.
        of: How many the unit has.
        pictures: In the input's order.
        made_by: What each stage says of itself, by stage.
    """

    unit: str
    number: int
    of: int
    pictures: tuple[Picture, ...]
    made_by: dict[str, dict] = field(default_factory=dict)


def plan_units(source: str, samples_per_shard: int) -> list[Unit]:
    """Cut an input into units: a tar each for shards, equal numbers of samples for anything else.

    Args:
        source: A path whose format is recognised, or FORMAT:PATH[,name=value...].
        samples_per_shard: For inputs that have no shards of their own.

    Raises:
        FileNotFoundError: If it is not there.
        ValueError: If it is nothing that a reader knows, or holds no samples.
    """
    spec = guess_spec(source)
    name, _, rest = spec.partition(":")
    if name == "shards":
        path, comma, options = rest.partition(",")
        tars = list_shards(path)[0] if "://" in path or path.startswith("pipe:") else expand_paths(path)
        specs = [f"shards:{tar}{comma}{options}" for tar in tars]
        return [Unit(f"{number:05d}", each) for number, each in enumerate(specs)]
    total = len(_opened(spec))
    if not total:
        raise ValueError(f"no pictures to label ({source})")
    starts = range(0, total, samples_per_shard)
    return [
        Unit(f"{number:05d}", spec, start, min(total, start + samples_per_shard))
        for number, start in enumerate(starts)
    ]


def known_pictures(units: Sequence[Unit]) -> int | None:
    """How many samples units have, by bounds or by `sizes.json` beside local shards; None if unknown."""
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
    dataset, rows = unit.samples()
    count = -(-len(rows) // batch_size)
    for number in range(count):
        part = rows[number * batch_size : (number + 1) * batch_size]
        yield Batch(unit.name, number, count, tuple(_read(dataset, index) for index in part))


def _read(dataset: SampleDataset, index: int) -> Picture:
    try:
        sample = dataset[index]
        return Picture(index, sample.key, _encoded(sample), sample.captions)
    except FileNotFoundError as error:
        return Picture(index, f"#{index}", failure=Failure("missing picture", str(error)))
    except (ValueError, OSError) as error:
        return Picture(index, f"#{index}", failure=Failure("unreadable sample", str(error)))


def _encoded(sample: RegionSample) -> bytes:
    if isinstance(sample.image, bytes):
        return sample.image
    if isinstance(sample.image, np.ndarray):
        return encode_picture(sample.image, Storage())[1]
    return sample.image.read_bytes()


def _tar(spec: str) -> Path:
    return Path(spec.partition(":")[2].partition(",")[0])


@lru_cache(maxsize=64)
def _sizes_beside(folder: Path) -> dict[str, int]:
    try:
        sizes = json.loads((folder / "sizes.json").read_text())
    except (OSError, ValueError):  # only the progress bar's total depends on it
        return {}
    return sizes if isinstance(sizes, dict) else {}


@lru_cache(maxsize=2)
def _opened(spec: str) -> SampleDataset:
    """One process reads many units of one dataset."""
    return open_reader(spec)
