"""Regions against their phrases (the paper, eq. 2), over all sampled regions of a batch."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from open_cloc.objectives.pairs.losses import (
    CONFLICT_THRESHOLD,
    bias_of,
    check_form,
    contrast,
    filtered_share,
    find_pairs,
    sigmoid_loss,
    softmax_loss,
)
from open_cloc.samples import ALONE, Features, World


class RegionText(nn.Module):
    """Regions against their phrases, a mean over the world's regions.

    Args:
        form: `softmax` (the paper), or `sigmoid` (SigLIP), which needs a model with a logit bias.
        conflict_threshold: Cosine of two phrases above which their pair is no negative; above 1 keeps all.
    """

    per = "images_with_regions"
    gathered = frozenset({"region_text_features", "region_mask", "region_text_ids"})

    def __init__(
        self,
        form: Literal["softmax", "sigmoid"] = "softmax",
        conflict_threshold: float = CONFLICT_THRESHOLD,
    ) -> None:
        super().__init__()
        self.form, self.conflict_threshold = check_form(form), conflict_threshold
        self.needs = self.gathered | {"region_features", "logit_scale"} | bias_of(form)

    def forward(self, features: Features) -> dict[str, Tensor]:
        """(B, R, D) regions against (G, R, D) phrases -> `loss`, and `filtered_pairs`.

        If the filter leaves out nearly all pairs, the loss is 0 because the texts have collapsed.
        """
        regions, texts, mask = features.take("region_features", "region_text_features", "region_mask")
        pairs = find_pairs(
            regions,
            texts,
            mask,
            self.conflict_threshold,
            features.region_text_ids,
            world=features.world,
        )
        return {
            "loss": contrast(pairs, features, self.form),
            "filtered_pairs": filtered_share(pairs, features.world),
        }


def region_text_loss(
    region_features: Tensor,
    region_text_features: Tensor,
    logit_scale: Tensor,
    *,
    region_mask: Tensor | None = None,
    conflict_threshold: float | None = CONFLICT_THRESHOLD,
    text_ids: Tensor | None = None,
    world: World = ALONE,
) -> Tensor:
    """Symmetric softmax loss over all sampled regions of a batch (eq. 2).

    Pairs whose texts are nearly the same are left out of both denominators, never the positive itself:
    another region's "person" is no negative for this one's.

    Args:
        region_features: (B, R, D).
        region_text_features: (G, R, D).
        logit_scale: Scalar or (1,).
        region_mask: (G, R) True for real regions; all by default.
        conflict_threshold: Cosine similarity of two texts above which their pair is left out; None keeps all.
        text_ids: (G, R) int64, equal where texts, and so their features, are equal. The tiled form then
            computes each text once and hands its gradient to one of its copies.
        world: Where this rank's images stand among the world's.

    Returns:
        Scalar.
    """
    pairs = find_pairs(
        region_features, region_text_features, region_mask, conflict_threshold, text_ids, world=world
    )
    return softmax_loss(pairs, logit_scale, world)


def sigmoid_region_text_loss(
    region_features: Tensor,
    region_text_features: Tensor,
    logit_scale: Tensor,
    *,
    logit_bias: Tensor,
    region_mask: Tensor | None = None,
    conflict_threshold: float | None = CONFLICT_THRESHOLD,
    text_ids: Tensor | None = None,
    world: World = ALONE,
) -> Tensor:
    """SigLIP's pairwise sigmoid loss in place of `region_text_loss`, with the same conflict filter."""
    pairs = find_pairs(
        region_features, region_text_features, region_mask, conflict_threshold, text_ids, world=world
    )
    return sigmoid_loss(pairs, logit_scale, logit_bias, world)
