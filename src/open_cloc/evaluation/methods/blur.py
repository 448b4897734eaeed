"""Regions shown by blurring all that is not in their box, as ReCLIP does beside crops (arXiv 2204.05991)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from PIL import Image, ImageFilter

from open_cloc.canvas import Geometry
from open_cloc.errors import UserError
from open_cloc.evaluation.method import Setup
from open_cloc.evaluation.methods.cloc_towers import open_towers
from open_cloc.evaluation.methods.crop import PictureMethod
from open_cloc.samples import RegionSample

RADIUS = 100.0  # pixels, ReCLIP's
MOST_RADIUS = 10_000.0


def open_blur(what: str, setup: Setup, radius: float = RADIUS) -> PictureMethod:
    """Whole pictures, blurred outside of each box, through the image tower of the setup's model.

    Args:
        what: Nothing.
        setup: The model, and how to measure.
        radius: Standard deviation of the blur in pixels of the picture.

    Raises:
        UserError: If the radius is not above 0, or beyond any picture.
    """
    if not 0 < radius <= MOST_RADIUS:
        raise UserError(f"radius must be above 0 and at most {MOST_RADIUS:g}; got {radius}")
    return PictureMethod(open_towers(f"blur,radius={radius:g}", what, setup), partial(blurred, radius=radius))


def blurred(
    samples: Sequence[RegionSample], boxes: Sequence[np.ndarray], radius: float = RADIUS
) -> list[np.ndarray]:
    """Each picture once per box, blurred but for the box at whole pixels: (H, W, 3) uint8, sample by sample.

    Args:
        samples: Whose pictures they are.
        boxes: (R, 4) normalised `xyxy` of each sample's picture, each with its own R.
        radius: As in `open_blur`.
    """
    pictures = []
    for sample, own in zip(samples, boxes):
        if not len(own):
            continue
        pixels = sample.pixels()
        ground = np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(radius)))
        whole = Geometry.fit(pixels.shape[:2], pixels.shape[:2])
        for box in own.tolist():
            x1, y1, x2, y2 = whole.crop(box).window
            shown = ground.copy()
            shown[y1:y2, x1:x2] = pixels[y1:y2, x1:x2]
            pictures.append(shown)
    return pictures
