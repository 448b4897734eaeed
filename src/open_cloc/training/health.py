"""Signs of how a run is, from what a step has computed anyway: see `docs/guides/train.md`.

All of them are of this rank's part of the batch, without a gradient and without a wait for the device.

Shapes: B images, R regions per image, n real regions of the batch, D shared embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from open_cloc.objectives import Term
from open_cloc.samples import Features


def separable(features: Features) -> Features:
    """The same features, behind which a term's gradient can be asked for alone.

    Whoever made them, a sharded model with hooks of its own, is not reached by that.
    """
    copies = {
        path: tensor.view_as(tensor) for path, tensor in features.tensors().items() if tensor.requires_grad
    }
    return features.put(copies)


def health_of(features: Features, losses: Mapping[str, Tensor], terms: Sequence[Term]) -> dict[str, Tensor]:
    """Scalars by name.

    Args:
        features: Of a step, `separable`, as the losses were made of them.
        losses: Of the step, by the names of their terms.
        terms: The run's.
    """
    with torch.no_grad():
        found = _of_images(features) | _of_regions(features) | _of_places(features)
    return found | _gradients(features, losses, terms)


def _of_images(features: Features) -> dict[str, Tensor]:
    if features.image_features is None or features.text_features is None or features.caption_mask is None:
        return {}
    images = F.normalize(features.own("image_features").float(), dim=-1)  # (B, D)
    texts = F.normalize(features.own("text_features").float(), dim=-1)
    mask = features.own("caption_mask")
    return {
        "image_cosine": _mean_cosine(images, torch.ones_like(mask)),
        "image_modality_gap": _gap(images, texts, mask),
    }


def _of_regions(features: Features) -> dict[str, Tensor]:
    if features.region_features is None or features.region_text_features is None:
        return {}
    mask = features.own("region_mask")  # (B, R)
    if not mask.shape[1]:
        return {}
    regions = F.normalize(features.own("region_features").float(), dim=-1)
    texts = F.normalize(features.own("region_text_features").float(), dim=-1)
    flat = mask.flatten()
    found = {
        "region_cosine": _mean_cosine(regions.flatten(0, 1), flat),
        "region_modality_gap": _gap(regions.flatten(0, 1), texts.flatten(0, 1), flat),
    }
    if features.region_text_ids is not None:
        found |= _of_prompts(regions, texts, mask, features.own("region_text_ids"))
    return found


def _of_places(features: Features) -> dict[str, Tensor]:
    """Of places that crops are of: near 1, the Prompter says the same everywhere."""
    found = {}
    for name, view in features.views.items():
        if view.place_features is not None:
            places = F.normalize(view.place_features.float(), dim=-1).flatten(0, 1)
            found[f"{name}_place_cosine"] = _mean_cosine(places, places.new_ones(len(places)))
    return found


def _of_prompts(regions: Tensor, texts: Tensor, mask: Tensor, ids: Tensor) -> dict[str, Tensor]:
    """How often a region finds its text among the batch's, with its own box and with its neighbour's.

    Args:
        regions: (B, R, D) of unit length.
        texts: (B, R, D) of unit length.
        mask: (B, R) True for real regions.
        ids: (B, R) equal where texts are.
    """
    flat, names = mask.flatten(), ids.flatten()
    same = names[:, None] == names  # (B R, B R)
    scores = (regions.flatten(0, 1) @ texts.flatten(0, 1).T).masked_fill(~flat, -torch.inf)
    best = scores.argmax(1)
    place = torch.arange(mask.shape[1], device=mask.device)
    # The next real region of its image; images with one have no neighbour.
    order = (place[None] - place[:, None] - 1) % mask.shape[1]  # (R, R) steps from one to the other
    steps = order.masked_fill(~mask[:, None, :], mask.shape[1])  # (B, R, R)
    neighbour = steps.argmin(2)  # (B, R)
    rows = torch.arange(len(mask), device=mask.device)[:, None] * mask.shape[1] + neighbour
    counts = flat & (names != names[rows.flatten()])
    total = counts.sum().clamp(min=1)
    own = (same[torch.arange(len(names), device=names.device), best] & counts).sum() / total
    others = (
        same[torch.arange(len(names), device=names.device), best[rows.flatten()]] & counts
    ).sum() / total
    repeated = ((same & flat).sum(1) > 1) & flat
    return {
        "region_acc": own,
        "prompt_gain": own - others,
        "repeated_text_share": repeated.sum() / flat.sum().clamp(min=1),
    }


def _mean_cosine(features: Tensor, mask: Tensor) -> Tensor:
    """Of pairs of different real rows (n, D) of unit length; 1 where all are the same."""
    real = features * mask[:, None]
    count = mask.sum()
    return (real.sum(0).square().sum() - count) / (count * (count - 1)).clamp(min=1)


def _gap(features: Tensor, texts: Tensor, mask: Tensor) -> Tensor:
    """Distance of the mean row and the mean text."""
    apart = (features - texts) * mask[:, None]
    return (apart.sum(0) / mask.sum()).norm()  # not finite, and not logged, where there is none


def _gradients(features: Features, losses: Mapping[str, Tensor], terms: Sequence[Term]) -> dict[str, Tensor]:
    """How hard each weighted term pulls at the features."""
    reached = [tensor for tensor in features.tensors().values() if tensor.requires_grad]
    found = {}
    for term in terms:
        loss = losses[term.label]
        if not loss.requires_grad or not reached:
            continue
        pulls = torch.autograd.grad(term.weight * loss, reached, retain_graph=True, allow_unused=True)
        norms = [pull.float().norm() for pull in pulls if pull is not None]
        found[f"pull_{term.label}"] = torch.stack(norms).norm() if norms else loss.detach() * 0
    return found
