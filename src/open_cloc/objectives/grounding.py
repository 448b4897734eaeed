"""The grounding loss (the paper, eq. 3).

Shapes: B images of this rank, G images of the world, R regions per image (padded).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torchvision.ops import generalized_box_iou_loss

from open_cloc.errors import UserError
from open_cloc.samples import ALONE, Features, World


def _l2(pred_boxes: Tensor, boxes: Tensor) -> Tensor:
    return (pred_boxes - boxes).square().mean(-1)


def _l1_giou(pred_boxes: Tensor, boxes: Tensor) -> Tensor:
    """DETR's weights of the two, 5 : 2, scaled so that L1 counts once."""
    giou = generalized_box_iou_loss(pred_boxes, boxes)
    return (pred_boxes - boxes).abs().sum(-1) + 0.4 * giou


FORMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"l2": _l2, "l1_giou": _l1_giou}


class Grounding(nn.Module):
    """Boxes found from phrases against the true ones, a mean over the world's regions.

    Args:
        form: `l2`, the paper's mean squared error over coordinates, or `l1_giou`.
    """

    per = "images_with_regions"
    gathered = frozenset({"region_mask"})
    needs = frozenset({"pred_boxes", "boxes", "region_mask"})

    def __init__(self, form: Literal["l2", "l1_giou"] = "l2") -> None:
        super().__init__()
        if form not in FORMS:
            raise UserError(f"unknown grounding loss {form!r}; expected one of {', '.join(FORMS)}")
        self.form = form

    def forward(self, features: Features) -> Tensor:
        """(B, R, 4) predicted against (B, R, 4) true boxes -> a scalar."""
        pred_boxes, boxes, mask = features.take("pred_boxes", "boxes", "region_mask")
        return grounding_loss(pred_boxes, boxes, region_mask=mask, form=self.form, world=features.world)


def grounding_loss(
    pred_boxes: Tensor,
    boxes: Tensor,
    *,
    region_mask: Tensor | None = None,
    form: str = "l2",
    world: World = ALONE,
) -> Tensor:
    """How far the boxes grounded from phrases are from the true ones.

    Args:
        pred_boxes: (B, R, 4) normalised `xyxy`.
        boxes: (B, R, 4) normalised `xyxy`.
        region_mask: (G, R) True for real regions; all of a single process's by default.
        form: `l2`, the paper's mean squared error over coordinates, or `l1_giou`.
        world: Where this rank's images stand among the world's.

    Returns:
        Scalar, the mean over the world's real regions; zero and differentiable when there are none.

    Raises:
        UserError: On an unknown form.
    """
    if form not in FORMS:
        raise UserError(f"unknown grounding loss {form!r}; expected one of {', '.join(FORMS)}")
    if pred_boxes.shape != boxes.shape or boxes.shape[-1] != 4:
        raise UserError(
            f"boxes must both be (B, R, 4); got {tuple(pred_boxes.shape)} and {tuple(boxes.shape)}"
        )
    if region_mask is None:
        region_mask = torch.ones(boxes.shape[:-1], dtype=torch.bool, device=boxes.device)
    real = region_mask[world.first : world.first + len(boxes)]  # (B, R)
    with torch.autocast(boxes.device.type, enabled=False):
        # Masked before and after: what padding predicts reaches neither the loss nor, as 0 * nan, a gradient.
        pred_boxes, boxes = (x.float().masked_fill(~real[..., None], 0.0) for x in (pred_boxes, boxes))
        losses = FORMS[form](pred_boxes, boxes)  # (B, R)
        return world.sum(losses.masked_fill(~real, 0.0).sum()) / region_mask.sum().clamp(min=1)
