"""The grounding loss (METHOD 2, eq. 3).

Shapes: B images of this rank, G images of the world, R regions per image (padded).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.ops import generalized_box_iou_loss

from open_cloc.errors import UserError
from open_cloc.samples import ALONE, World


def _l2(pred_boxes: Tensor, boxes: Tensor) -> Tensor:
    return (pred_boxes - boxes).square().mean(-1)


def _l1_giou(pred_boxes: Tensor, boxes: Tensor) -> Tensor:
    """DETR's weights of the two, 5 : 2, scaled so that L1 counts once."""
    giou = generalized_box_iou_loss(pred_boxes, boxes)
    return (pred_boxes - boxes).abs().sum(-1) + 0.4 * giou


KINDS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"l2": _l2, "l1_giou": _l1_giou}


def grounding_loss(
    pred_boxes: Tensor,
    boxes: Tensor,
    *,
    region_mask: Tensor | None = None,
    kind: str = "l2",
    world: World = ALONE,
) -> Tensor:
    """How far the boxes grounded from phrases are from the true ones.

    Args:
        pred_boxes: (B, R, 4) normalised `xyxy`.
        boxes: (B, R, 4) normalised `xyxy`.
        region_mask: (G, R) True for real regions; all of a single process's by default.
        kind: `l2`, the paper's mean squared error over coordinates, or `l1_giou`.
        world: Where this rank's images stand among the world's.

    Returns:
        Scalar, the mean over the world's real regions; zero and differentiable when there are none.

    Raises:
        UserError: On an unknown kind.
    """
    if kind not in KINDS:
        raise UserError(f"unknown grounding loss {kind!r}; expected one of {', '.join(KINDS)}")
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
        losses = KINDS[kind](pred_boxes, boxes)  # (B, R)
        return world.sum(losses.masked_fill(~real, 0.0).sum()) / region_mask.sum().clamp(min=1)
