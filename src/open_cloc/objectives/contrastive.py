"""Contrastive losses (METHOD 2, eq. 1 and 2), pure functions of features.

Shapes: B images of this rank, G images of the world, R regions per image (padded), n rows of this rank, D
shared embedding. Every function normalises its features, computes in float32 or wider whatever autocast says,
and returns a scalar that is zero and differentiable when no pair counts. With one process G is B; else the
text side and its mask are the world's, and `world` says where this rank's rows stand.

Small batches take the dense form, which never waits for the device; large ones the tiled form, whose memory
is linear. Both compute the same.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from open_cloc.errors import UserError
from open_cloc.objectives.pairs.dense import DensePairs, dense_pairs
from open_cloc.objectives.pairs.tiled import TiledPairs, tiled_pairs
from open_cloc.samples import ALONE, World

CONFLICT_THRESHOLD = 0.9  # METHOD 2

# Up to this many pairs, the dense form is as fast and its memory (about 5 floats a pair) small.
DENSE_PAIRS = 2**21

# The cosine of a text with itself is 1 up to rounding: filters above this may keep equal texts apart.
EQUAL_TEXTS = 0.999

Pairs = DensePairs | TiledPairs


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


def find_pairs(
    features: Tensor,
    text_features: Tensor,
    mask: Tensor | None = None,
    threshold: float | None = None,
    text_ids: Tensor | None = None,
    *,
    world: World = ALONE,
) -> Pairs:
    """The block of the pair matrix that this rank computes: its rows by the world's columns.

    Args:
        features: (B, ..., D).
        text_features: (G, ..., D).
        mask: (G, ...) True for the pairs that count; all by default.
        threshold: Conflict filter; None or above 1 keeps all pairs.
        text_ids: (G, ...) int64, equal where texts are.
        world: Where this rank's images stand among the world's.

    Raises:
        UserError: If shapes do not fit each other.
    """
    mask = _checked_mask(features, text_features, mask, world)
    if text_ids is not None and text_ids.shape != mask.shape:
        raise UserError(f"text ids must be {tuple(mask.shape)}; got {tuple(text_ids.shape)}")
    rows, texts = features.flatten(0, -2), text_features.flatten(0, -2)
    first = world.first * features.shape[1:-1].numel()
    if threshold is not None and threshold > 1:
        threshold = None
    with torch.autocast(rows.device.type, enabled=False):
        if len(rows) * len(texts) <= DENSE_PAIRS:
            return dense_pairs(rows, texts, mask.flatten(), first, threshold)
        copies_conflict = threshold is not None and threshold <= EQUAL_TEXTS
        ids = text_ids.flatten() if text_ids is not None and copies_conflict else None
        return tiled_pairs(rows, texts, mask.flatten(), first, threshold, ids)


def _checked_mask(features: Tensor, text_features: Tensor, mask: Tensor | None, world: World) -> Tensor:
    """The mask, or one that is True everywhere."""
    spare = len(text_features) - world.first - len(features)
    if features.shape[1:] != text_features.shape[1:] or spare < 0 or (world is ALONE and spare):
        raise UserError(
            f"features and text features must pair up; got {tuple(features.shape)} and "
            f"{tuple(text_features.shape)}"
        )
    if mask is None:
        mask = torch.ones(text_features.shape[:-1], dtype=torch.bool, device=features.device)
    if mask.shape != text_features.shape[:-1]:
        raise UserError(f"mask must be {tuple(text_features.shape[:-1])}; got {tuple(mask.shape)}")
    return mask


def softmax_loss(pairs: Pairs, logit_scale: Tensor, world: World = ALONE) -> Tensor:
    """Mean over the world's pairs of both directions' cross-entropy, a scalar.

    -log(exp(p) / (exp(p) + sum of exp(negatives))) = softplus(logsumexp(negatives) - p): nothing cancels when
    the loss is small.
    """
    with torch.autocast(pairs.left.device.type, enabled=False):
        scale = logit_scale.to(_work_dtype(pairs))
        cosines, rows, columns = pairs.logsumexps(scale)  # (n,), (n,), (columns,)
        positive = scale * cosines
        rest = len(pairs.mask) - pairs.first - len(positive)
        placed = F.pad(positive, (pairs.first, rest))  # the world's positives, but for other ranks'
        # One sum over ranks for both: each column's exponentials, and the positives of all.
        top = world.max(columns.detach())
        both = world.sum(torch.cat([(columns - top).exp(), placed]))
        columns = top + both[: len(columns)].log()
        positives = both[len(top) :]
        to_region = _softplus(columns[pairs.text_index] - positives).masked_fill(~pairs.mask, 0.0).sum()
        to_text = _softplus(rows - positive).masked_fill(~pairs.row_mask, 0.0).sum()
        return (world.sum(to_text) + to_region) / 2 / pairs.mask.sum().clamp(min=1)


def sigmoid_loss(pairs: Pairs, logit_scale: Tensor, logit_bias: Tensor, world: World = ALONE) -> Tensor:
    """Mean over the world's pairs of the binary losses against all texts, a scalar."""
    with torch.autocast(pairs.left.device.type, enabled=False):
        scale, bias = (x.to(_work_dtype(pairs)) for x in (logit_scale, logit_bias))
        cosines, negatives = pairs.softplus_sums(scale, bias)  # (n,), (n,)
        losses = negatives - F.logsigmoid(scale * cosines + bias)
        return world.sum(losses.masked_fill(~pairs.row_mask, 0.0).sum()) / pairs.mask.sum().clamp(min=1)


@torch.no_grad()
def filtered_share(pairs: Pairs, world: World = ALONE) -> Tensor:
    """Share of the pairs of different real regions that the conflict filter leaves out; a scalar."""
    count = pairs.mask.sum()
    return world.sum(pairs.num_filtered.float()) / (count * (count - 1)).clamp(min=1)


def _softplus(x: Tensor) -> Tensor:
    return F.softplus(x, threshold=40)  # the default, 20, would cost float64 its digits


def _work_dtype(pairs: Pairs) -> torch.dtype:
    return torch.promote_types(pairs.left.dtype, torch.float32)
