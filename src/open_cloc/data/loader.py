"""From samples to batches: which sample comes when, which of its regions, and what to do with bad ones.

The i-th sample of a run is a pure function of (dataset, config, i): its place in the shuffled epoch, the
regions and the caption drawn, the augmentation. Hence a run resumes exactly by giving `start_sample`,
whatever the number of workers, and any number of ranks with the same global batch sees the same samples.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator
from dataclasses import replace
from math import prod
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import get_worker_info

from open_cloc.canvas import CanvasConfig, mask_cells
from open_cloc.data.annotations import SampleDataset
from open_cloc.data.bad_samples import BadSample, BadSamples, problem_of, read_usable
from open_cloc.data.collate import NOTHING_MORE, LoaderConfig, Prepared, Tokenize, collate, prepare
from open_cloc.data.order import laned_order
from open_cloc.data.permutation import COMPUTED
from open_cloc.data.workers import run_workers
from open_cloc.errors import UserError
from open_cloc.samples import RegionBatch, Wants

MAX_DRAWS = 16  # bad samples in a row before the data is called unusable

DRAW = 2  # a random stream of its own; those of the order are in `order`


class RegionLoader:
    """Iterates over `RegionBatch`es of a dataset, from `start_sample` to `num_samples`.

    Iterating again repeats the same batches. The last batch is left out where it would not be full.
    """

    def __init__(
        self,
        dataset: SampleDataset,
        preprocess: CanvasConfig,
        tokenize: Tokenize,
        config: LoaderConfig,
        num_samples: int | None = None,
        start_sample: int = 0,
        *,
        batch_size: int,
        wants: Wants = NOTHING_MORE,
        rank: int = 0,
        world_size: int = 1,
        tally: BadSamples | None = None,
        order: int = COMPUTED,
    ) -> None:
        """Prepare a pass over the data.

        Args:
            dataset: Samples by number; several go into a `Mixture`.
            preprocess: Canvas size, resize mode, interpolation and fill colour.
            tokenize: The model's: cleans texts and makes ids of them; picklable where workers are spawned.
            config: Rules by which batches are made.
            num_samples: Samples that all ranks together see in the whole run; None is one epoch.
            start_sample: Samples that all ranks together have seen already.
            batch_size: Images of a batch on this rank.
            wants: Texts with roles and further crops that the run's objectives want of each sample.
            rank: Number of this process.
            world_size: Number of processes.
            tally: Counts bad samples, those of earlier parts of a run among them; from nothing unless given.
                Of several processes, none decides by its own count whether they are too many.
            order: How orders of many samples come about, as for `permutation`: a run keeps to the one that
                it began with.

        Raises:
            UserError: If the dataset is empty or too few samples are asked for to fill one batch.
        """
        if len(dataset) == 0:
            raise UserError("dataset is empty; expected at least one sample")
        config = replace(config, workers=config.num_workers)
        self.config, self.tally, self.is_alone = config, tally, world_size == 1
        self.total = len(dataset) if num_samples is None else num_samples
        self.start = start_sample
        if batch_size < 1:
            raise UserError(f"batch_size must be at least 1; got {batch_size}")
        self.global_batch_size = batch_size * world_size
        if self.total < self.global_batch_size:
            raise UserError(
                f"num_samples must fill at least one batch of {self.global_batch_size}; got {self.total}"
            )
        places = _Places(start_sample + rank * batch_size, batch_size, self.global_batch_size, len(self))
        self._batches = _Batches(dataset, preprocess, tokenize, config, places, wants, order)

    def __len__(self) -> int:
        """Number of batches from `start_sample` on."""
        return max(0, self.total - self.start) // self.global_batch_size

    def __iter__(self) -> Generator[RegionBatch, None, None]:
        """Yield batches.

        Raises:
            UserError: When surely more than `max_bad_fraction` of the samples cannot be used, or one sample
                and all that were tried in its place.
            WorkerTimeoutError: When a worker hangs.
            WorkerDiedError: When a worker dies.
        """
        tally = self.tally or BadSamples(self.config.max_bad_fraction)
        take = tally.add if self.is_alone else tally.count
        pin = torch.cuda.is_available()
        for made in run_workers(self._batches, self.config.workers, pin, self.config.timeout):
            take(made.good, made.bad)
            assert made.batch is not None  # the tally has stopped the run otherwise
            yield made.batch


class _Made(NamedTuple):
    """What a worker sends back. It never raises for bad data, so that messages reach the user undressed."""

    batch: RegionBatch | None
    good: int
    bad: list[BadSample]


class _Places(NamedTuple):
    """Which positions of the run this rank's batches take."""

    first: int
    batch_size: int
    stride: int  # from a batch to the next
    length: int  # batches


class _Batches:
    """The b-th batch of a pass, as an indexable dataset for torch's DataLoader."""

    def __init__(
        self,
        dataset: SampleDataset,
        preprocess: CanvasConfig,
        tokenize: Tokenize,
        config: LoaderConfig,
        places: _Places,
        wants: Wants,
        order: int,
    ) -> None:
        self.dataset, self.preprocess, self.tokenize, self.config = dataset, preprocess, tokenize, config
        self.places, self.wants = places, wants
        self.order = laned_order(
            dataset, config.seed, config.shuffle, config.shuffle_shards, config.lanes, places.stride, order
        )
        # (workers,) number of the sample that each worker is at, seen by the main process
        self.reading = torch.full((max(1, config.workers),), -1)

    def __len__(self) -> int:
        return self.places.length

    @property
    def batch_bytes(self) -> int:
        """Size of a batch's pictures and outlines, beside which all else is small."""
        height, width = self.preprocess.image_size
        pixels = height * width + sum(v.count * v.image_size**2 for v in self.wants.views.values())
        outlines = prod(mask_cells((height, width))) * self.config.num_regions if self.config.masks else 0
        return self.places.batch_size * (3 * pixels + outlines)

    def __getitem__(self, number: int) -> _Made:
        begin = self.places.first + number * self.places.stride
        prepared: list[Prepared] = []
        bad: list[BadSample] = []
        good = 0
        for position in range(begin, begin + self.places.batch_size):
            sample, failures, is_whole = self._draw(position)
            bad += failures
            good += is_whole
            if sample is None:
                return _Made(None, good, bad)
            prepared.append(sample)
        causes = Counter(failure.cause for failure in bad)
        batch = collate(prepared, self.config.num_regions, self.tokenize, causes, self.wants.roles)
        return _Made(batch, good, bad)

    def _draw(self, position: int) -> tuple[Prepared | None, list[BadSample], bool]:
        """The sample at a position of the run, the bad ones on the way, and whether nothing of it was bad.

        A bad one is replaced by a random other; one of which only some entries are bad is used without these.
        """
        rng = np.random.default_rng([DRAW, self.config.seed, position])
        index = self.order.index(position)
        bad: list[BadSample] = []
        info = get_worker_info()
        for draw in range(MAX_DRAWS):
            self.reading[info.id if info else 0] = index
            sample, problems = read_usable(self.dataset, index)
            try:
                if sample is not None:
                    pixels = sample.pixels()
                    prepared = prepare(
                        sample, pixels, self.preprocess, self.config, self.tokenize.clean, rng, self.wants
                    )
                    bad += [BadSample(*problem, last_draw=False) for problem in problems[:1]]
                    return prepared, bad, not problems
            except (
                Exception
            ) as error:  # a shard of millions may hold anything: counted, and stopped past a limit
                problems = [problem_of(error, f"sample number {index}")]
            bad.append(BadSample(*problems[0], last_draw=draw == MAX_DRAWS - 1))
            index = self.order.other(position, rng)
        return None, bad, False
