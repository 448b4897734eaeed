"""Regions by RoIAlign of the image tokens: what a plain CLIP can do from one pass over the picture.

Shapes: B images, R regions per image, D shared embedding.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from open_cloc.evaluation.batches import EvaluationBatch
from open_cloc.evaluation.method import Setup
from open_cloc.evaluation.methods.cloc_towers import MethodOfTowers, open_towers
from open_cloc.model.cloc import CLOC, ImageState
from open_cloc.model.embed import most_floats
from open_cloc.model.prompts.box import ROI_SIZE
from open_cloc.model.towers.dense import Readout


class RoiAlignMethod(MethodOfTowers):
    """A model's image tokens pooled inside each box, then the image tower's own pooling and projection.

    The baseline of the paper that needs no Prompter.
    """

    def embed_regions(self, batch: EvaluationBatch, boxes: Sequence[np.ndarray]) -> Tensor:
        """Boxes of each picture of a batch -> (sum of R, D) float32 of unit length."""
        return self.towers.embed_boxes(batch, boxes, embed_pooled)

    def embed_tokens(self, batch: EvaluationBatch) -> Tensor:
        """Pictures of a batch -> (B, rows, columns, D) float32 of unit length, places of the canvas."""
        return self.towers.embed_tokens(batch)


def open_roialign(what: str, setup: Setup, tokens: Readout = "last") -> RoiAlignMethod:
    """RoIAlign on the setup's model.

    Args:
        what: Nothing.
        setup: The model, and how to measure.
        tokens: `last`, those that the tower gives; `value`, `value_block` or `csa`, its last block read so
            that they keep their place (`open_cloc.model.towers.dense`).
    """
    name = "roialign" if tokens == "last" else f"roialign,tokens={tokens}"
    return RoiAlignMethod(open_towers(name, what, setup, tokens))


def embed_pooled(model: CLOC, state: ImageState, boxes: Tensor) -> Tensor:
    """RoIAlign any number of boxes, in bounded memory.

    Args:
        model: In eval mode.
        state: Encoded images, B of them.
        boxes: (B, R, 4) normalised `xyxy` of the canvas.

    Returns:
        (B, R, D) float32 of unit length.
    """
    num_images, _, width = state.image_tokens.shape
    size = max(1, most_floats(boxes.device) // (num_images * ROI_SIZE**2 * width))
    chunks = [
        F.normalize(model.pool_regions(state, chunk).float(), dim=-1)
        for chunk in boxes.split(size, dim=1)
        if chunk.shape[1]
    ]
    return torch.cat(chunks, dim=1) if chunks else boxes.new_zeros(num_images, 0, model.embed_dim)
