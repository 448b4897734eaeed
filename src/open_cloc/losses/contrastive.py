"""Contrastive losses (METHOD 2, eq. 1 and 2), pure functions of features.

Shapes: B images, R regions per image (padded), n pairs, D shared embedding. Every function normalises
its features, computes in float32 whatever autocast says, and returns a scalar that is zero and differentiable
when no pair counts.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

CONFLICT_THRESHOLD = 0.9  # METHOD 2


def image_text_loss(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor,
    *,
    caption_mask: Tensor | None = None,
) -> Tensor:
    """CLIP's symmetric softmax loss over a batch (eq. 1).

    Args:
        image_features: (B, D).
        text_features: (B, D); row i is image i's caption.
        logit_scale: Scalar or (1,), multiplies cosine similarities.
        caption_mask: (B,) True for images that have a caption; all by default.

    Returns:
        Scalar.
    """
    image, text, mask = _rows(image_features, text_features, caption_mask)
    return _softmax_loss(image, text, mask, logit_scale, excluded=None)


def region_text_loss(
    region_features: Tensor,
    region_text_features: Tensor,
    logit_scale: Tensor,
    *,
    region_mask: Tensor | None = None,
    conflict_threshold: float | None = CONFLICT_THRESHOLD,
) -> Tensor:
    """Symmetric softmax loss over all sampled regions of a batch (eq. 2).

    Pairs whose texts are nearly the same are left out of both denominators, never the positive itself:
    another region's "person" is no negative for this one's.

    Args:
        region_features: (B, R, D).
        region_text_features: (B, R, D).
        logit_scale: Scalar or (1,).
        region_mask: (B, R) True for real regions; all by default.
        conflict_threshold: Cosine similarity of two texts above which their pair is left out; None keeps all.

    Returns:
        Scalar.
    """
    region, text, mask = _rows(region_features, region_text_features, region_mask)
    return _softmax_loss(region, text, mask, logit_scale, conflicts(text, conflict_threshold))


def sigmoid_image_text_loss(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor,
    *,
    logit_bias: Tensor,
    caption_mask: Tensor | None = None,
) -> Tensor:
    """SigLIP's pairwise sigmoid loss in place of `image_text_loss`, with a (1,) `logit_bias`."""
    image, text, mask = _rows(image_features, text_features, caption_mask)
    return _sigmoid_loss(image, text, mask, logit_scale, logit_bias, excluded=None)


def sigmoid_region_text_loss(
    region_features: Tensor,
    region_text_features: Tensor,
    logit_scale: Tensor,
    *,
    logit_bias: Tensor,
    region_mask: Tensor | None = None,
    conflict_threshold: float | None = CONFLICT_THRESHOLD,
) -> Tensor:
    """SigLIP's pairwise sigmoid loss in place of `region_text_loss`, with the same conflict filter."""
    region, text, mask = _rows(region_features, region_text_features, region_mask)
    return _sigmoid_loss(region, text, mask, logit_scale, logit_bias, conflicts(text, conflict_threshold))


def conflicts(text: Tensor, threshold: float | None) -> Tensor | None:
    """(n, n) bool of pairs whose unit texts (n, D) are more alike than the threshold, off the diagonal."""
    if threshold is None:
        return None
    with torch.no_grad(), torch.autocast(text.device.type, enabled=False):
        excluded = text @ text.T > threshold
        return excluded.fill_diagonal_(False)


@torch.no_grad()
def filtered_share(region_text_features: Tensor, region_mask: Tensor, threshold: float | None) -> Tensor:
    """Share of the pairs of different real regions that the conflict filter leaves out; a scalar."""
    _, text, mask = _rows(region_text_features, region_text_features, region_mask)
    excluded = conflicts(text, threshold)
    count = mask.sum()
    if excluded is None:
        return torch.zeros((), device=text.device)
    real = mask[:, None] & mask[None, :]
    return (excluded & real).sum() / (count * (count - 1)).clamp(min=1)


def _rows(features: Tensor, text_features: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Unit float32 rows (n, D) twice, and (n,) which of them count.

    Rows that do not count stay, as zeros: picking them out would make the host wait for the device.
    """
    if features.shape != text_features.shape:
        raise ValueError(
            f"features and text features must pair up; got {tuple(features.shape)} and "
            f"{tuple(text_features.shape)}"
        )
    if mask is None:
        mask = torch.ones(features.shape[:-1], dtype=torch.bool, device=features.device)
    if mask.shape != features.shape[:-1]:
        raise ValueError(f"mask must be {tuple(features.shape[:-1])}; got {tuple(mask.shape)}")
    mask = mask.flatten()
    rows, text_rows = (
        F.normalize(x.flatten(0, -2).float().masked_fill(~mask[:, None], 0.0), dim=-1)
        for x in (features, text_features)
    )
    return rows, text_rows, mask


def _mean(losses: Tensor, mask: Tensor) -> Tensor:
    """Mean of the (n,) losses that count; zero and differentiable if none does."""
    return losses.masked_fill(~mask, 0.0).sum() / mask.sum().clamp(min=1)


def _excluded_pairs(mask: Tensor, excluded: Tensor | None) -> Tensor:
    """(n, n) pairs outside the denominators: conflicts and padding; the diagonal stays, so sums are finite.

    Padding is a row in one direction and a column in the other: both are left out.
    """
    real = mask[:, None] & mask[None, :]
    padding = ~real & ~torch.eye(len(mask), dtype=torch.bool, device=mask.device)
    return padding if excluded is None else padding | excluded


def _softmax_loss(
    left: Tensor, right: Tensor, mask: Tensor, logit_scale: Tensor, excluded: Tensor | None
) -> Tensor:
    with torch.autocast(left.device.type, enabled=False):
        logits = logit_scale.float() * (left @ right.T)  # (n, n)
        logits = logits.masked_fill(_excluded_pairs(mask, excluded), -torch.inf)
        positive = logits.diagonal()
        losses = (logits.logsumexp(1) + logits.T.logsumexp(1)) / 2 - positive
        return _mean(losses, mask)


def _sigmoid_loss(
    left: Tensor,
    right: Tensor,
    mask: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor,
    excluded: Tensor | None,
) -> Tensor:
    with torch.autocast(left.device.type, enabled=False):
        logits = logit_scale.float() * (left @ right.T) + logit_bias.float()  # (n, n)
        sign = 2 * torch.eye(len(left), device=left.device) - 1
        losses = -F.logsigmoid(sign * logits)
        losses = losses.masked_fill(_excluded_pairs(mask, excluded), 0.0)
        return _mean(losses.sum(1), mask)
