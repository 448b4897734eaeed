"""Regions by RoIAlign of the image tokens: what a plain CLIP can do from one pass over the picture.

Shapes: B images, R regions per image, D shared embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from open_cloc.errors import UserError
from open_cloc.evaluation.batches import EvaluationBatch
from open_cloc.evaluation.method import Setup
from open_cloc.evaluation.methods.cloc_towers import ClocTowers, MethodOfTowers, open_towers
from open_cloc.model.cloc import CLOC, ImageState
from open_cloc.model.embed import most_floats
from open_cloc.model.prompts.box import ROI_SIZE
from open_cloc.model.towers.dense import Readout


class RoiAlignMethod(MethodOfTowers):
    """A model's image tokens pooled inside each box, then the image tower's own pooling and projection.

    The baseline of the paper that needs no Prompter.

    Args:
        towers: The model's.
        size: Bins a side that a box is pooled to.
    """

    def __init__(self, towers: ClocTowers, size: int = ROI_SIZE) -> None:
        super().__init__(towers)
        self._embed = partial(embed_pooled, bins=size)

    def embed_regions(self, batch: EvaluationBatch, boxes: Sequence[np.ndarray]) -> Tensor:
        """Boxes of each picture of a batch -> (sum of R, D) float32 of unit length."""
        return self.towers.embed_boxes(batch, boxes, self._embed)

    def embed_tokens(self, batch: EvaluationBatch) -> Tensor:
        """Pictures of a batch -> (B, rows, columns, D) float32 of unit length, places of the canvas."""
        return self.towers.embed_tokens(batch)


def open_roialign(what: str, setup: Setup, tokens: Readout = "last", size: int = 0) -> RoiAlignMethod:
    """RoIAlign on the setup's model.

    Args:
        what: Nothing.
        setup: The model, and how to measure.
        tokens: `last`, those that the tower gives; `value`, `value_block` or `csa`, its last block read so
            that they keep their place (`open_cloc.model.towers.dense`).
        size: Bins a side that a box is pooled to; 0 takes the protocol's.

    Raises:
        UserError: If the size is negative, or another than a named protocol's.
    """
    rules = setup.config.rules
    if size < 0:
        raise UserError(f"roialign: size must be at least 1, or 0 for the protocol's; got {size}")
    if rules.name and size not in (0, rules.roi_size):
        raise UserError(
            f"protocol {rules.name} pools to {rules.roi_size} x {rules.roi_size}; leave size={size} out"
        )
    bins = size or rules.roi_size
    name = "roialign" if tokens == "last" else f"roialign,tokens={tokens}"
    name = name if bins == ROI_SIZE else f"{name},size={bins}"
    return RoiAlignMethod(open_towers(name, what, setup, tokens), bins)


def embed_pooled(model: CLOC, state: ImageState, boxes: Tensor, bins: int = ROI_SIZE) -> Tensor:
    """RoIAlign any number of boxes, in bounded memory.

    Args:
        model: In eval mode.
        state: Encoded images, B of them.
        boxes: (B, R, 4) normalised `xyxy` of the canvas.
        bins: A side, that each box is pooled to.

    Returns:
        (B, R, D) float32 of unit length.
    """
    num_images, _, width = state.image_tokens.shape
    size = max(1, most_floats(boxes.device) // (num_images * bins**2 * width))
    chunks = [
        F.normalize(model.pool_regions(state, chunk, bins).float(), dim=-1)
        for chunk in boxes.split(size, dim=1)
        if chunk.shape[1]
    ]
    return torch.cat(chunks, dim=1) if chunks else boxes.new_zeros(num_images, 0, model.embed_dim)
