"""From samples to batches: which sample comes when, which of its regions, and what to do with bad ones.

The i-th sample of a run is a pure function of (dataset, config, i): its place in the shuffled epoch, the
regions and the caption drawn, the augmentation. Hence a run resumes exactly by giving `start_sample`,
whatever the number of workers, and any number of ranks with the same global batch sees the same samples.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info

from open_cloc.data.annotations import SampleDataset, checked_boxes
from open_cloc.data.bad_samples import BadSample, BadSamples
from open_cloc.data.order import laned_order
from open_cloc.data.samples import RegionBatch, RegionSample
from open_cloc.data.shard_index import UnreadableShardError
from open_cloc.data.transforms import AugmentConfig, Geometry, box_areas, random_geometry, visible_boxes

MAX_DRAWS = 16  # bad samples in a row before the data is called unusable
DRAW = 2  # a random stream of its own; those of the order are in `order`
SPECIAL_CAUSES = {FileNotFoundError: "missing file", UnreadableShardError: "unreadable shard"}


class Tokenize(Protocol):
    """What the loader needs to know of the model's text input; `model.tokenize` is one."""

    def __call__(self, texts: list[str]) -> Tensor:
        """Token ids, (U, T) int64."""
        ...

    def lengths(self, token_ids: Tensor) -> Tensor:
        """How many tokens of each row count, (U,)."""
        ...


class Preprocess(Protocol):
    """What the loader needs to know of the model's input; `model.preprocess` has it."""

    @property
    def image_size(self) -> tuple[int, int]: ...
    @property
    def resize_mode(self) -> str: ...
    @property
    def interpolation(self) -> str: ...
    @property
    def fill(self) -> tuple[int, int, int]: ...


@dataclass(frozen=True)
class LoaderConfig:
    """How batches are made.

    Attributes:
        batch_size: Images per batch on one rank.
        num_regions: Regions drawn per image, anew each epoch (the paper's M).
        workers: Processes that decode; 0 decodes in this process.
        seed: Of the order, the draws and the augmentation.
        shuffle: Visit each epoch in a new order. Pointless where every sample is generated anew.
        shuffle_shards: Shards whose samples are mixed at a time; 0 mixes whole epochs, but remote shards in
            groups of 16. The cache must hold two groups.
        lanes: Parts of a global batch, each fed from its own share of the shards: with the number of hosts,
            or a multiple, each host fetches only its own shards. Must divide the global batch.
        timeout: Seconds without a batch after which a worker counts as hung; 0 waits for ever.
        max_bad_fraction: Share of unusable samples past which the run stops.
        min_box_area: Regions smaller than this share of the canvas are not drawn.
        lower_case: Lower-case captions and phrases, as the paper does.
        caption_from_regions: Where a picture has no caption, join its distinct phrases.
        augment: Random crop and flip.
    """

    batch_size: int = 64
    num_regions: int = 4
    workers: int = 2
    seed: int = 0
    shuffle: bool = True
    shuffle_shards: int = 0
    lanes: int = 1
    timeout: float = 600.0
    max_bad_fraction: float = 0.01
    min_box_area: float = 1e-5
    lower_case: bool = True
    caption_from_regions: bool = False
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        least_values = {
            "batch_size": 1,
            "num_regions": 0,
            "workers": 0,
            "seed": 0,
            "shuffle_shards": 0,
            "lanes": 1,
            "timeout": 0,
        }
        for name, least in least_values.items():
            if getattr(self, name) < least:
                raise ValueError(f"loader {name} must be at least {least}; got {getattr(self, name)}")
        if not 0 <= self.max_bad_fraction <= 1:
            raise ValueError(f"loader max_bad_fraction must lie in [0, 1]; got {self.max_bad_fraction}")


class RegionLoader:
    """Iterates over `RegionBatch`es of a dataset, from `start_sample` to `num_samples`.

    Iterating again repeats the same batches. The last batch is left out where it would not be full.
    """

    def __init__(
        self,
        dataset: SampleDataset,
        preprocess: Preprocess,
        tokenize: Tokenize,
        config: LoaderConfig,
        num_samples: int | None = None,
        start_sample: int = 0,
        *,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Prepare a pass over the data.

        Args:
            dataset: Samples by number; several go into a `Mixture`.
            preprocess: Canvas size, resize mode, interpolation and fill colour.
            tokenize: Texts to (T, length) int64 ids; picklable where workers are spawned.
            config: How batches are made.
            num_samples: Samples that all ranks together see in the whole run; None is one epoch.
            start_sample: Samples that all ranks together have seen already.
            rank: This process.
            world_size: Number of processes.

        Raises:
            ValueError: If the dataset is empty or too few samples are asked for to fill one batch.
        """
        if len(dataset) == 0:
            raise ValueError("dataset is empty; expected at least one sample")
        self.config = config
        self.total = len(dataset) if num_samples is None else num_samples
        self.start = start_sample
        self.global_batch_size = config.batch_size * world_size
        if self.total < self.global_batch_size:
            raise ValueError(
                f"num_samples must fill at least one batch of {self.global_batch_size}; got {self.total}"
            )
        first = start_sample + rank * config.batch_size
        self._batches = _Batches(
            dataset, preprocess, tokenize, config, first, self.global_batch_size, len(self)
        )

    def __len__(self) -> int:
        """Number of batches from `start_sample` on."""
        return max(0, self.total - self.start) // self.global_batch_size

    def __iter__(self) -> Iterator[RegionBatch]:
        """Yield batches.

        Raises:
            ValueError: When more than `max_bad_fraction` of the samples cannot be used.
            TimeoutError: When a worker hangs.
            ChildProcessError: When a worker dies.
        """
        tally = BadSamples(self.config.max_bad_fraction)
        pin = torch.cuda.is_available()
        for made in _run_workers(self._batches, self.config.workers, pin, self.config.timeout):
            tally.add(made.good, made.bad)
            assert made.batch is not None  # the tally has stopped the run otherwise
            yield made.batch


class Prepared(NamedTuple):
    """A sample made ready for a batch: numpy arrays and texts, R regions at most."""

    key: str
    image: np.ndarray  # (H, W, 3) uint8
    content_box: tuple[float, float, float, float]
    caption: str | None
    boxes: np.ndarray  # (<= R, 4) float32
    texts: list[str]


class _Made(NamedTuple):
    """What a worker sends back. It never raises for bad data, so that messages reach the user undressed."""

    batch: RegionBatch | None
    good: int
    bad: list[BadSample]


class _Batches:
    """The b-th batch of a pass, as an indexable dataset for torch's DataLoader."""

    def __init__(
        self,
        dataset: SampleDataset,
        preprocess: Preprocess,
        tokenize: Tokenize,
        config: LoaderConfig,
        first: int,
        stride: int,
        length: int,
    ) -> None:
        self.dataset, self.preprocess, self.tokenize, self.config = dataset, preprocess, tokenize, config
        self.first, self.stride, self.length = first, stride, length
        self.order = laned_order(
            dataset, config.seed, config.shuffle, config.shuffle_shards, config.lanes, stride
        )
        # (workers,) number of the sample that each worker is at, seen by the main process
        self.reading = torch.full((max(1, config.workers),), -1).share_memory_()

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, number: int) -> _Made:
        begin = self.first + number * self.stride
        prepared: list[Prepared] = []
        bad: list[BadSample] = []
        for position in range(begin, begin + self.config.batch_size):
            sample, failures = self._draw(position)
            bad += failures
            if sample is None:
                return _Made(None, len(prepared), bad)
            prepared.append(sample)
        causes = Counter(failure.cause for failure in bad)
        batch = collate(prepared, self.config.num_regions, self.tokenize, causes)
        return _Made(batch, len(prepared), bad)

    def _draw(self, position: int) -> tuple[Prepared | None, list[BadSample]]:
        """The sample at a position of the run; a bad one is replaced by a random other."""
        rng = np.random.default_rng([DRAW, self.config.seed, position])
        index = self.order.index(position)
        bad: list[BadSample] = []
        info = get_worker_info()
        for draw in range(MAX_DRAWS):
            self.reading[info.id if info else 0] = index
            cause = "invalid sample"
            try:
                sample = self.dataset[index]
                cause = "unreadable image"
                pixels = sample.pixels()
                cause = "invalid sample"
                return prepare(sample, pixels, self.preprocess, self.config, rng), bad
            except (
                Exception
            ) as error:  # a shard of millions may hold anything: counted, and stopped past a limit
                for kind, name in SPECIAL_CAUSES.items():
                    cause = name if isinstance(error, kind) else cause
                message = f"{error} (sample number {index})"
                bad.append(BadSample(cause, message, draw == MAX_DRAWS - 1))
            index = self.order.other(position, rng)
        return None, bad


def prepare(
    sample: RegionSample,
    pixels: np.ndarray,
    preprocess: Preprocess,
    config: LoaderConfig,
    rng: np.random.Generator,
) -> Prepared:
    """Resize a picture, carry its boxes along, and draw its regions and caption.

    Args:
        sample: With boxes of the whole picture.
        pixels: (H, W, 3) uint8 of the sample.
        preprocess: The canvas.
        config: How many regions, which are too small, how texts are cleaned.
        rng: Source of every random choice.

    Raises:
        ValueError: If a box is not finite, inverted or outside the picture.
    """
    regions = [(region, clean_text(region.text, config.lower_case)) for region in sample.regions]
    captions = [text for text in (clean_text(c, config.lower_case) for c in sample.captions) if text]
    texts = [text for _, text in regions]
    if not captions and config.caption_from_regions:
        captions = [", ".join(dict.fromkeys(filter(None, texts)))] if any(texts) else []
    geometry = Geometry.fit(pixels.shape[:2], preprocess.image_size, preprocess.resize_mode)
    geometry = random_geometry(geometry, config.augment, [*captions, *texts], rng)
    boxes, share = visible_boxes(checked_boxes(sample), geometry)
    usable = (share >= config.augment.min_visible) & (box_areas(boxes) >= config.min_box_area)
    usable &= np.array([bool(text) for text in texts], bool)
    drawn = rng.permutation(np.flatnonzero(usable))[: config.num_regions]
    return Prepared(
        key=sample.key,
        image=geometry.image(pixels, preprocess.fill, preprocess.interpolation),
        content_box=geometry.content_box,
        caption=captions[int(rng.integers(len(captions)))] if captions else None,
        boxes=boxes[drawn].astype(np.float32),
        texts=[texts[row] for row in drawn],
    )


def clean_text(text: str, lower_case: bool) -> str:
    """One line, single spaces, lower case where asked for."""
    text = " ".join(text.split())
    return text.lower() if lower_case else text


def collate(
    samples: Sequence[Prepared], num_regions: int, tokenize: Tokenize, bad: Mapping[str, int]
) -> RegionBatch:
    """Stack prepared samples, padding regions to `num_regions` and encoding each distinct text once."""
    rows: dict[str, int] = {}  # text -> row of `texts`
    caption_index = torch.full((len(samples),), -1)  # (B,)
    boxes = torch.zeros(len(samples), num_regions, 4)  # (B, R, 4)
    text_index = torch.zeros(len(samples), num_regions, dtype=torch.int64)  # (B, R)
    text_ids = torch.zeros_like(text_index)  # (B, R)
    mask = torch.zeros(len(samples), num_regions, dtype=torch.bool)  # (B, R)
    for i, sample in enumerate(samples):
        if sample.caption is not None:
            caption_index[i] = rows.setdefault(sample.caption, len(rows))
        count = len(sample.texts)
        boxes[i, :count] = torch.from_numpy(sample.boxes)
        text_index[i, :count] = torch.tensor(
            [rows.setdefault(text, len(rows)) for text in sample.texts]
        ).long()
        text_ids[i, :count] = torch.tensor([text_id(text) for text in sample.texts]).long()
        mask[i, :count] = True
    images = torch.from_numpy(np.stack([sample.image for sample in samples]))  # (B, H, W, 3)
    texts = tokenize(list(rows) or [""])  # an index of 0 must point somewhere, even in a batch without text
    lengths = tokenize.lengths(texts)
    order = lengths.argsort(stable=True)
    place = order.argsort()  # where each text has gone
    return RegionBatch(
        images=images.permute(0, 3, 1, 2).contiguous(),
        content_boxes=torch.tensor([sample.content_box for sample in samples]),
        texts=texts[order],
        text_lengths=tuple(lengths[order].tolist()),
        caption_index=torch.where(caption_index < 0, caption_index, place[caption_index]),
        boxes=boxes,
        region_text_index=torch.where(mask, place[text_index], 0),
        region_mask=mask,
        keys=tuple(sample.key for sample in samples),
        region_text_ids=text_ids,
        bad=dict(bad),
    )


def text_id(text: str) -> int:
    """A 64-bit hash of a text, the same in every process. Two of 10^5 texts share one once in 3e9 steps."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)


class EvaluationBatch(NamedTuple):
    """Samples in order, with their pictures on the model's canvas.

    Attributes:
        samples: As read, every region included.
        images: (B, 3, H, W) uint8; the last batch may be smaller.
        content_boxes: (B, 4) normalised `xyxy` of the pictures inside the canvas.
        geometries: Map boxes to the canvas and back.
    """

    samples: list[RegionSample]
    images: Tensor
    content_boxes: Tensor
    geometries: list[Geometry]


def evaluation_batches(
    dataset: SampleDataset, preprocess: Preprocess, batch_size: int = 64, workers: int = 0
) -> Iterator[EvaluationBatch]:
    """Go through a dataset once, in order, leaving nothing out.

    Raises:
        ValueError: On the first sample that cannot be used; an evaluation never skips.
        FileNotFoundError: If that sample's picture is missing.
    """
    for made in _run_workers(_EvaluationBatches(dataset, preprocess, batch_size), workers, pin=False):
        if isinstance(made, Exception):
            raise made
        yield made


class _EvaluationBatches:
    """The b-th evaluation batch, or the error that prevents it."""

    def __init__(self, dataset: SampleDataset, preprocess: Preprocess, batch_size: int) -> None:
        self.dataset, self.preprocess, self.batch_size = dataset, preprocess, batch_size

    def __len__(self) -> int:
        return -(-len(self.dataset) // self.batch_size)

    def __getitem__(self, number: int) -> EvaluationBatch | ValueError | FileNotFoundError:
        begin = number * self.batch_size
        indices = range(begin, min(begin + self.batch_size, len(self.dataset)))
        samples, images, geometries = [], [], []
        for index in indices:
            try:
                sample = self.dataset[index]
                checked_boxes(sample)
                pixels = sample.pixels()
            except (ValueError, FileNotFoundError) as error:
                return error  # torch would wrap what is raised here in a worker's traceback
            geometry = Geometry.fit(pixels.shape[:2], self.preprocess.image_size, self.preprocess.resize_mode)
            images.append(geometry.image(pixels, self.preprocess.fill, self.preprocess.interpolation))
            samples.append(sample)
            geometries.append(geometry)
        stacked = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
        content = torch.tensor([geometry.content_box for geometry in geometries])
        return EvaluationBatch(samples, stacked, content, geometries)


def _run_workers(batches: Any, workers: int, pin: bool, timeout: float = 0.0) -> Iterator[Any]:
    """Items of an indexable dataset in order, made by worker processes.

    Raises:
        TimeoutError: If a worker gives nothing for `timeout` seconds (0: never).
        ChildProcessError: If a worker dies.
    """
    # Its own generator: starting workers draws a seed, which must not move the training's random state.
    generator = torch.Generator()
    items = iter(
        DataLoader(
            batches,
            batch_size=None,
            collate_fn=_unchanged,
            num_workers=workers,
            pin_memory=pin,
            generator=generator,
            timeout=timeout if workers else 0,
            worker_init_fn=_leave_signals_to_the_main_process,
        )
    )
    for number in range(len(batches)):
        failure = None
        try:
            item = next(items)
        except RuntimeError as error:
            failure = _explained(error, batches, number % max(1, workers), items, timeout)
        if failure is not None:
            del items  # ends the other workers now, not whenever the error is forgotten
            raise failure
        yield item


def _explained(error: RuntimeError, batches: Any, worker: int, items: Any, timeout: float) -> Exception:
    """One sentence about a worker that hangs or has died, from torch's message; other errors as they are."""
    if "DataLoader timed out" in str(error):
        pid = items._workers[worker].pid  # torch gives batches to workers in turn
        reading = getattr(batches, "reading", None)
        at = f" while it reads sample number {int(reading[worker])}" if reading is not None else ""
        return TimeoutError(
            f"data worker {worker} (process {pid}) has given no batch for {timeout:g} s{at}: look at the "
            "storage and that sample, or raise loader.timeout"
        )
    if "DataLoader worker" in str(error) and "Caught" not in str(error):
        what = " ".join(str(error).split()).removeprefix("DataLoader worker ").rstrip(". ")
        return ChildProcessError(
            f"data worker {what}: often for lack of memory; try fewer loader.workers, or --resume latest"
        )
    return error


def _leave_signals_to_the_main_process(worker: int) -> None:
    """A SIGTERM or Ctrl-C for the whole process group must not take the data away from the last step."""
    if hasattr(os, "setpgrp"):
        os.setpgrp()


def _unchanged(item: Any) -> Any:
    return item
