"""Samples made ready, and stacked to a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from open_cloc.boxes import box_areas
from open_cloc.canvas import CanvasConfig, Geometry
from open_cloc.data.annotations import checked_boxes
from open_cloc.data.augment import AugmentConfig, random_geometry, visible_boxes
from open_cloc.data.prompts import Prompts, Shares, draw_prompts, stack_prompts
from open_cloc.data.wants import PreparedView, draw_texts, index_texts, make_views, stack_views
from open_cloc.data.workers import default_workers
from open_cloc.errors import UserError
from open_cloc.packing import pack_texts
from open_cloc.samples import RegionBatch, RegionSample, Wants
from open_cloc.texts import text_id

NOTHING_MORE = Wants()


class Tokenize(Protocol):
    """What the loader needs to know of the model's text input; `model.tokenize` is one."""

    def __call__(self, texts: list[str]) -> Tensor:
        """Token ids, (U, T) int64."""
        ...

    def lengths(self, token_ids: Tensor) -> Tensor:
        """How many tokens of each row count, (U,)."""
        ...

    def clean(self, text: str) -> str:
        """The text as the model reads it; texts that become equal are one, an empty one says nothing."""
        ...


class Prepared(NamedTuple):
    """A sample made ready for a batch: numpy arrays and texts, R regions at most."""

    key: str
    image: np.ndarray  # (H, W, 3) uint8
    content_box: tuple[float, float, float, float]
    caption: str | None
    boxes: np.ndarray  # (<= R, 4) float32
    texts: list[str]
    role_texts: Mapping[str, list[list[str]]] = {}
    views: Mapping[str, PreparedView] = {}
    prompts: Prompts = Prompts()  # of <= R regions


def prepare(
    sample: RegionSample,
    pixels: np.ndarray,
    preprocess: CanvasConfig,
    config: LoaderConfig,
    clean: Callable[[str], str],
    rng: np.random.Generator,
    wants: Wants = NOTHING_MORE,
) -> Prepared:
    """Resize a picture, carry its boxes along, and draw its regions and caption.

    Args:
        sample: With boxes of the whole picture.
        pixels: (H, W, 3) uint8 of the sample.
        preprocess: The canvas.
        config: Number of regions, least size.
        clean: A text as the model reads it.
        rng: Source of every random choice.
        wants: Texts with roles and further crops to make.

    Raises:
        UserError: If a box is not finite, inverted or outside the picture.
    """
    captions = [text for text in map(clean, sample.captions) if text]
    texts = [clean(region.text) for region in sample.regions]
    if not captions and config.caption_from_regions:
        captions = [", ".join(dict.fromkeys(filter(None, texts)))] if any(texts) else []
    geometry = Geometry.fit(pixels.shape[:2], preprocess.image_size, preprocess.resize_mode)
    geometry = random_geometry(geometry, config.augment, [*captions, *texts], rng)
    own_boxes = checked_boxes(sample)
    boxes, share = visible_boxes(own_boxes, geometry)
    usable = (share >= config.augment.min_visible) & (box_areas(boxes) >= config.min_box_area)
    usable &= np.array([bool(text) for text in texts], bool)
    drawn = rng.permutation(np.flatnonzero(usable))[: config.num_regions]
    prompts = Prompts()
    if any(config.prompt_shares):  # most runs ask by boxes alone
        asked = [sample.regions[row] for row in drawn]
        # All of the picture, also those that are not drawn: they say what the text is of.
        alike = [usable & (np.array(texts) == texts[row]) & (np.arange(len(texts)) != row) for row in drawn]
        same = [boxes[others] for others in alike]
        prompts = draw_prompts(asked, boxes[drawn], same, geometry, config.prompt_shares, rng)
    return Prepared(
        key=sample.key,
        image=geometry.draw(pixels, preprocess.fill, preprocess.interpolation),
        content_box=geometry.content_box,
        caption=captions[int(rng.integers(len(captions)))] if captions else None,
        boxes=boxes[drawn].astype(np.float32),
        texts=[texts[row] for row in drawn],
        role_texts=draw_texts(sample, drawn.tolist(), wants.roles, clean, rng),
        views=make_views(pixels, own_boxes[drawn], preprocess, geometry, config.augment, wants.views, rng),
        prompts=prompts,
    )


def collate(
    samples: Sequence[Prepared],
    num_regions: int,
    tokenize: Tokenize,
    bad: Mapping[str, int],
    roles: Mapping[str, int] = NOTHING_MORE.roles,
) -> RegionBatch:
    """Stack prepared samples, padding regions to `num_regions` and encoding each distinct text once."""
    rows: dict[str, int] = {}  # text -> row of `texts`
    # In NumPy: for so few numbers at a time torch takes several times as long.
    captions = np.full(len(samples), -1)  # (B,)
    boxes = np.zeros((len(samples), num_regions, 4), np.float32)
    text_indices = np.zeros((len(samples), num_regions), np.int64)
    text_ids = np.zeros_like(text_indices)
    is_region = np.zeros(text_indices.shape, bool)
    for i, sample in enumerate(samples):
        if sample.caption is not None:
            captions[i] = rows.setdefault(sample.caption, len(rows))
        count = len(sample.texts)
        if count:
            boxes[i, :count] = sample.boxes
            text_indices[i, :count] = [rows.setdefault(text, len(rows)) for text in sample.texts]
            text_ids[i, :count] = [text_id(text) for text in sample.texts]
            is_region[i, :count] = True
    caption_index, text_index, mask = map(torch.from_numpy, (captions, text_indices, is_region))
    role_index = index_texts([sample.role_texts for sample in samples], roles, num_regions, rows)
    texts = tokenize(list(rows) or [""])  # an index of 0 must point somewhere, even in a batch without text
    lengths = tokenize.lengths(texts)
    order = lengths.argsort(stable=True)
    text_lengths = tuple(lengths[order].tolist())
    place = order.argsort()  # where each text has gone
    return RegionBatch(
        images=stack_images([sample.image for sample in samples]),
        content_boxes=torch.tensor([sample.content_box for sample in samples]),
        texts=texts[order],
        text_lengths=text_lengths,
        packing=pack_texts(text_lengths, texts.shape[1]),
        caption_index=torch.where(caption_index < 0, caption_index, place[caption_index]),
        boxes=torch.from_numpy(boxes),
        region_text_index=torch.where(mask, place[text_index], 0),
        region_mask=mask,
        keys=tuple(sample.key for sample in samples),
        region_text_ids=torch.from_numpy(text_ids),
        role_index={role: torch.where(own < 0, own, place[own]) for role, own in role_index.items()},
        views=stack_views([sample.views for sample in samples], num_regions),
        bad=dict(bad),
        **stack_prompts([sample.prompts for sample in samples], num_regions),
    )


def stack_images(images: Sequence[np.ndarray]) -> Tensor:
    """Pictures (H, W, 3) uint8 of one size -> (B, 3, H, W), each number copied once."""
    height, width, channels = images[0].shape
    stacked = np.empty((len(images), channels, height, width), np.uint8)
    for own, image in zip(stacked, images):
        own[:] = image.transpose(2, 0, 1)
    return torch.from_numpy(stacked)


@dataclass(frozen=True)
class LoaderConfig:
    """How batches are made.

    Attributes:
        num_regions: Regions drawn per image, anew each epoch (the paper's M).
        workers: Processes that decode; 0 decodes in this process, -1 takes what suits this machine's cores.
        seed: Fixes the order, the draws and the augmentation.
        shuffle: Visit each epoch in a new order. Pointless where every sample is generated anew.
        shuffle_shards: Shards whose samples are mixed at a time; 0 mixes whole epochs, but remote shards in
            groups of 16. The cache must hold two groups.
        lanes: Parts of a global batch, each fed from its own share of the shards: with the number of hosts,
            or a multiple, each host fetches only its own shards. Must divide the global batch.
        timeout: Seconds without a batch after which a worker counts as hung; 0 waits for ever.
        max_bad_fraction: Share of unusable samples past which the run stops.
        min_box_area: Regions smaller than this share of the canvas are not drawn.
        points: Share of regions that are asked for by one to three points on them instead of by their box.
        masks: Share of regions that are asked for by their outline instead, where the data have outlines.
        box_sets: Share of regions that are asked for by several boxes instead: with others of the picture
            that have the same text or, where there are none, by two or three parts of themselves.
        caption_from_regions: Join a picture's distinct phrases to a caption where it has none.
        augment: Random crop and flip.
    """

    num_regions: int = 4
    workers: int = -1
    seed: int = 0
    shuffle: bool = True
    shuffle_shards: int = 0
    lanes: int = 1
    timeout: float = 600.0
    max_bad_fraction: float = 0.01
    min_box_area: float = 1e-5
    points: float = 0.0
    masks: float = 0.0
    box_sets: float = 0.0
    caption_from_regions: bool = False
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        least_values = {
            "num_regions": 0,
            "workers": -1,
            "seed": 0,
            "shuffle_shards": 0,
            "lanes": 1,
            "timeout": 0,
        }
        for name, least in least_values.items():
            if getattr(self, name) < least:
                raise UserError(f"loader {name} must be at least {least}; got {getattr(self, name)}")
        for name in ("max_bad_fraction", *Shares._fields):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"loader {name} must lie in [0, 1]; got {getattr(self, name)}")
        if (total := sum(self.prompt_shares)) > 1:
            raise UserError(f"loader {', '.join(Shares._fields)} are at most 1 together; got {total}")

    @property
    def prompt_shares(self) -> Shares:
        """Which shares of the regions are asked for by what."""
        return Shares(*(getattr(self, name) for name in Shares._fields))

    @property
    def num_workers(self) -> int:
        """`workers`, or what suits this machine."""
        return default_workers() if self.workers < 0 else self.workers
