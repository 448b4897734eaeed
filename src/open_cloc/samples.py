"""The types where the areas of the package meet: one sample, one batch, one set of features.

Shape legend: B images, G images of all ranks, R regions per image (padded), U unique texts, T text tokens,
D shared embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from open_cloc.errors import SampleError, UserError
from open_cloc.masks import Mask
from open_cloc.pictures import ANOTHER_SIZE, mismatch, read_pixels

T = TypeVar("T")

MEASURED = "measured_hw"  # of a picture that was made smaller: (height, width) that it had
OF_REGIONS = "regions."  # starts a role whose texts are of regions and not of the picture


@dataclass(frozen=True)
class Text:
    """A further text of a picture or a region, with what it is for.

    Attributes:
        text: The text itself.
        role: The purpose by which objectives ask for it, such as `long`, `recaption` or `negative`.
        source: Who wrote it.
        weight: Its chance to be drawn among the texts of its role.
    """

    text: str
    role: str
    source: str = ""
    weight: float = 1.0


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
        texts: Further texts of the box with roles of their own, such as hard negatives.
        mask: Which pixels of the picture show the thing, where that is known.
        crowd: The box is around many things of the text, which average precision counts neither way.
    """

    box: tuple[float, float, float, float]
    text: str
    score: float = 1.0
    source: str = ""
    span: tuple[int, int] | None = None
    cycle: float | None = None
    texts: tuple[Text, ...] = ()
    mask: Mask | None = None
    crowd: bool = False


@dataclass(frozen=True)
class RegionSample:
    """A picture, its captions and its regions.

    Attributes:
        key: Unique name inside its dataset.
        image: Encoded bytes, a file's path, or (H, W, 3) uint8 pixels.
        captions: Texts of the whole picture; may be empty.
        regions: May be empty.
        metadata: Whatever else the source said; carried through shards unchanged.
        texts: Further texts of the whole picture, each with a role of its own.
        size_hw: (height, width) of the picture that boxes were measured on in pixels; None where they were
            not. A picture of another size is not the one that the boxes belong to.
    """

    key: str
    image: bytes | Path | np.ndarray
    captions: tuple[str, ...] = ()
    regions: tuple[Region, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    texts: tuple[Text, ...] = ()
    size_hw: tuple[int, int] | None = None

    def pixels(self) -> np.ndarray:
        """Decode the picture to (H, W, 3) uint8 RGB.

        Raises:
            MissingPictureError: If the image is a path that does not exist.
            SampleError: If it cannot be decoded, or is of another size than its boxes were measured on.
        """
        what = f"image of sample {self.key!r}"
        pixels = self.image if isinstance(self.image, np.ndarray) else read_pixels(self.image, what)
        self.check_size((pixels.shape[0], pixels.shape[1]))
        return pixels

    def measured_hw(self, found_hw: tuple[int, int]) -> tuple[int, int]:
        """(height, width) that boxes were measured on, for areas in pixels.

        Args:
            found_hw: The picture's own. Shards of smaller copies carry along what it was.
        """
        kept = self.metadata.get(MEASURED, ())
        if isinstance(kept, Sequence) and len(kept) == 2 and all(type(side) is int for side in kept):
            return kept[0], kept[1]
        return found_hw

    def check_size(self, found_hw: tuple[int, int]) -> None:
        """Refuse a picture of another size than its boxes were measured on.

        Args:
            found_hw: The picture's (height, width).

        Raises:
            SampleError: If they differ; says so where an EXIF orientation is the reason.
        """
        if self.size_hw is not None and self.size_hw != found_hw:
            reason = mismatch(self.image, self.size_hw, found_hw)
            raise SampleError(f"{reason} (sample {self.key!r})", ANOTHER_SIZE)


def map_tensors(value: T, change: Callable[[Tensor], Tensor]) -> T:
    """The same value with every tensor in it changed; dataclasses and mappings are gone through."""
    if isinstance(value, Tensor):
        return change(value)  # type: ignore[return-value]
    if isinstance(value, Mapping):
        return {name: map_tensors(part, change) for name, part in value.items()}  # type: ignore[return-value]
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: map_tensors(getattr(value, f.name), change) for f in fields(value)})
    return value


@dataclass(frozen=True)
class ViewConfig:
    """Further random crops of each picture.

    Attributes:
        count: Number of crops of each picture.
        image_size: Side of their square canvas in pixels; 0 takes the model's own canvas.
        min_scale: Smallest share of the picture's area.
        max_scale: Largest share.
    """

    count: int
    image_size: int
    min_scale: float = 0.05
    max_scale: float = 0.4

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UserError(f"a view needs at least one crop of each picture; got {self.count}")
        if self.image_size < 0:
            raise UserError(f"a view's image_size must be at least 0; got {self.image_size}")
        if not 0 < self.min_scale <= self.max_scale <= 1:
            raise UserError(
                "a view's crops need 0 < min_scale <= max_scale <= 1; got "
                f"{self.min_scale:g} and {self.max_scale:g}"
            )

    def canvas_hw(self, model_hw: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of the crops, for a model whose canvas is given."""
        return (self.image_size, self.image_size) if self.image_size else model_hw


@dataclass(frozen=True)
class Wants:
    """What a run's objectives want of each sample beside a caption and regions.

    Attributes:
        roles: Role -> how many texts of it to draw for each picture, or under `regions.ROLE` for each region.
        views: Further crops by name.
    """

    roles: Mapping[str, int] = field(default_factory=dict)
    views: Mapping[str, ViewConfig] = field(default_factory=dict)


@dataclass(frozen=True)
class View:
    """Further crops of a batch's pictures, V of each, with the batch's regions in them.

    Attributes:
        images: (B, V, 3, H, W) uint8, of a size of their own.
        content_boxes: (B, V, 4) normalised `xyxy` of the picture inside each padded canvas.
        boxes: (B, V, R, 4) normalised `xyxy` of the view's canvas; zeros where the region is not in it.
        region_mask: (B, V, R) bool, True where enough of a real region is in the view.
        places: (B, V, 4) where each crop lies, normalised `xyxy` of the batch's own canvas.
    """

    images: Tensor
    content_boxes: Tensor
    boxes: Tensor
    region_mask: Tensor
    places: Tensor


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
        packing: (P, L) the same texts in rows without padding (`pack_texts`); None where nobody has looked.
        keys: Sample names.
        region_text_ids: (B, R) int64, a hash of each region's text, the same on every rank and in every run;
            0 where masked.
        role_index: Rows of `texts` by role, -1 where there is none: (B, K) for texts of the picture, and
            (B, R, K) under `regions.ROLE` for texts of regions.
        views: Further crops by name, as objectives ask for them.
        points: (B, R, P, 2) normalised `xy` of the canvas: regions that are asked for by points on them in
            place of their box, NaN where they are not; None where none is.
        masks: (B, R, h, w) uint8, how much of each cell of the canvas, of 255, regions cover that are asked
            for by their outline in place of their box; zeros where they are not, None where none is.
        box_sets: (B, R, P, 4) normalised `xyxy` of the canvas: regions that are asked for by several boxes in
            place of their own, NaN where they are not; None where none is.
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
    packing: Tensor | None = None
    keys: tuple[str, ...] = ()
    region_text_ids: Tensor | None = None
    role_index: Mapping[str, Tensor] = field(default_factory=dict)
    views: Mapping[str, View] = field(default_factory=dict)
    points: Tensor | None = None
    masks: Tensor | None = None
    box_sets: Tensor | None = None
    bad: Mapping[str, int] = field(default_factory=dict)

    def to(self, device: torch.device | str) -> RegionBatch:
        """Move every tensor to a device, without blocking where memory is pinned."""
        return map_tensors(self, lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> RegionBatch:
        """Called by torch's DataLoader when it pins memory."""
        return map_tensors(self, Tensor.pin_memory)


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
        count: Images of this rank; 0 where it is alone.
        sum: Tensor -> its sum over ranks. What is computed from the sum must be the same on every rank; its
            gradient is handed back `world_size` times.
        max: Tensor -> its elementwise maximum over ranks, without gradient.
    """

    first: int = 0
    count: int = 0
    sum: Callable[[Tensor], Tensor] = _unchanged
    max: Callable[[Tensor], Tensor] = _unchanged


ALONE = World()


# What the loss of the paper (eq. 4) needs of a batch, by field of `Features`.
PAPER_NEEDS = frozenset(
    {
        "image_features",
        "text_features",
        "caption_mask",
        "region_features",
        "region_text_features",
        "region_mask",
        "region_text_ids",
        "pred_boxes",
        "boxes",
        "logit_scale",
    }
)


@dataclass(frozen=True)
class Features:
    """What the model makes of a batch and the objectives eat. None of it is normalised yet.

    A field is None where no objective needs it. Objectives name what they need by field, and by a path for
    what lies deeper: `teacher.image_features`, `views.local.image_features`, `texts.long`.

    With several ranks, `training.gather` turns what objectives want from the whole world into the world's: it
    then has G rows, this rank's B images among them from `world.first` on.

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
        image_tokens: (B, N, D) image tokens in the shared space, by the tower's own head.
        image_token_mask: (B, N) True where a token sees the picture and not its padding.
        text_tokens: (B, T, D) tokens of the captions in the shared space.
        text_token_mask: (B, T) True for tokens of a caption, start and end marks and padding left out.
        texts: Features of texts with roles: (B, K, D), and (B, R, K, D) under `regions.ROLE`.
        text_masks: True for those that are there: (B, K) and (B, R, K).
        views: Features of further crops, V of each picture: their fields have a second axis V.
        place_features: (B, V, D) of a view: what the Prompter sees in the whole picture where each crop lies.
        teacher: The teacher's features of the same batch, without gradient.
        world: Where these images stand among the world's.
        gathered: Paths of what is the world's by now.
    """

    image_features: Tensor | None = None
    text_features: Tensor | None = None
    caption_mask: Tensor | None = None
    region_features: Tensor | None = None
    region_text_features: Tensor | None = None
    region_mask: Tensor | None = None
    pred_boxes: Tensor | None = None
    boxes: Tensor | None = None
    logit_scale: Tensor | None = None
    logit_bias: Tensor | None = None
    region_text_ids: Tensor | None = None
    image_tokens: Tensor | None = None
    image_token_mask: Tensor | None = None
    text_tokens: Tensor | None = None
    text_token_mask: Tensor | None = None
    texts: Mapping[str, Tensor] = field(default_factory=dict)
    text_masks: Mapping[str, Tensor] = field(default_factory=dict)
    views: Mapping[str, Features] = field(default_factory=dict)
    place_features: Tensor | None = None
    teacher: Features | None = None
    world: World = ALONE
    gathered: frozenset[str] = frozenset()

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by its path."""
        return dict(_walk(self, ""))

    def take(self, *paths: str) -> list[Tensor]:
        """Tensors by their paths.

        Raises:
            ValueError: If one is not there: the objective has not named it among its needs, or the model and
                the data cannot give it.
        """
        known = self.tensors()
        absent = [path for path in paths if path not in known]
        if absent:
            raise ValueError(f"features hold no {absent[0]!r}; an objective names it in `needs` to have it")
        return [known[path] for path in paths]

    def own(self, path: str) -> Tensor:
        """The B rows of this rank, also of what is the world's."""
        (tensor,) = self.take(path)
        if path not in self.gathered:
            return tensor
        return tensor[self.world.first : self.world.first + self.world.count]

    def put(self, tensors: Mapping[str, Tensor]) -> Features:
        """The same features with tensors replaced, by path."""
        return _put(self, tensors, "")


def _walk(value: Any, path: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield path, value
        return
    parts: Mapping[str, Any] = {}
    if isinstance(value, Mapping):
        parts = value
    elif isinstance(value, Features):
        parts = {f.name: getattr(value, f.name) for f in fields(value)}
    for name, part in parts.items():
        yield from _walk(part, f"{path}.{name}" if path else name)


def _put(value: T, tensors: Mapping[str, Tensor], path: str) -> T:
    if isinstance(value, Tensor):
        return tensors.get(path, value)  # type: ignore[return-value]
    below = f"{path}." if path else ""
    if isinstance(value, Mapping):
        return {n: _put(part, tensors, below + n) for n, part in value.items()}  # type: ignore[return-value]
    if isinstance(value, Features):
        parts = {f.name: _put(getattr(value, f.name), tensors, below + f.name) for f in fields(value)}
        return replace(value, **parts)
    return value
