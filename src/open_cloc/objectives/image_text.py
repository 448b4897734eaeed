"""Images against captions (the paper, eq. 1): CLIP's loss, or SigLIP's."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from open_cloc.objectives.pairs.losses import (
    bias_of,
    check_form,
    contrast,
    find_pairs,
    sigmoid_loss,
    softmax_loss,
)
from open_cloc.samples import ALONE, Features, World


class ImageText(nn.Module):
    """Images against captions.

    Args:
        form: `softmax` (the paper), or `sigmoid` (SigLIP), which needs a model with a logit bias.
    """

    gathered = frozenset({"text_features", "caption_mask"})

    def __init__(self, form: Literal["softmax", "sigmoid"] = "softmax") -> None:
        super().__init__()
        self.form = check_form(form)
        self.needs = self.gathered | {"image_features", "logit_scale"} | bias_of(form)

    def forward(self, features: Features) -> Tensor:
        """(B, D) images against (G, D) captions -> a scalar."""
        images, texts, mask = features.take("image_features", "text_features", "caption_mask")
        pairs = find_pairs(images, texts, mask, world=features.world)
        return contrast(pairs, features, self.form)


def image_text_loss(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor,
    *,
    caption_mask: Tensor | None = None,
    world: World = ALONE,
) -> Tensor:
    """CLIP's symmetric softmax loss over a batch (eq. 1).

    Args:
        image_features: (B, D).
        text_features: (G, D); row i is image i's caption.
        logit_scale: Scalar or (1,), multiplies cosine similarities.
        caption_mask: (G,) True for images that have a caption; all by default.
        world: Where this rank's images stand among the world's.

    Returns:
        Scalar.
    """
    pairs = find_pairs(image_features, text_features, caption_mask, world=world)
    return softmax_loss(pairs, logit_scale, world)


def sigmoid_image_text_loss(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor,
    *,
    logit_bias: Tensor,
    caption_mask: Tensor | None = None,
    world: World = ALONE,
) -> Tensor:
    """SigLIP's pairwise sigmoid loss in place of `image_text_loss`, with a (1,) `logit_bias`."""
    pairs = find_pairs(image_features, text_features, caption_mask, world=world)
    return sigmoid_loss(pairs, logit_scale, logit_bias, world)
