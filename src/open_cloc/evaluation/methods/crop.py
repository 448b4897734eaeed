"""Regions cut out of the original picture, each a picture of its own: one pass of the image tower per box.

Shapes: X crops, R regions of one image, D shared embedding, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from open_cloc.canvas import Geometry
from open_cloc.errors import UserError
from open_cloc.evaluation.batches import EvaluationBatch
from open_cloc.evaluation.method import Setup
from open_cloc.evaluation.methods.cloc_towers import ClocTowers, MethodOfTowers, open_towers
from open_cloc.samples import RegionSample

MOST_CONTEXT = 100.0
# Samples and boxes (R, 4) of each -> a picture (H, W, 3) for each box, sample by sample.
PicturesOf = Callable[[Sequence[RegionSample], Sequence[np.ndarray]], list[np.ndarray]]


class PictureMethod(MethodOfTowers):
    """A picture made for each box, resized and padded like any other: a pass of the tower per box."""

    def __init__(self, towers: ClocTowers, pictures_of: PicturesOf) -> None:
        super().__init__(towers)
        self._pictures_of = pictures_of

    def embed_regions(self, batch: EvaluationBatch, boxes: Sequence[np.ndarray]) -> Tensor:
        """Boxes of each picture of a batch -> (sum of R, D) float32 of unit length."""
        crops, size = self._pictures_of(batch.samples, boxes), self.towers.config.batch_size
        rows = [self._embed_pictures(crops[i : i + size]) for i in range(0, len(crops), size)]
        model = self.towers.model
        return torch.cat(rows) if rows else torch.zeros(0, model.embed_dim, device=model.device)

    def _embed_pictures(self, pictures: Sequence[np.ndarray]) -> Tensor:
        """Pictures (H, W, 3), each of its own size -> (X, D) of unit length."""
        drawn = torch.from_numpy(np.stack([self._draw(pixels) for pixels in pictures]))
        images = drawn.permute(0, 3, 1, 2).to(self.towers.model.device)  # (X, 3, H, W)
        with self.towers.autocast():
            features = self.towers.model.encode_image(images).image_features
        return F.normalize(features.float(), dim=-1)

    def _draw(self, pixels: np.ndarray) -> np.ndarray:
        canvas = self.canvas
        geometry = Geometry.fit(pixels.shape[:2], canvas.image_size, canvas.resize_mode)
        return geometry.draw(pixels, canvas.fill, canvas.interpolation)


def open_crop(what: str, setup: Setup, context: float = 0.0) -> PictureMethod:
    """Crops through the image tower of the setup's model.

    Args:
        what: Nothing.
        setup: The model, and how to measure.
        context: How much of the picture around a box is cut out too, on each side, in sides of the box.

    Raises:
        UserError: If the context is below 0 or beyond any picture.
    """
    if not 0 <= context <= MOST_CONTEXT:
        raise UserError(f"context must be in 0..{MOST_CONTEXT}; got {context}")
    towers = open_towers(f"crop,context={context:g}" if context else "crop", what, setup)
    return PictureMethod(towers, partial(cut_out, context=context))


def cut_out(
    samples: Sequence[RegionSample], boxes: Sequence[np.ndarray], context: float = 0.0
) -> list[np.ndarray]:
    """Each box cut out of its original picture, to the nearest whole pixels and at least one each way.

    Args:
        samples: Whose pictures they are.
        boxes: (R, 4) normalised `xyxy` of each sample's picture, each with its own R.
        context: As in `open_crop`; no further than the picture reaches.

    Returns:
        One (H, W, 3) uint8 array per box, sample by sample.
    """
    crops = []
    for sample, own in zip(samples, boxes):
        if not len(own):
            continue
        pixels = sample.pixels()
        whole = Geometry.fit(pixels.shape[:2], pixels.shape[:2])
        around = context * (own[:, 2:] - own[:, :2])  # (R, 2)
        for box in np.concatenate([own[:, :2] - around, own[:, 2:] + around], 1).clip(0, 1).tolist():
            x1, y1, x2, y2 = whole.crop(box).window
            crops.append(np.ascontiguousarray(pixels[y1:y2, x1:x2]))
    return crops
