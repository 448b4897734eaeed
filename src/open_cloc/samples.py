"""The types where the areas of the package meet: one sample, one batch, one set of features.

Shape legend: B images, G images of all ranks, R regions per image (padded), U unique texts, T text tokens,
D shared embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from open_cloc.pictures import read_pixels


@dataclass(frozen=True)
class Region:
    """A box with its text.

    Attributes:
        box: Normalised `xyxy` of the whole picture, as (x1, y1, x2, y2) in [0, 1].
        text: The phrase or class name.
        score: Confidence in [0, 1]; 1 for human annotations.
        source: Who made it, such as `coco` or `owlv2`.
        span: Characters of the first caption that the text comes from, as (start, end), where it is known.
        cycle: Cosine of the text and the box that a model finds for it, where one was asked.
    """

    box: tuple[float, float, float, float]
    text: str
    score: float = 1.0
    source: str = ""
    span: tuple[int, int] | None = None
    cycle: float | None = None


@dataclass(frozen=True)
class RegionSample:
    """A picture, its captions and its regions.

    Attributes:
        key: Unique name inside its dataset.
        image: Encoded bytes, a file's path, or (H, W, 3) uint8 pixels.
        captions: Texts of the whole picture; may be empty.
        regions: May be empty.
        metadata: Whatever else the source said; carried through shards unchanged.
    """

    key: str
    image: bytes | Path | np.ndarray
    captions: tuple[str, ...] = ()
    regions: tuple[Region, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def pixels(self) -> np.ndarray:
        """Decode the picture to (H, W, 3) uint8 RGB.

        Raises:
            MissingFileError: If the image is a path that does not exist.
            UserError: If the image cannot be decoded.
        """
        if isinstance(self.image, np.ndarray):
            return self.image
        return read_pixels(self.image, f"image of sample {self.key!r}")


@dataclass(frozen=True)
class RegionBatch:
    """What the loader hands to the model.

    Attributes:
        images: (B, 3, H, W) uint8.
        content_boxes: (B, 4) normalised `xyxy` of the picture inside its padded canvas.
        texts: (U, T) token ids of the batch's distinct texts, shortest first, cut to the longest.
        caption_index: (B,) row of `texts` for each image's caption, -1 where it has none.
        boxes: (B, R, 4) normalised `xyxy` of the canvas; zeros where masked.
        region_text_index: (B, R) row of `texts` for each region; 0 where masked.
        region_mask: (B, R) bool, True for real regions.
        text_lengths: Tokens of each of `texts` that count, ascending; empty where nobody has looked.
        keys: Sample names.
        region_text_ids: (B, R) int64, a hash of each region's text, the same on every rank and in every run;
            0 where masked.
        bad: Samples that could not be used while this batch was made, counted by cause.
    """

    images: Tensor
    content_boxes: Tensor
    texts: Tensor
    caption_index: Tensor
    boxes: Tensor
    region_text_index: Tensor
    region_mask: Tensor
    text_lengths: tuple[int, ...] = ()
    keys: tuple[str, ...] = ()
    region_text_ids: Tensor | None = None
    bad: Mapping[str, int] = field(default_factory=dict)

    def to(self, device: torch.device | str) -> RegionBatch:
        """Move every tensor to a device, without blocking where memory is pinned."""
        moved = {
            f.name: getattr(self, f.name).to(device, non_blocking=True)
            for f in fields(self)
            if isinstance(getattr(self, f.name), Tensor)
        }
        return replace(self, **moved)

    def pin_memory(self) -> RegionBatch:
        """Called by torch's DataLoader when it pins memory."""
        pinned = {
            f.name: getattr(self, f.name).pin_memory()
            for f in fields(self)
            if isinstance(getattr(self, f.name), Tensor)
        }
        return replace(self, **pinned)


def _unchanged(tensor: Tensor) -> Tensor:
    return tensor


@dataclass(frozen=True)
class World:
    """Where this rank's images stand among those of all ranks, and how a loss adds up over ranks.

    Every rank computes the same loss value, that of the whole batch, each from its own rows against all
    columns. The gradient that reaches this rank's features is `world_size` times their share of it, since DDP
    and FSDP average gradients over ranks: parameters then get what one process would give them.

    Attributes:
        first: Index of this rank's first image among the world's.
        sum: Tensor -> its sum over ranks. What is computed from the sum must be the same on every rank; its
            gradient is handed back `world_size` times.
        max: Tensor -> its elementwise maximum over ranks, without gradient.
    """

    first: int = 0
    sum: Callable[[Tensor], Tensor] = _unchanged
    max: Callable[[Tensor], Tensor] = _unchanged


ALONE = World()


@dataclass(frozen=True)
class Features:
    """What the model makes of a batch and the losses eat. None of it is normalised yet.

    With several ranks, `training.distributed.gather` turns the text side and its masks into the world's: G
    stands for B in `text_features`, `caption_mask`, `region_text_features`, `region_mask`, `region_text_ids`.

    Attributes:
        image_features: (B, D).
        text_features: (B, D) of the captions; arbitrary where `caption_mask` is False.
        caption_mask: (B,) bool.
        region_features: (B, R, D).
        region_text_features: (B, R, D).
        region_mask: (B, R) bool.
        pred_boxes: (B, R, 4) normalised `xyxy`, grounded from each region's text.
        boxes: (B, R, 4) normalised `xyxy`, the targets.
        logit_scale: Multiplies cosine similarities; already exponentiated.
        logit_bias: Added to them by the sigmoid losses; None for softmax models.
        region_text_ids: (B, R) int64, equal where texts are equal; None if unknown.
        world: Where these images stand among the world's.
    """

    image_features: Tensor
    text_features: Tensor
    caption_mask: Tensor
    region_features: Tensor
    region_text_features: Tensor
    region_mask: Tensor
    pred_boxes: Tensor
    boxes: Tensor
    logit_scale: Tensor
    logit_bias: Tensor | None = None
    region_text_ids: Tensor | None = None
    world: World = ALONE
