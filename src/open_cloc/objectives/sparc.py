"""Sparse fine-grained alignment of caption tokens and patches inside each image (SPARC, Bica et al. 2024).

The control for "are boxes worth it": it localises from captions alone. Each caption token gathers the few
patches that it resembles most into an embedding of its own, and finds itself again among the other tokens of
its caption. Nothing crosses images, so there is nothing to gather.

Shapes: B images of this rank, N image tokens, T caption tokens, D shared embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from open_cloc.samples import ALONE, Features, World

NOTHING = -1e30  # the logit of a token that is not there; finite, so that no gradient is inf - inf


class Sparc(nn.Module):
    """SPARC's fine-grained term; `image_text` beside it, with half the weight, is its global one."""

    gathered = frozenset({"caption_mask"})
    needs = gathered | {"image_tokens", "image_token_mask", "text_tokens", "text_token_mask", "logit_scale"}

    def __init__(self) -> None:
        super().__init__()

    def forward(self, features: Features) -> Tensor:
        """Tokens of images and of their captions -> a scalar."""
        images, image_mask, texts, text_mask, scale, captions = features.take(
            "image_tokens",
            "image_token_mask",
            "text_tokens",
            "text_token_mask",
            "logit_scale",
            "caption_mask",
        )
        num_captions = captions.sum().clamp(min=1)
        losses = sparse_alignment_losses(images, texts, scale, image_mask=image_mask, text_mask=text_mask)
        return mean_over_captions(losses, features.own("caption_mask"), num_captions, features.world)


def mean_over_captions(
    losses: Tensor, caption_mask: Tensor, num_captions: Tensor, world: World = ALONE
) -> Tensor:
    """Losses of this rank's images (B,) -> their mean over the world's images with captions."""
    return world.sum(losses.masked_fill(~caption_mask, 0.0).sum()) / num_captions


def sparse_alignment_losses(
    image_tokens: Tensor,
    text_tokens: Tensor,
    logit_scale: Tensor,
    *,
    image_mask: Tensor,
    text_mask: Tensor,
) -> Tensor:
    """Both directions' cross-entropy between caption tokens and the patches that each gathers.

    Args:
        image_tokens: (B, N, D).
        text_tokens: (B, T, D).
        logit_scale: Scalar or (1,), multiplies cosine similarities.
        image_mask: (B, N) True for tokens that see the picture.
        text_mask: (B, T) True for real tokens of the caption.

    Returns:
        (B,), each image's mean over its own tokens; zero where it has none.
    """
    with torch.autocast(image_tokens.device.type, enabled=False):
        dtype = torch.promote_types(image_tokens.dtype, torch.float32)
        patches, tokens = (F.normalize(x.to(dtype), dim=-1) for x in (image_tokens, text_tokens))
        gathered = F.normalize(gather_patches(tokens, patches, image_mask), dim=-1)  # (B, T, D)
        logits = logit_scale.to(dtype) * gathered @ tokens.transpose(1, 2)  # (B, T, T)
        positives = logits.diagonal(dim1=1, dim2=2)  # (B, T)
        real = text_mask[:, :, None] & text_mask[:, None]
        logits = logits.masked_fill(~real, NOTHING)
        losses = (logits.logsumexp(2) + logits.logsumexp(1)) / 2 - positives  # (B, T)
        count = text_mask.sum(1).clamp(min=1)
        return losses.masked_fill(~text_mask, 0.0).sum(1) / count


def gather_patches(tokens: Tensor, patches: Tensor, mask: Tensor) -> Tensor:
    """Each caption token's mean of the patches that it resembles: (B, T, D), not normalised.

    Similarities are stretched to [0, 1] for each token, those below 1 / N are left out, the rest are weights.

    Args:
        tokens: (B, T, D) of unit length.
        patches: (B, N, D) of unit length.
        mask: (B, N) True for patches that count.
    """
    similarity = tokens @ patches.transpose(1, 2)  # (B, T, N)
    hidden = ~mask[:, None]
    low = similarity.masked_fill(hidden, torch.inf).amin(-1, keepdim=True)
    high = similarity.masked_fill(hidden, -torch.inf).amax(-1, keepdim=True)
    stretched = (similarity - low) / (high - low).clamp(min=1e-6)
    threshold = 1 / mask.sum(1).clamp(min=1)[:, None, None]
    weights = stretched.masked_fill(hidden | (stretched < threshold), 0.0)
    return (weights / weights.sum(-1, keepdim=True).clamp(min=1e-6)) @ patches
