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
TARGETS = ("own", "nearest")


class Grounding(nn.Module):
    """Boxes found from phrases against the true ones, a mean over the world's regions.

    Args:
        form: `l2`, the paper's mean squared error over coordinates, or `l1_giou`.
        target: A region's `own` box (the paper), or the `nearest` of the boxes of its text among a picture's
            drawn regions: a phrase that stands at several boxes has one answer, and not their mean.
    """

    per = "images_with_regions"
    gathered = frozenset({"region_mask"})

    def __init__(
        self, form: Literal["l2", "l1_giou"] = "l2", target: Literal["own", "nearest"] = "own"
    ) -> None:
        super().__init__()
        if form not in FORMS:
            raise UserError(f"unknown grounding loss {form!r}; expected one of {', '.join(FORMS)}")
        if target not in TARGETS:
            raise UserError(f"unknown target of grounding {target!r}; expected one of {', '.join(TARGETS)}")
        self.form, self.target = form, target
        self.needs = frozenset({"pred_boxes", "boxes", "region_mask"})
        if target == "nearest":
            self.needs |= {"region_text_ids"}

    def forward(self, features: Features) -> Tensor:
        """(B, R, 4) predicted against (B, R, 4) true boxes -> a scalar."""
        pred_boxes, boxes, mask = features.take("pred_boxes", "boxes", "region_mask")
        return grounding_loss(
            pred_boxes,
            boxes,
            region_mask=mask,
            form=self.form,
            text_ids=features.own("region_text_ids") if self.target == "nearest" else None,
            world=features.world,
        )


def grounding_loss(
    pred_boxes: Tensor,
    boxes: Tensor,
    *,
    region_mask: Tensor | None = None,
    form: str = "l2",
    text_ids: Tensor | None = None,
    world: World = ALONE,
) -> Tensor:
    """How far the boxes grounded from phrases are from the true ones.

    Args:
        pred_boxes: (B, R, 4) normalised `xyxy`.
        boxes: (B, R, 4) normalised `xyxy`.
        region_mask: (G, R) True for real regions; all of a single process's by default.
        form: `l2`, the paper's mean squared error over coordinates, or `l1_giou`.
        text_ids: (B, R) int64, equal where texts are: each region's target is then the nearest box of its
            text in its picture, and not its own.
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
        if text_ids is not None:
            boxes = nearest_boxes(pred_boxes, boxes, real, text_ids)
        losses = FORMS[form](pred_boxes, boxes)  # (B, R)
        return world.sum(losses.masked_fill(~real, 0.0).sum()) / region_mask.sum().clamp(min=1)


def nearest_boxes(pred_boxes: Tensor, boxes: Tensor, real: Tensor, text_ids: Tensor) -> Tensor:
    """For each region the box of its text, in its picture, that its prediction is nearest to.

    By L1 and not by IoU: a prediction that overlaps none of them, as all do at first, has a nearest box too.

    Args:
        pred_boxes: (B, R, 4).
        boxes: (B, R, 4) true ones.
        real: (B, R) True for real regions.
        text_ids: (B, R) int64, equal where texts are.

    Returns:
        (B, R, 4) of `boxes`; a region's own where it is the only one of its text.
    """
    same = (text_ids[:, :, None] == text_ids[:, None]) & real[:, None]  # (B, R, R)
    same |= torch.eye(same.shape[-1], dtype=torch.bool, device=same.device)  # padding has its own
    distances = (pred_boxes.detach()[:, :, None] - boxes[:, None]).abs().sum(-1)  # (B, R, R)
    nearest = distances.masked_fill(~same, torch.inf).argmin(-1)  # (B, R)
    return boxes.gather(1, nearest[..., None].expand_as(boxes))
