"""A dataset to shards: read and encoded in this process or in several, written in order by this one.

Whatever fails between reading a sample and writing it is that sample's fault: it stops the conversion, or
costs the sample where some may be left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from open_cloc.data.annotations import Problem, SampleDataset, clean_sample
from open_cloc.data.bad_samples import BadSample, BadSamples, problem_of, read_usable
from open_cloc.data.shards.about import about_of
from open_cloc.data.shards.write import Encoded, KeyCheck, Storage, finished_samples, write_shards
from open_cloc.data.workers import Failure, run_workers
from open_cloc.errors import SampleError

TOGETHER = 8  # samples that a process encodes before it sends them


class Conversion(NamedTuple):
    """What came of a conversion.

    Attributes:
        written: Samples that were written.
        causes: What was left out of the data, counted by cause.
    """

    written: int
    causes: Counter[str]


def convert_dataset(
    dataset: SampleDataset,
    folder: str | Path,
    samples_per_shard: int = 1000,
    *,
    max_side: int = 0,
    max_bad_fraction: float = 0.0,
    resume: bool = False,
    workers: int = 0,
    progress: Callable[[int], object] = lambda count: None,
) -> Conversion:
    """Write a dataset as shards; the same bytes with any number of workers.

    Args:
        dataset: Samples by number.
        folder: Where the shards go, as for `write_shards`.
        samples_per_shard: Number of samples in every shard but the last.
        max_side: Longest side of stored pictures in pixels; 0 for no limit.
        max_bad_fraction: Share of samples that may be left out, or lose entries; with 0 the first one stops.
        resume: Go on where an earlier call with the same dataset was stopped.
        workers: Processes that read and encode; 0 does it in this one.
        progress: Called with 1 after each sample that was written.

    Raises:
        ExistingFileError: If the folder is not empty.
        UserError: If samples are bad, or more of them than may be; if there are none.
    """
    skipped, causes = BadSamples(max_bad_fraction, total=len(dataset)), Counter[str]()
    # Of those before it, none was left out for sure only where none may be.
    counted = finished_samples(folder, samples_per_shard) if resume and not max_bad_fraction else 0
    together = TOGETHER if workers else 1
    encoding = _Encoding(dataset, Storage(max_side=max_side), counted, together, not max_bad_fraction)
    with closing(run_workers(encoding, workers, pin=False)) as made:
        samples = _usable(made, skipped, causes)
        count = write_shards(
            samples,
            folder,
            samples_per_shard,
            max_side=max_side,
            resume=resume,
            about=about_of(dataset),
            progress=progress,
        )
    return Conversion(count, causes)


# A sample, None where it cannot be used, and everything that is wrong with it.
Made = tuple[Encoded | None, list[Problem]]


class _Encoding:
    """Samples, some at a time, as an indexable dataset for worker processes."""

    batch_bytes = 0  # what is encoded goes through pipes, not through shared memory

    def __init__(
        self, dataset: SampleDataset, storage: Storage, counted: int, together: int, is_strict: bool
    ) -> None:
        """Read from a dataset.

        Args:
            dataset: Samples by number.
            storage: How pictures are stored.
            counted: Number of the first sample that is written; those before it are only counted.
            together: Samples of an item.
            is_strict: Whether what is wrong with a sample stops the conversion.
        """
        self.dataset, self.storage, self.counted = dataset, storage, counted
        self.together, self.is_strict = together, is_strict

    def __len__(self) -> int:
        return -(-len(self.dataset) // self.together)

    def __getitem__(self, number: int) -> list[Made | Failure]:
        start = number * self.together
        made: list[Made | Failure] = []
        for index in range(start, min(start + self.together, len(self.dataset))):
            try:
                made.append(self._strictly(index) if self.is_strict else self._leniently(index))
            except Exception as error:
                if self.together == 1:
                    raise
                return [*made, Failure.of(error)]  # those before it are written first
        return made

    def _strictly(self, index: int) -> Made:
        sample = clean_sample(self.dataset[index])
        return Encoded.of(sample, None if index < self.counted else self.storage), []

    def _leniently(self, index: int) -> Made:
        sample, problems = read_usable(self.dataset, index)
        try:
            return (None if sample is None else Encoded.of(sample, self.storage)), problems
        except Exception as error:  # whatever Pillow's decoders stumble over
            return None, [problem_of(error, f"sample number {index}")]


def _usable(
    made: Iterator[list[Made | Failure]], skipped: BadSamples, causes: Counter[str]
) -> Iterator[Encoded]:
    """What can be written; whatever is wrong is counted, and too many bad samples raise."""
    check = KeyCheck() if skipped.max_fraction else None  # where none may be left out, the writer checks
    for item in (item for some in made for item in some):
        if isinstance(item, Failure):
            raise item.error()
        sample, problems = item
        try:
            if sample is not None and check is not None:
                check(sample.key)
        except SampleError as error:
            sample, problems = None, [problem_of(error)]
        causes.update(problem.cause for problem in problems)
        skipped.add(int(not problems), [BadSample(*problem, last_draw=False) for problem in problems[:1]])
        if sample is not None:
            yield sample
