"""The weighted total of the losses (METHOD 2, eq. 4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from open_cloc.errors import UserError
from open_cloc.objectives.contrastive import (
    CONFLICT_THRESHOLD,
    Pairs,
    filtered_share,
    find_pairs,
    sigmoid_loss,
    softmax_loss,
)
from open_cloc.objectives.grounding import KINDS, grounding_loss
from open_cloc.samples import Features

CONTRASTIVE = ("softmax", "sigmoid")


@dataclass(frozen=True)
class LossConfig:
    """Which losses and how much of each.

    Attributes:
        contrastive: `softmax` (the paper) or `sigmoid` (SigLIP) for both contrastive terms.
        grounding: `l2` (the paper) or `l1_giou`.
        region_weight: The paper's 1.0 in front of lambda.
        grounding_weight: Of the grounding loss beside the region-text loss; 1 in the paper.
        conflict_threshold: See `region_text_loss`; above 1 turns the filter off.
    """

    contrastive: Literal["softmax", "sigmoid"] = "softmax"
    grounding: Literal["l2", "l1_giou"] = "l2"
    region_weight: float = 1.0
    grounding_weight: float = 1.0
    conflict_threshold: float = CONFLICT_THRESHOLD

    def __post_init__(self) -> None:
        if self.contrastive not in CONTRASTIVE:
            raise UserError(
                f"unknown contrastive loss {self.contrastive!r}; expected one of {', '.join(CONTRASTIVE)}"
            )
        if self.grounding not in KINDS:
            raise UserError(f"unknown grounding loss {self.grounding!r}; expected one of {', '.join(KINDS)}")


def total_loss(features: Features, config: LossConfig) -> dict[str, Tensor]:
    """Every term and their weighted sum, over the batch of all ranks where features have been gathered.

    `total = image_text + lambda * (region_text + grounding)`, where lambda is the share of the batch's images
    that have regions. A batch without any region is plain CLIP.

    Returns:
        Scalars named `image_text`, `region_text`, `grounding`, `total`, and `filtered_pairs`: the share of
        region pairs that the conflict filter leaves out, which is no loss but explains one. Their values are
        the same on every rank; of gradients see `World`.
    """
    mask, world = features.region_mask, features.world
    images = find_pairs(features.image_features, features.text_features, features.caption_mask, world=world)
    regions = find_pairs(
        features.region_features,
        features.region_text_features,
        mask,
        config.conflict_threshold,
        features.region_text_ids,
        world=world,
    )
    image_text, region_text = (_contrastive(pairs, features, config) for pairs in (images, regions))
    grounding = grounding_loss(
        features.pred_boxes, features.boxes, region_mask=mask, kind=config.grounding, world=world
    )
    share = mask.any(dim=1).float().mean() if mask.shape[1] else 0.0
    regional = region_text + config.grounding_weight * grounding
    return {
        "image_text": image_text,
        "region_text": region_text,
        "grounding": grounding,
        "total": image_text + config.region_weight * share * regional,
        # If the filter leaves out nearly all pairs, the region loss is 0 because the texts have collapsed.
        "filtered_pairs": filtered_share(regions, world),
    }


def _contrastive(pairs: Pairs, features: Features, config: LossConfig) -> Tensor:
    if config.contrastive == "softmax":
        return softmax_loss(pairs, features.logit_scale, features.world)
    if features.logit_bias is None:
        raise UserError("the sigmoid losses need a model with a logit bias: set model.sigmoid")
    return sigmoid_loss(pairs, features.logit_scale, features.logit_bias, features.world)
