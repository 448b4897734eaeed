"""The weighted total of the losses (METHOD 2, eq. 4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from open_cloc.data.samples import Features
from open_cloc.losses.contrastive import (
    CONFLICT_THRESHOLD,
    filtered_share,
    image_text_loss,
    region_text_loss,
    sigmoid_image_text_loss,
    sigmoid_region_text_loss,
)
from open_cloc.losses.grounding import KINDS, grounding_loss

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
            raise ValueError(
                f"unknown contrastive loss {self.contrastive!r}; expected one of {', '.join(CONTRASTIVE)}"
            )
        if self.grounding not in KINDS:
            raise ValueError(f"unknown grounding loss {self.grounding!r}; expected one of {', '.join(KINDS)}")


def total_loss(features: Features, config: LossConfig) -> dict[str, Tensor]:
    """Every term and their weighted sum.

    `total = image_text + lambda * (region_text + grounding)`, where lambda is the share of the batch's images
    that have regions. A batch without any region is plain CLIP.

    Returns:
        Scalars named `image_text`, `region_text`, `grounding`, `total`, and `filtered_pairs`: the share of
        region pairs that the conflict filter leaves out, which is no loss but explains one.
    """
    image_text, region_text = _contrastive_terms(features, config)
    grounding = grounding_loss(
        features.pred_boxes, features.boxes, region_mask=features.region_mask, kind=config.grounding
    )
    share = features.region_mask.any(dim=1).float().mean() if features.region_mask.shape[1] else 0.0
    # If the filter leaves out nearly all pairs, the region loss is 0 because the texts have collapsed.
    filtered = filtered_share(features.region_text_features, features.region_mask, config.conflict_threshold)
    regional = region_text + config.grounding_weight * grounding
    return {
        "image_text": image_text,
        "region_text": region_text,
        "grounding": grounding,
        "total": image_text + config.region_weight * share * regional,
        "filtered_pairs": filtered,
    }


def _contrastive_terms(features: Features, config: LossConfig) -> tuple[Tensor, Tensor]:
    image = (features.image_features, features.text_features, features.logit_scale)
    region = (features.region_features, features.region_text_features, features.logit_scale)
    threshold = config.conflict_threshold
    if config.contrastive == "softmax":
        return (
            image_text_loss(*image, caption_mask=features.caption_mask),
            region_text_loss(*region, region_mask=features.region_mask, conflict_threshold=threshold),
        )
    bias = features.logit_bias
    if bias is None:
        raise ValueError("the sigmoid losses need a model with a logit bias: set model.sigmoid")
    return (
        sigmoid_image_text_loss(*image, logit_bias=bias, caption_mask=features.caption_mask),
        sigmoid_region_text_loss(
            *region, logit_bias=bias, region_mask=features.region_mask, conflict_threshold=threshold
        ),
    )
