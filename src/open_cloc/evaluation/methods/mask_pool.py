"""Regions by the mean of the image tokens under their outline: what a plain CLIP can make of a mask.

Shapes: R regions of one image, N image tokens, C tower width, D shared embedding.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from open_cloc.evaluation.batches import EvaluationBatch
from open_cloc.evaluation.method import Setup
from open_cloc.evaluation.methods.cloc_towers import MethodOfTowers, open_towers
from open_cloc.model.cloc import CLOC, ImageState
from open_cloc.model.prompts.mask import shares_of_patches
from open_cloc.model.towers import image_tower_of
from open_cloc.model.towers.dense import Readout


class MaskPoolMethod(MethodOfTowers):
    """A model's image tokens, averaged under the outline, then the tower's own pooling and projection."""

    def embed_regions(self, batch: EvaluationBatch, boxes: Sequence[np.ndarray]) -> Tensor:
        """Boxes of each picture of a batch -> (sum of R, D) float32 of unit length.

        Raises:
            UserError: If the boxes are not the samples' own, or one has no outline.
        """
        return self.towers.embed_each(batch, batch.masks(boxes), embed_masked)


def open_mask_pool(what: str, setup: Setup, tokens: Readout = "last") -> MaskPoolMethod:
    """Mean pooling under outlines on the setup's model.

    Args:
        what: Nothing.
        setup: The model, and how to measure.
        tokens: As in `open_roialign`.
    """
    name = "mask_pool" if tokens == "last" else f"mask_pool,tokens={tokens}"
    return MaskPoolMethod(open_towers(name, what, setup, tokens))


def embed_masked(model: CLOC, state: ImageState, masks: Tensor) -> Tensor:
    """Outlines of one image (1, R, rows, columns), shares of cells -> (1, R, D) of unit length."""
    if not masks.shape[1]:
        return masks.new_zeros(1, 0, model.embed_dim)
    coverage = shares_of_patches(masks[0], state.grid_size)  # (R, N)
    weights = coverage / coverage.sum(-1, keepdim=True)
    pooled = weights.to(state.image_tokens.dtype) @ state.image_tokens[0]  # (R, C)
    features = image_tower_of(model.clip.visual).project_pooled(pooled[:, None])
    return F.normalize(features.float(), dim=-1)[None]
