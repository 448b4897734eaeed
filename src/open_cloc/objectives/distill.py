"""A box's embedding learns to be what the tower, as it was, says of the box cut out: pictures alone.

CLIPSelf (Wu et al., ICLR 2024, arXiv 2310.01403) for the image tower, with RoIAlign as the read-out
(`model.prompter.regions=roialign`); the same for a Prompter, which then answers any box of any CLIP without a
single annotated box or caption.

Shapes: B images of this rank, V crops of each, D shared embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from open_cloc.samples import Features, ViewConfig

VIEW = "crops"
STUDENT, TEACHER = f"views.{VIEW}.place_features", f"teacher.views.{VIEW}.image_features"


class Distill(nn.Module):
    """One minus the cosine of each crop's place in the whole picture, and of the crop itself.

    Args:
        crops: Of each picture and step; each is a pass of the frozen tower.
        image_size: Pixels a side of a crop's canvas, the size that the tower was trained at; 0 takes the
            model's.
        min_scale: Smallest share of the picture's area.
        max_scale: Largest share.
    """

    needs = frozenset({STUDENT, TEACHER})
    teacher_momentum = 1.0

    def __init__(
        self, crops: int = 8, image_size: int = 0, min_scale: float = 0.01, max_scale: float = 0.6
    ) -> None:
        super().__init__()
        self.views = {VIEW: ViewConfig(crops, image_size, min_scale, max_scale)}

    def forward(self, features: Features) -> Tensor:
        """Embeddings of places and of crops (B, V, D) -> a scalar, the mean over the world's crops."""
        places, crops = features.take(STUDENT, TEACHER)
        wide = torch.promote_types(places.dtype, torch.float32)
        losses = 1 - F.cosine_similarity(places.to(wide), crops.to(wide), dim=-1)  # (B, V)
        world = features.world
        # Every rank has as many pictures, each with as many crops.
        total = world.sum(losses.sum())
        return total / world.sum(losses.new_full((), losses.numel()))
