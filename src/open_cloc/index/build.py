"""Pictures into an index: one pass through the tower each, however many regions they have."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from open_cloc.boxes import OK, box_problems
from open_cloc.data.annotations import Problem, SampleDataset, checked_boxes, clean_sample
from open_cloc.data.bad_samples import BadSample, BadSamples, problem_of, read_usable
from open_cloc.index.rows import picture_id, rows_of, thumbnail_of, values_of
from open_cloc.index.store import About, Store
from open_cloc.inference.encoded import EncodedImage
from open_cloc.inference.predictor import Predictor
from open_cloc.inference.tokens import TokenCache, content_of
from open_cloc.model.region_sources import RegionSource
from open_cloc.samples import Region, RegionSample

READERS = 2  # threads that read, decode and find regions while the tower computes
ROWS_PER_WRITE = 4096
SECONDS_PER_WRITE = 20.0


@dataclass
class Added:
    """What came of adding pictures.

    Attributes:
        pictures: Pictures that are there now and were not before.
        regions: Their regions.
        known: Pictures that were there already.
        causes: Pictures and entries that could not be used, by cause.
    """

    pictures: int = 0
    regions: int = 0
    known: int = 0
    causes: Counter[str] = field(default_factory=Counter)


class _Ready(NamedTuple):
    """A picture that was read, with the regions to embed and what else its rows hold."""

    sample: RegionSample
    content: str
    pixels: np.ndarray
    regions: list[Region]
    values: dict[str, Any]
    thumbnail: bytes | None


class _Read(NamedTuple):
    """What reading one sample gave; `ready` is None where it is known or cannot be used."""

    ready: _Ready | None
    is_known: bool
    problems: Sequence[Problem]


def add_pictures(
    store: Store,
    predictor: Predictor,
    dataset: SampleDataset,
    regions: RegionSource,
    *,
    tokens: TokenCache | None = None,
    batch_size: int = 16,
    max_bad_fraction: float = 0.0,
    progress: Callable[[int], object] = lambda count: None,
) -> Added:
    """Add the pictures of a data set and their regions; those that are there already are left as they are.

    Rows of a picture are written together. What `progress` has counted is in the index, whatever happens
    afterwards; a run that was stopped goes on when it is started again.

    Args:
        store: An open index of this model.
        predictor: Embeds.
        dataset: Pictures.
        regions: Gives the regions of each; two threads call it.
        tokens: Keeps what the tower made of each picture.
        batch_size: Pictures that go through the tower together; about twice as many are held in memory.
        max_bad_fraction: Share of pictures that may be unusable.
        progress: Is told of so many more pictures that are done.

    Raises:
        UserError: If too many pictures are bad, or another process adds.
        RunError: If the index cannot be written.
    """
    added, bad = Added(), BadSamples(max_bad_fraction, len(dataset))
    with store.writing():
        known = store.pictures()
        reader = _Reader(dataset, regions, known, store.about)
        rows: list[dict[str, Any]] = []
        done, written_at = 0, time.monotonic()

        def write() -> None:
            nonlocal rows, done, written_at
            store.add(rows)
            progress(done)
            rows, done, written_at = [], 0, time.monotonic()

        for batch in _batches(_read_ahead(reader, len(dataset), known, batch_size), batch_size):
            for read in batch:
                added.known += read.is_known
                bad.add(int(not read.problems), _bad(read.problems))
            ready = [read.ready for read in batch if read.ready is not None]
            for new in _rows(predictor, ready, _encode(predictor, tokens, ready)):
                rows += new
                added.pictures, added.regions = added.pictures + 1, added.regions + len(new) - 1
            done += len(batch)
            if len(rows) >= ROWS_PER_WRITE or time.monotonic() - written_at > SECONDS_PER_WRITE:
                write()
        write()
        store.optimize()
    added.causes = bad.causes
    return added


def _encode(
    predictor: Predictor, tokens: TokenCache | None, ready: Sequence[_Ready]
) -> Sequence[EncodedImage]:
    if tokens is None:
        return predictor.encode([one.pixels for one in ready])
    return tokens.encode([one.pixels for one in ready], [one.content for one in ready])


def _rows(
    predictor: Predictor, ready: Sequence[_Ready], images: Sequence[EncodedImage]
) -> Iterator[list[dict[str, Any]]]:
    """The rows of each picture; their regions are embedded together."""
    boxes = [np.array([region.box for region in one.regions], np.float64).reshape(-1, 4) for one in ready]
    for one, image, regions in zip(ready, images, predictor.embed_together(images, boxes)):
        vectors = np.concatenate([image.embed()[None], regions.features.cpu().numpy()])
        yield rows_of(one.sample, one.content, image.size_hw, one.regions, vectors, one.values, one.thumbnail)


def _read_ahead(reader: _Reader, count: int, known: set[str], ahead: int) -> Iterator[_Read]:
    """Samples in their order, read by threads a little before they are wanted; none twice."""
    window: list[Future[_Read]] = []
    seen = set(known)
    with ThreadPoolExecutor(READERS) as pool:
        numbers = iter(range(count))
        try:
            while True:
                for number in islice(numbers, READERS + ahead - len(window)):
                    window.append(pool.submit(reader.read, number))
                if not window:
                    return
                read = window.pop(0).result()
                if read.ready is not None:
                    name = picture_id(read.ready.sample.key, read.ready.content)
                    if name in seen:
                        read = _Read(None, True, read.problems)
                    seen.add(name)
                yield read
        finally:
            for future in window:
                future.cancel()


class _Reader(NamedTuple):
    """Reads samples by number, all that can be done before the tower."""

    dataset: SampleDataset
    regions: RegionSource
    known: set[str]
    about: About

    def read(self, number: int) -> _Read:
        sample, problems = read_usable(self.dataset, number)
        if sample is None:
            return _Read(None, False, problems)
        try:
            content = content_of(sample.image)
            if picture_id(sample.key, content) in self.known:
                return _Read(None, True, [])
            pixels = sample.pixels()
            regions = _with_area(sample, self.regions(sample, pixels))
            values = values_of(sample, self.about.columns)
            small = thumbnail_of(pixels, self.about.thumbnail)
            return _Read(_Ready(sample, content, pixels, regions, values, small), False, problems)
        except (OSError, ValueError) as error:  # of the picture, or of where its regions come from
            return _Read(None, False, [*problems, problem_of(error, f"sample {sample.key!r}")])


def _with_area(sample: RegionSample, regions: Sequence[Region]) -> list[Region]:
    """Regions clipped to the picture, their texts cleaned, those without area left out.

    Raises:
        SampleError: If a box is not finite, inverted or outside the picture, or a text is none.
    """
    regions = clean_sample(replace(sample, regions=tuple(regions))).regions
    boxes = checked_boxes(replace(sample, regions=regions))
    has_area = (box_problems(boxes) == OK).tolist()
    return [
        replace(region, box=tuple(box))
        for region, box, kept in zip(regions, boxes.tolist(), has_area)
        if kept
    ]


def _bad(problems: Sequence[Problem]) -> list[BadSample]:
    return [BadSample(problem.cause, problem.message, False) for problem in problems[:1]]


def _batches(items: Iterator[_Read], size: int) -> Iterator[list[_Read]]:
    while batch := list(islice(items, size)):
        yield batch
