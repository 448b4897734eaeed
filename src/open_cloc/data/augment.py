"""Random crops and mirrored pictures, with their boxes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from open_cloc.boxes import box_areas
from open_cloc.canvas import Geometry
from open_cloc.errors import UserError

# A mirrored "cat on the left" is wrong. Catches "leftmost" too, and "leftover", which merely stays unflipped.
SIDE_WORDS = re.compile(r"\b(left|right)", re.IGNORECASE)


@dataclass(frozen=True)
class AugmentConfig:
    """Random changes of a training picture; the defaults change nothing.

    Attributes:
        flip: Probability of mirroring. Samples whose texts name a side (left, right) are never mirrored.
        min_crop_scale: Smallest share of the picture's area that a random crop keeps; 1 never crops.
        min_visible: Regions of which a crop leaves a smaller share than this are dropped.
    """

    flip: float = 0.0
    min_crop_scale: float = 1.0
    min_visible: float = 0.5

    def __post_init__(self) -> None:
        for name in ("flip", "min_visible"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"augment.{name} must lie in [0, 1]; got {getattr(self, name)}")
        if not 0 < self.min_crop_scale <= 1:
            raise UserError(f"augment.min_crop_scale must lie in (0, 1]; got {self.min_crop_scale}")


def random_geometry(
    geometry: Geometry, augment: AugmentConfig, texts: Sequence[str], rng: np.random.Generator
) -> Geometry:
    """Crop and mirror a fitted geometry at random.

    Args:
        geometry: The whole picture on its canvas, as made by `Geometry.fit`.
        augment: How much may change.
        texts: All texts of the sample; one that names a side forbids mirroring.
        rng: Source of every random choice.
    """
    if augment.min_crop_scale < 1:
        geometry = random_crop(geometry, augment.min_crop_scale, 1, rng)
    if augment.flip and rng.random() < augment.flip and not any(map(SIDE_WORDS.search, texts)):
        geometry = geometry.flip()
    return geometry


def random_crop(geometry: Geometry, min_scale: float, max_scale: float, rng: np.random.Generator) -> Geometry:
    """A random crop of the source's own aspect ratio, a share of its area between two limits."""
    side = float(np.sqrt(rng.uniform(min_scale, max_scale)))
    x, y = rng.uniform(0, 1 - side, size=2)
    return geometry.crop((x, y, x + side, y + side))


def visible_boxes(boxes: np.ndarray, geometry: Geometry) -> tuple[np.ndarray, np.ndarray]:
    """Map source boxes to the canvas and clip them to the picture on it.

    Args:
        boxes: (R, 4) normalised `xyxy` of the source.
        geometry: Where the picture goes.

    Returns:
        (R, 4) boxes of the canvas, and the share (R,) of each box's area that is still to be seen.
    """
    mapped = geometry.to_canvas(boxes)
    x1, y1, x2, y2 = geometry.content_box
    low, high = np.array([x1, y1, x1, y1]), np.array([x2, y2, x2, y2])
    clipped = np.clip(mapped, low, high).astype(mapped.dtype)
    whole = box_areas(mapped)
    share = np.divide(box_areas(clipped), whole, out=np.zeros_like(whole), where=whole > 0)
    return clipped, share
